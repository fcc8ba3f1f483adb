"""How blocks of a delta are coded on a GPU, in one visit: t, scale, codes and what is left of t.

    t = (after - before) + residual                 float32, each operation rounded once, nothing fused
    scale = min(max |t| / peak, scale_max)          of 128 elements; NaN if one of them is not finite
    code = rint(clamp(t / scale, -peak, peak))      0 where the scale is
    residual = t - code * scale

``reference.encode`` is the same in plain torch. Importing this imports triton, so only those import it who are
about to run it. It is written in what triton 3.6 and its interpreter know: no loops over runtime numbers,
integer magnitudes for the maximum (NaN is then the largest), ``div_rn`` for IEEE division, rounding by adding
1.5 * 2^23, and ``enable_fp_fusion=False`` at every launch, without which a multiplication and an addition become
one with one rounding.
"""

import triton
import triton.language as tl
from torch import Tensor

from consortium.codecs.formats import BLOCK, PEAK, scale_max
from site_agent.trainer.kernels.reference import BlockCoded

ROWS = 8  #: blocks of one program
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  #: of every launch

_BLOCK = tl.constexpr(BLOCK)
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)
_INFINITE = tl.constexpr(0x7F800000)
_ROUNDING = tl.constexpr(12582912.0)


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def encode_rows(  # type: ignore[no-untyped-def]
    after_ptr,
    before_ptr,
    residual_ptr,
    codes_ptr,
    scales_ptr,
    num_rows,
    PEAK: tl.constexpr,
    SCALE_MAX: tl.constexpr,
    IS_PACKED: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = rows < num_rows
    inside = is_row[:, None]  # of whole rows: a mask within a row would cost the wide loads
    at = rows[:, None] * _BLOCK + tl.arange(0, _BLOCK)[None, :]
    after = tl.load(after_ptr + at, mask=inside, other=0.0)
    before = tl.load(before_ptr + at, mask=inside, other=0.0)
    residual = tl.load(residual_ptr + at, mask=inside, other=0.0)
    t = (after - before) + residual

    top = tl.max(t.to(tl.int32, bitcast=True) & _MAGNITUDE, axis=1)
    largest = top.to(tl.float32, bitcast=True)
    scale = tl.minimum(tl.div_rn(largest, tl.full([ROWS], PEAK, tl.float32)), SCALE_MAX)
    divisor = tl.where(scale == 0.0, float("inf"), scale)[:, None] + tl.zeros([ROWS, _BLOCK], tl.float32)
    code = tl.minimum(tl.maximum(tl.div_rn(t, divisor), -PEAK), PEAK)
    code = (code + _ROUNDING) - _ROUNDING  # to an integer, ties to even; never -0
    rest = t - code * scale[:, None]

    tl.store(residual_ptr + at, rest, mask=inside)
    tl.store(scales_ptr + rows, tl.where(top >= _INFINITE, float("nan"), scale), mask=is_row)
    if IS_PACKED:
        low, high = tl.split(tl.reshape(code.to(tl.int32) & 15, [ROWS, _BLOCK // 2, 2]))
        half = rows[:, None] * (_BLOCK // 2) + tl.arange(0, _BLOCK // 2)[None, :]
        tl.store(codes_ptr + half, (low | (high << 4)).to(tl.uint8), mask=inside)
    else:
        tl.store(codes_ptr + at, code.to(tl.int8).to(tl.uint8, bitcast=True), mask=inside)


def constants(encoding: BlockCoded) -> dict[str, float | int | bool]:
    """What the kernel is compiled for."""
    peak = PEAK[encoding]
    return {
        "PEAK": float(peak),
        "SCALE_MAX": float(scale_max(peak)),
        "IS_PACKED": encoding == "int4",
        "ROWS": ROWS,
    }


def encode(
    after_N: Tensor,
    before_N: Tensor,
    residual_N: Tensor,
    encoding: BlockCoded,
    codes: Tensor,
    scales_B: Tensor,
) -> None:
    """Code whole blocks; ``residual_N`` becomes what is left.

    after_N, before_N, residual_N  float32, contiguous, of the same multiple of 128 elements, on one device
    codes                          uint8, (N,) or for int4 (N / 2,)
    scales_B                       float32, (N / 128,)
    """
    num_rows, rest = divmod(after_N.numel(), BLOCK)
    assert not rest and num_rows == scales_B.numel(), f"{after_N.numel()} elements are no whole blocks"
    if num_rows:
        encode_rows[(-(-num_rows // ROWS),)](
            after_N, before_N, residual_N, codes, scales_B, num_rows, **constants(encoding), **OPTIONS
        )  # fmt: skip
