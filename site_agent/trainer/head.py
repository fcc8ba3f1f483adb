"""How the loss of a large vocabulary is computed without ever having all of its logits.

A head of V words makes V numbers of every token: with 256k words and 16k tokens 17 GB in float32, and the loss makes
as many again for the backward pass. Here the rows are taken some at a time: their logits, their loss, and at once the
gradients of what comes before the head and of the head, are computed in the forward pass, and the logits dropped. The
backward pass only scales. What is kept is the two gradients. Nothing waits for the device: which rows count stays on
it. Shapes: N rows (tokens), D model width, V vocabulary.

The head's gradient is summed over the pieces in float32 at least, also where the products are in bf16; Liger's and
torch's chunked losses do the same algebra (Hsu et al. 2024, arXiv:2410.10989, section 3).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100  #: a target that is none; the number of ``torch.nn.functional.cross_entropy``

Head = Literal["whole", "in_parts"]
Cost = Callable[[Tensor, Tensor], Tensor]  #: logits (N, V) and targets (N,), see ``cross_entropy``
Turn = Callable[[Tensor, Tensor], Tensor]  #: logits (P, V) and targets (P,), see ``turn_into_gradient``

_WHOLE_MAX = (
    256 << 20
)  # bytes of float32 logits: smaller ones are no trouble, and their bits those of transformers
# rows of a piece are a multiple: a GPU's kernels compute so many at a time, or waste what is beyond
_TILE = 128
_NEAR_BYTES = 512 << 10  # of logits; with as many of a gradient they fit into 1 MiB of cache a core
_SUM = 2  # ATen's number of the reduction


class HeadPlan(NamedTuple):
    """How a loss is computed, and why so."""

    head: Head
    rows_at_once: int
    reason: str


def plan_head(
    asked: Literal["auto", "whole", "in_parts"],
    *,
    rows: int,
    vocabulary: int,
    workspace_bytes: int,
    is_bf16: bool = False,
) -> HeadPlan:
    """Whether all logits are made at once, and if not, of how many rows.

    rows             tokens in one forward pass
    workspace_bytes  what the logits of the rows at once may take, with all that is made of them
    """
    whole = rows * vocabulary * 4
    at_once = workspace_bytes // (vocabulary * bytes_per_logit(is_bf16))
    at_once = max(1, at_once if at_once < _TILE else at_once // _TILE * _TILE)
    size = f"{rows} rows of {vocabulary} words are {whole >> 20} MiB of logits"
    if asked == "whole" or (asked == "auto" and whole <= _WHOLE_MAX):
        return HeadPlan(
            "whole", rows, size if asked == "whole" else f"{size}, few enough to have them at once"
        )
    pieces = -(-rows // at_once)
    even = -(-rows // pieces)
    even = min(rows, at_once, -(-even // _TILE) * _TILE)
    return HeadPlan("in_parts", even, f"{size}; {even} rows at once fit into {workspace_bytes >> 20} MiB")


def bytes_per_logit(is_bf16: bool) -> int:
    """Of a piece, at its peak: in float32 worked on in place; in bf16 that copy and the one the product made."""
    return 6 if is_bf16 else 4


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Nats of the targets, summed, of all logits at once; IGNORED ones cost nothing. Nobody may need the logits after.

    On a CPU in float32 they, the logarithms of their probabilities and their gradient are one after the other in the
    same memory: bit for bit those of torch's own function, whose parts are called for some rows at a time.
    """
    if logits_NV.device.type == "cpu" and not torch.compiler.is_compiling():
        nats: Tensor = _Cost.apply(logits_NV.float(), targets_N)  # type: ignore[no-untyped-call]
        return nats
    return functional.cross_entropy(logits_NV.float(), targets_N, reduction="sum", ignore_index=IGNORED)


class _Cost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        logs_NV = logits_NV.detach()
        for logs_PV in torch.split(logs_NV, _rows_near(logs_NV)):
            torch.log_softmax(logs_PV, 1, out=logs_PV)
        nats: Tensor
        nats, weight = torch.ops.aten.nll_loss_forward(logs_NV, targets_N, None, _SUM, IGNORED)
        ctx.save_for_backward(logs_NV, targets_N, weight)
        return nats

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor, None]:
        logs_NV, targets_N, weight = ctx.saved_tensors
        rows = _rows_near(logs_NV)
        for logs_PV, targets_P in zip(logs_NV.split(rows), targets_N.split(rows), strict=True):
            gradient_PV = torch.ops.aten.nll_loss_backward(
                scales[0], logs_PV, targets_P, None, _SUM, IGNORED, weight
            )
            torch._log_softmax_backward_data(gradient_PV, logs_PV, 1, logs_PV.dtype, out=logs_PV)
        return logs_NV, None


def _rows_near(logits_NV: Tensor) -> int:
    """How many rows are worked on before they leave the processor's caches."""
    return max(1, _NEAR_BYTES // (logits_NV.shape[1] * logits_NV.element_size()))


def linear_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    rows_at_once: int,
    turn: Turn | None = None,
) -> tuple[Tensor, Tensor]:
    """Nats of the targets under the softmax of ``x @ weight.T``: their sum, and of each row (N,), without gradient.

    targets_N     word numbers; rows with IGNORED cost nothing and move nothing
    rows_at_once  the last piece may have fewer
    turn          ``turn_into_gradient``, compiled perhaps
    Under autocast the products are in its type, and the weight's gradient is in the weight's own all the same.
    """
    kind = x_ND.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_ND.dtype
    given = (x_ND, weight_VD, targets_N, rows_at_once, dtype, turn or turn_into_gradient)
    summed, nats_N = _Loss.apply(*given)  # type: ignore[no-untyped-call]
    return summed, nats_N


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        rows_at_once: int,
        dtype: torch.dtype,
        turn: Turn,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        with torch.autocast(x_ND.device.type, enabled=False):
            head_VD = weight_VD.to(dtype)
            nats_N = torch.empty(len(x_ND), dtype=wide, device=x_ND.device)
            dx_ND = torch.empty_like(x_ND) if wants_x else None
            dweight_VD = torch.zeros_like(weight_VD, dtype=wide) if wants_weight else None
            for begin in range(0, len(x_ND), rows_at_once):
                piece = slice(begin, begin + rows_at_once)
                x_PD = x_ND[piece].to(dtype)
                logits_PV = (x_PD @ head_VD.T).to(wide)
                nats_N[piece] = turn(logits_PV, targets_N[piece])
                gradient_PV = logits_PV.to(dtype)
                del logits_PV
                if dx_ND is not None:
                    dx_ND[piece] = gradient_PV @ head_VD
                if dweight_VD is not None:
                    _add_product(dweight_VD, gradient_PV, x_PD)
                del gradient_PV  # or it would still be there when the next piece's logits are made
        ctx.save_for_backward(dx_ND, dweight_VD)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(nats_N)
        return nats_N.sum(), nats_N

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor | None, ...]:
        dx_ND, dweight_VD = ctx.saved_tensors
        scale = scales[0]
        return (
            None if dx_ND is None else (dx_ND.to(scale.dtype) * scale).to(dx_ND.dtype),
            None if dweight_VD is None else (dweight_VD * scale).to(ctx.weight_dtype),
            *(None, None, None, None),
        )


def turn_into_gradient(logits_PV: Tensor, targets_P: Tensor) -> Tensor:
    """Nats (P,) of the targets; the logits become their gradient, softmax less one-hot, in their own memory."""
    counts_P1 = (targets_P != IGNORED).unsqueeze(1)
    at_P1 = targets_P.clamp(min=0).unsqueeze(1)
    logits_PV -= logits_PV.amax(dim=1, keepdim=True)
    of_target_P1 = logits_PV.gather(1, at_P1)
    logits_PV.exp_()
    sums_P1 = logits_PV.sum(dim=1, keepdim=True)
    logits_PV /= sums_P1
    logits_PV.scatter_add_(1, at_P1, torch.full_like(of_target_P1, -1.0))
    logits_PV.masked_fill_(~counts_P1, 0.0)
    return torch.where(counts_P1, sums_P1.log() - of_target_P1, 0.0).squeeze(1)


def _add_product(total_VD: Tensor, gradient_PV: Tensor, x_PD: Tensor) -> None:
    """``total += gradient.T @ x`` with the products of the piece, and the sum over pieces, in the total's type."""
    if gradient_PV.dtype == total_VD.dtype:
        total_VD.addmm_(gradient_PV.T, x_PD)
    elif gradient_PV.is_cuda:  # bf16 in, float32 out of the same kernel; in torch since 2.8, on CUDA alone
        torch.addmm(total_VD, gradient_PV.T, x_PD, out_dtype=total_VD.dtype, out=total_VD)
    else:
        total_VD.addmm_(gradient_PV.T.to(total_VD.dtype), x_PD.to(total_VD.dtype))
