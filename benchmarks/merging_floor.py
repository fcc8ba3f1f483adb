"""How fast a merge could be if it computed nothing: it reads what a merge reads and writes what it writes.

    python benchmarks/merging_floor.py OUT_DIR INPUT.safetensors ... --write BYTES ... [--reads 2]

Two threads, spans and chunks as in the engine; reads into buffers that are used again; files that are new,
hashed piece by piece, made durable and then named. All of it in the fastest way that we know.
"""

import argparse
import ctypes
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from blake3 import blake3  # as the engine makes its checksums

from consortium.tensors import read_header

THREADS = 2
FILES = 2  #: that an output is spread over: two threads in one file wait for each other
SPAN_BYTES = 2 << 20  #: of the first input in one span: about a million bf16 elements
CHUNKS = 16  #: steps of one span
_PAGE = 4096
_SYNC_FILE_RANGE_WRITE = 2


class Stream:
    """``size`` bytes in ``steps`` equal spans, the last shorter."""

    def __init__(self, size: int, steps: int) -> None:
        self.size = size
        self.span = -(-size // (steps * _PAGE)) * _PAGE

    def chunks(self, step: int) -> Iterator[tuple[int, int]]:
        """``(begin, bytes)`` of the chunks of one span."""
        begin, end = step * self.span, min((step + 1) * self.span, self.size)
        width = -(-self.span // CHUNKS)
        return ((start, min(width, end - start)) for start in range(begin, end, width))


class Input(Stream):
    """All tensors of a safetensors file."""

    def __init__(self, path: Path, steps: int) -> None:
        tensors = read_header(path).tensors.values()
        super().__init__(sum(info.num_bytes for info in tensors), steps)
        self._first = min(info.offset for info in tensors)
        self._file = os.open(path, os.O_RDONLY)

    def read(self, begin: int, out: memoryview) -> None:
        done = 0
        while done < len(out):
            done += os.preadv(self._file, [out[done:]], self._first + begin + done)


class Output(Stream):
    """Files that take their spans in turn, under temporary names until ``finish``."""

    def __init__(self, paths: list[Path], size: int, steps: int) -> None:
        super().__init__(size, steps)
        self._paths = paths
        self._files = [os.open(_temporary(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644) for path in paths]
        for k, file in enumerate(self._files):
            spans = (min(self.span, size - begin) for begin in range(k * self.span, size, FILES * self.span))
            os.ftruncate(file, sum(spans))
        self.digests: dict[int, str] = {}

    def write(self, step: int, begin: int, data: memoryview) -> None:
        offset = step // FILES * self.span + begin - step * self.span
        assert os.pwrite(self._files[step % FILES], data, offset) == len(data)

    def end_span(self, step: int, hasher: blake3) -> None:
        self.digests[step] = hasher.hexdigest()
        _begin_writeback(self._files[step % FILES], step // FILES * self.span, self.span)

    def finish(self) -> None:
        for file, path in zip(self._files, self._paths, strict=True):
            os.fsync(file)
            os.close(file)
            os.rename(_temporary(path), path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _find_sync_file_range() -> Callable[[int, int, int], object]:
    """Linux's way to say that bytes may go to the disk now; without it they all go at the fsync."""
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is None:
        return lambda file, offset, size: None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return lambda file, offset, size: function(file, offset, size, _SYNC_FILE_RANGE_WRITE)


_begin_writeback = _find_sync_file_range()


def floor(inputs: list[Path], out_dir: Path, sizes: list[int], reads: int) -> None:
    """Read the inputs ``reads`` times; the last time, write outputs of ``sizes`` bytes and hash them."""
    steps = -(-inputs[0].stat().st_size // SPAN_BYTES)
    sources = [Input(path, steps) for path in inputs]
    out_dir.mkdir()
    outputs = []
    for i, size in enumerate(sizes):
        paths = [out_dir / f"{i}-{k}.safetensors" for k in range(FILES)]
        outputs.append(Output(paths, size, steps))
    with ThreadPoolExecutor(THREADS) as pool:
        for reading in range(reads):
            _run(pool, steps, sources, outputs if reading == reads - 1 else [])
        list(pool.map(Output.finish, outputs))


def _run(pool: ThreadPoolExecutor, steps: int, sources: list[Input], outputs: list[Output]) -> None:
    todo, lock = iter(range(steps)), threading.Lock()
    longest = max(stream.span for stream in (*sources, *outputs)) // CHUNKS + _PAGE

    def work() -> None:
        buffers = [np.zeros(longest, np.uint8).data for _ in sources]
        while True:
            with lock:
                step = next(todo, None)
            if step is None:
                return
            hashers = [blake3() for _ in outputs]
            reading = itertools.zip_longest(*(source.chunks(step) for source in sources))
            writing = itertools.zip_longest(*(output.chunks(step) for output in outputs))
            for chunks_in, chunks_out in itertools.zip_longest(reading, writing, fillvalue=()):
                for source, buffer, chunk in zip(sources, buffers, chunks_in, strict=False):
                    if chunk:
                        source.read(chunk[0], buffer[: chunk[1]])
                for output, hasher, chunk in zip(outputs, hashers, chunks_out, strict=False):
                    if chunk:
                        hasher.update(buffers[0][: chunk[1]])
                        output.write(step, chunk[0], buffers[0][: chunk[1]])
            for output, hasher in zip(outputs, hashers, strict=True):
                output.end_span(step, hasher)

    for future in [pool.submit(work) for _ in range(THREADS)]:
        future.result()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("inputs", type=Path, nargs="+")
    parser.add_argument("--write", type=int, nargs="+", required=True)
    parser.add_argument("--reads", type=int, default=1)
    options = parser.parse_args()
    floor(options.inputs, options.out_dir, options.write, options.reads)


if __name__ == "__main__":
    main()
