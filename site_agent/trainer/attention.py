"""Which program computes the attention of sequences, plain or packed with documents that must not see each other.

Plain sequences: torch's scaled dot-product attention, causal, without a mask, which on a GPU is cuDNN's or Flash's.
Documents: on a GPU in bf16 one call of ``torch.nn.attention.varlen`` for all of them; else one document after the
other, which is the definition. Never a mask over a whole sequence of documents: that is its square, and cuDNN's
backward pass has given NaN with one (pytorch issue 196678). Shapes: B sequences, S tokens, T = B S, H heads, G heads of
keys, K width of a head.
"""

import inspect
import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from site_agent.trainer.sending import sent


class Documents(NamedTuple):
    """Where documents lie in the T tokens of a batch laid end to end.

    places_BS    position of each token in its document, from 0
    bounds       0, and where every document ends: for the loop. Empty where one call does all
    ends_C       the same for that call, int32, its last number repeated up to a length that never changes; else None
    longest      tokens of the longest there can be
    shares_keys  whether that call takes fewer heads of keys than of queries: torch 2.13 says so, 2.11 does not
    """

    places_BS: Tensor
    bounds: tuple[int, ...]
    ends_C: Tensor | None
    longest: int
    shares_keys: bool


def documents_of(
    bounds: list[int], rows: int, row_tokens: int, ends: int, device: torch.device, is_in_one_call: bool
) -> Documents:
    """Of documents that end at ``bounds``, on ``device`` without waiting for it.

    ends            how many bounds there can be: so many are handed on, whatever is in a batch
    is_in_one_call  see ``can_do_in_one_call``
    Raises ValueError if there are more.
    """
    if len(bounds) > ends:
        raise ValueError(f"{len(bounds) - 1} documents exceed the {ends - 1} that there was room for")
    at = torch.tensor(bounds)
    lengths = at.diff()
    places = torch.arange(rows * row_tokens) - torch.repeat_interleave(
        at[:-1], lengths, output_size=rows * row_tokens
    )
    ends_C = None
    if is_in_one_call:
        ends_C = sent(torch.tensor(bounds + [bounds[-1]] * (ends - len(bounds)), dtype=torch.int32), device)
    return Documents(
        places_BS=sent(places.view(rows, row_tokens), device),
        bounds=() if is_in_one_call else tuple(bounds),
        ends_C=ends_C,
        longest=row_tokens,
        shares_keys=is_in_one_call and _shares_keys(),
    )


def can_do_in_one_call(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``varlen_attn`` computes documents here: it is Flash, on CUDA and ROCm, in 16 bits."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def seen_through(window: int, length: int, device: torch.device) -> Tensor | None:
    """Who may look at whom (S, S), if not at all before: on the last ``window`` tokens, itself included."""
    if not window or length < window:
        return None
    before_S = torch.arange(length, device=device)
    ago_SS = before_S[:, None] - before_S[None, :]
    return (ago_SS >= 0) & (ago_SS < window)


def plain_attention(q_BHSK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, seen_SS: Tensor | None) -> Tensor:
    """(B, H, S, K): every token looks back on all before it, or on those that it has ``seen``."""
    if seen_SS is None:
        return functional.scaled_dot_product_attention(
            q_BHSK, k_BGSK, v_BGSK, is_causal=True, enable_gqa=True
        )
    group = q_BHSK.shape[1] // k_BGSK.shape[1]  # kernels that take a mask do not share keys among heads
    k_BHSK, v_BHSK = (x.repeat_interleave(group, dim=1) for x in (k_BGSK, v_BGSK))
    return functional.scaled_dot_product_attention(q_BHSK, k_BHSK, v_BHSK, attn_mask=seen_SS)


def document_attention(
    q_BHSK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, documents: Documents, window: int
) -> Tensor:
    """(B, H, S, K): the same within each document."""
    if documents.ends_C is None:
        return _one_after_the_other(q_BHSK, k_BGSK, v_BGSK, documents.bounds, window)
    from torch.nn.attention.varlen import varlen_attn

    rows, heads, length, _ = q_BHSK.shape
    if not documents.shares_keys:
        group = heads // k_BGSK.shape[1]
        k_BGSK, v_BGSK = (x.repeat_interleave(group, dim=1) for x in (k_BGSK, v_BGSK))
    q_THK, k_TGK, v_TGK = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHSK, k_BGSK, v_BGSK))
    told: dict[str, Any] = {"enable_gqa": True} if documents.shares_keys else {}
    mixed_THK: Any = varlen_attn(
        *(q_THK, k_TGK, v_TGK, documents.ends_C, documents.ends_C, documents.longest, documents.longest),
        window_size=(window - 1 if window else -1, 0),
        **told,
    )
    mixed_BHSK: Tensor = mixed_THK.view(rows, length, heads, -1).transpose(1, 2)
    return mixed_BHSK


def _one_after_the_other(
    q_BHSK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, bounds: tuple[int, ...], window: int
) -> Tensor:
    rows, _, length, _ = q_BHSK.shape
    mixed = []
    for begin, end in itertools.pairwise(bounds):
        row, first = divmod(begin, length)
        part = (slice(row, row + 1), slice(None), slice(first, first + end - begin))
        seen_SS = seen_through(window, end - begin, q_BHSK.device)
        mixed.append(plain_attention(q_BHSK[part], k_BGSK[part], v_BGSK[part], seen_SS))
    together_HTK = torch.cat(mixed, dim=2).squeeze(0)
    return together_HTK.view(len(together_HTK), rows, length, -1).transpose(0, 1)


def _shares_keys() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters
