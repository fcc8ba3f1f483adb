"""Coded delta files: what is written is read back from anywhere, merged and admitted; hostile ones are named."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consortium.admission import inspect
from consortium.codecs import reading, writing
from consortium.codecs.formats import METADATA
from consortium.codecs.kernels import Codecs
from consortium.codecs.names import CodedName
from consortium.codecs.reading import encoding_of, open_delta
from consortium.deltas import apply_delta, trained_tensors, write_coded_delta
from consortium.errors import BadInput, Corrupt
from consortium.merging.merge import MergeInput, merge
from consortium.merging.recipe import PLAIN_AVERAGE
from consortium.store import ref_of
from consortium.tensor_writer import CheckpointWriter, TensorWriter
from consortium.tensors import Checkpoint, TensorFile

SHAPES = {
    "embed": (70, 131),  # odd, longer than two chunks of top-k
    "empty": (0, 5),
    "head": (64, 128),
    "norm": (70,),
    "scalar": (),
    "thin": (3, 1),
}
CODED: tuple[CodedName, ...] = ("int8", "int4", "topk")
SHARE = {"int8": 0.01, "int4": 0.15, "topk": 1.0}  # of the delta's norm that an encoding may lose

Values = dict[str, np.ndarray]


def values(seed: int, scale: float = 1.0) -> Values:
    rng = np.random.default_rng(seed)
    return {name: (rng.standard_normal(shape) * scale).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def base_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    with CheckpointWriter(folder, SHAPES, "F32", 1 << 30) as writer:
        for name, array in values(0).items():
            writer.write(name, 0, array.reshape(-1))
    (folder / "config.json").write_text('{"dtype": "float32", "model_type": "toy"}')
    return folder


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, base_dir: Path) -> Write:
    def written(encoding: CodedName, seed: int = 1, residual: Path | None = None, **more: Any) -> Path:
        path = tmp_path / f"{encoding}-{seed}"
        trained = {name: array + values(seed, 0.01)[name] for name, array in values(0).items()}
        with Checkpoint(base_dir) as base:
            before = TensorFile(residual) if residual else None
            refs = write_coded_delta(base, trained, path, encoding, before, Path(f"{path}.left"), **more)
        assert refs == (ref_of(path), ref_of(Path(f"{path}.left")))
        return path

    return written


def everything(path: Path) -> np.ndarray:
    with open_delta(path) as delta:
        return np.concatenate([delta.array(name).reshape(-1) for name in delta])


@pytest.mark.parametrize("encoding", CODED)
def test_what_a_delta_says_and_what_it_leaves_are_the_training(
    encoding: CodedName, write: Write, base_dir: Path, tmp_path: Path
) -> None:
    path = write(encoding)
    wanted = np.concatenate(
        [((values(0)[n] + values(1, 0.01)[n]) - values(0)[n]).reshape(-1) for n in SHAPES]
    )
    said, left = everything(path), everything(Path(f"{path}.left"))
    np.testing.assert_allclose(said + left, wanted, rtol=0, atol=1e-9)
    assert 0 < np.linalg.norm(said - wanted) <= SHARE[encoding] * np.linalg.norm(wanted)
    with Checkpoint(base_dir) as base, open_delta(path) as delta:
        assert delta.shapes == base.shapes
        assert encoding_of(delta) == (encoding, 64 if encoding == "topk" else 0)
        in_memory = dict(trained_tensors(base, delta))
    apply_delta(base_dir, path, tmp_path / "specialist")
    with Checkpoint(tmp_path / "specialist") as specialist:
        for name, array in in_memory.items():
            np.testing.assert_array_equal(specialist.array(name), array)


@pytest.mark.parametrize("encoding", CODED)
def test_the_bytes_are_the_same_in_c_and_numpy(
    encoding: CodedName, write: Write, codecs: Codecs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(encoding, 1)
    wanted = [everything(first).tobytes(), write(encoding, 2, Path(f"{first}.left")).read_bytes()]
    monkeypatch.setattr(writing, "KERNELS", codecs)
    monkeypatch.setattr(reading, "KERNELS", codecs)
    first = write(encoding, 1)
    assert [everything(first).tobytes(), write(encoding, 2, Path(f"{first}.left")).read_bytes()] == wanted


@pytest.mark.parametrize(("encoding", "size"), [("int8", 1.05), ("int4", 0.55), ("topk", 0.05)])
def test_sizes_in_bytes_an_element(encoding: CodedName, size: float, write: Write) -> None:
    with TensorFile(write(encoding), dtypes=("BF16", "F32", "I8", "U8", "U16")) as file:
        stored = sum(info.num_bytes for name, info in file.items() if name.startswith("head:"))
    assert stored / (64 * 128) == pytest.approx(size, rel=0.1)
    assert stored / (64 * 128) <= size


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), encoding=st.sampled_from(CODED))
def test_any_stretch_can_be_read(
    data: st.DataObject, encoding: CodedName, write: Write, codecs: Codecs
) -> None:
    path = write(encoding, density=0.01) if encoding == "topk" else write(encoding)
    with pytest.MonkeyPatch.context() as patch, open_delta(path) as delta:
        patch.setattr(reading, "KERNELS", codecs)
        name = data.draw(st.sampled_from(sorted(SHAPES)))
        whole = delta.array(name).reshape(-1)
        start = data.draw(st.integers(0, whole.size))
        out = np.full(data.draw(st.integers(0, whole.size - start)), 7, np.float32)
        delta.read(name, start, out)
        np.testing.assert_array_equal(out, whole[start : start + out.size])


@pytest.mark.parametrize("encoding", CODED)
def test_they_are_merged_like_any_delta(
    encoding: CodedName, write: Write, base_dir: Path, tmp_path: Path
) -> None:
    paths = [write(encoding, seed) for seed in (1, 2)]
    inputs = [MergeInput(path, ref_of(path), 1) for path in paths]
    merge(base_dir, inputs, None, PLAIN_AVERAGE, tmp_path / "merged", threads=2)
    mean = np.mean([everything(path).astype(np.float64) for path in paths], axis=0)
    base = np.concatenate([array.reshape(-1) for array in values(0).values()])
    with Checkpoint(tmp_path / "merged") as merged:
        found = np.concatenate([merged.array(name).reshape(-1) for name in merged])
    np.testing.assert_allclose(found, base + mean, rtol=0, atol=3e-7)


@pytest.mark.parametrize(
    ("encoding", "alone", "fed_back"), [("int8", 0.005, 0.0005), ("int4", 0.1, 0.01), ("topk", 0.9, 0.75)]
)
def test_over_rounds_feedback_says_what_one_round_could_not(
    encoding: CodedName, alone: float, fed_back: float, write: Write
) -> None:
    """The relative error of the sum of 16 deltas that pull in one direction, as those of a training run do."""
    wanted = 16 * np.concatenate(
        [((values(0)[name] + values(1, 0.01)[name]) - values(0)[name]).reshape(-1) for name in SHAPES]
    )
    residual, said = None, np.zeros_like(wanted)
    for _ in range(16):
        path = write(encoding, residual=residual)
        said += everything(path)
        residual = Path(f"{path}.left").rename(path.with_name("kept"))
    size = np.linalg.norm(wanted)
    assert np.linalg.norm(16 * everything(write(encoding)) - wanted) > alone * size
    assert np.linalg.norm(said - wanted) < fed_back * size


def test_a_residual_of_another_model_is_refused(write: Write, tmp_path: Path) -> None:
    with TensorWriter(tmp_path / "other", {"embed": (2, 2)}, "F32") as writer:
        writer.write("embed", 0, np.zeros(4))
    with pytest.raises(BadInput, match="'empty' is missing"):
        write("int8", residual=tmp_path / "other")


# --- hostile files ----------------------------------------------------------------------------------


def judged(base_dir: Path, path: Path, encoding: CodedName, density: float = 1 / 64) -> str:
    with Checkpoint(base_dir) as base:
        found = inspect(
            base, path, ref_of(path), norm_max=0.5, tensor_norm_max=2.0, bytes_max=1 << 20, encoding=encoding,
            density=density,
        )  # fmt: skip
    return "" if found.ok else found.reason


def patched(path: Path, piece: str, at: int, data: bytes) -> Path:
    """The file with some bytes of a piece replaced."""
    with TensorFile(path, dtypes=("BF16", "F32", "I8", "U8", "U16")) as file:
        offset = file[piece].offset + at
    changed = bytearray(path.read_bytes())
    changed[offset : offset + len(data)] = data
    target = path.with_name("patched")
    target.write_bytes(changed)
    return target


def relabelled(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The file with another layout in its metadata."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    layout = json.loads(header["__metadata__"][METADATA])
    change(layout)
    header["__metadata__"][METADATA] = json.dumps(layout)
    text = json.dumps(header).encode()
    target = path.with_name("relabelled")
    target.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return target


@pytest.mark.parametrize("encoding", CODED)
def test_an_honest_one_is_admitted_if_it_was_asked_for(
    encoding: CodedName, write: Write, base_dir: Path
) -> None:
    path = write(encoding)
    assert judged(base_dir, path, encoding) == ""
    other = "int4" if encoding == "int8" else "int8"
    assert f"is {encoding}, the job asked for {other}; store it so" in judged(base_dir, path, other)
    assert f"is {encoding}, the job asked for bf16; store it so" in judged(base_dir, path, "bf16")


def test_another_density_is_none_that_was_asked_for(write: Write, base_dir: Path) -> None:
    reason = judged(base_dir, write("topk"), "topk", density=0.5)
    assert "keeps 64 of 4096 elements, the job asked for 2048" in reason


@pytest.mark.parametrize("encoding", CODED)
@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, -0.0, 1e38])
def test_scales_that_no_encoder_writes(
    encoding: CodedName,
    scale: float,
    write: Write,
    base_dir: Path,
    codecs: Codecs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "KERNELS", codecs)
    path = patched(write(encoding), "head:scales", 4, np.float32(scale).tobytes())
    reason = judged(base_dir, path, encoding)
    assert "tensor 'head', elements 0 to 8191: scale 1 is" in reason


@pytest.mark.parametrize(
    ("encoding", "piece", "at", "data", "words"),
    [
        ("int8", "head:codes", 5, b"\x80", "codes lie in -127 .. 127"),
        ("int4", "head:codes", 5, b"\x08", "codes lie in -7 .. 7"),
        ("int4", "head:codes", 5, b"\x80", "codes lie in -7 .. 7"),
        ("int4", "thin:codes", 1, b"\x10", "codes lie in -7 .. 7"),  # the half byte that stands for nothing
        ("topk", "head:codes", 5, b"\x80", "codes lie in -127 .. 127"),
        ("topk", "head:offsets", 0, b"\xff\x0f\x00\x00", "offsets ascend"),
        ("topk", "head:offsets", 126, b"\x00\x10", "offsets ascend"),  # 4096: beyond the chunk
        ("topk", "thin:offsets", 0, b"\x03\x00", "offsets ascend"),  # beyond the tensor
    ],
)
def test_codes_and_offsets_out_of_range(
    encoding: CodedName,
    piece: str,
    at: int,
    data: bytes,
    words: str,
    write: Write,
    base_dir: Path,
    codecs: Codecs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "KERNELS", codecs)
    reason = judged(base_dir, patched(write(encoding), piece, at, data), encoding)
    assert f"tensor '{piece.partition(':')[0]}', elements" in reason
    assert words in reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda layout: layout.update(encoding="int2"), "encoding"),
        (lambda layout: layout.update(block=64), "blocks of 64; this reader knows 4096"),
        (lambda layout: layout.update(kept=0), "keeps 0 of 4096"),
        (lambda layout: layout.update(kept=4097), "keeps 4097 of 4096"),
        (lambda layout: layout.update(kept=65), "'embed' of shape [70, 131]: 'embed:offsets' is U16"),
        (
            lambda layout: layout["shapes"].update(embed=[131, 70]),
            "'embed' has shape [131, 70], the base [70, 131]",
        ),
        (lambda layout: layout["shapes"].update(embed=[1 << 30, 1 << 30]), "cannot be coded"),
        (lambda layout: layout["shapes"].update(embed=[-70, -131]), "cannot be coded"),
        (lambda layout: layout["shapes"].update(norm=[70]), "cannot be coded"),
        (lambda layout: layout["shapes"].update(other=[2, 2]), "'other:offsets' is missing"),
        (lambda layout: layout["shapes"].pop("thin"), "'thin:codes' is I8 [1] in a delta of topk"),
        (lambda layout: layout.clear(), "missing required field"),
    ],
)
def test_layouts_that_are_none(
    change: Callable[[dict[str, Any]], object], words: str, write: Write, base_dir: Path
) -> None:
    assert words in judged(base_dir, relabelled(write("topk"), change), "topk")


def test_pieces_without_a_layout_are_no_tensors(write: Write) -> None:
    data = write("int8").read_bytes()
    path = write("int8").with_name("bare")
    path.write_bytes(data.replace(METADATA.encode(), b"x" * len(METADATA)))
    with pytest.raises(Corrupt, match="'embed:codes': dtype is 'I8', only BF16, F16, F32"):
        open_delta(path)
    with pytest.raises(Corrupt, match="'embed:codes': dtype is 'I8', only BF16, F16, F32"):
        TensorFile(path)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), encoding=st.sampled_from(CODED))
def test_a_flipped_bit_is_a_verdict_never_a_crash(
    data: st.DataObject, encoding: CodedName, write: Write, base_dir: Path, codecs: Codecs
) -> None:
    path = write(encoding)
    changed = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 8 * min(len(changed), 3000) - 1))  # mostly the header
        changed[at // 8] ^= 1 << at % 8
    path.write_bytes(changed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "KERNELS", codecs)
        judged(base_dir, path, encoding)
