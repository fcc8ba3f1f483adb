"""Which architectures our own module computes, and why not another.

A Hugging Face config becomes a ``Shape``, or a sentence that says what in it is left to transformers. Decided here
alone, so that no half-understood model is ever trained: a key that changes the mathematics and is not known is a
reason to refuse, not to guess.
"""

from collections.abc import Mapping
from typing import Any, Literal

from consortium.canonical import Fact

RopeKind = Literal["default", "linear", "llama3", "yarn"]


class Rope(Fact):
    """Rotary position embedding, see ``rope.py``."""

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    original_tokens: int = 0  #: llama3 and yarn: the length that the model was first trained with
    low: float = 1.0  #: llama3: ``low_freq_factor``
    high: float = 4.0  #: llama3: ``high_freq_factor``
    fast: float = 32.0  #: yarn: ``beta_fast``
    slow: float = 1.0  #: yarn: ``beta_slow``
    truncate: bool = True  #: yarn
    attention: float | None = None  #: yarn: what sines and cosines are multiplied by; None: by the paper


class Shape(Fact):
    """What our module must know of a model."""

    layers: int
    width: int
    inner: int  #: of the feed-forward
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    epsilon: float  #: of the norms
    rope: Rope
    tied: bool  #: embeddings are the output head's weights, too
    qkv_bias: bool = False
    output_bias: bool = False  #: of attention
    inner_bias: bool = False
    head_norms: bool = False  #: queries and keys are normed head by head (Qwen 3)
    window: int = 0  #: tokens a query looks back on, itself included; 0: all


#: What every one of these is to have as it is here, or not at all.
_PLAIN = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "quantization_config": None,
    "pretraining_tp": 1,
    "logits_scaling": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": None,
    "partial_rotary_factor": 1.0,
}
_KNOWN = ("llama", "mistral", "qwen2", "qwen3")
_ROPE: dict[RopeKind, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        *("factor", "original_max_position_embeddings", "beta_fast", "beta_slow"),
        *("truncate", "attention_factor"),
    ),
}


_OPTIONAL = ("beta_fast", "beta_slow", "truncate", "attention_factor")


def shape_of(config: Mapping[str, Any]) -> Shape | str:
    """The shape that a Hugging Face config describes, or why the model is left to transformers."""
    family = config.get("model_type")
    if family not in _KNOWN:
        return f"model_type {family!r} is not among {', '.join(_KNOWN)}"
    for key, plain in _PLAIN.items():
        if (found := config.get(key, plain)) not in (plain, None):
            return f"{key} is {found!r}"
    rope = _rope_of(config)
    if isinstance(rope, str):
        return rope
    try:
        heads = config["num_attention_heads"]
        # the one family whose heads are not width / heads wide where the config says nothing
        head_width = config["head_dim"] if family == "qwen3" else config.get("head_dim")
        bias = bool(config.get("attention_bias")) and family in ("llama", "qwen3")
        return Shape(
            layers=config["num_hidden_layers"],
            width=config["hidden_size"],
            inner=config["intermediate_size"],
            heads=heads,
            key_heads=config.get("num_key_value_heads") or heads,
            head_width=head_width or config["hidden_size"] // heads,
            vocabulary=config["vocab_size"],
            epsilon=config["rms_norm_eps"],
            rope=rope,
            tied=config["tie_word_embeddings"],
            qkv_bias=bias or family == "qwen2",
            output_bias=bias,
            inner_bias=bool(config.get("mlp_bias")) and family == "llama",
            head_norms=family == "qwen3",
            window=_window_of(config),
        )
    except KeyError as error:
        return f"{error.args[0]} is left out, and transformers knows its default"
    except _Other as other:
        return str(other)


class _Other(Exception):
    """Something that is left to transformers."""


def _window_of(config: Mapping[str, Any]) -> int:
    layers = set(config.get("layer_types") or ()) - {"full_attention"}
    if layers or config.get("use_sliding_window"):
        raise _Other("its layers look back differently far")
    return int(config["sliding_window"] or 0) if config["model_type"] == "mistral" else 0


def _rope_of(config: Mapping[str, Any]) -> Rope | str:
    """As transformers 5 writes it (``rope_parameters``) or as 4 did (``rope_theta`` and ``rope_scaling``)."""
    told = {"rope_theta": config.get("rope_theta", 10000.0)}
    told |= config.get("rope_scaling") or {}
    told |= config.get("rope_parameters") or {}
    named = told.get("rope_type") or told.get("type") or "default"
    kind = next((kind for kind in _ROPE if kind == named), None)
    if kind is None:
        return f"rope_type is {named!r}"
    strange = sorted(set(told) - {"rope_theta", "rope_type", "type", *_ROPE[kind]})
    if strange and not (
        strange == ["partial_rotary_factor"] and told["partial_rotary_factor"] in (1.0, None)
    ):
        return f"{strange[0]} of a {kind} rope"
    if missing := [key for key in _ROPE[kind] if key not in _OPTIONAL and told.get(key) is None]:
        return f"a {kind} rope without {missing[0]}"
    return Rope(
        theta=float(told["rope_theta"]),
        kind=kind,
        factor=float(told.get("factor") or 1.0),
        original_tokens=int(told.get("original_max_position_embeddings") or 0),
        low=float(told.get("low_freq_factor") or 1.0),
        high=float(told.get("high_freq_factor") or 4.0),
        fast=float(told.get("beta_fast") or 32.0),
        slow=float(told.get("beta_slow") or 1.0),
        truncate=bool(told.get("truncate", True)),
        attention=told.get("attention_factor"),
    )
