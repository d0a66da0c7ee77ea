"""Expected values: loops of the definition in tests/reference, and hand arithmetic."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from reference.clusters import cluster_loss_loop
from reference.ssl_batches import build_method, make_views, run_facts, small_backbone
from reference.ssl_steps import losses_of_steps
from torch.nn import functional

from lvmmed.config import validated
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.recipes.run_facts import refuse_bad_recipe
from lvmmed.ssl.clustering import spherical_kmeans
from lvmmed.ssl.deepcluster import DeepclusterConfig, cluster_loss
from lvmmed.types import InputError

NUM = 12
SMALL = {"num_prototypes": (3, 4), "projector_hidden_width": 16, "projection_width": 4}


class _Step:
    """A small DeepCluster with one batch of two views and a small crop, all remembered."""

    def __init__(self, fields=None, *, seed=0):
        self.backbone = small_backbone()
        self.method = build_method(
            "deepcluster",
            {**SMALL, **(fields or {})},
            self.backbone,
            seed=seed,
            num_images=NUM,
            num_small=1,
        )
        self.views = list(make_views(NUM, num_small=1))
        self.features = self.method.encode(
            self.backbone, self.views, generator=torch.Generator().manual_seed(0)
        )

    def remember(self, rows=slice(None)):
        kept = [view[rows] for view in self.views[:2]]
        features = self.method.encode(self.backbone, kept, generator=torch.Generator())
        self.method.remember(kept, features)
        return self

    def loss(self):
        generator = torch.Generator()
        return self.method.training_loss(
            self.views, self.features, step=0, generator=generator
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

    def centroids(self):
        return [self.method.centroids_0, self.method.centroids_1]


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_it_equals_the_loop_of_the_definition(temperature, generator):
    shape = {"generator": generator, "dtype": torch.float64}
    embeddings = list(functional.normalize(torch.randn(3, 6, 4, **shape), dim=2))
    centroids = [functional.normalize(torch.randn(k, 4, **shape), dim=1) for k in (2, 5)]
    assignments = torch.stack([torch.randint(0, k, (6,), generator=generator) for k in (2, 5)])
    loss = cluster_loss(embeddings, centroids, assignments, temperature=temperature)
    expected = cluster_loss_loop(
        [one.tolist() for one in embeddings],
        [one.tolist() for one in centroids],
        assignments.tolist(),
        temperature,
    )
    assert float(loss) == pytest.approx(expected)


def test_an_embedding_on_its_centroid_by_hand():
    embeddings, centroids = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    loss = cluster_loss([embeddings], [centroids], torch.tensor([[0]]), temperature=0.5)
    assert float(loss) == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 1)), rel=1e-5)


def test_the_gradient_is_that_of_finite_differences(generator):
    embeddings = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    centroids = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: cluster_loss(z.unbind(), [centroids], torch.tensor([[0, 2, 1]]), temperature=0.3),
        (embeddings,),
    )


def test_every_view_names_the_clusters_of_its_image():
    step = _Step().remember()
    expected = cluster_loss_loop(
        [one.tolist() for one in step.embeddings()],
        [one.tolist() for one in step.centroids()],
        step.method.assignments.tolist(),
        0.1,
    )
    assert len(step.features) == 3
    assert float(step.loss().detach()) == pytest.approx(expected, rel=1e-4)


def test_the_first_clusters_are_of_all_images_and_not_before_all_are_remembered():
    step = _Step()
    step.remember(slice(0, 8))
    assert not step.method.centroids_0.any()
    step.remember(slice(4, NUM))  # the last batch is filled up with images that were seen
    for head, centroids in enumerate(step.centroids()):
        own = step.method.memory[head]  # first and second view in turn
        torch.testing.assert_close(centroids.norm(dim=1), torch.ones(3 + head))
        nearest = (own @ centroids.T).argmax(1)
        assert torch.equal(step.method.assignments[head], nearest)
    torch.testing.assert_close(step.method.memory.norm(dim=2), torch.ones(2, NUM))


def test_the_number_of_an_image_says_its_place():
    step, other = _Step().remember(), _Step()
    order = torch.arange(NUM).flip(0)
    other.views = [replace(view[order], image_index=order) for view in other.views]
    other.features = other.method.encode(
        other.backbone, other.views, generator=torch.Generator().manual_seed(0)
    )
    other.remember()
    # batch normalisation sums images in another order
    torch.testing.assert_close(other.method.memory, step.method.memory, rtol=0, atol=1e-3)
    torch.testing.assert_close(other.loss(), step.loss(), rtol=0, atol=1e-2)


def test_the_memory_takes_up_a_step_after_it_only_and_clusters_at_the_end_of_an_epoch():
    step = _Step({"recluster_every": 2}).remember()  # an epoch has one step here
    before = copy.deepcopy(step.method.state_dict())
    for one in step.features:
        one.pooled.data = one.pooled.data.roll(1, 0)
    first = step.loss()
    assert torch.equal(first, step.loss())
    after = step.method.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    step.method.after_step(0, step.backbone)
    expected = torch.stack(step.embeddings()[:2])
    torch.testing.assert_close(step.method.memory, expected)
    assert torch.equal(step.method.centroids_0, before["centroids_0"])
    step.method.after_step(1, step.backbone)
    assert not torch.equal(step.method.centroids_0, before["centroids_0"])
    for head in (0, 1):
        again = spherical_kmeans(
            expected[head],
            3 + head,
            num_iterations=10,
            generator=torch.Generator().manual_seed(int(before["seed"]) + 2 + head),
        )
        torch.testing.assert_close(step.centroids()[head], again.centroids)


def test_of_an_image_that_comes_twice_in_a_step_the_last_counts():
    step = _Step().remember()
    index = torch.tensor([0, 1, 2, 3, 0, 5, 6, 7, 8, 9, 10, 11])
    step.views = [replace(view, image_index=index) for view in step.views]
    untouched = step.method.memory[:, 4].clone()
    step.loss()
    step.method.after_step(0, step.backbone)
    embedded = torch.stack(step.embeddings()[:2])
    torch.testing.assert_close(step.method.memory[:, 0], embedded[:, 4])
    assert torch.equal(step.method.memory[:, 4], untouched)


def test_another_seed_starts_other_clusterings():
    assert int(_Step().method.seed) == int(_Step().method.seed)
    assert int(_Step().method.seed) != int(_Step(seed=1).method.seed)


def test_figures_of_clusters_by_hand():
    step = _Step({"num_prototypes": (4,)}).remember()
    first = step.embeddings()[0]
    step.method.centroids_0.copy_(first[:4])  # the first images lie on the centroids
    assignment = torch.tensor([0, 1, 2, 2] + [0] * 4 + [1] * 4)
    step.method.assignments[0] = assignment
    figures = step.figures()
    nearest = (first @ first[:4].T).argmax(1)
    assert figures["cluster_accuracy"] == pytest.approx((nearest == assignment).double().mean())
    assert figures["clusters_used"] == 3 / 4
    shares = (5 / 12, 5 / 12, 2 / 12)
    entropy = -sum(share * math.log(share) for share in shares)
    assert figures["cluster_balance"] == pytest.approx(entropy / math.log(4))
    step.method.centroids_0.copy_(first[:1].expand(4, -1))  # all alike: nothing is told apart
    assert step.figures()["cluster_accuracy"] == 0.0


def test_views_without_the_numbers_of_their_images_are_refused():
    step = _Step().remember()
    step.views = [replace(view, image_index=None) for view in step.views]
    with pytest.raises(ValueError, match="image_index: got None"):
        step.loss()


@pytest.mark.parametrize(
    "changed",
    [
        {"num_prototypes": (3, 5)},
        {"temperature": 0.5},
        {"recluster_every": 2},
        {"kmeans_iterations": 1},
        {"projection_width": 8},
        {"projector_hidden_layers": 0},
        {"projector_hidden_width": 32},
    ],
)
def test_every_field_changes_the_loss(changed):
    lengths = {"num": NUM, "num_small": 1}
    first = losses_of_steps("deepcluster", SMALL, **lengths)
    assert first != losses_of_steps("deepcluster", {**SMALL, **changed}, **lengths)


def test_more_prototypes_than_images_are_refused():
    with pytest.raises(
        InputError, match=r"num_prototypes: got 300, need at most the 200 images .*=\[50\] or less"
    ) as refused:
        refuse_bad_recipe(resolve_config("deepcluster"), run_facts(200))
    assert "\n" not in str(refused.value)
    config = resolve_config("deepcluster", ["method.num_prototypes=[50,200]"])
    assert config.method.num_prototypes == (50, 200)
    refuse_bad_recipe(config, run_facts(200))


def test_the_recipe_has_six_small_crops():
    assert resolve_config("deepcluster").views.small_crops == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_prototypes": [1]}, r"method\.num_prototypes.0: got 1"),
        ({"num_prototypes": []}, r"method\.num_prototypes: got \[\]"),
        ({"recluster_every": 0}, r"method\.recluster_every: got 0"),
        ({"prototypes": 3}, r"method\.prototypes: no such field"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(InputError, match=message):
        validated(DeepclusterConfig, fields, prefix="method.")
