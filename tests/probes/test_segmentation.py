"""Oracles: loops over cells, scikit-learn's logistic regression, planted and random maps."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from lvmmed.evaluation.segmentation import overlap_scores
from lvmmed.probes import (
    MapProbe,
    cell_shares,
    draw_positions,
    fit_map_probes,
    predict_masks,
)


def test_shares_are_those_of_the_pixels_of_a_cell():
    masks = np.random.default_rng(0).integers(0, 3, (5, 12, 12), dtype=np.uint8)
    found = cell_shares(masks, num_classes=3, rows=4, cols=3)
    assert found.shape == (5, 4, 3, 3)
    for i in range(5):
        for r in range(4):
            for c in range(3):
                cell = masks[i, 3 * r : 3 * r + 3, 4 * c : 4 * c + 4]
                expected = [np.mean(cell == k) for k in range(3)]
                np.testing.assert_allclose(found[i, r, c], expected, atol=1e-6)


def test_shares_add_up_to_one_where_the_map_does_not_divide_the_image():
    masks = np.random.default_rng(0).integers(0, 2, (3, 10, 10), dtype=np.uint8)
    found = cell_shares(masks, num_classes=2, rows=3, cols=3)
    np.testing.assert_allclose(found.sum(axis=3), 1, atol=1e-6)


def _rare_shares(num=5000):
    """Background but for 40 positions with some of class 1 and 10 with some of class 2."""
    shares = np.zeros((num, 3))
    shares[:40, 1], shares[40:50, 2] = 0.1, 0.3
    shares[:, 0] = 1 - shares.sum(axis=1)
    return np.random.default_rng(1).permutation(shares)


def test_few_positions_are_all_taken():
    drawn = draw_positions(_rare_shares(100), most=100, generator=np.random.default_rng(0))
    np.testing.assert_array_equal(drawn.index, np.arange(100))
    np.testing.assert_array_equal(drawn.weights, 1)


def test_rare_kinds_are_drawn_and_weights_make_up_for_it():
    shares = _rare_shares()
    drawn = draw_positions(shares, most=300, generator=np.random.default_rng(0))
    assert 290 <= len(drawn.index) <= 300
    assert len(np.unique(drawn.index)) == len(drawn.index)
    assert (np.diff(drawn.index) > 0).all()
    picked = shares[drawn.index]
    # 300 / (4 x 3 kinds) = 25 offered to each: all of class 2, at least 25 of class 1
    assert np.count_nonzero(picked[:, 2]) == 10
    assert np.count_nonzero(picked[:, 1]) >= 25
    for k, size in ((1, 40), (2, 10)):
        assert drawn.weights[picked[:, k] > 0].sum() == pytest.approx(size)
    assert drawn.weights.sum() == pytest.approx(5000)


def test_a_seed_draws_the_same_positions_again():
    first, again, other = (
        draw_positions(_rare_shares(), most=300, generator=np.random.default_rng(seed)).index
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def _problem(num_classes, *, num=400, width=7, seed=0):
    generator = np.random.default_rng(seed)
    features = (generator.normal(size=(num, width)) * [1, 5, 0.2, 1, 1, 1, 1] + 3).astype(
        np.float32
    )
    logits = features[:, :num_classes] + generator.normal(size=(num, num_classes))
    shares = generator.dirichlet(np.ones(num_classes), size=num) * 0.2
    shares += 0.8 * np.eye(num_classes)[logits.argmax(axis=1)]
    return features, shares / shares.sum(axis=1, keepdims=True), generator.uniform(1, 3, num)


def _no_axes(matrix):  # noqa: ARG001
    raise torch.linalg.LinAlgError("the algorithm failed to converge")


@pytest.mark.parametrize("has_axes", [True, False])
@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("strength", [1e-3, 1e-1])
def test_a_fit_equals_that_of_scikit_learn(num_classes, strength, has_axes, monkeypatch):
    """Also where LAPACK finds no principal axes, which happens on maps of many channels."""
    if not has_axes:
        monkeypatch.setattr(torch.linalg, "eigh", _no_axes)
    features, shares, weights = _problem(num_classes)
    (found,) = fit_map_probes(features, shares, weights, choices=[strength])
    # every position once a class, with its share as weight, and classes weighing the same
    scaler = StandardScaler().fit(features.astype(np.float64), sample_weight=weights)
    totals = weights @ shares
    each = weights[:, None] * shares * (weights.sum() / (num_classes * totals))
    model = LogisticRegression(C=strength, tol=1e-8, max_iter=2000).fit(
        np.tile(scaler.transform(features), (num_classes, 1)),
        np.repeat(np.arange(num_classes), len(features)),
        sample_weight=each.T.ravel(),
    )
    expected = model.predict_log_proba(scaler.transform(features))
    logits = torch.from_numpy(features) @ found.weight.T + found.bias
    log_p = torch.log_softmax(logits, dim=1).numpy()
    np.testing.assert_allclose(log_p, expected, atol=5e-3)
    assert found.is_converged
    assert found.strength == strength


def test_every_choice_gives_a_probe_strongest_penalty_first():
    features, shares, weights = _problem(2)
    found = fit_map_probes(features, shares, weights, choices=[1.0, 1e-4, 1e-2])
    assert [probe.strength for probe in found] == [1e-4, 1e-2, 1.0]
    norms = [float(probe.weight.norm()) for probe in found]
    assert norms == sorted(norms)


def test_fits_do_not_depend_on_the_grid_they_are_part_of():
    features, shares, weights = _problem(3)
    (alone,) = fit_map_probes(features, shares, weights, choices=[1e-2])
    among = fit_map_probes(features, shares, weights, choices=[1e-4, 1e-3, 1e-2])[-1]
    np.testing.assert_allclose(among.weight, alone.weight, atol=2e-3)


def test_constant_features_are_left_out():
    features, shares, weights = _problem(2)
    features[:, 6] = 4.5
    for probe in fit_map_probes(features, shares, weights):
        assert torch.isfinite(probe.weight).all()
        assert probe.weight[:, 6].abs().max() < 1e-5


def test_a_class_that_is_absent_is_never_predicted():
    features, shares, weights = _problem(2)
    wide = np.insert(shares, 1, 0, axis=1)
    probe = fit_map_probes(features, wide, weights, choices=[0.1])[0]
    two = fit_map_probes(features, shares, weights, choices=[0.1])[0]
    torch.testing.assert_close(probe.weight[[0, 2]], two.weight)
    feature_map = torch.from_numpy(features[:, :, None, None])
    found = predict_masks(probe, feature_map, size_px=2)
    assert set(np.unique(found)) == {0, 2}


def test_classes_weigh_the_same_however_rare():
    generator = np.random.default_rng(0)
    is_lesion = generator.uniform(size=4000) < 0.05
    features = generator.normal(size=(4000, 3)).astype(np.float32)
    features[:, 0] += 1.5 * is_lesion
    shares = np.stack([1.0 - is_lesion, is_lesion], axis=1).astype(float)
    probe = fit_map_probes(features, shares, np.ones(4000), choices=[1.0])[0]
    found = predict_masks(probe, torch.from_numpy(features[:, :, None, None]), size_px=1)[:, 0, 0]
    recalls = [np.mean(found[is_lesion == k] == k) for k in (0, 1)]
    # two Gaussians 1.5 apart, cut half way: each recall is Phi(0.75) = 0.773
    assert recalls == pytest.approx([0.773, 0.773], abs=0.05)


def test_logits_are_enlarged_bilinearly_and_the_largest_wins():
    probe = MapProbe(
        strength=1.0,
        weight=torch.tensor([[0.0], [1.0]]),
        bias=torch.tensor([0.0, -0.5]),
        is_converged=True,
    )
    # logit 0.5, -0.5 over 8 pixels: the values between the centres of pixels 2 and 6 fall linearly
    found = predict_masks(probe, torch.tensor([[[[1.0, 0.0]]]]), size_px=8)
    np.testing.assert_array_equal(found[0], [[1, 1, 1, 1, 0, 0, 0, 0]] * 8)


def test_two_logits_and_their_difference_say_the_same():
    generator = torch.Generator().manual_seed(0)
    feature_map = torch.randn(3, 5, 4, 4, generator=generator)
    weight, bias = torch.randn(2, 5, generator=generator), torch.randn(2, generator=generator)
    two = MapProbe(strength=1.0, weight=weight, bias=bias, is_converged=True)
    three = MapProbe(
        strength=1.0,
        weight=torch.cat([weight, torch.zeros(1, 5)]),
        bias=torch.cat([bias, torch.tensor([-1e9])]),
        is_converged=True,
    )
    np.testing.assert_array_equal(
        predict_masks(two, feature_map, size_px=32), predict_masks(three, feature_map, size_px=32)
    )


def _dice_of_probe(masks, feature_map):
    """Fit on the first half of the cases, and score the second."""
    half = len(masks) // 2
    shares = cell_shares(masks, num_classes=2, rows=16, cols=16)
    flat = feature_map[:half].permute(0, 2, 3, 1).reshape(-1, feature_map.shape[1]).numpy()
    drawn = draw_positions(
        shares[:half].reshape(-1, 2), most=2000, generator=np.random.default_rng(0)
    )
    probes = fit_map_probes(
        flat[drawn.index], shares[:half].reshape(-1, 2)[drawn.index], drawn.weights
    )
    return max(
        overlap_scores(
            predict_masks(probe, feature_map[half:], size_px=64), masks[half:], num_classes=2
        ).dice.mean()
        for probe in probes
    )


def _discs(num, generator):
    rows, cols = np.mgrid[:64, :64]
    centers = generator.uniform(16, 48, size=(num, 2, 1, 1))
    return (np.hypot(rows - centers[:, 0], cols - centers[:, 1]) < 12).astype(np.uint8)


def test_a_mask_that_the_map_holds_is_read_off_it_and_a_mask_that_it_does_not_hold_is_not():
    generator = np.random.default_rng(0)
    masks = _discs(40, generator)
    hidden = torch.from_numpy(cell_shares(masks, num_classes=2, rows=16, cols=16))[..., 1]
    noise = torch.from_numpy(generator.normal(size=(40, 9, 16, 16)).astype(np.float32))
    planted = torch.cat([noise, hidden[:, None]], dim=1)
    assert _dice_of_probe(masks, planted) > 0.95
    everywhere = overlap_scores(np.ones_like(masks), masks, num_classes=2).dice.mean()
    assert _dice_of_probe(masks, noise) < everywhere + 0.1
