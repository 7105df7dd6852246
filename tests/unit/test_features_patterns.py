"""Input patterns against closed forms: linear networks, full factorial designs, autograd in float64."""

import itertools

import numpy as np
import pytest
import torch

from saeflow.features import patterns
from saeflow.features.bank import Examples
from saeflow.sae.codes import Codes


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def every_image(h, w):
    """All images of pixels -1 and 1: their pixels are exactly uncorrelated."""
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=h * w)), dtype=torch.float64).view(-1, 1, h, w)


def shown(rows):
    rows = torch.as_tensor(rows)
    return Examples(rows, (rows >= 0).double())


def test_haufe_pattern_recovers_the_direction_that_a_source_is_mixed_in_by():
    # x = s a + noise orthogonal to s: cov(x, s) / var(s) = a (Haufe et al. 2014, eq. 6).
    source = normal(200, 1).abs()
    noise, centered = normal(200, 12, seed=1), source - source.mean()
    noise -= noise.mean(0)
    noise -= centered @ (centered.T @ noise) / (centered**2).sum()
    mixing = normal(12, seed=2)
    images = (source * mixing + noise).view(-1, 1, 3, 4)
    found = patterns.haufe(Codes.from_dense(source), images)
    torch.testing.assert_close(found[0], mixing, rtol=1e-9, atol=1e-9)


def test_haufe_patterns_are_covariance_over_variance_in_any_blocks():
    z, x = normal(80, 5).relu(), normal(80, 1, 2, 3, seed=1)
    z[:, 2] = 0
    found = patterns.haufe(Codes.from_dense(z), x, block=2)
    for i in (0, 1, 3, 4):
        joint = np.cov(np.column_stack([x.flatten(1).numpy(), z[:, i].numpy()]).T, bias=True)
        np.testing.assert_allclose(found[i], joint[:-1, -1] / joint[-1, -1], rtol=1e-9)
    assert not found[2].any()


def test_gradient_of_a_linear_network_is_its_weights_times_the_encoder():
    weights, encoder, images = normal(6, 4), normal(4, 3, seed=1), normal(10, 1, 2, 3, seed=2)
    baseline = images.flatten(1).mean(0)
    examples = shown([[0, 3, 5], [2, -1, -1], [-1, -1, -1]])
    slope, product = patterns.gradients(lambda x: x.flatten(1) @ weights, encoder, images, examples, baseline)
    exact = (weights @ encoder).T
    torch.testing.assert_close(slope[:2], exact[:2])
    torch.testing.assert_close(product[0], exact[0] * (images[[0, 3, 5]].flatten(1).mean(0) - baseline))
    assert not slope[2].any()
    assert not product[2].any()


@pytest.mark.parametrize("batch_images", [1, 7, 4096])
def test_gradients_are_means_of_each_example_s_own(batch_images):
    first, second, encoder = normal(6, 8), normal(8, 4, seed=1), normal(4, 5, seed=2)
    images, rows = normal(9, 1, 2, 3, seed=3), torch.tensor([[0, 1, 2], [3, 4, -1], [5, 6, 7], [8, 0, -1], [1, -1, -1]])

    def hook(x):
        return torch.tanh(x.flatten(1) @ first) @ second

    baseline = images.flatten(1).mean(0)
    slope, product = patterns.gradients(hook, encoder, images, shown(rows), baseline, batch_images)
    for i, own in enumerate(rows):
        own = own[own >= 0]
        one_by_one = torch.stack(
            [
                torch.autograd.functional.jacobian(lambda x, i=i: (hook(x) @ encoder[:, i])[0], images[r : r + 1])
                for r in own
            ]
        ).view(len(own), -1)
        torch.testing.assert_close(slope[i], one_by_one.mean(0))
        torch.testing.assert_close(product[i], (one_by_one * (images[own].flatten(1) - baseline)).mean(0))


def test_the_strongest_pixels_are_a_share_of_all_and_ties_go_to_the_lower_one():
    pattern = torch.tensor([[0.0, -3.0, 2.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    kept = patterns.strongest(pattern, 0.4)
    assert kept.tolist() == [[False, True, True, False, False], [True, True, False, False, False]]
    assert patterns.strongest(pattern, 0.01).sum(1).tolist() == [1, 1]


def test_deletion_test_of_a_linear_latent_gives_the_kept_share_of_its_variance():
    # Uncorrelated pixels of variance 1: r^2 = sum of the kept w^2 / sum of all w^2.
    images, weights = every_image(2, 3), torch.tensor([2.0, 1.0, 0.5, 0, -1.0, 0.25], dtype=torch.float64)
    encoder = torch.stack([weights, weights], 1)
    masks = torch.tensor([[[1, 0, 0, 0, 1, 0], [0, 1, 1, 0, 0, 0]], [[0, 0, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]]]).bool()
    tests = shown(torch.arange(len(images)).expand(2, -1))
    fill = torch.full((6,), 0.3, dtype=torch.float64)
    found = patterns.keep_r2(masks, lambda x: x.flatten(1), encoder, images, images.flatten(1), fill, tests, 100)
    total = float((weights**2).sum())
    torch.testing.assert_close(found, torch.tensor([[5 / total, 1.25 / total], [0, 1]]))


def test_deletion_test_leaves_absent_examples_out():
    images, encoder = every_image(1, 3), torch.eye(3, dtype=torch.float64)[:, :1]
    masks = torch.tensor([[[True, False, False]]])
    rows = torch.cat([torch.full((1, 5), -1), torch.arange(8)[None]], 1)
    before, fill = images.flatten(1), torch.zeros(3).double()
    found = patterns.keep_r2(masks, lambda x: x.flatten(1), encoder, images, before, fill, shown(rows))
    assert found.tolist() == [[1.0]]


def test_probes_are_the_examples_and_as_many_distinct_random_rows():
    examples = shown([[4, 2, 9], [1, -1, -1]])
    tests = patterns.probes(50, examples, seed=0)
    assert torch.equal(tests.rows[:, :3], examples.rows)
    assert torch.equal(tests.rows[0, 3:], tests.rows[1, 3:])
    assert len(set(tests.rows[0, 3:].tolist())) == 3
    assert tests.rows[0, 3:].max() < 50


def test_smoothness_is_minus_one_for_a_checkerboard_and_high_for_a_ramp():
    board = torch.tensor([[(-1.0) ** (r + c) for r in range(4) for c in range(4)]])
    ramp = torch.arange(16.0).view(1, 4, 4).transpose(1, 2).reshape(1, 16)
    smooth = patterns.smoothness(torch.cat([board, ramp, torch.ones(1, 16)]), (4, 4))
    # 16 pixels, 24 neighboring pairs; the centered squares of 0 to 15 sum to 340.
    expected = [-1.0, 16 / 24 * _neighbor_products(ramp.view(4, 4)) / 340]
    torch.testing.assert_close(smooth[:2], torch.tensor(expected))
    assert smooth[2].isnan()


def _neighbor_products(grid):
    p = (grid - grid.mean()).tolist()
    below = sum(p[r][c] * p[r + 1][c] for r in range(3) for c in range(4))
    beside = sum(p[r][c] * p[r][c + 1] for r in range(4) for c in range(3))
    return below + beside


def test_smoothness_of_noise_is_near_its_expectation():
    # E[I] = -1 / (N - 1) under independence (Moran 1950).
    noise = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert patterns.smoothness(noise, (8, 8)).mean().item() == pytest.approx(-1 / 63, abs=0.005)


def test_top_cosine_is_one_for_the_top_examples_own_difference():
    images = normal(20, 1, 2, 3)
    top = shown([[3, 7, -1], [-1, -1, -1]])
    difference = images[[3, 7]].flatten(1).mean(0) - images.flatten(1).mean(0)
    cosine = patterns.top_cosine(torch.stack([2 * difference, difference]), images, top)
    assert cosine[0].item() == pytest.approx(1)
    assert cosine[1].isnan()


def test_off_energy_is_the_share_on_pixels_that_are_never_lit():
    lit = torch.tensor([True, True, False, False])
    energy = patterns.off_energy(torch.tensor([[1.0, 1, 1, 1], [0, 2, 0, 0], [0, 0, 0, 0]]), lit)
    assert energy[:2].tolist() == [0.5, 0]
    assert energy[2].isnan()
