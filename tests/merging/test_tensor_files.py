"""What we write others read, what others write we read, and the same values are the same bytes."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from consortium.tensor_writer import CheckpointWriter, TensorWriter, copy_companions, plan_shards
from consortium.tensors import Checkpoint, TensorFile, encode


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_bf16_rounds_as_torch_does(bits: list[int]) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    ours = torch.from_numpy(encode(values, "BF16").view(np.int16)).view(torch.bfloat16)
    theirs = torch.from_numpy(values).to(torch.bfloat16)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours[~ours.isnan()], theirs[~theirs.isnan()])


def test_bf16_ties_go_to_even_and_the_ends_hold() -> None:
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0x80000000], np.uint32)
    assert encode(ties.view(np.float32), "BF16").tolist() == [0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x7F80, 0x8000]
    assert np.isnan(np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)).all()
    nans = encode(np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32), "BF16")
    assert [hex(x) for x in nans.tolist()] == ["0x7fff", "0xffff", "0x7fc0"]


@pytest.mark.parametrize(
    ("dtype", "kind"), [("F32", torch.float32), ("BF16", torch.bfloat16), ("F16", torch.float16)]
)
def test_both_ways_between_safetensors_and_us(tmp_path: Path, dtype: str, kind: torch.dtype) -> None:
    tensors = {"b": torch.randn(3, 5).to(kind), "a": torch.randn(7).to(kind), "e": torch.empty(0, 4).to(kind)}
    safetensors.torch.save_file(tensors, tmp_path / "theirs")
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    with TensorFile(tmp_path / "theirs") as file, TensorWriter(tmp_path / "ours", shapes, dtype) as writer:
        assert list(file) == ["a", "b", "e"]
        for name in file:
            np.testing.assert_array_equal(file.array(name), tensors[name].float().numpy())
            for start, piece in file.pieces(name):
                writer.write(name, start, piece)
    back = safetensors.torch.load_file(tmp_path / "ours")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) and back[name].dtype == kind for name in tensors)
    with safetensors.safe_open(tmp_path / "ours", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_pieces_in_any_order_from_any_thread_give_the_same_bytes(tmp_path: Path) -> None:
    values = np.arange(1000, dtype=np.float32)

    def write(path: Path, order: list[int], names: list[str]) -> bytes:
        with TensorWriter(path, {name: (10, 100) for name in names}, "BF16") as writer:
            todo = [
                threading.Thread(target=writer.write, args=(name, 100 * i, values[100 * i : 100 * i + 100]))
                for i in order
                for name in names
            ]
            for thread in todo:
                thread.start()
            for thread in todo:
                thread.join()
        return path.read_bytes()

    forward = write(tmp_path / "1", list(range(10)), ["x", "y"])
    assert write(tmp_path / "2", list(range(9, -1, -1)), ["y", "x"]) == forward
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_file_that_was_not_finished_never_gets_its_name(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="40 elements were not written"),
        TensorWriter(tmp_path / "half", {"x": (100,)}, "F32") as writer,
    ):
        writer.write("x", 0, np.zeros(60, np.float32))
    assert list(tmp_path.iterdir()) == []


def test_shards_are_few_and_even_and_never_split_a_tensor() -> None:
    shapes = {"a": (10,), "b": (10,), "c": (100,), "d": (1,), "e": (0,)}
    assert plan_shards(shapes, "F32", 80) == {
        "model-00001-of-00003.safetensors": ["a", "b"],
        "model-00002-of-00003.safetensors": ["c"],
        "model-00003-of-00003.safetensors": ["d", "e"],
    }
    assert plan_shards(shapes, "BF16", 1000) == {"model.safetensors": ["a", "b", "c", "d", "e"]}
    even = plan_shards({name: (10,) for name in "abcdef"}, "F32", 160)
    assert list(even.values()) == [["a", "b", "c"], ["d", "e", "f"]]  # not four and two
    assert plan_shards({}, "F32", 1) == {"model.safetensors": []}


@pytest.mark.parametrize(("dtype", "kind"), [("F32", torch.float32), ("BF16", torch.bfloat16)])
@pytest.mark.parametrize("shard_bytes", [3000, 1 << 30])
def test_transformers_loads_what_we_write(
    tmp_path: Path, dtype: str, kind: torch.dtype, shard_bytes: int
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="3KB")
    (tmp_path / "ours").mkdir()
    with (
        Checkpoint(tmp_path / "theirs") as theirs,
        CheckpointWriter(tmp_path / "ours", theirs.shapes, dtype, shard_bytes) as writer,
    ):
        for name in theirs:
            for start, piece in theirs.pieces(name):
                writer.write(name, start, piece)
    copy_companions(tmp_path / "theirs", tmp_path / "ours", dtype)
    assert (tmp_path / "ours/model.safetensors.index.json").exists() == (shard_bytes == 3000)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")

    assert loaded.dtype == kind
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.to(kind)), name


def test_companions_are_copied_and_only_a_wrong_dtype_is_changed(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    config = '{ "torch_dtype": "bfloat16",  "name": "ñ" }'
    (base / "config.json").write_text(config, encoding="utf-8")
    (base / "tokenizer.json").write_text("{}")
    (base / "pytorch_model.bin").write_text("never copied")
    copy_companions(base, out, "BF16")
    assert (out / "config.json").read_text(encoding="utf-8") == config
    copy_companions(base, out, "F32")
    assert json.loads((out / "config.json").read_bytes()) == {"torch_dtype": "float32", "name": "ñ"}
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "tokenizer.json"]


def test_numpy_without_torch_reads_it_too(tmp_path: Path) -> None:
    with TensorWriter(tmp_path / "x", {"t": (2, 2)}, "F32") as writer:
        writer.write("t", 0, np.arange(4, dtype=np.float64))
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "x")["t"], [[0, 1], [2, 3]])
