"""Expected values come from timm itself: its stated strides, and hooks on its own layers."""

import pytest
import timm
import torch
from timm.models.vision_transformer_sam import get_rel_pos

from lvmmed.models import backbones
from lvmmed.models.backbones import (
    BACKBONES,
    build_backbone,
    default_size_px,
    is_timm_name,
    size_refusal,
)
from lvmmed.models.initialization import seeded
from lvmmed.models.position_embeddings import fit_positions
from lvmmed.types import InputError

QUICK = {"resnet18", "vit_tiny_patch16_224", "tf_efficientnet_lite0", "convnext_atto"}
SIZE_PX = 64

# channels and stride of the last map, as the papers of the architectures state them
SHAPES = {
    "resnet18": (512, 32),
    "resnet50": (2048, 32),
    "vit_tiny_patch16_224": (192, 16),
    "vit_small_patch16_224": (384, 16),
    "samvit_base_patch16_224": (768, 16),
    "tf_efficientnet_lite0": (1280, 32),
    "convnext_atto": (320, 32),
    "regnety_002": (368, 32),
    "densenet121": (1024, 32),
    "swin_tiny_patch4_window7_224": (768, 32),
    "beit_base_patch16_224": (768, 16),
}

NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in BACKBONES]
ANY_SIZE = [n for n in NAMES if "beit_base_patch16_224" not in getattr(n, "values", ())]


def _images(generator, num=2, size_px=SIZE_PX):
    return torch.randn(num, 3, size_px, size_px, generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_every_listed_backbone_gives_its_map_and_its_mean(name, generator):
    width, stride = SHAPES[name]
    backbone = build_backbone(name, size_px=SIZE_PX, generator=generator)
    features = backbone(_images(generator))
    side = SIZE_PX // stride
    assert features.map.shape == (2, width, side, side)
    assert (backbone.name, backbone.width, backbone.stride) == (name, width, stride)
    torch.testing.assert_close(features.pooled, features.map.flatten(2).mean(2))
    assert features.map.std() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_parameter_gets_a_gradient(name, generator):
    backbone = build_backbone(name, size_px=SIZE_PX, generator=generator)
    features = backbone(_images(generator))
    (features.map.square().sum() + features.pooled.sum()).backward()
    without = [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_random_weights_are_a_function_of_the_generator(name):
    first, again, other = (
        build_backbone(name, size_px=64, generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


def test_building_leaves_the_global_generator_alone(generator):
    before = torch.get_rng_state()
    build_backbone("resnet18", size_px=64, generator=generator)
    assert torch.equal(before, torch.get_rng_state())


def test_a_residual_network_gives_the_output_of_its_last_stage(generator):
    backbone = build_backbone("resnet18", size_px=64, generator=generator).eval()
    seen = []
    backbone.model.layer4.register_forward_hook(lambda *call: seen.append(call[2]))
    features = backbone(_images(generator))
    assert torch.equal(features.map, seen[0])


def test_a_transformer_gives_its_patch_tokens_after_the_last_norm(generator):
    backbone = build_backbone("vit_tiny_patch16_224", size_px=64, generator=generator).eval()
    seen = []
    backbone.model.norm.register_forward_hook(lambda *call: seen.append(call[2]))
    features = backbone(_images(generator))
    # tokens run along rows; the first one is the class token
    for row in range(4):
        for col in range(4):
            token = seen[0][:, 1 + row * 4 + col]
            assert torch.equal(features.map[:, :, row, col], token)


def test_a_patch_shows_up_at_its_place_in_the_map(generator):
    backbone = build_backbone("vit_tiny_patch16_224", size_px=64, generator=generator).eval()
    image = torch.zeros(1, 3, 64, 64)
    marked = image.clone()
    marked[:, :, 16:32, 48:64] = 3.0  # patch row 1, column 3
    change = (backbone(marked).map - backbone(image).map).abs().sum(1)[0]
    assert divmod(int(change.argmax()), 4) == (1, 3)


@pytest.mark.slow
def test_the_sam_encoder_gives_the_tokens_before_its_neck(generator):
    backbone = build_backbone("samvit_base_patch16_224", size_px=224, generator=generator).eval()
    whole = timm.create_model("samvit_base_patch16_224", num_classes=0).eval()
    missing, unexpected = whole.load_state_dict(backbone.model.state_dict(), strict=False)
    assert all(key.startswith("neck") for key in missing)
    assert unexpected == []
    seen = []
    whole.blocks.register_forward_hook(lambda *call: seen.append(call[2]))
    images = _images(generator, num=1, size_px=224)
    with torch.no_grad():
        whole.forward_features(images)
        features = backbone(images)
    assert features.map.shape == (1, 768, 14, 14)  # paper, appendix A
    assert torch.equal(features.map.permute(0, 2, 3, 1), seen[0])


def test_a_map_after_a_norm_in_single_precision_is_known_to_come_from_half(generator):
    backbone = build_backbone("vit_tiny_patch16_224", size_px=32, generator=generator)
    images = torch.zeros(1, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = backbone(images)
    assert (features.map.dtype, features.is_half) == (torch.float32, True)
    assert not backbone(images).is_half


def test_under_autocast_the_pooled_vector_stays_in_single_precision(generator):
    backbone = build_backbone("resnet18", size_px=64, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = backbone(_images(generator))
    assert features.map.dtype == torch.bfloat16
    assert features.is_half
    assert features.pooled.dtype == torch.float32


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet50", "vit_tiny_patch16_224"])
def test_normalisation_is_what_timm_states(name):
    backbone = build_backbone(name, size_px=64)
    config = timm.get_pretrained_cfg(name)
    assert (backbone.mean, backbone.std) == (config.mean, config.std)


def test_a_convolutional_encoder_takes_other_sizes_than_it_was_built_for(generator):
    backbone = build_backbone("resnet18", size_px=64, generator=generator)
    assert backbone(_images(generator, size_px=96)).map.shape[2:] == (3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ANY_SIZE)
@pytest.mark.parametrize("size_px", [32, 96])
def test_every_listed_backbone_but_beit_takes_smaller_and_larger_images(name, size_px, generator):
    backbone = build_backbone(name, size_px=SIZE_PX, generator=generator)
    assert size_refusal(name, size_px, built_for_px=SIZE_PX) is None
    features = backbone(_images(generator, size_px=size_px))
    side = size_px // SHAPES[name][1]
    assert features.map.shape[2:] == (side, side)
    assert torch.isfinite(features.map).all()


def test_the_encoder_that_takes_one_size_only_says_so():
    reason = size_refusal("beit_base_patch16_224", 32, built_for_px=64)
    assert reason == "Input height (32) doesn't match model (64)"
    assert size_refusal("beit_base_patch16_224", 64, built_for_px=64) is None


def test_a_transformer_takes_multiples_of_its_patch_only():
    reason = size_refusal("vit_tiny_patch16_224", 40, built_for_px=64)
    assert reason == "Input height (40) should be divisible by patch size (16)"
    with pytest.raises(InputError, match=r"does not take 40-px images .* set views\.size"):
        size_refusal("vit_tiny_patch16_224", 64, built_for_px=40)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
    ],
)
def test_taking_other_sizes_changes_nothing_at_the_size_it_was_built_for(name, generator):
    """Against timm's model of that one size: names, weights, outputs and gradients, bit for bit."""
    ours = build_backbone(name, size_px=64, generator=torch.Generator().manual_seed(3)).model
    with seeded(torch.Generator().manual_seed(3)):
        theirs = timm.create_model(name, img_size=64)
    theirs.reset_classifier(0)
    pairs = zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True)
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)
    images = _images(generator)
    outputs = [model.eval().forward_features(images) for model in (ours, theirs)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)


def test_a_smaller_image_sees_the_whole_grid_of_positions(generator):
    """2 x 2 tokens get the 4 x 4 positions shrunk as an image (timm's own resampling)."""
    backbone = build_backbone("vit_tiny_patch16_224", size_px=64, generator=generator)
    model = backbone.model
    seen = []
    model.patch_drop.register_forward_hook(lambda *call: seen.append(call[2]))
    backbone(torch.zeros(1, 3, 32, 32))
    grid = model.pos_embed[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    shrunk = torch.nn.functional.interpolate(grid, size=(2, 2), mode="bicubic", antialias=True)
    expected = shrunk.flatten(2).transpose(1, 2) + model.patch_embed.proj.bias
    torch.testing.assert_close(seen[0][:, 1:], expected)


def test_a_misspelt_name_gets_a_suggestion():
    with pytest.raises(InputError, match=r"'resnet_50'; did you mean 'resnet50'\?"):
        build_backbone("resnet_50", size_px=64)


def test_a_name_far_from_all_others_gets_examples_not_a_thousand_names():
    with pytest.raises(InputError, match="allowed are timm's encoders, such as resnet18") as caught:
        build_backbone("zzzzzzzz", size_px=64)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "local-dir:/tmp/x"])
def test_names_that_would_fetch_something_are_refused(name):
    with pytest.raises(InputError, match=r"model\.backbone: got"):
        build_backbone(name, size_px=64)


def test_an_encoder_without_a_single_map_is_refused_with_a_remedy():
    with pytest.raises(InputError, match=r"no two-dimensional feature map .* choose an encoder"):
        build_backbone("coat_tiny", size_px=64)


def test_a_size_the_encoder_cannot_take_is_refused_with_a_remedy():
    with pytest.raises(InputError, match=r"does not take 64-px images .* set views\.size"):
        build_backbone("efficientformer_l1", size_px=64)


def test_weights_that_cannot_be_fetched_give_one_line(monkeypatch):
    real = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to host. Please check your connection and try again\nstory")
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(backbones.timm, "create_model", offline)
    with pytest.raises(
        InputError, match=r"timm:resnet18: .*no route to host\); check .* file of weights"
    ) as caught:
        build_backbone("resnet18", size_px=64, pretrained=True)
    assert "\n" not in str(caught.value)


def test_relative_positions_are_resampled_as_sam_does_in_its_forward_pass(generator):
    """1024-px weights (127 offsets) for 14 x 14 tokens (27), as the released ViT is used."""
    backbone = build_backbone("samvit_base_patch16_224", size_px=224)
    key = "blocks.2.attn.rel_pos_h"
    offsets = torch.randn(127, 64, generator=generator)
    fitted = fit_positions({key: offsets}, backbone)[key]
    assert fitted.shape == (27, 64)
    # timm looks the table up by [query, key]; entry [q, k] is offset q - k + 13
    theirs = get_rel_pos(14, 14, offsets)
    ours = torch.stack([fitted[q - k + 13] for q in range(14) for k in range(14)])
    torch.testing.assert_close(ours.view(14, 14, 64), theirs)


def test_absolute_positions_of_the_same_grid_are_left_alone(generator):
    backbone = build_backbone("vit_tiny_patch16_224", size_px=64)
    state = {"pos_embed": torch.randn(1, 17, 192, generator=generator)}
    assert fit_positions(state, backbone)["pos_embed"] is state["pos_embed"]


def test_constant_absolute_positions_stay_constant_on_another_grid():
    backbone = build_backbone("vit_tiny_patch16_224", size_px=64)
    state = {"pos_embed": torch.full((1, 197, 192), 0.5)}
    fitted = fit_positions(state, backbone)["pos_embed"]
    torch.testing.assert_close(fitted, torch.full((1, 17, 192), 0.5))


def test_names_are_known_with_and_without_tag():
    assert is_timm_name("resnet50")
    assert is_timm_name("resnet50.a1_in1k")
    assert not is_timm_name("resnet_50")


def test_the_default_size_is_what_timm_states():
    assert default_size_px("resnet50") == 224
    assert default_size_px("vit_small_patch14_dinov2") == 518


@pytest.mark.parametrize("switched_off", [torch.no_grad, torch.inference_mode])
def test_an_encoder_can_be_built_where_gradients_are_switched_off(switched_off):
    backbones._plan.cache_clear()
    with switched_off():
        encoder = build_backbone("resnet10t", size_px=32)
    assert encoder.width == 512
