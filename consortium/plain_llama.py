"""How a plain Llama's first weights are drawn: the very bytes that transformers writes, without its import.

Importing the models of transformers takes twice the CPU of all else that a small base needs. It draws every matrix
twice, as PyTorch's layer is made and as the model is initialised, and each draw begins where the one before ended, so
both are drawn here, too. Configs that say more than ``PlainLlama`` knows are left to transformers.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from consortium.canonical import Fact
from consortium.files import disk_errors

if TYPE_CHECKING:
    from torch import Tensor

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Token = Annotated[int, msgspec.Meta(ge=0)]
_Share = Annotated[float, msgspec.Meta(gt=0.0)]


class _Rope(Fact, forbid_unknown_fields=True):
    rope_theta: _Share = 10_000.0
    rope_type: Literal["default"] = "default"


class PlainLlama(Fact, forbid_unknown_fields=True):
    """The config's own words; what is not here is as ``LlamaConfig`` of transformers has it."""

    model_type: Literal["llama"]
    vocab_size: _Count
    hidden_size: _Count
    intermediate_size: _Count
    num_hidden_layers: _Count
    num_attention_heads: _Count
    eos_token_id: _Token
    bos_token_id: _Token
    pad_token_id: _Token
    architectures: tuple[Literal["LlamaForCausalLM"]] = ("LlamaForCausalLM",)
    num_key_value_heads: _Count | None = None
    max_position_embeddings: _Count = 2048
    initializer_range: _Share = 0.02
    rms_norm_eps: _Share = 1e-6
    rope_parameters: _Rope = _Rope()
    tie_word_embeddings: bool = False

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of what is stored, in the order in which it is drawn."""
        d, i, v = self.hidden_size, self.intermediate_size, self.vocab_size
        own = self.head_width * self.num_attention_heads
        shared = self.head_width * (self.num_key_value_heads or self.num_attention_heads)
        matrices = {
            "self_attn.q_proj": (own, d),
            "self_attn.k_proj": (shared, d),
            "self_attn.v_proj": (shared, d),
            "self_attn.o_proj": (d, own),
            "mlp.gate_proj": (i, d),
            "mlp.up_proj": (i, d),
            "mlp.down_proj": (d, i),
            "input_layernorm": (d,),
            "post_attention_layernorm": (d,),
        }
        found: dict[str, tuple[int, ...]] = {_EMBEDDING: (v, d)}
        for layer in range(self.num_hidden_layers):
            found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in matrices.items()}
        found["model.norm.weight"] = (d,)
        return found if self.tie_word_embeddings else {**found, _HEAD: (v, d)}

    @property
    def num_bytes(self) -> int:
        return 4 * sum(map(math.prod, self.shapes.values()))


_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def plain_llama(config: Mapping[str, Any]) -> PlainLlama | None:
    """The model, if the config asks for nothing else; None: transformers has to say what it is."""
    try:
        found = msgspec.convert(config, PlainLlama)
    except msgspec.ValidationError:
        return None
    given = {**config, **config.get("rope_parameters", {})}
    numbers = [given[name] for name in ("initializer_range", "rms_norm_eps", "rope_theta") if name in given]
    heads, shared = found.num_attention_heads, found.num_key_value_heads or found.num_attention_heads
    divides = found.hidden_size % (2 * heads) == 0 and heads % shared == 0  # each head turns pairs of numbers
    named = max(found.eos_token_id, found.bos_token_id, found.pad_token_id) < found.vocab_size
    spelt = all(type(number) is float for number in numbers)  # else it is written down as it was given
    return found if divides and named and spelt else None


def write_plain_llama(model: PlainLlama, seed: int, folder: Path) -> None:
    """Weights, synced, in one file of ``folder``; one matrix in memory at a time."""
    header, places = _header(model.shapes)
    path = folder / "model.safetensors"
    with disk_errors(path), open(path, "xb", buffering=0) as file:
        os.ftruncate(file.fileno(), len(header) + model.num_bytes)
        _write(file.fileno(), memoryview(header), 0)
        for name, weights in _drawn(model, seed):
            _write(file.fileno(), weights.numpy().data.cast("B"), len(header) + places[name])
        os.fsync(file.fileno())


def configs_of(model: PlainLlama) -> dict[str, dict[str, Any]]:
    """File -> its content, as transformers 5 writes it."""
    ids = {f"{kind}_token_id": getattr(model, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    given: dict[str, Any] = msgspec.to_builtins(model)
    rest = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "float32",
        "head_dim": model.head_width,
        "hidden_act": "silu",
        "mlp_bias": False,
        "num_key_value_heads": model.num_key_value_heads or model.num_attention_heads,
        "pretraining_tp": 1,
        "use_cache": True,
    }
    generation = {"output_attentions": False, "output_hidden_states": False, "use_cache": True}
    return {
        "config.json": given | rest,
        "generation_config.json": {"_from_model_config": True, **generation, **ids},
    }


def _drawn(model: PlainLlama, seed: int) -> Iterator[tuple[str, "Tensor"]]:
    import torch

    dice = torch.Generator().manual_seed(seed)
    shapes = model.shapes
    body = {name: shape for name, shape in shapes.items() if name != _HEAD}
    torch.empty(shapes[_EMBEDDING]).normal_(generator=dice)
    for name, shape in body.items():
        if name != _EMBEDDING and len(shape) == 2:
            torch.empty(shape).uniform_(generator=dice)
    for name, shape in body.items():
        if len(shape) == 1:
            yield name, torch.ones(shape)
            continue
        weights = torch.empty(shape).normal_(0.0, model.initializer_range, generator=dice)
        if name == _EMBEDDING:
            weights[model.pad_token_id] = 0.0
        yield name, weights
    if _HEAD in shapes:
        torch.empty(shapes[_HEAD]).uniform_(generator=dice)
        yield _HEAD, torch.empty(shapes[_HEAD]).normal_(0.0, model.initializer_range, generator=dice)


def _header(shapes: Mapping[str, tuple[int, ...]]) -> tuple[bytes, dict[str, int]]:
    """In safetensors' own spelling, and where each tensor begins behind it: sorted by name."""
    said: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places, end = {}, 0
    for name, shape in sorted(shapes.items()):
        places[name], end = end, end + 4 * math.prod(shape)
        said[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [places[name], end]}
    text = json.dumps(said, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


def _write(file: int, data: memoryview, at: int) -> None:
    while data:
        done = os.pwrite(file, data, at)
        data, at = data[done:], at + done
