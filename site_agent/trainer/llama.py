"""A plain Llama in PyTorch alone, bit for bit the one of transformers, for CPU.

Importing the models of transformers takes 3 s of CPU, as long as twenty steps of a small job; a step is as fast.
What is not the plain architecture (scaled RoPE, biases, dropout, quantisation) is left to transformers.
Shapes: B sequences, S tokens, D model width, H heads, K width of a head, V vocabulary.
"""

import functools
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from consortium.canonical import Fact


class LlamaShape(Fact):
    layers: int
    width: int
    inner: int  #: of the feed-forward
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    epsilon: float  #: of the norms
    theta: float  #: of RoPE
    tied: bool  #: embeddings are the output head's weights, too

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self | None:
        """The shape that a Hugging Face config describes; None if it is not a plain Llama."""
        rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
        is_plain = (
            config.get("model_type") == "llama"
            and config.get("hidden_act", "silu") == "silu"
            and not any(config.get(key) for key in ("attention_bias", "mlp_bias", "attention_dropout"))
            and not any(config.get(key) for key in ("rope_scaling", "quantization_config"))
            and set(rope) <= {"rope_theta", "rope_type"}
            and rope.get("rope_type", "default") == "default"
        )
        try:
            heads = config["num_attention_heads"]
            shape = cls(
                layers=config["num_hidden_layers"],
                width=config["hidden_size"],
                inner=config["intermediate_size"],
                heads=heads,
                key_heads=config.get("num_key_value_heads") or heads,
                head_width=config.get("head_dim") or config["hidden_size"] // heads,
                vocabulary=config["vocab_size"],
                epsilon=config["rms_norm_eps"],
                theta=rope["rope_theta"],
                tied=config["tie_word_embeddings"],
            )
        except KeyError:  # left to transformers, which knows the defaults
            return None
        return shape if is_plain else None


class Llama(nn.Module):
    """Parameters are named as in the checkpoint, so its tensors load by name; they are not initialised."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.model = _Body(shape)
        self.lm_head = _Weight(shape.vocabulary, shape.width)
        if shape.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, ids_BS: Tensor) -> Tensor:
        """Logits (B, S, V) of the token after each."""
        return functional.linear(self.model(ids_BS), self.lm_head.weight)


class _Weight(nn.Module):
    """One parameter, called ``weight``."""

    def __init__(self, *size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))


class _Body(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = _Weight(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = _Weight(shape.width)
        self._turns = functools.lru_cache(8)(self._make_turns)

    def forward(self, ids_BS: Tensor) -> Tensor:
        x_BSD = functional.embedding(ids_BS, self.embed_tokens.weight)
        cos_SK, sin_SK = self._turns(ids_BS.shape[1])
        for layer in self.layers:
            x_BSD = layer(x_BSD, cos_SK, sin_SK)
        return _normed(x_BSD, self.norm, self.shape)

    def _make_turns(self, length: int) -> tuple[Tensor, Tensor]:
        """Rotary position embedding (Su et al. 2021, arXiv:2104.09864), half-split as in transformers."""
        steps = torch.arange(0, self.shape.head_width, 2).float() / self.shape.head_width
        angles = torch.outer(torch.arange(length).float(), 1.0 / self.shape.theta**steps)
        angles_SK = torch.cat((angles, angles), dim=-1)
        return angles_SK.cos(), angles_SK.sin()


class _Layer(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        self.input_layernorm = _Weight(shape.width)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = _Weight(shape.width)
        self.mlp = _FeedForward(shape)

    def forward(self, x_BSD: Tensor, cos_SK: Tensor, sin_SK: Tensor) -> Tensor:
        x_BSD = x_BSD + self.self_attn(_normed(x_BSD, self.input_layernorm, self.shape), cos_SK, sin_SK)
        out_BSD: Tensor = x_BSD + self.mlp(_normed(x_BSD, self.post_attention_layernorm, self.shape))
        return out_BSD


class _Attention(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.head_width = shape.head_width
        self.q_proj = _Weight(shape.heads * shape.head_width, shape.width)
        self.k_proj = _Weight(shape.key_heads * shape.head_width, shape.width)
        self.v_proj = _Weight(shape.key_heads * shape.head_width, shape.width)
        self.o_proj = _Weight(shape.width, shape.heads * shape.head_width)

    def forward(self, x_BSD: Tensor, cos_SK: Tensor, sin_SK: Tensor) -> Tensor:
        by_head = (*x_BSD.shape[:2], -1, self.head_width)
        q_BHSK, k_BHSK, v_BHSK = (
            functional.linear(x_BSD, projection.weight).view(by_head).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed_BHSK = functional.scaled_dot_product_attention(
            _turned(q_BHSK, cos_SK, sin_SK),
            _turned(k_BHSK, cos_SK, sin_SK),
            v_BHSK,
            is_causal=True,
            enable_gqa=True,
        )
        return functional.linear(mixed_BHSK.transpose(1, 2).flatten(2), self.o_proj.weight)


class _FeedForward(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = _Weight(shape.inner, shape.width)
        self.up_proj = _Weight(shape.inner, shape.width)
        self.down_proj = _Weight(shape.width, shape.inner)

    def forward(self, x_BSD: Tensor) -> Tensor:
        gate = functional.silu(functional.linear(x_BSD, self.gate_proj.weight))
        return functional.linear(gate * functional.linear(x_BSD, self.up_proj.weight), self.down_proj.weight)


def _normed(x_BSD: Tensor, scale: _Weight, shape: LlamaShape) -> Tensor:
    return functional.rms_norm(x_BSD, (shape.width,), scale.weight, shape.epsilon)


def _turned(x_BHSK: Tensor, cos_SK: Tensor, sin_SK: Tensor) -> Tensor:
    first, second = x_BHSK.chunk(2, dim=-1)
    return x_BHSK * cos_SK + torch.cat((-second, first), dim=-1) * sin_SK
