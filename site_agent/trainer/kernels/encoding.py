"""Whether a site's deltas are coded on its GPU, and how: only if it gives the bytes that the codecs give.

A delta's digest is what auditors compare, so no GPU may change a byte of it. Before a job trains, ``why_not`` codes
a tensor of awkward numbers on the GPU and by the codecs and compares digests; whatever goes wrong is a reason to
leave the coding to the codecs, and never to fail. A piece that has a NaN or infinity is left to them too: they
have the words for it.
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from consortium.codecs.formats import BLOCK, PEAK
from consortium.codecs.kernels import KERNELS, WISH
from consortium.codecs.names import EncodingName
from consortium.deltas import Coded
from consortium.tensors import F32Array
from site_agent.trainer.kernels.reference import BlockCoded

#: Elements on the GPU at a time: 55 MB there, enough that starting a kernel takes nothing beside it.
PIECE = 1 << 22

_SAMPLE = 40_011  # a last block that is short, more than one program


class GpuEncoder:
    """Codes pieces of weights that lie on a GPU; what crosses the bus is base, residual, codes and scales.

    weights  float32, by their names in the base
    device   where they lie; a CPU is for triton's interpreter
    piece    elements of the longest piece, a multiple of 4096
    """

    def __init__(
        self, weights: Mapping[str, Tensor], encoding: BlockCoded, device: torch.device, piece: int = PIECE
    ) -> None:
        self._weights, self._encoding, self._device = weights, encoding, device
        self._is_well = True
        bytes_codes = piece if encoding == "int8" else piece // 2
        self._after, self._before, self._residual = (
            torch.empty(piece, dtype=torch.float32, device=device) for _ in range(3)
        )
        self._codes = torch.empty(bytes_codes, dtype=torch.uint8, device=device)
        self._scales = torch.empty(piece // BLOCK, dtype=torch.float32, device=device)
        # page-locked, for which the copies need no help of the CPU
        is_gpu = device.type == "cuda"
        before, residual, rest = (
            torch.empty(piece, dtype=torch.float32, pin_memory=is_gpu).numpy() for _ in range(3)
        )
        self.before_N: F32Array = before
        self.residual_N: F32Array = residual
        self._rest_N: F32Array = rest
        self._codes_out = torch.empty(bytes_codes, dtype=torch.uint8, pin_memory=is_gpu)

    @torch.no_grad()
    def encode(
        self, name: str, start: int, size: int, unmoved_N: npt.NDArray[np.bool_] | None
    ) -> Coded | None:
        """See ``consortium.deltas.Encoder``."""
        if not self._is_well:
            return None
        try:
            return self._encode(name, start, size, unmoved_N)
        except (
            Exception
        ) as error:  # whatever it is, the weights are trained, and the codecs give the same bytes
            print(f"tensor {name!r} and the rest are coded on the CPU: {_said(error)}", file=sys.stderr)
            self._is_well = False
            return None

    def _encode(
        self, name: str, start: int, size: int, unmoved_N: npt.NDArray[np.bool_] | None
    ) -> Coded | None:
        from site_agent.trainer.kernels import blocks

        num_blocks = -(-size // BLOCK)
        padded, num_codes = num_blocks * BLOCK, size if self._encoding == "int8" else -(-size // 2)
        after, before, residual = (buffer[:padded] for buffer in (self._after, self._before, self._residual))
        piece = self._weights[name].detach().view(-1)[start : start + size]
        before[:size].copy_(torch.from_numpy(self.before_N[:size]), non_blocking=True)
        residual[:size].copy_(torch.from_numpy(self.residual_N[:size]), non_blocking=True)
        if unmoved_N is not None:
            torch.where(torch.from_numpy(unmoved_N).to(self._device), before[:size], piece, out=after[:size])
        elif size < padded:
            after[:size].copy_(piece)
        else:
            after = piece
        for buffer in (after, before, residual):
            buffer[size:].zero_()
        codes, scales = self._codes[: padded if self._encoding == "int8" else padded // 2], self._scales
        blocks.encode(after, before, residual, self._encoding, codes, scales[:num_blocks])
        scales_B = scales[:num_blocks].cpu().numpy()  # waits for the kernel
        if not np.isfinite(scales_B).all():
            return None
        said, rest_N = self._codes_out[:num_codes], self._rest_N[:size]
        said.copy_(codes[:num_codes])
        torch.from_numpy(rest_N).copy_(residual[:size])
        return Coded(said.numpy(), scales_B, rest_N)


def gpu_encoder(
    encoding: EncodingName, weights: Mapping[str, Tensor], device: torch.device
) -> GpuEncoder | None:
    """What codes the delta of ``weights``; None, and why on stderr, if that is left to the codecs."""
    if encoding not in ("int8", "int4") or device.type != "cuda":
        return None  # there is no kernel, or nothing to run it on
    encoder, reason = None, why_not(encoding, weights, device)
    if reason is None:
        try:
            encoder = GpuEncoder(weights, encoding, device)
        except RuntimeError as error:  # no memory for its pieces
            reason = _said(error)
    where = "CPU" if reason else "GPU"
    print(
        f"{encoding} deltas are coded on the {where}: {reason or 'a sample had the bytes of the codecs'}",
        file=sys.stderr,
    )
    return encoder


def why_not(encoding: BlockCoded, weights: Mapping[str, Tensor], device: torch.device) -> str | None:
    """Why the delta of ``weights`` on ``device``, a GPU, is not to be coded there; None: it may."""
    if WISH != "auto":
        return f"SPRACHBUND_KERNELS={WISH}"
    if os.environ.get("TRITON_INTERPRET"):
        return "TRITON_INTERPRET is set"
    others = {str(weight.dtype) for weight in weights.values()} - {"torch.float32"}
    if others:
        return f"weights are {', '.join(sorted(others))}"
    try:
        return difference(encoding, device)
    except Exception as error:  # no triton, no compiler, a GPU it does not know: the codecs need none of it
        return _said(error)


def difference(encoding: BlockCoded, device: torch.device) -> str | None:
    """How the bytes made on ``device`` differ from the codecs'; None: not at all."""
    after_N, before_N, residual_N = sample(encoding)
    encoder = GpuEncoder(
        {"sample": torch.from_numpy(after_N).to(device)}, encoding, device, -(-_SAMPLE // 4096) * 4096
    )
    encoder.before_N[:_SAMPLE], encoder.residual_N[:_SAMPLE] = before_N, residual_N
    coded = encoder.encode("sample", 0, _SAMPLE, None)
    codes = np.empty(_SAMPLE if encoding == "int8" else -(-_SAMPLE // 2), np.uint8)
    scales_B = np.empty(-(-_SAMPLE // BLOCK), np.float32)
    if encoding == "int8":
        bad = KERNELS.encode_int8(after_N, before_N, residual_N, codes.view(np.int8), scales_B)
    else:
        bad = KERNELS.encode_int4(after_N, before_N, residual_N, codes, scales_B)
    assert bad < 0, bad
    theirs = Coded(codes, scales_B, residual_N)
    if coded is None:
        return "it could not code a sample"
    both: Iterator[tuple[str, Any, Any]] = zip(Coded._fields, coded, theirs, strict=True)
    for what, one, other in both:
        if _digest(one) != _digest(other):
            at = int(np.argmax(one.view(np.uint8) != other.view(np.uint8)))
            return f"{what} of a sample are {_digest(one)[:12]}, the codecs' {_digest(other)[:12]}, from byte {at} on"
    encoder.before_N[_SAMPLE // 2] = np.inf
    if encoder.encode("sample", 0, _SAMPLE, None) is not None:
        return "it did not see an infinity"
    return None


def sample(encoding: BlockCoded) -> tuple[F32Array, F32Array, F32Array]:
    """After, before and residual in whose coding a careless GPU would differ, (40011,) each.

    Blocks of ordinary changes, of zeros of both signs, of subnormals (which some GPUs make zero, and whose scale is
    rounded so far that codes have to be clamped), of ties (which round to even), of the largest floats (whose scale
    may be capped), and of one element far above the others.
    """
    peak = PEAK[encoding]
    dice = np.random.Generator(np.random.Philox(8))
    after_N, before_N, residual_N = dice.standard_normal((3, _SAMPLE), np.float32)
    after_N *= np.float32(0.01)
    after_N += before_N
    residual_N *= np.float32(1e-4)
    kinds_N = np.arange(_SAMPLE) // BLOCK % 8
    noise_N = dice.standard_normal(_SAMPLE, np.float32)
    ties_N = (dice.integers(-2 * peak, 2 * peak, _SAMPLE, endpoint=True) / 2).astype(np.float32)
    odd: dict[int, F32Array] = {
        2: np.copysign(np.float32(0), noise_N),
        3: noise_N * np.float32(2e-43),
        4: ties_N,
        5: np.clip(noise_N, -1, 1) * np.finfo(np.float32).max,
        6: np.where(np.arange(_SAMPLE) % BLOCK == 77, np.float32(1e6), noise_N * np.float32(1e-6)),
        7: noise_N * np.float32(2e-38),
    }
    for kind, values_N in odd.items():
        chosen_N = kinds_N == kind
        after_N[chosen_N], before_N[chosen_N], residual_N[chosen_N] = values_N[chosen_N], 0, -0.0
    return after_N, before_N, residual_N


def _digest(array: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
