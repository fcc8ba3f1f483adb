"""What the merge tests merge: small models in Hugging Face's layout, the same bytes every time.

Written and read with the safetensors library and torch's own rounding, never with the code under test.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

F32Array = npt.NDArray[np.float32]
Values = dict[str, F32Array]
Shapes = Mapping[str, tuple[int, ...]]

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 4,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 37,
}

#: Shapes that break things: a scalar, nothing at all, one element, a single row or column, more than two axes,
#: and two that no chunk of 4096 elements divides.
ODD_SHAPES: Shapes = {
    "column": (61, 1),
    "cube": (3, 5, 7),
    "empty": (0, 5),
    "long": (97, 211),
    "one": (1,),
    "row": (1, 61),
    "scalar": (),
    "vector": (1031,),
    "wide": (20, 1031),
}


def llama_shapes(layers: int = 3, tied: bool = False) -> Shapes:
    """The tensors that transformers' LlamaForCausalLM saves for ``LLAMA``."""
    hidden, inner, rows = 16, 24, 37
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, hidden)}
    for i in range(layers):
        layer = {
            "input_layernorm": (hidden,),
            "mlp.down_proj": (hidden, inner),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "post_attention_layernorm": (hidden,),
            "self_attn.k_proj": (8, hidden),
            "self_attn.o_proj": (hidden, 16),
            "self_attn.q_proj": (16, hidden),
            "self_attn.v_proj": (8, hidden),
        }
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not tied:
        shapes["lm_head.weight"] = (rows, hidden)
    return shapes


def base_values(shapes: Shapes, seed: int = 0) -> Values:
    """Weights as a fresh model has them, each tensor of another scale; those named ``tied_*`` are coarse."""
    rng = np.random.default_rng([seed, 1])
    return {
        name: np.asarray(rng.standard_normal(shape) * 0.02 * 4.0 ** rng.integers(-1, 2), np.float32)
        for name, shape in sorted(shapes.items())
    }


def tuned(base: Values, seed: int, size: float = 0.1, untouched: str = "post_attention") -> Values:
    """A model trained from ``base``: every weight moved by about ``size`` of its tensor's scale.

    Tensors with ``untouched`` in their name did not move at all.
    """
    rng = np.random.default_rng([seed, 2])
    moved: Values = {}
    for name, before in base.items():
        scale = float(before.std()) or 0.02 if before.size else 0.0
        step = rng.standard_normal(before.shape) * scale * size
        moved[name] = before if untouched in name else np.asarray(before + step, np.float32)
    return moved


def coarse(values: Values, grain: float = 2.0**-9) -> Values:
    """The same on a grid that every dtype holds exactly, so that many magnitudes are equal and many zero."""
    return {
        name: np.asarray(np.clip(np.rint(array / grain), -100, 100) * grain, np.float32)
        for name, array in values.items()
    }


def save_model(
    directory: Path, values: Values, dtype: str = "float32", shards: int = 1, tied: bool = False
) -> Path:
    """Write a model folder; with several shards, an index. Tensors go to shards in turn, as nobody does."""
    directory.mkdir(parents=True)
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape).to(TORCH_DTYPES[dtype])
        for name, array in values.items()
    }
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    else:
        files = [f"model-{i:05d}-of-{shards:05d}.safetensors" for i in range(1, shards + 1)]
        place = {name: files[i % shards] for i, name in enumerate(sorted(tensors))}
        for file in files:
            held = {name: tensors[name] for name in sorted(tensors) if place[name] == file}
            save_file(held, directory / file, {"format": "pt"})
        index = {"metadata": {}, "weight_map": place}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, sort_keys=True))
    config = LLAMA | {"tie_word_embeddings": tied, "dtype": dtype}
    (directory / "config.json").write_text(json.dumps(config, sort_keys=True))
    (directory / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}}}')
    return directory


def load_model(directory: Path) -> Values:
    """Every tensor of a model folder, as float32."""
    return {
        name: tensor.float().numpy()
        for path in sorted(directory.glob("model*.safetensors"))
        for name, tensor in load_file(path).items()
    }
