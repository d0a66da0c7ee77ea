"""What is refused before anything is loaded."""

from dataclasses import replace

import pytest
from reference.ssl_batches import run_facts

from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.recipes.run_facts import refuse_bad_recipe
from lvmmed.types import InputError


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
