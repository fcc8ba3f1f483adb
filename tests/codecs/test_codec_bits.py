"""C and NumPy give the same bytes, and the bytes are what the definition in formats.py says."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from consortium.codecs import portable
from consortium.codecs.formats import BLOCK, TOPK_CHUNK, kept_before, scale_max
from consortium.codecs.kernels import Codecs
from consortium.codecs.native import NativeCodecs

MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FLOAT_MAX = float(np.finfo(np.float32).max)
SIZES = st.one_of(
    st.integers(0, 700),
    st.sampled_from(
        [BLOCK - 1, BLOCK, BLOCK + 1, TOPK_CHUNK - 1, TOPK_CHUNK, TOPK_CHUNK + 1, 3 * TOPK_CHUNK + 129]
    ),
)
FLOATS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from(
        [0.0, -0.0, 1e-45, -1e-45, 1e-38, 63.5, 127.0, -127.0, 0.5, 1.5, 2.5, FLOAT_MAX, -FLOAT_MAX]
    ),
)


@st.composite
def triples(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """after, before, residual: mostly noise of some size, with odd values and ties strewn in."""
    size, scale = draw(SIZES), draw(st.sampled_from([0.0, 1e-44, 1e-30, 1e-3, 1.0, 1e30]))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    rows = (rng.standard_normal((3, size)) * scale).astype(np.float32)
    if draw(st.booleans()):
        rows = np.round(rows / max(scale, 1e-30), 1).astype(np.float32)  # ties
    for row in rows[: draw(st.integers(1, 3))]:
        count = draw(st.integers(0, min(size, 8)))
        row[rng.integers(0, size, count) if size else []] = draw(arrays(np.float32, count, elements=FLOATS))
    return rows[0], rows[1], rows[2]


@dataclass
class Coded:
    bad: int
    residual: np.ndarray
    pieces: tuple[np.ndarray, ...]


def encode(codecs: Codecs, kind: str, triple: tuple[np.ndarray, ...], kept: int = 0) -> Coded:
    after, before, residual = triple[0], triple[1], triple[2].copy()
    block = TOPK_CHUNK if kind == "topk" else BLOCK
    scales = np.empty(-(-after.size // block), np.float32)
    if kind == "int8":
        codes = np.empty(after.size, np.int8)
        return Coded(codecs.encode_int8(after, before, residual, codes, scales), residual, (codes, scales))
    if kind == "int4":
        packed = np.empty(-(-after.size // 2), np.uint8)
        return Coded(codecs.encode_int4(after, before, residual, packed, scales), residual, (packed, scales))
    codes = np.empty(kept_before(after.size, kept), np.int8)
    offsets = np.empty(codes.size, np.uint16)
    bad = codecs.encode_topk(after, before, residual, kept, codes, offsets, scales)
    return Coded(bad, residual, (codes, offsets, scales))


def decode(
    codecs: Codecs, kind: str, coded: Coded, start: int, size: int, kept: int = 0
) -> tuple[bool, np.ndarray]:
    out = np.full(size, 7, np.float32)
    if kind == "topk":
        codes, offsets, scales = coded.pieces
        ok = codecs.decode_topk(codes, offsets, scales, kept, coded.residual.size, start, out)
    elif kind == "int8":
        ok = codecs.decode_int8(coded.pieces[0][start : start + size], coded.pieces[1], start, out)
    else:
        packed = coded.pieces[0][start // 2 : -(-(start + size) // 2)]
        ok = codecs.decode_int4(packed, coded.pieces[1], start, out)
    return ok, out


@MANY
@given(triple=triples(), kind=st.sampled_from(["int8", "int4", "topk"]), kept=st.integers(1, TOPK_CHUNK))
def test_c_and_numpy_agree_to_the_last_bit(
    triple: tuple[np.ndarray, ...], kind: str, kept: int, native: NativeCodecs
) -> None:
    mine, theirs = encode(native, kind, triple, kept), encode(portable, kind, triple, kept)
    assert mine.bad == theirs.bad
    if mine.bad >= 0:
        return
    assert mine.residual.tobytes() == theirs.residual.tobytes()
    assert [piece.tobytes() for piece in mine.pieces] == [piece.tobytes() for piece in theirs.pieces]
    ok, decoded = decode(native, kind, mine, 0, mine.residual.size, kept)
    assert (ok, decoded.tobytes()) == (
        True,
        decode(portable, kind, mine, 0, mine.residual.size, kept)[1].tobytes(),
    )
    assert np.isfinite(decoded).all()


@MANY
@given(triple=triples(), kind=st.sampled_from(["int8", "int4"]))
def test_codes_are_the_nearest_and_what_they_do_not_say_stays(
    triple: tuple[np.ndarray, ...], kind: str, codecs: Codecs
) -> None:
    coded = encode(codecs, kind, triple)
    with np.errstate(over="ignore", invalid="ignore"):
        t = (triple[0] - triple[1]) + triple[2]
    finite = np.isfinite(t)
    assert coded.bad == (-1 if finite.all() else int(np.argmin(finite)))
    if coded.bad >= 0:
        return
    peak = 127 if kind == "int8" else 7
    ok, decoded = decode(codecs, kind, coded, 0, t.size)
    assert ok
    np.testing.assert_array_equal(coded.residual, t - decoded)
    for at, scale in zip(range(0, t.size, BLOCK), coded.pieces[1], strict=True):
        block = t[at : at + BLOCK]
        assert scale == min(np.abs(block).max() / np.float32(peak), scale_max(peak))
        for value, said in zip(block[:5], decoded[at : at + 5], strict=False):
            wanted = 0
            if scale > 0:  # round() of a Fraction takes ties to even
                wanted = round(min(max(Fraction(float(value / scale)), -peak), peak))
            assert said == np.float32(wanted) * scale


@MANY
@given(triple=triples(), kept=st.integers(1, TOPK_CHUNK))
def test_topk_keeps_the_largest_and_of_equals_the_first(
    triple: tuple[np.ndarray, ...], kept: int, codecs: Codecs
) -> None:
    coded = encode(codecs, "topk", triple, kept)
    if coded.bad >= 0:
        return
    t = (triple[0] - triple[1]) + triple[2]
    offsets, done = coded.pieces[1], 0
    for at in range(0, t.size, TOPK_CHUNK):
        chunk = np.abs(t[at : at + TOPK_CHUNK])
        count = -(-chunk.size * kept // TOPK_CHUNK)
        wanted = sorted(sorted(range(chunk.size), key=lambda index: (-chunk[index], index))[:count])
        assert offsets[done : done + count].tolist() == wanted
        done += count
    assert done == offsets.size
    ok, decoded = decode(codecs, "topk", coded, 0, t.size, kept)
    assert ok
    np.testing.assert_array_equal(coded.residual, t - decoded)


@MANY
@given(
    data=st.data(),
    triple=triples(),
    kind=st.sampled_from(["int8", "int4", "topk"]),
    kept=st.integers(1, 4096),
)
def test_any_stretch_decodes_alike(
    data: st.DataObject, triple: tuple[np.ndarray, ...], kind: str, kept: int, codecs: Codecs
) -> None:
    coded = encode(codecs, kind, triple, kept)
    size = coded.residual.size
    if coded.bad >= 0 or not size:
        return
    whole = decode(codecs, kind, coded, 0, size, kept)[1]
    start = data.draw(st.integers(0, min(size, BLOCK) - 1))  # readers begin within the first block
    stop = data.draw(st.integers(start, size))
    ok, part = decode(codecs, kind, coded, start, stop - start, kept)
    assert ok
    assert part.tobytes() == whole[start:stop].tobytes()


def test_sizes_are_those_of_the_definition() -> None:
    assert [kept_before(count, 64) for count in (0, 1, 64, 65, 4096, 4097, 8192)] == [0, 1, 1, 2, 64, 65, 128]
    for peak in (7, 127):
        with np.errstate(over="ignore"):
            assert np.isfinite(scale_max(peak) * np.float32(peak))
            assert np.isinf(np.nextafter(scale_max(peak), np.float32(np.inf)) * np.float32(peak))


@pytest.mark.parametrize("kind", ["int8", "int4", "topk"])
def test_a_difference_that_no_float_holds_is_found(kind: str, codecs: Codecs) -> None:
    rows = np.zeros((3, 5000), np.float32)
    rows[0, 4321], rows[1, 4321] = FLOAT_MAX, -FLOAT_MAX
    rows[0, 4500] = np.nan
    assert encode(codecs, kind, tuple(rows), 5).bad == 4321
