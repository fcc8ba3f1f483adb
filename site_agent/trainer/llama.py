"""Llama and its nearest kin in PyTorch alone, bit for bit those of transformers in float32 on CPU.

Importing the models of transformers takes 3 s of CPU, as long as twenty steps of a small job; a step is as fast.
``shape.py`` says which models these are. Shapes: B sequences, S tokens, D model width, H heads, G heads of
keys, K width of a head, V vocabulary.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from site_agent.trainer import rope
from site_agent.trainer.attention import Documents, document_attention, plain_attention, seen_through
from site_agent.trainer.head import Cost, Turn, cross_entropy, linear_cross_entropy, turn_into_gradient
from site_agent.trainer.shape import Shape


class Places(NamedTuple):
    """What every block is told of where the tokens stand.

    cos, sin   (S, K); of packed documents (B, 1, S, K)
    seen       who may look at whom (S, S); None: at all before
    documents  None: each sequence is one
    """

    cos: Tensor
    sin: Tensor
    seen: Tensor | None = None
    documents: Documents | None = None


class Scored(NamedTuple):
    """A loss whose logits never were all there.

    nats     summed over all targets, with gradient
    nats_BS  of each target, 0 where there is none; without
    """

    nats: Tensor
    nats_BS: Tensor


class Llama(nn.Module):
    """Parameters are named as in the checkpoint, so its tensors load by name; they are not initialised."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = _Body(shape)
        self.lm_head = _Weight(shape.vocabulary, shape.width)
        if shape.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        # of the loss with all logits at once, and in parts; ``compiling.py`` has others
        self.cost: Cost = cross_entropy
        self.turn: Turn = turn_into_gradient

    def forward(
        self,
        ids_BS: Tensor,
        targets_BS: Tensor | None = None,
        documents: Documents | None = None,
        rows_at_once: int = 0,
    ) -> Tensor | Scored:
        """Logits (B, S, V) of the token after each.

        targets_BS    with ``rows_at_once``: their loss instead, computed by so many tokens at a time, without logits
        documents     packed into the sequences; None: each sequence is one
        """
        x_BSD = self.model(ids_BS, documents)
        if rows_at_once and targets_BS is not None:
            scored = linear_cross_entropy(
                x_BSD.flatten(0, 1), self.lm_head.weight, targets_BS.flatten(), rows_at_once, self.turn
            )
            return Scored(scored[0], scored[1].view_as(targets_BS))
        logits_BSV: Tensor = self.lm_head(x_BSD)
        return logits_BSV


class _Weight(nn.Module):
    """One parameter, called ``weight``."""

    def __init__(self, *size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)


class _Linear(nn.Linear):
    """One whose weights are not drawn: they come from a file."""

    def reset_parameters(self) -> None:
        pass


class _Body(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = _Weight(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = _Weight(shape.width)
        self._places = functools.lru_cache(8)(self._make_places)

    def forward(self, ids_BS: Tensor, documents: Documents | None = None) -> Tensor:
        x_BSD = functional.embedding(ids_BS, self.embed_tokens.weight)
        places = self._places(ids_BS.shape[1], x_BSD.device)
        if documents is not None:
            cos, sin = (table_SK[documents.places_BS].unsqueeze(1) for table_SK in places[:2])
            places = Places(cos, sin, documents=documents)
        for layer in self.layers:
            x_BSD = layer(x_BSD, places)
        return _normed(x_BSD, self.norm, self.shape)

    def _make_places(self, length: int, device: torch.device) -> Places:
        cos_SK, sin_SK = rope.turns(self.shape.rope, self.shape.head_width, length)
        seen_SS = seen_through(self.shape.window, length, device)
        return Places(cos_SK.to(device), sin_SK.to(device), seen_SS)


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
        self.q_proj = _Linear(shape.width, queries, bias=shape.qkv_bias)
        self.k_proj = _Linear(shape.width, keys, bias=shape.qkv_bias)
        self.v_proj = _Linear(shape.width, keys, bias=shape.qkv_bias)
        self.o_proj = _Linear(queries, shape.width, bias=shape.output_bias)
        if shape.head_norms:
            self.q_norm = _Weight(shape.head_width)
            self.k_norm = _Weight(shape.head_width)

    def forward(self, x_BSD: Tensor, places: Places) -> Tensor:
        by_head = (*x_BSD.shape[:2], -1, self.shape.head_width)
        q_BSHK, k_BSGK, v_BSGK = (
            projection(x_BSD).view(by_head) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.shape.head_norms:
            q_BSHK = _normed(q_BSHK, self.q_norm, self.shape)
            k_BSGK = _normed(k_BSGK, self.k_norm, self.shape)
        turned = _turned_by_slices if self.shape.head_norms else _turned
        q_BHSK = turned(q_BSHK.transpose(1, 2), places)
        k_BGSK = turned(k_BSGK.transpose(1, 2), places)
        v_BGSK = v_BSGK.transpose(1, 2)
        if places.documents is None:
            mixed_BHSK = plain_attention(q_BHSK, k_BGSK, v_BGSK, places.seen)
        else:
            mixed_BHSK = document_attention(q_BHSK, k_BGSK, v_BGSK, places.documents, self.shape.window)
        out_BSD: Tensor = self.o_proj(mixed_BHSK.transpose(1, 2).flatten(2))
        return out_BSD


class _FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = _Linear(shape.width, shape.inner, bias=shape.inner_bias)
        self.up_proj = _Linear(shape.width, shape.inner, bias=shape.inner_bias)
        self.down_proj = _Linear(shape.inner, shape.width, bias=shape.inner_bias)

    def forward(self, x_BSD: Tensor) -> Tensor:
        out_BSD: Tensor = self.down_proj(functional.silu(self.gate_proj(x_BSD)) * self.up_proj(x_BSD))
        return out_BSD


def _normed(x_BSD: Tensor, scale: _Weight, shape: Shape) -> Tensor:
    return functional.rms_norm(x_BSD, x_BSD.shape[-1:], scale.weight, shape.epsilon)


def _turned(x_BHSK: Tensor, places: Places) -> Tensor:
    """By the places; in float32 where they are, and in the type of ``x`` again: 16 bits of an angle are too few."""
    if not torch.compiler.is_compiling():  # a compiler sees for itself how few passes over memory it takes
        turned_BHSK: Tensor = _Turned.apply(x_BHSK, places.cos, places.sin)  # type: ignore[no-untyped-call]
        return turned_BHSK
    first, second = x_BHSK.chunk(2, dim=-1)
    return (x_BHSK * places.cos + torch.cat((-second, first), dim=-1) * places.sin).to(x_BHSK.dtype)


class _Turned(torch.autograd.Function):
    """The formula of ``_turned``, bit for bit, in a third of its passes over memory."""

    @staticmethod
    def forward(ctx: Any, x_BHSK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half, turned_BHSK = x_BHSK.shape[-1] // 2, x_BHSK * cos
        turned_BHSK[..., :half] -= x_BHSK[..., half:] * sin[..., :half]
        turned_BHSK[..., half:] += x_BHSK[..., :half] * sin[..., half:]
        return turned_BHSK.to(x_BHSK.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (cos, sin), gradient_BHSK = ctx.saved_tensors, gradients[0]
        half, back_BHSK = gradient_BHSK.shape[-1] // 2, gradient_BHSK * cos
        back_BHSK[..., :half] += gradient_BHSK[..., half:] * sin[..., half:]
        back_BHSK[..., half:] -= gradient_BHSK[..., :half] * sin[..., :half]
        return back_BHSK.to(gradient_BHSK.dtype), None, None


def _turned_by_slices(x_BHSK: Tensor, places: Places) -> Tensor:
    """The same, dearer backwards: its gradient lies in memory as theirs, and a norm before it sums it in that order."""
    kept_BHSK, half = (
        x_BHSK * places.cos,
        x_BHSK.shape[-1] // 2,
    )  # before the slices: so its gradient comes last
    first, second = x_BHSK[..., :half], x_BHSK[..., half:]
    turned_BHSK = kept_BHSK + torch.cat((-second, first), dim=-1) * places.sin
    return turned_BHSK.to(x_BHSK.dtype)
