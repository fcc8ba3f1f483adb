"""The outer optimizers against torch's and against the papers' formulas, written per element."""

import math

import numpy as np
import pytest
import torch

from consortium.deltas import pseudo_gradient
from consortium.merging.outer import outer_step, state_names
from consortium.merging.recipe import PLAIN_AVERAGE, OuterStep
from consortium.tensors import F32Array


def test_a_pseudo_gradient_is_base_minus_trained() -> None:
    base, trained = np.array([1.0, 2.0]), np.array([1.5, 1.0])
    assert pseudo_gradient(trained - base).tolist() == (base - trained).tolist()


@pytest.mark.parametrize("nesterov", [True, False])
def test_three_steps_as_torch_does_them(nesterov: bool) -> None:
    rng = np.random.default_rng(1)
    theta = rng.standard_normal(50).astype(np.float32)
    step = OuterStep(learning_rate=0.7, momentum=0.9, nesterov=nesterov)
    parameter = torch.nn.Parameter(torch.from_numpy(theta.astype(np.float64)))
    oracle = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=nesterov)
    momentum = None
    for _ in range(3):
        delta = rng.standard_normal(50) * 0.01
        parameter.grad = torch.from_numpy(-delta)
        oracle.step()
        after, (kept,) = outer_step(theta, delta, momentum, step)
        assert after.dtype == kept.dtype == np.float64
        np.testing.assert_allclose(
            after, parameter.detach().numpy(), rtol=0, atol=1e-6
        )  # float32 between steps
        theta, momentum = after.astype(np.float32), [kept.astype(np.float32)]


def test_the_first_step_is_torchs_to_the_last_bits() -> None:
    rng = np.random.default_rng(2)
    theta, delta = rng.standard_normal(50).astype(np.float32), rng.standard_normal(50)
    parameter = torch.nn.Parameter(torch.from_numpy(theta.astype(np.float64)))
    parameter.grad = torch.from_numpy(-delta)
    torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True).step()
    after, _ = outer_step(theta, delta, None, OuterStep())
    np.testing.assert_allclose(after, parameter.detach().numpy(), rtol=0, atol=1e-15)  # torch may fuse


def test_momentum_is_stored_in_float32_but_reckoned_in_float64() -> None:
    momentum, delta = np.float32([0.1]), np.array([0.3])
    after, (kept,) = outer_step(np.float32([0.2]), delta, [momentum], OuterStep())
    b = 0.9 * float(momentum[0]) - 0.3
    assert kept.tolist() == [b]
    assert after.tolist() == [float(np.float32(0.2)) - 0.7 * (-0.3 + 0.9 * b)]


def test_a_plain_average_moves_by_the_delta_and_keeps_nothing() -> None:
    theta, delta = np.float32([1.0, -2.0]), np.array([0.25, 0.5])
    after, kept = outer_step(theta, delta, None, PLAIN_AVERAGE.outer)
    assert after.tolist() == [1.25, -1.5]
    assert kept == ()


ADAPTIVE = [
    OuterStep(optimizer=optimizer, learning_rate=0.3, beta1=0.8, beta2=0.95, tau=tau)
    for optimizer in ("adam", "yogi", "adagrad")
    for tau in (1e-3, 0.2)
]


def reddi(x: float, delta: float, m: float, v: float, step: OuterStep) -> tuple[float, float, float]:
    """Algorithm 2 of arXiv:2003.00295 for one coordinate: in the delta's sign, ascending."""
    m = step.beta1 * m + (1 - step.beta1) * delta
    if step.optimizer == "adagrad":
        v = v + delta**2
    elif step.optimizer == "yogi":
        sign = (v > delta**2) - (v < delta**2)
        v = v - (1 - step.beta2) * delta**2 * sign
    else:
        v = step.beta2 * v + (1 - step.beta2) * delta**2
    return x + step.learning_rate * m / (math.sqrt(v) + step.tau), m, v


@pytest.mark.parametrize("step", ADAPTIVE, ids=lambda step: f"{step.optimizer}-{step.tau}")
def test_four_adaptive_steps_as_the_paper_has_them(step: OuterStep) -> None:
    rng = np.random.default_rng(3)
    theta = rng.standard_normal(37).astype(np.float32)
    state: list[F32Array] | None = None
    want = [(float(x), 0.0, step.tau**2) for x in theta]
    for _ in range(4):
        delta = rng.standard_normal(37) * 0.01
        delta[:2] = 0.0, step.tau  # nothing learnt there; and, in the first step, delta^2 = v
        after, kept = outer_step(theta, delta, state, step)
        want = [reddi(x, float(d), m, v, step) for (x, m, v), d in zip(want, delta, strict=True)]
        np.testing.assert_allclose([after, -kept[0], kept[1]], np.transpose(want), rtol=1e-12, atol=1e-15)
        theta, state = after.astype(np.float32), [row.astype(np.float32) for row in kept]
        want = [
            (float(x), -float(m), float(v)) for x, m, v in zip(theta, *state, strict=True)
        ]  # float32 between steps
    assert after[0] == theta[0]


def test_yogi_forgets_more_slowly_than_adam() -> None:
    """After one large delta and then small ones, Adam's variance decays by a factor, Yogi's by the small squares."""
    adam, yogi = OuterStep(optimizer="adam"), OuterStep(optimizer="yogi")
    state = [np.float32([0.0]), np.float32([1.0])]
    _, (_, of_adam) = outer_step(np.float32([0.0]), np.array([0.01]), state, adam)
    _, (_, of_yogi) = outer_step(np.float32([0.0]), np.array([0.01]), state, yogi)
    assert of_adam[0] == pytest.approx(0.99, abs=1e-5)
    assert of_yogi[0] == pytest.approx(1.0, abs=2e-6)


def test_momentum_without_nesterov_is_fedavgm() -> None:
    step = OuterStep(learning_rate=1.0, momentum=0.5, nesterov=False)
    after, kept = outer_step(np.float32([1.0]), np.array([0.25]), [np.float32([-0.5])], step)
    assert after.tolist() == [1.5] and kept[0].tolist() == [-0.5]


def test_what_each_optimizer_keeps() -> None:
    assert state_names(OuterStep()) == ("momentum",)
    assert state_names(PLAIN_AVERAGE.outer) == ()
    assert state_names(OuterStep(optimizer="yogi", momentum=0.0)) == ("momentum", "variance")
    for step in (OuterStep(), PLAIN_AVERAGE.outer, *ADAPTIVE):
        after, kept = outer_step(np.empty(0, np.float32), np.empty(0), None, step)
        assert after.size == 0 and len(kept) == len(state_names(step))
