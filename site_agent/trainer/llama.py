"""Llama and its nearest kin in PyTorch alone, bit for bit those of transformers in float32 on CPU.

Importing the models of transformers takes 3 s of CPU, as long as twenty steps of a small job; a step is as fast.
``shape.py`` says which models these are. Shapes: B sequences, S tokens, D model width, H heads, K width of a head,
V vocabulary.
"""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional

from site_agent.trainer import rope
from site_agent.trainer.shape import Shape

Places = tuple[
    Tensor, Tensor, Tensor | None
]  #: cosines and sines (S, K); who may look at whom (S, S) if not all before


class Llama(nn.Module):
    """Parameters are named as in the checkpoint, so its tensors load by name; they are not initialised."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = _Body(shape)
        self.lm_head = _Weight(shape.vocabulary, shape.width)
        if shape.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, ids_BS: Tensor) -> Tensor:
        """Logits (B, S, V) of the token after each."""
        logits_BSV: Tensor = self.lm_head(self.model(ids_BS))
        return logits_BSV


class _Weight(nn.Module):
    """One parameter, called ``weight``, and perhaps a ``bias``."""

    def __init__(self, *size: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size[0])) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class _Body(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = _Weight(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = _Weight(shape.width)
        self._places = functools.lru_cache(8)(self._make_places)

    def forward(self, ids_BS: Tensor) -> Tensor:
        x_BSD = functional.embedding(ids_BS, self.embed_tokens.weight)
        places = self._places(ids_BS.shape[1], x_BSD.device)
        for layer in self.layers:
            x_BSD = layer(x_BSD, places)
        return _normed(x_BSD, self.norm, self.shape)

    def _make_places(self, length: int, device: torch.device) -> Places:
        cos_SK, sin_SK = rope.turns(self.shape.rope, self.shape.head_width, length)
        window, seen_SS = self.shape.window, None
        if window and length >= window:
            before_S = torch.arange(length, device=device)
            ago_SS = before_S[:, None] - before_S[None, :]
            seen_SS = (ago_SS >= 0) & (ago_SS < window)
        return cos_SK.to(device), sin_SK.to(device), seen_SS


class _Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.input_layernorm = _Weight(shape.width)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = _Weight(shape.width)
        self.mlp = _FeedForward(shape)

    def forward(self, x_BSD: Tensor, places: Places) -> Tensor:
        x_BSD = x_BSD + self.self_attn(_normed(x_BSD, self.input_layernorm, self.shape), places)
        out_BSD: Tensor = x_BSD + self.mlp(_normed(x_BSD, self.post_attention_layernorm, self.shape))
        return out_BSD


class _Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.heads * shape.head_width, shape.key_heads * shape.head_width
        self.q_proj = _Weight(queries, shape.width, bias=shape.qkv_bias)
        self.k_proj = _Weight(keys, shape.width, bias=shape.qkv_bias)
        self.v_proj = _Weight(keys, shape.width, bias=shape.qkv_bias)
        self.o_proj = _Weight(shape.width, queries, bias=shape.output_bias)
        if shape.head_norms:
            self.q_norm = _Weight(shape.head_width)
            self.k_norm = _Weight(shape.head_width)

    def forward(self, x_BSD: Tensor, places: Places) -> Tensor:
        cos_SK, sin_SK, seen_SS = places
        by_head = (*x_BSD.shape[:2], -1, self.shape.head_width)
        q_BSHK, k_BSHK, v_BSHK = (
            projection(x_BSD).view(by_head) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.shape.head_norms:
            q_BSHK = _normed(q_BSHK, self.q_norm, self.shape)
            k_BSHK = _normed(k_BSHK, self.k_norm, self.shape)
        turned = _turned_by_slices if self.shape.head_norms else _turned
        q_BHSK = turned(q_BSHK.transpose(1, 2), cos_SK, sin_SK)
        k_BHSK = turned(k_BSHK.transpose(1, 2), cos_SK, sin_SK)
        v_BHSK = v_BSHK.transpose(1, 2)
        if seen_SS is not None:  # kernels that take a mask do not share keys among heads
            group = self.shape.heads // self.shape.key_heads
            k_BHSK, v_BHSK = (x.repeat_interleave(group, dim=1) for x in (k_BHSK, v_BHSK))
        mixed_BHSK = functional.scaled_dot_product_attention(
            *(q_BHSK, k_BHSK, v_BHSK),
            attn_mask=seen_SS,
            is_causal=seen_SS is None,
            enable_gqa=seen_SS is None,
        )
        out_BSD: Tensor = self.o_proj(mixed_BHSK.transpose(1, 2).flatten(2))
        return out_BSD


class _FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = _Weight(shape.inner, shape.width, bias=shape.inner_bias)
        self.up_proj = _Weight(shape.inner, shape.width, bias=shape.inner_bias)
        self.down_proj = _Weight(shape.width, shape.inner, bias=shape.inner_bias)

    def forward(self, x_BSD: Tensor) -> Tensor:
        out_BSD: Tensor = self.down_proj(functional.silu(self.gate_proj(x_BSD)) * self.up_proj(x_BSD))
        return out_BSD


def _normed(x_BSD: Tensor, scale: _Weight, shape: Shape) -> Tensor:
    return functional.rms_norm(x_BSD, x_BSD.shape[-1:], scale.weight, shape.epsilon)


def _turned(x_BHSK: Tensor, cos_SK: Tensor, sin_SK: Tensor) -> Tensor:
    first, second = x_BHSK.chunk(2, dim=-1)
    return x_BHSK * cos_SK + torch.cat((-second, first), dim=-1) * sin_SK


def _turned_by_slices(x_BHSK: Tensor, cos_SK: Tensor, sin_SK: Tensor) -> Tensor:
    """The same, dearer backwards: its gradient lies in memory as theirs, and a norm before it sums it in that order."""
    kept_BHSK, half = x_BHSK * cos_SK, x_BHSK.shape[-1] // 2  # before the slices: so its gradient comes last
    first, second = x_BHSK[..., :half], x_BHSK[..., half:]
    return kept_BHSK + torch.cat((-second, first), dim=-1) * sin_SK
