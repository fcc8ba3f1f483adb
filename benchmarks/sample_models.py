"""What the merge benchmarks merge: Llama-style models with random weights, the same on every machine.

A base and models that are the base plus a normal update of 10 % of its scale, bf16, one safetensors file
each, with a config and a small tokenizer. Made in chunks, so that memory stays small.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consortium.files import write_bytes_atomically
from consortium.folders import fresh_folder
from consortium.tensor_writer import TensorWriter
from consortium.tensors import CHUNK, SINGLE_FILE, F32Array, TensorFile

WEIGHT_SCALE = 0.02
UPDATE_SCALE = 0.1 * WEIGHT_SCALE


@dataclass(frozen=True, slots=True)
class Size:
    hidden: int
    intermediate: int
    vocabulary: int
    layers: int = 8

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape, as transformers names a Llama's."""
        hidden, wide = self.hidden, self.intermediate
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm": (hidden,),
            "mlp.down_proj": (hidden, wide),
            "mlp.gate_proj": (wide, hidden),
            "mlp.up_proj": (wide, hidden),
            "post_attention_layernorm": (hidden,),
            **{f"self_attn.{part}_proj": (hidden, hidden) for part in "koqv"},
        }
        return {
            "lm_head.weight": (self.vocabulary, hidden),
            "model.embed_tokens.weight": (self.vocabulary, hidden),
            "model.norm.weight": (hidden,),
            **{f"model.layers.{i}.{name}.weight": layer[name] for i in range(self.layers) for name in layer},
        }


SIZES = {
    "full": Size(hidden=2048, intermediate=5632, vocabulary=32000),  # 1.084 GB a model
    "quarter": Size(hidden=1024, intermediate=2816, vocabulary=16000),  # 0.271 GB
    "tiny": Size(hidden=64, intermediate=176, vocabulary=500, layers=2),  # to try the benchmark itself
}


def base_folder(workdir: Path, size: str) -> Path:
    return workdir / f"{size}-base"


def model_folders(workdir: Path, size: str, count: int) -> list[Path]:
    return [workdir / f"{size}-model-{i:02d}" for i in range(count)]


def make_models(workdir: Path, size: str, count: int) -> None:
    """Make the base and ``count`` models of a size in ``workdir``, except those that are there.

    Reads all of them once, so that they lie in the page cache.
    """
    base = base_folder(workdir, size)
    shape = SIZES[size]
    if not base.exists():
        _write_model(base, shape, "base", lambda name, start, out_N: out_N.fill(0.0), WEIGHT_SCALE)
    for folder in model_folders(workdir, size, count):
        if not folder.exists():
            with TensorFile(base / SINGLE_FILE) as weights:
                _write_model(folder, shape, folder.name, weights.read, UPDATE_SCALE)
    for folder in (base, *model_folders(workdir, size, count)):
        warm(folder / SINGLE_FILE)


def make_momentum(workdir: Path, size: str) -> Path:
    """An outer momentum for the DiLoCo row: float32, of the base's shapes; made once."""
    path = workdir / f"{size}-momentum.safetensors"
    if not path.exists():
        _write_tensors(
            path, SIZES[size], path.name, lambda name, start, out_N: out_N.fill(0.0), UPDATE_SCALE, "F32"
        )
    warm(path)
    return path


def warm(path: Path) -> None:
    """Read a file once, so that it is in the page cache."""
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass


def _write_model(
    folder: Path, size: Size, seed: str, around: Callable[[str, int, F32Array], None], scale: float
) -> None:
    with fresh_folder(folder) as new:
        _write_tensors(new / SINGLE_FILE, size, seed, around, scale, "BF16")
        for name, value in _companions(size).items():
            write_bytes_atomically(new / name, (json.dumps(value, indent=2) + "\n").encode())


def _write_tensors(
    path: Path,
    size: Size,
    seed: str,
    around: Callable[[str, int, F32Array], None],
    scale: float,
    dtype: Any,
) -> None:
    """Normal numbers times ``scale``, added to what ``around`` fills in."""
    noise_N, values_N = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    with TensorWriter(path, size.shapes, dtype) as writer:
        for name, shape in size.shapes.items():
            key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")
            random = np.random.Generator(np.random.SFC64(key))
            count = int(np.prod(shape))
            for start in range(0, count, CHUNK):
                out_N = values_N[: min(CHUNK, count - start)]
                around(name, start, out_N)
                drawn_N = random.standard_normal(out=noise_N, dtype=np.float32)[: out_N.size]
                out_N += np.float32(scale) * drawn_N
                writer.write(name, start, out_N)


def _companions(size: Size) -> dict[str, Any]:
    """Config and tokenizer files of one model."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {chr(code): code - 30 for code in range(33, 127)}
    return {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": size.hidden,
            "intermediate_size": size.intermediate,
            "max_position_embeddings": 2048,
            "model_type": "llama",
            "num_attention_heads": size.hidden // 64,
            "num_hidden_layers": size.layers,
            "num_key_value_heads": size.hidden // 64,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": size.vocabulary,
        },
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"String": ""},
                "behavior": "Isolated",
                "invert": False,
            },
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
        },
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"},
    }
