"""How long a run is, and what is refused before anything is loaded."""

from dataclasses import replace

import pytest
from reference.ssl_batches import run_facts
from reference.tiny_store import write_tiny_store

from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.recipes.run_facts import plan_run, refuse_bad_recipe, run_length
from lvmmed.types import InputError


@pytest.mark.parametrize(
    ("epochs", "batch_size", "num_images", "num_steps"),
    [
        (100, 512, 600, 118),  # 60000 images are 117.2 batches, and not 100 times two
        (1, 512, 600, 2),  # every image was seen
        (2.5, 16, 48, 8),  # 7.5
        (0.07, 2, 200, 7),  # 7.000000000000001 in floating point
        (0.01, 16, 24, 1),
    ],
)
def test_epochs_become_as_many_steps_as_their_images_fill(
    epochs, batch_size, num_images, num_steps
):
    words = [f"train.epochs={epochs}", f"train.batch_size={batch_size}"]
    config = resolve_config("simclr", words)
    assert run_length(config, images_per_epoch=num_images) == num_steps


def test_a_length_in_steps_is_taken_as_it_is():
    config = resolve_config("simclr", ["train.steps=10", "train.batch_size=16"])
    assert run_length(config, images_per_epoch=1000) == 10


def test_a_planned_run_trains_as_many_passes_as_it_is_told(tmp_path):
    """24 images in batches of 16: ten passes are 15 batches; an epoch touches two."""
    store = write_tiny_store(tmp_path / "store")
    config = resolve_config("simclr", ["train.epochs=10", "train.batch_size=16"])
    plan = plan_run(config, store)
    assert (plan.facts.num_images, plan.facts.steps_per_epoch, plan.facts.num_steps) == (24, 2, 15)
    drawn = [int(i) for step in range(15) for i in plan.sampler.batch(step)]
    assert all(drawn.count(image) == 10 for image in range(24))


def test_a_planned_run_counts_the_images_that_top_up_graphs(tmp_path):
    """Data sets of 12 images, graphs of 8: two graphs each, 32 images an epoch, two batches."""
    store = write_tiny_store(tmp_path / "store")
    words = ["train.epochs=3", "train.batch_size=16", "method.graph_size=8"]
    config = resolve_config("lvm-med", [*words, "data.composition=dataset"])
    assert plan_run(config, store).facts.num_steps == 6


def _refused(recipe, *overrides, num_small):
    config = resolve_config(recipe, [f"views.small_crops={num_small}", *overrides])
    refuse_bad_recipe(config, run_facts(num_small=num_small, backbone=config.model.backbone))


def test_small_crops_are_refused_where_a_method_has_no_use_for_them():
    with pytest.raises(InputError, match=r"small_crops: got 4, but simclr .* set it to 0, .*dino"):
        _refused("simclr", num_small=4)


def test_small_crops_are_refused_where_the_encoder_takes_one_size_only():
    beit = ("model.backbone=beit_base_patch16_224", "views.size=64")
    says = (
        r"views.small_crops: got 6 of 32 px, which 'beit_base_patch16_224' built for 64 px does "
        r"not take \(Input height \(32\).*\); set views.small_size to .*such as 64, .* resnet50"
    )
    with pytest.raises(InputError, match=says) as refused:
        _refused("dino", *beit, num_small=6)
    assert "\n" not in str(refused.value)
    for mended in ("views.small_size=64", "model.backbone=resnet18"):
        _refused("dino", *beit, mended, num_small=6)
    _refused("dino", *beit, num_small=0)


def test_small_crops_that_are_no_multiple_of_the_patch_are_refused():
    vit = ("model.backbone=vit_tiny_patch16_224", "views.size=64")
    with pytest.raises(InputError, match=r"of 40 px.*\(Input height \(40\).*patch size \(16\)"):
        _refused("dino", *vit, "views.small_size=40", num_small=2)
    _refused("dino", *vit, "views.small_size=48", num_small=2)


def test_small_crops_that_nothing_would_match_are_refused():
    _refused("lvm-med", num_small=2)
    with pytest.raises(InputError, match=r"small_crops: got 2, but with method.batch_weight=0 "):
        _refused("lvm-med", "method.batch_weight=0", num_small=2)
    _refused("lvm-med", "method.batch_weight=0", num_small=0)


def test_graphs_that_grow_beyond_the_share_of_a_process_are_refused():
    grown = ["method.graph_size=8", "method.graph_size_end=32"]
    facts = replace(run_facts(num_images=96), num_ranks=2)
    refuse_bad_recipe(resolve_config("lvm-med", grown), replace(facts, batch_size=128))
    with pytest.raises(InputError, match=r"batch_size: got 96, need a multiple of 64 \(2 proc"):
        refuse_bad_recipe(resolve_config("lvm-med", grown), facts)
    refuse_bad_recipe(resolve_config("lvm-med", grown), replace(facts, num_ranks=1))
