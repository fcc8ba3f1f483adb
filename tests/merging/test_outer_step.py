"""The outer optimizer against torch's and against the formula."""

import numpy as np
import pytest
import torch

from consortium.deltas import pseudo_gradient
from consortium.merging.outer import outer_step
from consortium.merging.recipe import PLAIN_AVERAGE, OuterStep


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
        after, kept = outer_step(theta, delta, momentum, step)
        assert kept is not None
        assert after.dtype == kept.dtype == np.float64
        np.testing.assert_allclose(
            after, parameter.detach().numpy(), rtol=0, atol=1e-6
        )  # float32 between steps
        theta, momentum = after.astype(np.float32), kept.astype(np.float32)


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
    after, kept = outer_step(np.float32([0.2]), delta, momentum, OuterStep())
    b = 0.9 * float(momentum[0]) - 0.3
    assert kept is not None
    assert kept.tolist() == [b]
    assert after.tolist() == [float(np.float32(0.2)) - 0.7 * (-0.3 + 0.9 * b)]


def test_a_plain_average_moves_by_the_delta_and_keeps_nothing() -> None:
    theta, delta = np.float32([1.0, -2.0]), np.array([0.25, 0.5])
    after, kept = outer_step(theta, delta, None, PLAIN_AVERAGE.outer)
    assert after.tolist() == [1.25, -1.5]
    assert kept is None
