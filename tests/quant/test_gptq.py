"""Integer weights: GPTQ against rounding to nearest, and groups of four bits."""

import numpy as np
import pytest

from systolith import bounds
from systolith.quant import gptq
from systolith.quant.weights import quantize_rows
from systolith.weights import LARGEST_SCALE, LARGEST_VALUE, expand

KINDS = [None, 32, 64]
"""int8, and four bits in groups."""


def layer(seed: int, n: int = 24, k: int = 150, tokens: int = 2000):
    """Weights (N, K), and inputs [tokens, K] that a few directions of many explain."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(tokens, k // 6)) @ rng.normal(size=(k // 6, k))
    x = mixed + 0.3 * rng.normal(size=(tokens, k)) * rng.lognormal(size=k)
    return rng.normal(size=(n, k)) * 0.1, x


def rounded(weight, x, kind, rounding, **changes):
    known = {"energy": (x * x).mean(axis=0), "group": kind} | changes
    if rounding == "gptq":
        known["hessian"] = x.T @ x / len(x)
    return quantize_rows(weight, np.zeros(len(weight)), 1e-3, 16, **known)


def real(made):
    return made.values * made.scale[:, None]


def test_the_factor_is_that_of_the_inverse(seed):
    _, x = layer(seed)
    hessian = x.T @ x / len(x)
    u = gptq.inverse_factor(hessian)
    np.testing.assert_array_equal(u, np.triu(u))
    damped = hessian + gptq.DAMPING * np.diag(hessian).mean() * np.eye(len(u))
    np.testing.assert_allclose(u.T @ u @ damped, np.eye(len(u)), atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_gptq_has_the_lesser_error_where_inputs_are_correlated(kind, seed):
    weight, x = layer(seed)
    error = {}
    for rounding in ("nearest", "gptq"):
        made = rounded(weight, x, kind, rounding)
        error[rounding] = ((x @ (real(made) - weight).T)**2).sum()
    assert error["gptq"] < error["nearest"] / 2


@pytest.mark.parametrize("kind", KINDS)
def test_without_correlation_gptq_rounds_to_nearest(kind, seed):
    weight, _ = layer(seed)
    k = weight.shape[1]
    same = {"energy": np.ones(k), "group": kind}
    nearest, made = (quantize_rows(weight, np.zeros(len(weight)), 1e-3, 16, **same, hessian=h)
                     for h in (None, np.eye(k)))
    np.testing.assert_array_equal(made.values, nearest.values)
    np.testing.assert_array_equal(made.scale, nearest.scale)


def test_blocks_change_nothing(seed, monkeypatch):
    weight, x = layer(seed)
    expected = rounded(weight, x, 32, "gptq").values
    monkeypatch.setattr(gptq, "BLOCK", 32)
    assert (rounded(weight, x, 32, "gptq").values != expected).mean() < 1e-3


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("clip", [True, False])
def test_four_bits_are_the_factors_of_the_values(clip, rounding, seed):
    weight, x = layer(seed)
    weight[3] = 0
    made = rounded(weight, x, 32, rounding, **({} if clip else {"energy": None}))
    assert np.abs(made.fours.astype(int)).max() == LARGEST_VALUE
    assert made.group_scale.shape == (24, 5)
    assert made.group_scale.min() >= 1 and made.group_scale.max() == LARGEST_SCALE
    np.testing.assert_array_equal(made.values, expand(made.fours, made.group_scale, 32))
    assert not made.values[3].any()
    step = np.repeat(made.group_scale, 32, axis=1)[:, :150] * made.scale[:, None]
    if not clip and rounding == "nearest":
        assert (np.abs(real(made) - weight) <= step / 2 + 1e-12).all()


def test_smaller_groups_have_the_lesser_error(seed):
    weight, x = layer(seed)
    weight *= np.exp(np.random.default_rng(seed).normal(size=weight.shape[1] // 25)).repeat(25)
    errors = [((x @ (real(rounded(weight, x, group, "gptq")) - weight).T)**2).sum()
              for group in (32, 64, 128)]
    assert errors == sorted(errors)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_could_overflow_get_a_coarser_scale(kind, rounding, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(64, 900))
    weight = rng.choice([-1.0, 1.0], (4, 900))  # all as large as the largest: 900 * 127 * 2**15
    weight[0, 30:] = 0
    made = rounded(weight, x, kind, rounding, energy=None)
    assert (bounds.linear_bound(made.values, made.bias, 16) <= bounds.LARGEST).all()
    assert (made.scale[1:] > 1.5 * made.scale[0]).all()


def test_inputs_that_were_always_0_do_no_harm(seed):
    weight, x = layer(seed)
    x[:, 20:60] = 0
    for kind in KINDS:
        made = rounded(weight, x, kind, "gptq")
        assert np.abs(real(made)).max() < 2 * np.abs(weight).max()
    nothing = rounded(weight, x * 0, None, "gptq")
    np.testing.assert_array_equal(nothing.values, rounded(weight, x * 0, None, "nearest").values)
