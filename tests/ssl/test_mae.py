"""Expected values: loops of the definition in tests/reference, and hand arithmetic."""

from dataclasses import replace

import pytest
import torch
from reference.masked_patches import normalised_loop, patches_loop, square_error_loop
from reference.ssl_batches import build_method, make_views, run_facts, small_backbone
from reference.ssl_steps import losses_of_steps

from lvmmed.config import validated
from lvmmed.models.backbones import build_backbone
from lvmmed.recipes.pretraining_recipes import resolve_config
from lvmmed.recipes.run_facts import refuse_bad_recipe
from lvmmed.ssl.mae import (
    Mae,
    MaeConfig,
    cut_patches,
    draw_visible,
    normalized_patches,
    split_patches,
)
from lvmmed.ssl.method import MethodContext
from lvmmed.types import InputError

NUM = 4
SMALL = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}


class _Step:
    """A small MAE with one batch of two views of 4 x 4 patches."""

    def __init__(self, fields=None):
        self.backbone = small_backbone(name="test_vit")
        self.method = build_method("mae", {**SMALL, **(fields or {})}, self.backbone)
        self.views = list(make_views(NUM))
        self.features = self.encode()

    def encode(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return self.method.encode(self.backbone, self.views, generator=generator)

    def loss(self):
        return self.method.training_loss(
            self.views, self.features, step=0, generator=torch.Generator()
        ).total

    def figures(self):
        return self.method.diagnostics(
            self.views, self.features, step=0, generator=torch.Generator()
        )

    @torch.no_grad()
    def expected(self, *, normalised=True):
        """Loss by the loop, with the decoder run one view at a time."""
        predicted, target = [], []
        for view, one in zip(self.views, self.features, strict=True):
            seen = one.is_visible.flatten(1)
            places = [torch.stack([row.nonzero()[:, 0] for row in some]) for some in (seen, ~seen)]
            predicted += self.method.decoder(one.map, *places).tolist()
            for image, hidden in zip(view.images.tolist(), places[1].tolist(), strict=True):
                patches = patches_loop(image, 16)
                hidden_ones = [patches[number] for number in hidden]
                target.append([normalised_loop(p) if normalised else p for p in hidden_ones])
        return predicted, target


def test_patches_are_cut_in_rows_from_the_top_left(generator):
    images = torch.randn(2, 3, 12, 12, generator=generator)
    expected = [patches_loop(image, 4) for image in images.tolist()]
    torch.testing.assert_close(cut_patches(images, 4), torch.tensor(expected))


def test_patches_are_normalised_one_by_one(generator):
    patches = 3 * torch.randn(2, 5, 12, generator=generator, dtype=torch.float64) + 1
    expected = [[normalised_loop(patch) for patch in image] for image in patches.tolist()]
    torch.testing.assert_close(normalized_patches(patches), torch.tensor(expected).double())


def test_an_even_patch_becomes_zeros():
    assert not normalized_patches(torch.full((1, 2, 12), 0.3)).round(decimals=3).any()


def test_seen_and_hidden_patches_are_numbered_in_order():
    is_visible = torch.tensor([[True, False, False, True], [False, True, True, False]])
    visible, hidden = split_patches(is_visible, 2)
    assert visible.tolist() == [[0, 3], [1, 2]]
    assert hidden.tolist() == [[1, 2], [0, 3]]


@pytest.mark.parametrize("normalised", [True, False])
def test_the_loss_is_the_error_of_the_hidden_patches_of_both_views(normalised):
    step = _Step({"normalize_patches": normalised})
    predicted, target = step.expected(normalised=normalised)
    expected = square_error_loop(predicted, target)
    assert float(step.loss().detach()) == pytest.approx(expected, rel=1e-4)
    even = [[[sum(p) / len(p)] * len(p) for p in image] for image in target]
    ratio = expected / square_error_loop(even, target)
    assert step.figures()["unexplained_variance"] == pytest.approx(ratio, rel=1e-4)


def test_masks_are_drawn_evenly_and_without_repeats(generator):
    visible = draw_visible(4000, 9, 3, generator=generator)
    assert (visible[:, 1:] > visible[:, :-1]).all()
    shares = visible.flatten().bincount(minlength=9) / 4000
    # a share has mean 1/3 and deviation sqrt(2/9 / 4000) = 0.0075
    assert (shares - 1 / 3).abs().max() < 0.03


@pytest.mark.parametrize(
    ("mask_ratio", "num_visible"), [(0.75, 4), (0.5, 8), (0.99, 1), (0.01, 15)]
)
def test_the_ratio_sets_how_many_are_seen_and_one_of_each_kind_remains(mask_ratio, num_visible):
    step = _Step({"mask_ratio": mask_ratio})
    for one in step.features:
        assert one.is_visible.flatten(1).sum(1).tolist() == [num_visible] * NUM


def test_every_view_of_every_image_has_its_own_mask_from_the_generator():
    step = _Step({"mask_ratio": 0.5})  # one of 12870 masks
    first, again, other = step.features, step.encode(), step.encode(seed=1)
    masks = torch.cat([one.is_visible for one in first]).flatten(1)
    assert len(masks.unique(dim=0)) == 2 * NUM
    assert torch.equal(first[0].is_visible, again[0].is_visible)
    assert not torch.equal(first[0].is_visible, other[0].is_visible)


@pytest.mark.slow
def test_a_trained_drawing_beats_an_even_one_and_needs_the_features():
    """After some steps on four pictures hidden patches are known, from their own image only."""
    step = _Step({"decoder_width": 64})
    parameters = [*step.backbone.parameters(), *step.method.parameters()]
    optimizer = torch.optim.AdamW([p for p in parameters if p.requires_grad], 3e-3)
    for number in range(60):
        step.features = step.encode(seed=number)
        optimizer.zero_grad()
        step.loss().backward()
        optimizer.step()
    own = step.figures()["unexplained_variance"]
    step.features = [
        replace(one, map=one.map.roll(1, 0), is_visible=one.is_visible.roll(1, 0))
        for one in step.features
    ]
    assert own < 0.8
    assert step.figures()["unexplained_variance"] > own + 0.1


def test_whole_images_are_encoded_as_ever():
    """What judges the encoder after training sees all patches, and no decoder."""
    step = _Step()
    whole = step.backbone(step.views[0].images)
    assert whole.is_visible is None
    assert whole.map.abs().sum(1).min() > 0


def test_features_without_a_mask_are_refused():
    step = _Step()
    step.features = [step.backbone(view.images) for view in step.views]
    with pytest.raises(ValueError, match="is_visible: got None"):
        step.loss()


@pytest.mark.parametrize(
    "changed",
    [
        {"mask_ratio": 0.5},
        {"normalize_patches": False},
        {"decoder_width": 32},
        {"decoder_depth": 2},
        {"decoder_heads": 4},
    ],
)
def test_every_field_changes_the_loss(changed):
    lengths = {"num": NUM, "num_steps": 1, "backbone_name": "test_vit"}
    first = losses_of_steps("mae", SMALL, **lengths)
    assert first != losses_of_steps("mae", {**SMALL, **changed}, **lengths)


@pytest.mark.parametrize("name", ["resnet50", "samvit_base_patch16", "convnext_atto"])
def test_an_encoder_that_cannot_leave_out_patches_is_refused(name):
    config = resolve_config("mae", [f"model.backbone={name}"])
    with pytest.raises(
        InputError,
        match=rf"model.backbone: got '{name}', .*model.backbone=vit_small_patch16_224$",
    ) as refused:
        refuse_bad_recipe(config, run_facts(backbone=name))
    assert "\n" not in str(refused.value)


def test_small_crops_are_refused():
    config = resolve_config("mae", ["views.small_crops=2"])
    with pytest.raises(InputError, match=r"views.small_crops: got 2, but mae compares"):
        refuse_bad_recipe(config, run_facts(num_small=2, backbone="vit_small_patch16_224"))


@pytest.mark.parametrize(
    ("size_px", "says"),
    [
        (16, r"views.size: got 16, .*single patch of 'vit_tiny_patch16_224'; set it to 32"),
        (100, r"does not take 100-px images .*set views.size to .*multiple of its patch"),
    ],
)
def test_views_that_cannot_be_cut_are_refused_before_there_are_weights(size_px, says):
    name = "vit_tiny_patch16_224"
    config = resolve_config("mae", [f"model.backbone={name}", f"views.size={size_px}"])
    with pytest.raises(InputError, match=says) as refused:
        refuse_bad_recipe(config, run_facts(backbone=name, size_px=size_px))
    assert "\n" not in str(refused.value)
    refuse_bad_recipe(config, run_facts(backbone=name, size_px=32))


def test_an_encoder_of_a_single_patch_is_refused_by_the_method_too():
    backbone = build_backbone("test_vit", size_px=16, generator=torch.Generator())
    context = MethodContext(backbone=backbone, facts=run_facts(size_px=16))
    with pytest.raises(InputError, match=r"views.size: got 16, .*single patch .*; set it to 32"):
        Mae(MaeConfig(), context)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_ratio": 1}, r"method\.mask_ratio: got 1"),
        ({"decoder_width": 6}, r"method\.decoder_width: got 6, need a multiple of 4 and of"),
        (
            {"decoder_width": 256, "decoder_heads": 3},
            r"decoder_width: got 256, .*method\.decoder_heads = 3",
        ),
        ({"ratio": 1}, r"method\.ratio: no such field"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(InputError, match=message):
        validated(MaeConfig, fields, prefix="method.")


@pytest.mark.parametrize(
    ("encoder", "heads", "expected"),
    [
        (768, None, (192, 6)),
        (384, None, (96, 3)),
        (192, None, (32, 1)),
        (64, None, (32, 1)),
        (1024, 8, (256, 8)),
        (192, 3, (48, 3)),
        (12, 8, (8, 8)),
    ],
)
def test_the_decoder_has_a_quarter_of_the_encoders_width_in_whole_heads(encoder, heads, expected):
    assert MaeConfig(decoder_heads=heads).width_and_heads(encoder) == expected


@pytest.mark.parametrize(("width", "num_heads"), [(256, 8), (100, 2), (24, 1), (44, 1)])
def test_a_width_of_ones_own_gets_heads_that_divide_it(width, num_heads):
    assert MaeConfig(decoder_width=width).width_and_heads(768) == (width, num_heads)
