"""Penalty search on known curves and on a trained SAE; threshold shifts that hit L0 exactly."""

from itertools import chain

import numpy as np
import pytest
import torch
from random_saes import random_sae
from torch.nn.functional import normalize

from saeflow.sae.architectures import ARCHITECTURES, Gated, JumpReLU, ReLU
from saeflow.sae.calibration import (
    CalibrationError,
    Goal,
    adjust_threshold,
    calibrate,
    calibrate_many,
    interpolate_penalty,
    penalty_grid,
    shift_thresholds,
    threshold_shift,
)
from saeflow.sae.metrics import evaluate


class PowerLaw:
    """L0 = scale penalty^-slope, with a relative wobble; remembers what was trained."""

    def __init__(self, slope=1.0, wobble=0.0, scale=10.0):
        self.slope, self.wobble, self.scale, self.calls = slope, wobble, scale, []

    def train(self, penalties):
        self.calls.append(penalties)
        return list(penalties)

    def l0_of(self, penalty):
        return self.scale * penalty**-self.slope * (1 + self.wobble * np.sin(40 * np.log(penalty)))


@pytest.fixture
def x():
    return torch.randn(500, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def test_grid_is_even_in_the_logarithm():
    assert penalty_grid(0.01, 1, 3) == pytest.approx([0.01, 0.1, 1])
    with pytest.raises(ValueError, match="expected 0 < low < high"):
        penalty_grid(1, 0.1, 3)


def test_interpolation_is_exact_on_a_power_law():
    points = [(penalty, 10 * penalty**-1.7) for penalty in (3.0, 0.01, 0.4)]
    assert interpolate_penalty(points, 25) == pytest.approx((25 / 10) ** (-1 / 1.7))


@pytest.mark.parametrize("target", [79.0, 25.0, 10.0, 2.0, 1.1])
def test_interpolation_follows_a_curve_that_drops_ever_faster(target):
    """L0 = 80 exp(-penalty / 2.3), about what a ReLU SAE does."""
    points = [(penalty, 80 * np.exp(-penalty / 2.3)) for penalty in np.geomspace(0.01, 10, 6)]
    assert interpolate_penalty(points, target) == pytest.approx(2.3 * np.log(80 / target), rel=0.08)


def test_interpolation_takes_noise_that_breaks_the_order():
    points = [(0.1, 40.0), (0.2, 19.0), (0.3, 21.0), (0.9, 5.0), (2.0, 0.0)]
    assert 0.1 < interpolate_penalty(points, 25) < 0.3
    assert 0.3 < interpolate_penalty(points, 10) < 0.9


@pytest.mark.parametrize(("target", "direction"), [(1, "larger"), (500, "smaller")])
def test_a_target_outside_the_points_is_refused_with_the_way_out(target, direction):
    with pytest.raises(CalibrationError, match=f"outside the L0 reached, 5 to 100, .* {direction} penalties"):
        interpolate_penalty([(0.1, 100), (1, 5)], target)


@pytest.mark.parametrize("slope", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("target", [3.0, 20.0, 71.0])
def test_calibration_meets_the_target_in_two_trainings(slope, target):
    curve = PowerLaw(slope)
    result = calibrate(curve.train, curve.l0_of, Goal(target, penalty_grid(1e-4, 1e2, 7)), tolerance=0.02)
    assert result.l0 == pytest.approx(target, rel=0.02)
    assert result.penalty == pytest.approx((target / 10) ** (-1 / slope), rel=0.05)
    assert result.trained == result.penalty
    assert len(curve.calls) <= 2
    assert sorted(chain(*curve.calls)) == [penalty for penalty, _ in result.points]


def test_calibration_ends_when_the_grid_meets_the_target():
    curve = PowerLaw()
    result = calibrate(curve.train, curve.l0_of, Goal(10, [0.1, 1.0, 10.0]))
    assert (result.penalty, len(curve.calls)) == (1.0, 1)


@pytest.mark.parametrize("target", [10000.0, 0.1])
def test_calibration_extends_a_grid_that_misses_the_target(target):
    curve = PowerLaw()
    result = calibrate(curve.train, curve.l0_of, Goal(target, [0.1, 1.0, 10.0]))
    assert result.l0 == pytest.approx(target, rel=0.05)
    assert curve.calls[1] == pytest.approx([1e-2, 1e-3, 1e-4] if target > 100 else [100, 1000, 10000])


def test_calibration_gives_up_after_its_extensions():
    with pytest.raises(CalibrationError, match="SAE: target_l0 50 is outside the L0 reached, 7 to 7"):
        calibrate(list, lambda penalty: 7.0, Goal(50, [0.1, 1.0]))


@pytest.mark.parametrize("target", [15.0, 20.0, 33.0])
def test_calibration_from_above_never_ends_below_the_target(target):
    curve = PowerLaw(wobble=0.01)
    result = calibrate(curve.train, curve.l0_of, Goal(target, penalty_grid(1e-2, 1e1, 4), from_above=True))
    assert target <= result.l0 <= 1.05 * target


def test_a_grid_out_of_order_is_refused():
    with pytest.raises(ValueError, match=r"penalty grid \[1.0, 0.1\]: expected at least two ascending"):
        Goal(5, [1.0, 0.1])
    with pytest.raises(ValueError, match="target_l0: 0 is not positive"):
        Goal(0, [0.1, 1.0])


def test_a_search_that_fails_or_diverges_leaves_the_others_theirs():
    """The first of a kind fails: one that would start from it starts from the grid."""
    curves = {"relu": PowerLaw(scale=1e-20), "relu-1": PowerLaw(), "gated": PowerLaw(2.0), "wild": PowerLaw()}
    goals = {key: Goal(20.0, [0.01, 0.1, 1.0, 10.0]) for key in curves}
    failed = {}

    def l0_of(trained):
        key, penalty = trained
        diverged = key == "wild" or (key, penalty) == ("gated", 0.01)
        return float("nan") if diverged else curves[key].l0_of(penalty)

    results = calibrate_many(lambda asked: asked, l0_of, goals, like={"relu-1": "relu"}, failed=failed.__setitem__)
    assert set(failed) == {"relu"}
    assert "relu: target_l0 20 is outside the L0 reached" in str(failed["relu"])
    assert set(results) == {"relu-1", "gated", "wild"}
    alone = calibrate(curves["relu-1"].train, curves["relu-1"].l0_of, goals["relu-1"])
    assert (results["relu-1"].penalty, results["relu-1"].points) == (alone.penalty, alone.points)
    assert results["gated"].l0 == pytest.approx(20, rel=0.05)
    assert 0.01 not in dict(results["gated"].points)
    assert results["wild"].trained[0] == "wild"
    assert np.isnan(results["wild"].l0)


def test_several_searches_share_their_rounds():
    curves = {"relu": PowerLaw(), "gated": PowerLaw(2.0), "met": PowerLaw()}
    goals = {key: Goal(20.0, [0.01, 0.1, 1.0, 10.0]) for key in ("relu", "gated")} | {"met": Goal(10.0, [0.1, 1.0])}
    rounds = []

    def train(asked):
        rounds.append(asked)
        return asked

    results = calibrate_many(train, lambda trained: curves[trained[0]].l0_of(trained[1]), goals)
    assert list(results) == list(goals)
    assert len(rounds) == 2
    assert {key for key, _ in rounds[1]} == {"relu", "gated"}
    for key, goal in goals.items():
        alone = calibrate(curves[key].train, curves[key].l0_of, goal)
        assert (results[key].penalty, results[key].points) == (alone.penalty, alone.points)
        assert results[key].trained == (key, alone.penalty)
    with pytest.raises(CalibrationError, match="gated: target_l0 50 is outside the L0 reached"):
        calibrate_many(lambda asked: [7.0] * len(asked), float, {"gated": Goal(50, [0.1, 1.0])})


def of_networks(curves, target=20.0, **more):
    """Searches of which all but the first are like it; how many penalties each trained, by round; the rounds."""
    rounds = []

    def train(asked):
        rounds.append(asked)
        return asked

    goals = dict.fromkeys(curves, Goal(target, [0.01, 0.1, 1.0, 10.0], **more))
    like = dict.fromkeys(list(curves)[1:], next(iter(curves)))
    found = calibrate_many(train, lambda trained: curves[trained[0]].l0_of(trained[1]), goals, like=like)
    counts = {key: [sum(k == key for k, _ in asked) for asked in rounds] for key in curves}
    return found, {key: [n for n in by_round if n] for key, by_round in counts.items()}, len(rounds)


@pytest.mark.parametrize("from_above", [False, True])
def test_a_search_like_another_trains_three_penalties_in_the_others_second_round(from_above):
    """Networks of one architecture: L0 a few percent apart at the same penalty."""
    curves = {seed: PowerLaw(0.6, scale=scale) for seed, scale in enumerate((10.0, 10.4, 9.6))}
    found, trained, rounds = of_networks(curves, from_above=from_above)
    assert rounds == 2
    assert trained == {0: [4, 3], 1: [3], 2: [3]}
    for calibration in found.values():
        assert calibration.l0 == pytest.approx(20, rel=0.05)
        assert not from_above or calibration.l0 >= 20
        assert calibration.trained[1] == calibration.penalty


def test_a_search_less_like_another_moves_the_others_curve():
    curves = {"first": PowerLaw(0.6), "half": PowerLaw(0.6, scale=5.0)}
    found, trained, _ = of_networks(curves)
    assert found["half"].l0 == pytest.approx(20, rel=0.05)
    assert trained["half"] == [3, 3]


def test_a_search_unlike_another_goes_on_alone():
    """A steeper curve, and one that the other's cannot be moved onto at all."""
    curves = {"first": PowerLaw(0.3), "steep": PowerLaw(2.0), "dead": PowerLaw(0.6, scale=0.02)}
    found, trained, _ = of_networks(curves)
    assert found["steep"].l0 == pytest.approx(20, rel=0.05)
    assert found["dead"].l0 == pytest.approx(20, rel=0.05)
    assert 4 in trained["dead"]
    alone = calibrate(curves["first"].train, curves["first"].l0_of, Goal(20.0, [0.01, 0.1, 1.0, 10.0]))
    assert (found["first"].penalty, found["first"].points) == (alone.penalty, alone.points)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("target", [0.25, 2.0])
def test_shifted_thresholds_give_the_target_number_of_active_latents(x, name, target):
    adjusted = adjust_threshold(random_sae(name), x, target, batch_size=64)
    assert isinstance(adjusted, Gated if name == "gated" else JumpReLU)
    assert int((adjusted.encode(x) > 0).sum()) == target * len(x)


def test_thresholds_of_float32_hit_the_target_within_a_few_latents():
    x = torch.randn(20000, 16, generator=torch.Generator().manual_seed(1))
    adjusted = adjust_threshold(random_sae("jumprelu", 16, 64, dtype=torch.float32), x, 7.5)
    assert int((adjusted.encode(x) > 0).sum()) == pytest.approx(7.5 * len(x), abs=3)


@pytest.mark.parametrize("name", ["jumprelu", "gated"])
def test_thresholds_fall_when_too_few_latents_are_active(x, name):
    sae = shift_thresholds(random_sae(name), 1.0)
    before = float((sae.encode(x) > 0).sum(1).double().mean())
    assert threshold_shift(sae, x, before + 1) < 0
    assert int((adjust_threshold(sae, x, before + 1).encode(x) > 0).sum()) == round((before + 1) * len(x))


def test_shift_keeps_the_values_of_latents_that_stay_active(x):
    sae = random_sae("standard")
    sae.metadata = {"hook_name": "last.pre"}
    z, adjusted = sae.encode(x), adjust_threshold(sae, x, 2.0)
    kept = adjusted.encode(x)
    torch.testing.assert_close(kept, z * (kept > 0), rtol=0, atol=0)
    assert z[kept > 0].min() > adjusted.threshold.unique() > z[kept == 0].max()
    assert adjusted.metadata == sae.metadata


def test_all_eligible_latents_can_be_the_target(x):
    sae = random_sae("jumprelu")
    n_eligible = int((sae.preactivations(x) > 0).sum())
    adjusted = adjust_threshold(sae, x, n_eligible / len(x))
    assert int((adjusted.encode(x) > 0).sum()) == n_eligible


def test_a_target_beyond_what_thresholds_can_give_is_refused(x):
    with pytest.raises(CalibrationError, match=r"thresholds can give at most .*; train with a smaller penalty"):
        adjust_threshold(random_sae("standard"), x, 19.0)
    with pytest.raises(CalibrationError, match="asks for no active latent"):
        adjust_threshold(random_sae("standard"), x[:10], 0.01)


def test_a_bound_beyond_what_thresholds_can_give_takes_all_that_is_positive(x):
    for name in ("standard", "topk", "jumprelu"):
        sae = random_sae(name)
        opened = adjust_threshold(sae, x, 19.0, at_most=True)
        torch.testing.assert_close(opened.encode(x), sae.preactivations(x).relu(), rtol=0, atol=0)
    torch.testing.assert_close(
        adjust_threshold(random_sae("standard"), x, 3.0, at_most=True).threshold,
        adjust_threshold(random_sae("standard"), x, 3.0).threshold,
    )


def test_a_small_relu_sae_is_calibrated_to_its_target():
    """ReLU with an L1 penalty, trained for real: sparse combinations of 24 directions in 12 dimensions."""
    generator = torch.Generator().manual_seed(0)
    directions = normalize(torch.randn(24, 12, generator=generator), dim=1)
    active = (torch.rand(6000, 24, generator=generator) < 0.08) * torch.rand(6000, 24, generator=generator)
    rows = active @ directions
    train_rows, calibration_rows, test_rows = rows[:4000], rows[4000:5000], rows[5000:]

    def train(penalties):
        m = len(penalties)
        start = normalize(torch.randn(32, 12, generator=torch.Generator().manual_seed(1)), dim=1)
        W_dec = start.repeat(m, 1, 1).requires_grad_()
        W_enc = start.T.repeat(m, 1, 1).requires_grad_()
        b_enc, b_dec = torch.zeros(m, 1, 32, requires_grad=True), torch.zeros(m, 1, 12, requires_grad=True)
        optimizer = torch.optim.Adam([W_dec, W_enc, b_enc, b_dec], lr=1e-2)
        strength = torch.tensor(penalties)[:, None, None]
        for step in range(150):
            batch = train_rows[(step * 256) % 3840 :][:256]
            z = ((batch - b_dec) @ W_enc + b_enc).relu()
            lengths = W_dec.norm(dim=2)[:, None]
            loss = (batch - z @ W_dec - b_dec).square().sum() + (strength * z * lengths).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [ReLU(W_enc[i], W_dec[i], b_enc[i, 0], b_dec[i, 0]) for i in range(m)]

    result = calibrate(
        train,
        lambda sae: evaluate(sae, calibration_rows)["l0"],
        Goal(3.0, penalty_grid(0.01, 1, 5), from_above=True),
        tolerance=0.1,
    )
    adjusted = adjust_threshold(result.trained, calibration_rows, 3.0)
    assert 3.0 <= result.l0 <= 3.3
    assert evaluate(adjusted, calibration_rows)["l0"] == pytest.approx(3.0, abs=2e-3)
    held_out = evaluate(adjusted, test_rows)
    assert held_out["l0"] == pytest.approx(3.0, rel=0.05)
    assert held_out["explained_variance"] > 0.6
