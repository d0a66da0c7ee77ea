"""Expected values: the loop of MoCo's equation 1 in tests/reference, and hand arithmetic."""

import math
from dataclasses import replace

import pytest
import torch
from reference.momentum_losses import queue_contrast_loop
from reference.ssl_batches import build_method, make_views, run_facts, small_backbone
from reference.ssl_steps import losses_of_steps
from torch.nn import functional

from lvmmed.config import validated
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.recipes.run_facts import refuse_bad_recipe
from lvmmed.ssl.moco import MocoConfig, queue_contrast
from lvmmed.types import InputError

SMALL = {"queue_length": 24, "projector_hidden_width": 16, "projection_width": 8}
NUM, EPOCH = 8, 3
"""Images of a step, and steps of an epoch: 24 images, as many as a queue may hold keys."""


class _Step:
    """A small MoCo with one batch of views."""

    def __init__(self, fields=None):
        self.backbone = small_backbone()
        fields = {**SMALL, **(fields or {})}
        self.method = build_method(
            "moco", fields, self.backbone, num_images=NUM, steps_per_epoch=EPOCH
        )
        self.views = list(make_views(NUM))

    def fill(self, images=None):
        """Random keys in the whole queue, of images that the batch does not have by default."""
        method, generator = self.method, torch.Generator().manual_seed(5)
        length = len(method.keys)
        drawn = torch.randn(method.keys.shape, generator=generator)
        method.keys.copy_(functional.normalize(drawn, dim=1))
        method.key_images.copy_(torch.arange(100, 100 + length) if images is None else images)
        method.num_enqueued.fill_(length)
        return self

    def loss(self):
        generator = torch.Generator()
        features = self.method.encode(self.backbone, self.views, generator=generator)
        output = self.method.training_loss(self.views, features, step=0, generator=generator)
        return features, output


def _all(queries, queue):
    return torch.ones(len(queries), len(queue), dtype=torch.bool)


def _loop(queries, keys, queue, is_negative, temperature):
    """The loop of the definition, each query with its own part of the queue."""
    results = []
    for query, key, chosen in zip(queries, keys, is_negative, strict=True):
        negatives = queue[chosen].tolist()
        results.append(
            queue_contrast_loop([query.tolist()], [key.tolist()], negatives, temperature)
        )
    return [sum(values) / len(results) for values in zip(*results, strict=True)]


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_it_equals_the_loop_of_the_definition(temperature, generator):
    shape = {"generator": generator, "dtype": torch.float64}
    queries, queue = torch.randn(6, 4, **shape), torch.randn(9, 4, **shape)
    keys = queries + 0.5 * torch.randn(6, 4, **shape)
    everything = _all(queries, queue)
    result = queue_contrast(queries, keys, queue, is_negative=everything, temperature=temperature)
    loss, accuracy = queue_contrast_loop(
        queries.tolist(), keys.tolist(), queue.tolist(), temperature
    )
    assert float(result.loss) == pytest.approx(loss)
    assert float(result.accuracy) == pytest.approx(accuracy)
    assert 0 < accuracy < 1


def test_each_query_is_told_from_its_own_negatives_only(generator):
    shape = {"generator": generator, "dtype": torch.float64}
    queries, queue = torch.randn(6, 4, **shape), torch.randn(9, 4, **shape)
    keys = queries + 0.5 * torch.randn(6, 4, **shape)
    chosen = torch.rand(6, 9, generator=generator) < 0.5
    assert chosen.any(1).all()
    result = queue_contrast(queries, keys, queue, is_negative=chosen, temperature=0.2)
    expected = _loop(queries, keys, queue, chosen, 0.2)
    assert [float(result.loss), float(result.accuracy)] == pytest.approx(expected)


def test_queries_without_negatives_have_no_loss_and_no_gradient():
    queries = torch.tensor([[1.0, 0.5], [0.2, 1.0]], requires_grad=True)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    result = queue_contrast(
        queries, torch.eye(2), torch.ones(3, 2), is_negative=nothing, temperature=0.2
    )
    result.loss.backward()
    assert float(result.loss.detach()) == 0.0
    assert float(result.accuracy) == 1.0
    assert not queries.grad.any()


def test_a_key_at_right_angles_to_the_queue_by_hand():
    queries = torch.tensor([[2.0, 0.0]])
    queue = torch.tensor([[0.0, 1.0], [0.0, -3.0], [0.0, 1.0]])
    everything = _all(queries, queue)
    result = queue_contrast(queries, queries, queue, is_negative=everything, temperature=0.5)
    expected = -math.log(math.exp(2) / (math.exp(2) + 3))
    assert float(result.loss) == pytest.approx(expected, rel=1e-5)
    assert float(result.accuracy) == 1.0


def test_a_key_as_near_as_the_queue_is_not_told_apart():
    same, queue = torch.ones(3, 2), torch.ones(4, 2)
    result = queue_contrast(same, same, queue, is_negative=_all(same, queue), temperature=0.2)
    assert float(result.loss) == pytest.approx(math.log(5), rel=1e-5)
    assert float(result.accuracy) == 0.0


def test_the_gradient_is_that_of_finite_differences(generator):
    queries = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    keys, queue = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (3, 5))
    chosen = torch.tensor([[True] * 5, [True, False] * 2 + [True], [False] * 5])
    assert torch.autograd.gradcheck(
        lambda q: queue_contrast(q, keys, queue, is_negative=chosen, temperature=0.3).loss,
        (queries,),
    )


def test_the_query_is_the_first_view_and_the_key_the_teachers_second():
    step = _Step().fill()
    features, output = step.loss()
    assert len(features) == 1  # nothing else is encoded
    query = step.method.projector(features[0].pooled)
    key = step.method.teacher.project([step.views[1]])[0]
    loss, accuracy = queue_contrast_loop(
        query.tolist(), key.tolist(), step.method.keys.tolist(), 0.2
    )
    assert float(output.total.detach()) == pytest.approx(loss, rel=1e-4)
    assert float(output.metrics["queue_accuracy"]) == pytest.approx(accuracy)


def test_a_symmetric_loss_is_the_mean_of_both_directions():
    step = _Step({"symmetric": True, "queue_length": 32}).fill()
    features, output = step.loss()
    queries = [step.method.projector(one.pooled).tolist() for one in features]
    keys = [one.tolist() for one in step.method.teacher.project(step.views)]
    queue = step.method.keys.tolist()
    losses = [queue_contrast_loop(queries[i], keys[1 - i], queue, 0.2)[0] for i in (0, 1)]
    assert float(output.total.detach()) == pytest.approx(sum(losses) / 2, rel=1e-4)
    figures = step.method.diagnostics(step.views, features, step=0, generator=torch.Generator())
    cosines = [
        sum(a * b for a, b in zip(q, k, strict=True)) / math.hypot(*q) / math.hypot(*k)
        for i in (0, 1)
        for q, k in zip(queries[i], keys[1 - i], strict=True)
    ]
    assert figures["teacher_agreement"] == pytest.approx(sum(cosines) / 16, abs=1e-5)
    step.method.after_step(0, step.backbone)
    assert int(step.method.num_enqueued) == 32 + 2 * NUM
    assert step.method.key_images[: 2 * NUM].tolist() == [*range(NUM), *range(NUM)]


def test_the_queue_starts_empty_and_what_is_not_in_it_yet_is_no_negative():
    step = _Step()
    assert step.method.keys.shape == (24, 8)
    _, output = step.loss()
    assert float(output.total.detach()) == 0.0
    step.method.after_step(0, step.backbone)
    assert step.method.key_images.tolist() == [*range(NUM), *[-1] * 16]
    step.views = [replace(view, image_index=view.image_index + 50) for view in step.views]
    features, output = step.loss()  # of other images, with the 8 keys of the first step alone
    query = step.method.projector(features[0].pooled)
    key = step.method.teacher.project([step.views[1]])[0]
    negatives = step.method.keys[:NUM].tolist()
    loss, _ = queue_contrast_loop(query.tolist(), key.tolist(), negatives, 0.2)
    assert float(output.total.detach()) == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("is_symmetric", [False, True])
def test_an_older_key_of_the_querys_image_is_no_negative_of_it(is_symmetric):
    """Images 0 to 7 in a batch; the queue has keys of them, of eight others and of them again."""
    images = torch.cat([torch.arange(16), torch.arange(8)]).repeat(2 if is_symmetric else 1)
    step = _Step({"symmetric": is_symmetric, "queue_length": len(images)}).fill(images)
    features, output = step.loss()
    queries = [step.method.projector(one.pooled) for one in features]
    keys = step.method.teacher.project(step.views if is_symmetric else step.views[1:])[::-1]
    is_other = torch.arange(NUM)[:, None] != images
    losses = [
        _loop(query, key, step.method.keys, is_other, 0.2)[0]
        for query, key in zip(queries, keys, strict=True)
    ]
    assert float(output.total.detach()) == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_images_of_unknown_number_are_told_from_every_key_in_the_queue():
    step = _Step()
    step.views = [replace(view, image_index=None) for view in step.views]
    step.loss()
    step.method.after_step(0, step.backbone)
    assert int(step.method.num_enqueued) == NUM
    assert step.method.key_images.tolist() == [-1] * 24
    features, output = step.loss()
    query = step.method.projector(features[0].pooled)
    key = step.method.teacher.project([step.views[1]])[0]
    negatives = step.method.keys[:NUM].tolist()
    loss, _ = queue_contrast_loop(query.tolist(), key.tolist(), negatives, 0.2)
    assert float(output.total.detach()) == pytest.approx(loss, rel=1e-4)


def test_keys_take_the_place_of_the_oldest_after_the_step_only():
    step = _Step()
    start = step.method.keys.clone()
    steps = []
    for number in range(4):  # three steps fill the queue, the fourth begins again
        before = step.method.keys.clone()
        _, first = step.loss()
        _, again = step.loss()
        assert torch.equal(first.total, again.total)
        assert torch.equal(step.method.keys, before)
        key = step.method.teacher.project([step.views[1]])[0]
        steps.append(functional.normalize(key, dim=1))
        figures = step.method.diagnostics(
            step.views, step.loss()[0], step=number, generator=torch.Generator()
        )
        assert figures["queue_filled"] == pytest.approx(min(number, 3) / 3)
        with torch.no_grad():
            step.method.projector.layers[0].weight.mul_(1.5)  # a student that has moved
            step.method.projector.layers[0].weight[0].add_(50.0)
        step.method.after_step(number, step.backbone)
    assert not torch.equal(start[:NUM], step.method.keys[:NUM])
    expected = torch.cat([steps[3], steps[1], steps[2]])
    torch.testing.assert_close(step.method.keys, expected)
    assert not torch.equal(steps[0], steps[3])


def test_a_step_without_a_loss_adds_no_key():
    step = _Step()
    before = step.method.keys.clone()
    step.method.after_step(0, step.backbone)
    assert torch.equal(step.method.keys, before)


def test_the_default_head_is_the_two_layer_mlp_of_version_2():
    backbone = small_backbone()
    method = build_method("moco", {"queue_length": 32}, backbone)
    shapes = [tuple(p.shape) for p in method.projector.parameters()]
    assert shapes == [(2048, backbone.width), (2048,), (128, 2048), (128,)]
    assert method.keys.shape == (32, 128)


@pytest.mark.parametrize(
    "changed",
    [
        {"queue_length": 16},
        {"temperature": 0.5},
        {"momentum": 0.5},
        {"symmetric": True, "queue_length": 48},
        {"projection_width": 4},
        {"projector_hidden_layers": 0},
        {"projector_hidden_width": 32},
    ],
)
def test_every_field_changes_the_loss(changed):
    """Four steps, as three are what fills the queue and the fourth is told from all of it."""
    run = {"steps_per_epoch": EPOCH, "num_steps": 4}
    assert losses_of_steps("moco", SMALL, **run) != losses_of_steps(
        "moco", {**SMALL, **changed}, **run
    )


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method.queue_length=100"], r"queue_length: got 100, .* 32 keys .*; take 96 or 128, or"),
        (["method.queue_length=20"], r"queue_length: got 20, need .*batch_size\); take 32, or"),
        (
            ["method.symmetric=true", "method.queue_length=96"],
            r"got 96, need a multiple of the 64 keys .*\(2 x train.batch_size\); take 64 or 128",
        ),
    ],
)
def test_a_queue_of_broken_steps_is_refused_with_the_nearest_lengths(overrides, says):
    config = resolve_config("moco", ["train.batch_size=32", *overrides])
    with pytest.raises(InputError, match=says) as refused:
        refuse_bad_recipe(config, run_facts(32))
    assert "\n" not in str(refused.value)


def test_the_default_queue_fits_powers_of_two():
    for batch_size in (2, 128, 256, 512, 4096):
        facts = replace(run_facts(batch_size), num_images=4096, num_steps=5000)
        refuse_bad_recipe(resolve_config("moco"), facts)


@pytest.mark.parametrize(
    ("fields", "num_steps"),
    [(["method.queue_length=640"], 20), (["method.symmetric=true", "method.queue_length=640"], 10)],
)
def test_a_queue_that_never_fills_is_refused_with_the_longest_that_does(fields, num_steps):
    """32 images a step: 20 steps bring 640 keys, or 10 steps of two keys an image."""
    config = resolve_config("moco", ["train.batch_size=32", *fields])
    facts = replace(run_facts(32, steps_per_epoch=100), num_steps=num_steps)
    refuse_bad_recipe(config, facts)
    fewer = 640 - 640 // num_steps
    with pytest.raises(
        InputError, match=rf"queue_length: got 640, need at most the {fewer} keys .*; set it to"
    ) as refused:
        refuse_bad_recipe(config, replace(facts, num_steps=num_steps - 1))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "length", "most", "longest"),
    [
        ([], 128, 100, 96),  # three whole steps of 32
        (["method.symmetric=true"], 256, 200, 192),  # two keys an image: three steps of 64
        (["train.batch_size=50"], 150, 100, 100),
    ],
)
def test_a_queue_longer_than_one_pass_over_the_images_is_refused(words, length, most, longest):
    """100 images: in a longer queue whatever is more is a second key of one of them."""
    config = resolve_config("moco", ["train.batch_size=32", *words])
    facts = replace(run_facts(config.train.batch_size), num_images=100, num_steps=1000)

    def refuse(queue_length):
        method = config.method.model_copy(update={"queue_length": queue_length})
        refuse_bad_recipe(config.model_copy(update={"method": method}), facts)

    refuse(longest)
    with pytest.raises(
        InputError,
        match=rf"got {length}, need at most the {most} keys of one pass over the 100 images .*, "
        rf"as further ones are .* of the same images; set method\.queue_length={longest} or less",
    ) as refused:
        refuse(length)
    assert "\n" not in str(refused.value)


def test_the_length_that_a_refusal_names_is_taken_whatever_was_wrong():
    config = resolve_config("moco", ["train.batch_size=32", "method.queue_length=640"])
    facts = replace(run_facts(32), num_images=100, num_steps=10)
    says = r"the 320 keys of the whole run .*, or it is never full; set it to 96 or less"
    with pytest.raises(InputError, match=says):
        refuse_bad_recipe(config, facts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"queue_length": 0}, r"method\.queue_length: got 0"),
        ({"temperature": 0}, r"method\.temperature: got 0"),
        ({"momentum": 1.5}, r"method\.momentum: got 1\.5"),
        ({"queue": 1}, r"method\.queue: no such field"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(InputError, match=message):
        validated(MocoConfig, fields, prefix="method.")
