"""The loss in parts: the numbers of the plain one, at a fraction of its memory."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from site_agent.trainer import head
from site_agent.trainer.head import IGNORED, bytes_per_logit, linear_cross_entropy, plan_head

#: rows, width, vocabulary, rows at once: odd ones, single ones, more at once than there are
SHAPES = [(1, 1, 1, 1), (7, 5, 11, 3), (13, 8, 3, 5), (6, 4, 9, 100), (16, 3, 2, 1), (33, 16, 257, 16)]


def drawn(rows: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(rows * 7 + vocabulary)
    x_ND = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    weight_VD = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    targets_N = torch.randint(0, vocabulary, (rows,), generator=generator)
    targets_N[::4] = IGNORED
    if rows == 1:
        targets_N[0] = 0
    return x_ND.to(dtype), weight_VD.to(dtype), targets_N


def plain(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and both gradients, by torch's own functions."""
    x, weight = x_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()
    loss = functional.cross_entropy(x @ weight.T, targets_N, reduction="sum", ignore_index=IGNORED)
    (loss * 0.25).backward()
    assert x.grad is not None and weight.grad is not None
    return loss.detach(), x.grad, weight.grad


def ours(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = x_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()
    loss, nats_N = linear_cross_entropy(x, weight, targets_N, rows)
    assert not nats_N.requires_grad
    assert nats_N[targets_N == IGNORED].eq(0).all()
    torch.testing.assert_close(nats_N.sum(), loss.detach(), equal_nan=True)
    (loss * 0.25).backward()
    assert x.grad is not None and weight.grad is not None
    return loss.detach(), x.grad, weight.grad


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_plain_loss_in_float64(shape: tuple[int, int, int, int]) -> None:
    given = drawn(*shape[:3])
    for one, other in zip(ours(*given, shape[3]), plain(*given), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rows_near", [1, 5, 100])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 7), (33, 5), (40, 257)])
def test_with_all_logits_it_is_torchs_to_the_bit_in_the_logits_own_memory(
    rows: int, vocabulary: int, rows_near: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_NEAR_BYTES", rows_near * vocabulary * 4)
    x_ND, weight_VD, targets_N = drawn(rows, 8, vocabulary, torch.float32)
    expected = (x_ND @ weight_VD.T).requires_grad_()
    torchs = functional.cross_entropy(expected, targets_N, reduction="sum", ignore_index=IGNORED)
    (torchs / 3).backward()
    found = (x_ND @ weight_VD.T).requires_grad_()
    own = head.cross_entropy(found, targets_N)
    (own / 3).backward()
    assert expected.grad is not None and found.grad is not None
    assert torch.equal(own, torchs)
    assert torch.equal(found.grad.view(torch.int32), expected.grad.view(torch.int32))
    assert found.grad.data_ptr() == found.data_ptr()


@pytest.mark.parametrize("shape", SHAPES)
def test_in_float32_it_is_as_near_to_float64_as_the_plain_loss(shape: tuple[int, int, int, int]) -> None:
    exact = plain(*drawn(*shape[:3]))
    given = drawn(*shape[:3], torch.float32)
    for one, other, truth in zip(ours(*given, shape[3]), plain(*given), exact, strict=True):
        error, theirs = ((each.double() - truth).abs().max() for each in (one, other))
        assert error <= 2 * theirs + 1e-6 * truth.abs().max() + 1e-7


@pytest.mark.parametrize("rows_at_once", [1, 2, 4, 9])
def test_gradcheck(rows_at_once: int) -> None:
    x_ND, weight_VD, targets_N = drawn(9, 4, 6)
    given = (x_ND.requires_grad_(), weight_VD.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda x, weight: linear_cross_entropy(x, weight, targets_N, rows_at_once)[0], given
    )


def test_rows_without_a_target_cost_and_move_nothing_whatever_is_in_them() -> None:
    x_ND, weight_VD, targets_N = drawn(9, 4, 6)
    none_N = torch.full_like(targets_N, IGNORED)
    for found in ours(x_ND, weight_VD, none_N, 4):
        assert not found.any()
    poisoned = x_ND.clone()
    poisoned[targets_N == IGNORED] = 1e300  # its logits overflow
    clean, found = ours(x_ND, weight_VD, targets_N, 4), ours(poisoned, weight_VD, targets_N, 4)
    assert found[0] == clean[0]
    assert torch.equal(found[1], clean[1])


def test_what_is_not_finite_is_not_hidden() -> None:
    x_ND, weight_VD, targets_N = drawn(9, 4, 6)
    x_ND[1, 0] = float("inf")
    loss, dx_ND, _ = ours(x_ND, weight_VD, targets_N, 4)
    assert not loss.isfinite() and not dx_ND.isfinite().all()


def test_only_what_learns_has_a_gradient() -> None:
    x_ND, weight_VD, targets_N = drawn(9, 4, 6)
    x_ND.requires_grad_()
    linear_cross_entropy(x_ND, weight_VD, targets_N, 4)[0].backward()
    assert x_ND.grad is not None and weight_VD.grad is None
    frozen, learning = x_ND.detach(), weight_VD.requires_grad_()
    linear_cross_entropy(frozen, learning, targets_N, 4)[0].backward()
    torch.testing.assert_close(learning.grad, plain(frozen, weight_VD.detach(), targets_N)[2] * 4)


def test_a_weight_that_is_the_embeddings_too_gets_both_gradients() -> None:
    _, weight_VD, targets_N = drawn(9, 4, 6)
    ids_N = torch.arange(9) % 6
    grads = []
    for in_parts in (True, False):
        weight = weight_VD.clone().requires_grad_()
        x_ND = functional.embedding(ids_N, weight)
        if in_parts:
            loss = linear_cross_entropy(x_ND, weight, targets_N, 2)[0]
        else:
            loss = functional.cross_entropy(x_ND @ weight.T, targets_N, reduction="sum")
        loss.backward()
        grads.append(weight.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("way", ["autocast", "bf16 weights"])
def test_in_bf16_the_weights_gradient_is_summed_in_float32(way: str) -> None:
    """256 pieces of one row: summed in bf16, whose step at 1 is 1/128, they would be far off."""
    x_ND, weight_VD, targets_N = drawn(256, 8, 3)
    exact = plain(x_ND.bfloat16().double(), weight_VD.bfloat16().double(), targets_N)[2]
    weight, x = weight_VD.float().requires_grad_(), x_ND.float()
    if way == "bf16 weights":
        weight, x = weight_VD.bfloat16().requires_grad_(), x_ND.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        loss, _ = linear_cross_entropy(x, weight, targets_N, 1)
    assert loss.dtype == torch.float32
    (loss * 0.25).backward()
    assert weight.grad is not None and weight.grad.dtype == weight.dtype
    error = (weight.grad.double() - exact).abs().max() / exact.abs().max()
    assert error < (0.006 if way == "bf16 weights" else 0.003)


class Memory(TorchDispatchMode):
    """The most bytes that tensors made in it had at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def most_bytes(rows: int, width: int, vocabulary: int, rows_at_once: int) -> int:
    x_ND, weight_VD, targets_N = drawn(rows, width, vocabulary, torch.float32)
    x_ND.requires_grad_()
    weight_VD.requires_grad_()
    with Memory() as memory:
        if rows_at_once:
            loss = linear_cross_entropy(x_ND, weight_VD, targets_N, rows_at_once)[0]
        else:
            loss = functional.cross_entropy(x_ND @ weight_VD.T, targets_N, reduction="sum")
        loss.backward()
    return memory.most


def test_it_never_has_the_logits() -> None:
    """512 rows of 4096 words are 8 MiB; the plain loss has them three times, ours an eighth of them once."""
    rows, width, vocabulary, at_once = 512, 8, 4096, 64
    logits = rows * vocabulary * 4
    assert most_bytes(rows, width, vocabulary, 0) > 2.5 * logits
    gradients = 2 * vocabulary * width * 4 + 3 * rows * width * 4
    rest = 1 << 16  # a number or two for each row
    assert most_bytes(rows, width, vocabulary, at_once) < logits / 8 + gradients + rest


def test_the_plan_says_which_and_why() -> None:
    small = plan_head("auto", rows=2048, vocabulary=8192, workspace_bytes=1 << 28)
    assert small.head == "whole"
    assert "64 MiB of logits, few enough" in small.reason
    large = plan_head("auto", rows=16384, vocabulary=256_000, workspace_bytes=4 << 30, is_bf16=True)
    assert (large.head, large.rows_at_once) == ("in_parts", 2432)  # seven pieces, nearly equal, in tiles
    assert large.rows_at_once * 256_000 * bytes_per_logit(True) <= 4 << 30
    assert "fit into 4096 MiB" in large.reason
    assert plan_head("whole", rows=16384, vocabulary=256_000, workspace_bytes=1).head == "whole"
    tiny = plan_head("in_parts", rows=10, vocabulary=100, workspace_bytes=1)
    assert (tiny.head, tiny.rows_at_once) == ("in_parts", 1)
