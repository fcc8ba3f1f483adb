"""How tensors get to disk: header first, then pieces in any order from any thread, then the name.

The bytes depend on names, shapes, dtypes and values alone: tensors lie sorted by name, the
header is canonical JSON. What comes out loads with ``safetensors`` and with ``transformers``.
"""

import contextlib
import json
import math
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from consortium import canonical
from consortium.files import (
    disk_errors,
    move_into_place,
    start_writeback,
    sync_file,
    temporary_beside,
    write_bytes_atomically,
)
from consortium.tensors import INDEX_FILE, SINGLE_FILE, WIDTH, DType, StoredDType, TensorInfo, encode

#: What a Hugging Face model folder holds beside its tensors; a merged model takes these from its base.
COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")  #: as architectures call it
_DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}

Shapes = Mapping[str, tuple[int, ...]]


class TensorWriter:
    """One safetensors file. It appears under its name, durably, when the ``with`` block ends well.

    dtype     of all tensors, or of each by name
    metadata  besides the format's own
    Raises DiskFull or Unavailable.
    """

    def __init__(
        self,
        path: Path,
        shapes: Shapes,
        dtype: StoredDType | Mapping[str, StoredDType],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        dtypes = {name: dtype for name in shapes} if isinstance(dtype, str) else dtype
        header, self._tensors, size = _header(shapes, dtypes, metadata or {})
        self.path = path
        self._temporary = temporary_beside(path)
        self._missing = sum(info.num_elements for info in self._tensors.values())
        self._lock = threading.Lock()
        with disk_errors(path):
            self._file = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                os.ftruncate(self._file, size)
                _write_all(self._file, header, 0)
            except BaseException:
                self._abandon()
                raise

    def write(self, name: str, start: int, values: npt.NDArray[Any]) -> None:
        """Put elements ``start ..`` of a tensor (C order, one axis, any float dtype) in place, once each."""
        info = self._tensors[name]
        assert 0 <= start <= info.num_elements - values.size, f"{name}: {start}+{values.size} of {info.shape}"
        assert info.dtype in ("BF16", "F16", "F32"), f"{name}: {info.dtype} has an encoder of its own"
        self.write_stored(name, start, encode(values.astype(np.float32, copy=False), info.dtype))

    def write_stored(self, name: str, start: int, stored: npt.NDArray[Any]) -> None:
        """The same with elements that are encoded already: little-endian, of the tensor's width."""
        info = self._tensors[name]
        with disk_errors(self.path):
            _write_all(self._file, stored.view(np.uint8).data, info.offset + start * WIDTH[info.dtype])
        with self._lock:
            self._missing -= stored.size

    def start_writeback(self, name: str, elements: range) -> None:
        """Have the system begin to write these elements to disk, so that the fsync at the end finds it done."""
        info = self._tensors[name]
        width = WIDTH[info.dtype]
        start_writeback(self._file, info.offset + elements.start * width, len(elements) * width)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abandon()
            return
        try:
            assert self._missing == 0, f"{self.path}: {self._missing} elements were not written exactly once"
            with disk_errors(self.path):
                os.fsync(self._file)
                move_into_place(self._temporary, self.path)
            os.close(self._file)
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        os.close(self._file)
        self._temporary.unlink(missing_ok=True)


class CheckpointWriter:
    """The tensors of a model in Hugging Face layout: one file, or shards and an index if it exceeds the cap.

    shard_bytes  of tensors in one file; a tensor is never split, so a larger one gets a file of its own
    """

    def __init__(self, directory: Path, shapes: Shapes, dtype: DType, shard_bytes: int) -> None:
        self._directory = directory
        self._shapes, self._dtype = shapes, dtype
        self._plan = plan_shards(shapes, dtype, shard_bytes)
        self._stack = contextlib.ExitStack()
        self._place: dict[str, TensorWriter] = {}

    def write(self, name: str, start: int, values: npt.NDArray[Any]) -> None:
        self._place[name].write(name, start, values)

    def write_stored(self, name: str, start: int, stored: npt.NDArray[Any]) -> None:
        self._place[name].write_stored(name, start, stored)

    def start_writeback(self, name: str, elements: range) -> None:
        self._place[name].start_writeback(name, elements)

    def lanes(self, count: int) -> list[list[str]]:
        """Tensor names in at most ``count`` lists; different lists are in different files.

        Two threads that write to one file wait for each other (the inode's lock): from one list each, they
        are twice as fast.
        """
        files = list(self._plan.values())
        return [
            [name for names in files[lane::count] for name in names] for lane in range(min(count, len(files)))
        ]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opening:
            for file, names in self._plan.items():
                shapes = {name: self._shapes[name] for name in names}
                writer = opening.enter_context(TensorWriter(self._directory / file, shapes, self._dtype))
                self._place.update((name, writer) for name in names)
            self._stack = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if kind is None and list(self._plan) != [SINGLE_FILE]:
            total = sum(math.prod(shape) for shape in self._shapes.values()) * WIDTH[self._dtype]
            weight_map = {name: file for file, names in self._plan.items() for name in names}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            write_bytes_atomically(self._directory / INDEX_FILE, text.encode())


def plan_shards(shapes: Shapes, dtype: DType, shard_bytes: int) -> dict[str, list[str]]:
    """File -> its tensors, sorted by name: as few files as the cap allows, and those as even as can be.

    Even files are written by two threads side by side; full ones and a rest are not.
    """
    sizes = {name: math.prod(shapes[name]) * WIDTH[dtype] for name in sorted(shapes)}
    shards = _filled(sizes, shard_bytes)
    low, high = 0, shard_bytes  # the least cap that needs no more files lies above low, at most at high
    while high - low > 1:
        middle = (low + high) // 2
        filled = _filled(sizes, middle)
        if len(filled) > len(shards):
            low = middle
        else:
            high, shards = middle, filled
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, 1)}


def _filled(sizes: Mapping[str, int], cap: int) -> list[list[str]]:
    """Names in order, each list filled until the next tensor would exceed the cap."""
    shards: list[list[str]] = [[]]
    room = cap
    for name, size in sizes.items():
        if shards[-1] and size > room:
            shards.append([])
            room = cap
        shards[-1].append(name)
        room -= size
    return shards


def copy_companions(base_dir: Path, out_dir: Path, dtype: DType, num_layers: int | None = None) -> None:
    """Copy config and tokenizer files, durably.

    If the config names another dtype than the tensors now have, it is corrected: ``from_pretrained`` believes
    the config, and would round float32 weights to it. So is the number of layers, if ``num_layers`` is given.
    """
    with disk_errors(out_dir):
        for name in COMPANIONS:
            source, target = base_dir / name, out_dir / name
            if source.is_file():
                shutil.copyfile(source, target)
                sync_file(target)
    config_file = out_dir / "config.json"
    if config_file.is_file():
        config = json.loads(config_file.read_bytes())
        named: dict[str, Any] = {
            key: _DTYPE_NAMES[dtype] for key in ("dtype", "torch_dtype") if config.get(key)
        }
        if num_layers is not None:
            named |= {key: num_layers for key in _LAYER_COUNTS if key in config}
        if config | named != config:
            text = json.dumps(config | named, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            write_bytes_atomically(config_file, text.encode())


def _header(
    shapes: Shapes, dtypes: Mapping[str, StoredDType], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, TensorInfo], int]:
    """The header's bytes, where each tensor goes, and the size of the file."""
    # transformers insists on the format
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    begin = 0
    for name in sorted(shapes):
        end = begin + math.prod(shapes[name]) * WIDTH[dtypes[name]]
        entries[name] = {"dtype": dtypes[name], "shape": list(shapes[name]), "data_offsets": [begin, end]}
        begin = end
    text = canonical.encode(entries)
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    data_start = 8 + len(text)
    tensors = {
        name: TensorInfo(
            name=name,
            dtype=dtypes[name],
            shape=tuple(shapes[name]),
            offset=data_start + entries[name]["data_offsets"][0],
        )
        for name in sorted(shapes)
    }
    return len(text).to_bytes(8, "little") + text, tensors, data_start + begin


def _write_all(file: int, data: bytes | memoryview, offset: int) -> None:
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(file, view[done:], offset + done)
