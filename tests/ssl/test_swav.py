"""Expected values: loops of SwAV's equations in tests/reference, and hand arithmetic."""

import math
from dataclasses import replace

import pytest
import torch
from reference.clusters import sinkhorn_loop, swapped_loss_loop
from reference.ssl_batches import build_method, make_views, run_facts, small_backbone
from reference.ssl_steps import losses_of_steps
from torch.nn import functional

from lvmmed.config import validated
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.recipes.run_facts import refuse_bad_recipe
from lvmmed.ssl.method import MethodContext
from lvmmed.ssl.swav import Swav, SwavConfig, swapped_loss
from lvmmed.types import InputError

NUM = 8
SMALL = {
    "num_prototypes": 6,
    "projector_hidden_width": 16,
    "projection_width": 4,
    "queue_length": 16,
    "queue_start_frac": 0.0,
    "freeze_prototypes_frac": 0.0,
}


class _Step:
    """A small SwAV with one batch of two views and a small crop; the run has 40 steps."""

    def __init__(self, fields=None):
        self.backbone = small_backbone()
        fields = {**SMALL, **(fields or {})}
        self.method = build_method("swav", fields, self.backbone, num_images=NUM, num_small=1)
        self.views = list(make_views(NUM, num_small=1))
        self.features = self.method.encode(
            self.backbone, self.views, generator=torch.Generator().manual_seed(0)
        )

    def loss(self, step=0):
        return self.method.training_loss(
            self.views, self.features, step=step, generator=torch.Generator()
        ).total

    def figures(self):
        return self.method.diagnostics(
            self.views, self.features, step=0, generator=torch.Generator()
        )

    @torch.no_grad()
    def embeddings(self):
        return [
            functional.normalize(self.method.projector(one.pooled), dim=1) for one in self.features
        ]

    @torch.no_grad()
    def scores(self):
        return [(one @ self.method.prototypes.T).tolist() for one in self.embeddings()]


@pytest.mark.parametrize("num_views", [2, 5])
def test_it_equals_the_loop_of_the_definition(num_views, generator):
    scores = 2 * torch.rand(num_views, 6, 4, generator=generator, dtype=torch.float64) - 1
    codes = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64).softmax(2)
    loss = swapped_loss(list(scores), list(codes), temperature=0.3)
    expected = swapped_loss_loop(scores.tolist(), codes.tolist(), 0.3)
    assert float(loss) == pytest.approx(expected)


def test_a_sure_prediction_by_hand():
    # each view scores 1 for its prototype and 0 for the other: -log(e^2 / (e^2 + 1))
    scores = torch.eye(2)
    loss = swapped_loss([scores, scores], [torch.eye(2), torch.eye(2)], temperature=0.5)
    assert float(loss) == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 1)), rel=1e-5)


def test_the_gradient_is_that_of_finite_differences(generator):
    scores = torch.rand(3, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    codes = torch.rand(2, 4, 3, generator=generator, dtype=torch.float64).softmax(2)
    assert torch.autograd.gradcheck(
        lambda s: swapped_loss(s.unbind(), codes.unbind(), temperature=0.3), (scores,)
    )


def test_every_view_predicts_the_codes_of_the_two_full_ones():
    step = _Step({"queue_length": 0})
    scores = step.scores()
    codes = [sinkhorn_loop(one, 0.05, 3) for one in scores[:2]]
    assert len(scores) == 3
    expected = swapped_loss_loop(scores, codes, 0.1)
    assert float(step.loss().detach()) == pytest.approx(expected, rel=1e-4)


def test_no_prediction_of_features_that_are_all_alike_beats_guessing():
    """Codes are then equal for all prototypes, so the loss is log K at least."""
    step = _Step({"queue_length": 0})
    for one in step.features:
        one.pooled.data.fill_(1.0)
    assert float(step.loss().detach()) >= math.log(6)
    assert step.figures() == {
        "partner_accuracy": 0.0,
        "code_entropy": pytest.approx(1.0),
        "prototypes_used": pytest.approx(1 / 6),
    }


def test_prototypes_start_and_stay_unit_vectors():
    step = _Step()
    ones = torch.ones(6)
    torch.testing.assert_close(step.method.prototypes.norm(dim=1), ones)
    with torch.no_grad():
        step.method.prototypes.mul_(3.0)
    direction = functional.normalize(step.method.prototypes.detach(), dim=1)
    step.method.after_step(0, step.backbone)
    torch.testing.assert_close(step.method.prototypes.detach(), direction)
    assert step.method.prototypes.requires_grad


def test_prototypes_get_no_gradient_before_their_share_of_the_run_is_over():
    step = _Step({"freeze_prototypes_frac": 0.25})  # 10 of 40 steps
    for number, is_moved in ((0, False), (9, False), (10, True)):
        step.method.prototypes.grad = None
        step.loss(number).backward(retain_graph=True)
        assert (step.method.prototypes.grad is not None) == is_moved
        assert step.method.projector.layers[0].weight.grad is not None


def test_the_queue_takes_the_place_of_the_oldest_after_the_step_and_is_used_when_full(generator):
    step = _Step({"queue_length": 20})
    alone = float(step.loss().detach())
    taken = []
    for number in range(4):
        before = step.method.queue.clone()
        assert float(step.loss().detach()) == float(step.loss().detach())
        assert torch.equal(step.method.queue, before)
        if number < 3:  # 16 of 20 are filled after two steps
            assert float(step.loss().detach()) == pytest.approx(alone, rel=1e-6)
            assert step.figures()["queue_filled"] == pytest.approx(number * 8 / 20)
        taken.append(torch.stack(step.embeddings()[:2]))
        step.method.after_step(number, step.backbone)
        for one in step.features:  # other images come by
            one.pooled.data = torch.rand(one.pooled.shape, generator=generator)
        alone = float(_without_queue(step))
    assert step.figures()["queue_filled"] == 1.0
    # places 0 to 19 hold steps 0, 1 and half of 2; its rest and step 3 then begin again
    expected = torch.cat([taken[2][:, 4:], taken[3], taken[1][:, 4:], taken[2][:, :4]], dim=1)
    torch.testing.assert_close(step.method.queue, expected)


def _without_queue(step):
    scores = step.scores()
    codes = [sinkhorn_loop(one, 0.05, 3) for one in scores[:2]]
    return swapped_loss_loop(scores, codes, 0.1)


def test_a_full_queue_is_balanced_along_with_the_batch():
    step = _Step({"queue_length": 8})
    step.loss()
    step.method.after_step(0, step.backbone)
    for one in step.features:
        one.pooled.data = one.pooled.data.roll(3, 1)
    scores = step.scores()
    queued = (step.method.queue @ step.method.prototypes.detach().T).tolist()
    codes = [sinkhorn_loop(scores[i] + queued[i], 0.05, 3)[:NUM] for i in (0, 1)]
    expected = swapped_loss_loop(scores, codes, 0.1)
    assert float(step.loss().detach()) == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(_without_queue(step), rel=1e-4)


def test_the_queue_fills_after_its_share_of_the_run_only():
    step = _Step({"queue_start_frac": 0.1})  # 4 of 40 steps
    for number, filled in ((2, 0.0), (3, 0.0), (4, 0.5)):
        step.loss()
        step.method.after_step(number, step.backbone)
        assert step.figures()["queue_filled"] == filled


def test_a_queue_shorter_than_the_batch_keeps_its_last_images():
    step = _Step({"queue_length": 3})
    step.loss()
    last = torch.stack(step.embeddings()[:2])[:, -3:]
    step.method.after_step(0, step.backbone)
    torch.testing.assert_close(step.method.queue, last)


def test_a_step_without_a_loss_adds_nothing_to_the_queue():
    step = _Step()
    step.method.after_step(0, step.backbone)
    assert step.figures()["queue_filled"] == 0.0


def test_the_default_head_is_that_of_the_paper():
    backbone = small_backbone()
    method = build_method("swav", {"num_prototypes": 32}, backbone)
    shapes = [tuple(p.shape) for p in method.projector.parameters() if p.ndim == 2]
    assert shapes == [(2048, backbone.width), (128, 2048)]
    assert method.prototypes.shape == (32, 128)


@pytest.mark.parametrize(
    "changed",
    [
        {"num_prototypes": 5},
        {"temperature": 0.5},
        {"epsilon": 0.5},
        {"sinkhorn_iterations": 1},
        {"queue_length": 8},
        {"queue_start_frac": 0.025},
        {"freeze_prototypes_frac": 0.025},
        {"projection_width": 8},
        {"projector_hidden_layers": 0},
        {"projector_hidden_width": 32},
    ],
)
def test_every_field_changes_the_loss(changed):
    lengths = {"num_small": 1, "num_steps": 4}
    first = losses_of_steps("swav", SMALL, **lengths)
    assert first != losses_of_steps("swav", {**SMALL, **changed}, **lengths)


def test_more_prototypes_than_images_are_refused_unless_a_queue_makes_up_for_it():
    config = resolve_config("swav", ["train.batch_size=128"])
    with pytest.raises(
        InputError,
        match=r"num_prototypes: got 300, need at most the 128 images .*queue_length=172 or more",
    ) as refused:
        refuse_bad_recipe(config, run_facts(128))
    assert "\n" not in str(refused.value)
    enough = resolve_config("swav", ["train.batch_size=128", "method.queue_length=172"])
    refuse_bad_recipe(enough, run_facts(128))
    refuse_bad_recipe(resolve_config("swav", ["method.num_prototypes=128"]), run_facts(128))


def test_a_queue_that_is_never_used_is_refused_with_the_longest_that_is():
    """Of 50 steps the first 10 fill nothing and the last only reads: 39 x 32 = 1248 images."""
    words = ["train.batch_size=32", "method.num_prototypes=20", "method.queue_start_frac=0.2"]
    facts = replace(run_facts(32), num_steps=50)
    refuse_bad_recipe(resolve_config("swav", [*words, "method.queue_length=1248"]), facts)
    config = resolve_config("swav", [*words, "method.queue_length=1249"])
    with pytest.raises(
        InputError, match=r"queue_length: got 1249, need at most the 1248 images .*; lower it"
    ) as refused:
        refuse_bad_recipe(config, facts)
    assert "\n" not in str(refused.value)
    refuse_bad_recipe(config, replace(facts, num_steps=51))
    without = resolve_config("swav", words)
    refuse_bad_recipe(without, replace(facts, num_steps=1))


def test_the_longest_queue_is_full_before_the_last_step_and_a_longer_one_is_not():
    """What is refused is what training shows: 39 x 8 images have entered before step 39."""
    for length, is_full in ((312, True), (313, False)):
        step = _Step()
        context = MethodContext(backbone=step.backbone, facts=run_facts(NUM))
        step.method = Swav(SwavConfig(**{**SMALL, "queue_length": length}), context)
        for number in range(39):
            step.loss()
            step.method.after_step(number, step.backbone)
        assert (step.figures()["queue_filled"] == 1.0) == is_full


def test_the_recipe_has_six_small_crops_and_fits_its_own_batch():
    config = resolve_config("swav")
    assert config.views.small_crops == 6
    refuse_bad_recipe(config, run_facts(config.train.batch_size, num_small=6))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_prototypes": 1}, r"method\.num_prototypes: got 1"),
        ({"epsilon": 0}, r"method\.epsilon: got 0"),
        ({"queue_start_frac": 1}, r"method\.queue_start_frac: got 1"),
        ({"queue": 1}, r"method\.queue: no such field"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(InputError, match=message):
        validated(SwavConfig, fields, prefix="method.")
