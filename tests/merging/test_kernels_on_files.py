"""Kernels that read files themselves give what reading first and computing then gives; what is odd they leave alone."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from consortium.merging import kernels
from consortium.merging.kernels import NOTHING, Boundary, Row, Thinning, portable

if kernels.CHOSEN != "native":
    pytest.skip(kernels.WHY, allow_module_level=True)

from consortium.merging.kernels import native
from consortium.merging.kernels.native import FileRow

N = 2 * (1 << 15) + 777  # more than two pieces, and a short tile
FACTORS = [portable.UNITS * factor for factor in (0.5, -1.0, 0.3, 1.0)]
SCALE = 2.0**-36 / 3


class Files:
    """Four rows and a base, one after the other in one file, at odd places."""

    def __init__(self, path: Path) -> None:
        rng = np.random.default_rng(3)
        wide = rng.standard_normal((5, N)).astype(np.float32)
        self.rows = [Row(values, k in (0, 2)) for k, values in enumerate(map(stored, wide[:4], (1, 0, 0, 1)))]
        self.base_N = wide[4]
        places, data = [], b"header"
        for values in (*(row.values_N for row in self.rows), self.base_N):
            data += b"." * (-len(data) % values.itemsize)
            places.append(len(data))
            data += values.tobytes()
        path.write_bytes(data)
        self.path, self.file = path, os.open(path, os.O_RDONLY)
        self.places = [
            FileRow(self.file, at, row.values_N.dtype == np.uint16, row.is_relative)
            for at, row in zip(places, self.rows, strict=False)
        ]
        self.base = FileRow(self.file, places[-1], False, False)

    def overwrite(self, at: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(at)
            file.write(data)


def stored(values_N: np.ndarray, as_bf16: int) -> np.ndarray:
    return (values_N.view(np.uint32) >> 16).astype(np.uint16) if as_bf16 else values_N


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    made = Files(tmp_path / "rows")
    yield made
    os.close(made.file)


@pytest.mark.parametrize("size", [1, 511, 1 << 15, N])
@pytest.mark.parametrize("onto_base", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_sums(files: Files, size: int, onto_base: bool, dtype: type[np.generic]) -> None:
    out_N, wanted_N = np.zeros(size, dtype), np.zeros(size, np.float32)
    base_N = files.base_N[:size]
    rows = [Row(row.values_N[:size], row.is_relative) for row in files.rows]
    peaks = portable.sum_rows_onto(rows, base_N, FACTORS, SCALE, base_N if onto_base else None, wanted_N)
    assert native.sum_files_onto(files.places, files.base, FACTORS, SCALE, onto_base, out_N) == peaks
    if dtype is np.uint16:
        encoded_N = np.zeros(size, np.uint16)
        portable.encode_bf16(wanted_N, encoded_N)
        wanted_N = encoded_N
    assert out_N.tobytes() == wanted_N.tobytes()


@pytest.mark.parametrize("size", [1, 511, 1 << 15, N])
def test_rows(files: Files, size: int) -> None:
    out_KN, base_N = np.zeros((4, size), np.float32), np.zeros(size, np.float32)
    assert native.read_rows(files.places, files.base, out_KN, base_N)
    assert base_N.tobytes() == files.base_N[:size].tobytes()
    for row, out_N in zip(files.rows, out_KN, strict=True):
        wanted_N = row.values_N[:size]
        if wanted_N.dtype == np.uint16:
            wanted_N = (wanted_N.astype(np.uint32) << np.uint32(16)).view(np.float32)
        assert out_N.tobytes() == (wanted_N - base_N if row.is_relative else wanted_N).tobytes()


def test_a_file_that_ends_too_soon_is_no_crash(files: Files) -> None:
    os.truncate(files.path, files.base.offset + 4 * N - 1)
    out_N = np.zeros(N, np.float32)
    assert native.sum_files_onto(files.places, files.base, FACTORS, SCALE, True, out_N) is None
    assert not native.read_rows(files.places, files.base, np.zeros((4, N), np.float32), out_N)
    closed = [place._replace(file=10_000, is_relative=False) for place in files.places]
    assert native.sum_files_onto(closed, None, FACTORS, SCALE, False, out_N) is None


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0])
def test_what_is_not_finite_is_told(files: Files, bits: int) -> None:
    out_N, rows_KN = np.zeros(N, np.float32), np.zeros((4, N), np.float32)
    at = files.places[3].offset + 2 * (N - 1)
    files.overwrite(at, bits.to_bytes(2, "little"))
    peaks = native.sum_files_onto(files.places, files.base, FACTORS, SCALE, True, out_N)
    assert peaks is not None and not peaks[3] < float("inf")
    assert not native.read_rows(files.places, files.base, rows_KN, out_N)
    files.overwrite(files.base.offset, (bits << 16).to_bytes(4, "little"))
    assert native.sum_files_onto(files.places, files.base, FACTORS, SCALE, True, out_N) is None


THIN = [
    Thinning(window=(Boundary(0x3F000000, 1 << 62), NOTHING)),
    Thinning(window=(Boundary(0x3E800000, 4 + 40_000), Boundary(0x3FC00000, -1))),
    Thinning(draw=(0x9E3779B97F4A7C15, 0.3)),
    Thinning(),
]


@pytest.mark.parametrize("size", [1, 511, 1 << 14, N])
@pytest.mark.parametrize("elects", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_whole_merges(files: Files, size: int, elects: bool, dtype: type[np.generic]) -> None:
    start = 4  # of the tensor: rows begin there
    rows_KN, base_N = np.zeros((4, size), np.float32), np.zeros(size, np.float32)
    assert native.read_rows(files.places, files.base, rows_KN, base_N)
    for row_N, thinning in zip(rows_KN, THIN, strict=True):
        if thinning.window:
            portable.keep_window(row_N, start, *thinning.window)
        elif thinning.draw:
            portable.keep_random(row_N, start, *thinning.draw)
    merged_N, wanted_N, peak = np.zeros(size), np.zeros(size, np.float32), float(np.abs(rows_KN).max())
    weights_K = np.array([0.5, 1.0, 0.25, 0.75])
    if elects:
        portable.elect(rows_KN, weights_K / 2, weights_K, merged_N, True)
    else:
        portable.median(rows_KN, merged_N)
    portable.apply_step(base_N, merged_N, 0.7, wanted_N)
    if dtype is np.uint16:
        encoded_N = np.zeros(size, np.uint16)
        portable.encode_bf16(wanted_N, encoded_N)
        wanted_N = encoded_N

    out_N = np.zeros(size, dtype)
    election = (weights_K / 2, weights_K, True) if elects else None
    found = native.merge_files_onto(files.places, files.base, THIN, start, election, 0.7, True, out_N)

    assert out_N.tobytes() == wanted_N.tobytes()
    assert found == peak


Alike = Callable[[int], tuple[np.ndarray, np.ndarray, list[FileRow], FileRow]]


@pytest.fixture
def open_file() -> Iterator[Callable[[Path], int]]:
    with contextlib.ExitStack() as stack:

        def opened(path: Path) -> int:
            file = os.open(path, os.O_RDONLY)
            stack.callback(os.close, file)
            return file

        yield opened


@pytest.fixture
def alike(tmp_path: Path, open_file: Callable[[Path], int]) -> Alike:
    """Rows of one kind, bfloat16 relative to a base, as most merges have them; as float32, and in their file."""

    def made(num_rows: int) -> tuple[np.ndarray, np.ndarray, list[FileRow], FileRow]:
        wide_KN = np.random.default_rng(num_rows).standard_normal((num_rows + 1, N)).astype(np.float32)
        stored_KN = (wide_KN.view(np.uint32) >> 16).astype(np.uint16)
        (tmp_path / "rows").write_bytes(stored_KN.tobytes())
        file = open_file(tmp_path / "rows")
        *places, base = [FileRow(file, 2 * N * k, True, k < num_rows) for k in range(num_rows + 1)]
        read_KN = np.zeros((num_rows + 1, N), np.float32)
        for raw_N, out_N in zip(stored_KN, read_KN, strict=True):
            portable.decode_bf16(raw_N, out_N)
        return read_KN[:num_rows] - read_KN[-1], read_KN[-1], places, base

    return made


@pytest.mark.parametrize("num_rows", [1, 3, 4, 5, 8, 9])
def test_rows_of_one_kind(alike: Alike, num_rows: int) -> None:
    rows_KN, base_N, places, base = alike(num_rows)
    factors = [portable.UNITS / (k + 2) for k in range(num_rows)]
    wanted_N, merged_N, out_N = np.zeros(N, np.float32), np.zeros(N), np.zeros(N, np.float32)
    peaks = portable.sum_rows_onto(
        [Row(row_N, False) for row_N in rows_KN], None, factors, SCALE, base_N, wanted_N
    )
    assert native.sum_files_onto(places, base, factors, SCALE, True, out_N) == peaks
    assert out_N.tobytes() == wanted_N.tobytes()
    portable.median(rows_KN, merged_N)
    portable.apply_step(base_N, merged_N, 0.7, wanted_N)
    assert native.merge_files_onto(places, base, [Thinning()] * num_rows, 0, None, 0.7, True, out_N)
    assert out_N.tobytes() == wanted_N.tobytes()


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("has_before", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_sums_with_a_step(
    tmp_path: Path,
    alike: Alike,
    open_file: Callable[[Path], int],
    nesterov: bool,
    has_before: bool,
    dtype: type[np.generic],
) -> None:
    rows_KN, base_N, places, base = alike(4)
    before_N = np.random.default_rng(7).standard_normal(N).astype(np.float32)
    (tmp_path / "momentum").write_bytes(b"head" + before_N.tobytes())
    before = FileRow(open_file(tmp_path / "momentum"), 4, False, False) if has_before else None
    merged_N, wanted_N, kept_N = np.zeros(N), np.zeros(N, np.float32), np.zeros(N, np.float32)
    peaks = portable.sum_rows([Row(row_N, False) for row_N in rows_KN], None, FACTORS, merged_N)
    step = (0.7, 0.9, nesterov)
    portable.sgd_step(base_N, merged_N, SCALE, before_N if has_before else None, *step, wanted_N, kept_N)
    if dtype is np.uint16:
        encoded_N = np.zeros(N, np.uint16)
        portable.encode_bf16(wanted_N, encoded_N)
        wanted_N = encoded_N

    out_N, found_N = np.zeros(N, dtype), np.zeros(N, np.float32)
    moved = native.MomentumStep(before, *step, found_N)
    assert native.sum_files_onto(places, base, FACTORS, SCALE, True, out_N, moved) == peaks
    assert (out_N.tobytes(), found_N.tobytes()) == (wanted_N.tobytes(), kept_N.tobytes())
    if before is not None:
        os.truncate(tmp_path / "momentum", 4 * N)
        assert native.sum_files_onto(places, base, FACTORS, SCALE, True, out_N, moved) is None


def test_a_whole_merge_of_what_is_odd_is_none(files: Files) -> None:
    out_N = np.zeros(N, np.float32)
    files.overwrite(files.places[0].offset + 2 * (N - 1), (0x7F80).to_bytes(2, "little"))
    assert native.merge_files_onto(files.places, files.base, THIN, 0, None, 1.0, True, out_N) is None
    os.truncate(files.path, files.places[2].offset + 5)
    assert (
        native.merge_files_onto(files.places[2:3], files.base, THIN[:1], 0, None, 1.0, False, out_N) is None
    )
