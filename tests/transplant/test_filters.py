import numpy as np
import pytest
import torch

from mmws.transplant.filters import RIDGES, correlation, fit_filters, standardization_loss


def samples(groups=2, number=400, fan_in=6, filters=3, noise=0.0):
    inputs = torch.randn(groups, number, fan_in) @ torch.randn(groups, fan_in, fan_in) + torch.rand(fan_in)
    true = torch.randn(groups, filters, fan_in)
    targets = inputs @ true.mT
    return inputs, targets + noise * torch.randn_like(targets) * targets.std(), true


def in_float64(inputs, targets, old, ridge, centred):
    """Solve the optimality conditions of one group, with a Lagrange multiplier for the constraint."""
    x, z, old = (np.asarray(value, np.float64) for value in (inputs, targets, old))
    x, z = x - x.mean(0), z - z.mean(0)
    size = x.shape[1]
    covariance = x.T @ x / len(x)
    level = ridge * np.trace(covariance) / size
    left = np.zeros((size + 1, size + 1))
    left[:size, :size] = covariance + level * np.eye(size)
    left[:size, size] = left[size, :size] = 1
    right = np.concatenate([x.T @ z / len(x) + level * old.T, np.zeros((1, old.shape[0]))])
    return (np.linalg.solve(left, right)[:size] if centred else np.linalg.solve(left[:size, :size], right[:size])).T


@pytest.mark.parametrize('number', [400, 5], ids=['primal', 'dual'])
@pytest.mark.parametrize('centred', [True, False])
def test_filters_solve_the_regression_with_the_constraint(centred, number):
    inputs, targets, _ = samples(number=number, noise=0.3)
    old = torch.randn(2, 3, 6)
    fitted = fit_filters(inputs, targets, old, centred, (torch.arange(number) % 4 == 3) & (number > 5))
    assert fitted.ridge in RIDGES
    for group in range(2):
        expected = in_float64(inputs[group], targets[group], old[group], fitted.ridge, centred)
        assert np.allclose(fitted.filters[group], expected, rtol=1e-3, atol=1e-3)
    assert (fitted.filters.mean(2).abs().max() < 1e-5) == centred


def test_clean_samples_take_a_weak_ridge_and_noise_keeps_the_old_filters():
    held_out = torch.arange(400) % 4 == 3
    inputs, targets, true = samples()
    assert fit_filters(inputs, targets, torch.zeros_like(true), False, held_out).ridge == min(RIDGES)
    few = torch.arange(80) % 4 == 3
    inputs, targets, true = samples(number=80, fan_in=40, noise=2.0)
    fitted = fit_filters(inputs, targets, true, False, few)
    assert fitted.ridge is None or fitted.ridge >= 1
    assert (fitted.filters - true).norm() < true.norm()


def test_old_filters_stay_if_they_fit_best():
    inputs, _, true = samples(number=40, fan_in=30)
    held_out = torch.arange(40) % 4 == 3
    targets = torch.where(held_out[:, None], inputs @ true.mT, torch.randn(2, 40, 3))  # learns nothing from the others
    fitted = fit_filters(inputs, targets, true, False, held_out)
    assert fitted.ridge is None
    assert torch.equal(fitted.filters, true)


@pytest.mark.parametrize('centred', [True, False])
def test_constant_inputs_keep_the_old_filters(centred):
    old = torch.randn(1, 3, 4)
    fitted = fit_filters(torch.ones(1, 8, 4), torch.randn(1, 8, 3), old, centred, torch.zeros(8, dtype=torch.bool))
    assert torch.allclose(fitted.filters, old - old.mean(2, keepdim=True) * centred)


def test_the_loss_is_the_share_of_the_means():
    inputs = torch.randn(1, 100_000, 9)  # the sum of the inputs has 9 times the variance of one
    filters = torch.tensor([[[1.0, -1, 0, 0, 0, 0, 0, 0, 0]]]) + 0.5
    assert standardization_loss(inputs, filters) == pytest.approx(0.25 * 9 / (0.25 * 9 + 2), abs=0.02)
    assert standardization_loss(inputs, filters - 0.5) == pytest.approx(0, abs=1e-6)
    assert standardization_loss(torch.zeros(1, 5, 9), filters) == 0


def test_a_dead_input_of_one_group_leaves_the_others_alone():
    inputs, targets, true = samples()
    inputs[0] = 0
    fitted = fit_filters(inputs, targets, torch.ones_like(true), False, torch.arange(400) % 4 == 3)
    assert torch.equal(fitted.filters[0], torch.ones_like(true[0]))
    assert correlation(inputs[1] @ fitted.filters[1].mT, targets[1]) > 0.98
