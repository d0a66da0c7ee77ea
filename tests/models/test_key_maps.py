"""Names of files are made in tests/reference from the architectures' definitions; meta tensors
have shapes but no values, which is all that names need.
"""

import pytest
import timm
import torch
import torchvision
from reference.weight_files import resnet_shapes, sam_vit_b_shapes

from lvmmed.models.backbones import build_backbone
from lvmmed.models.key_maps import KeyReport, guess_backbone, match_keys, readings, unwrap


def _meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


RESNET50 = _meta(resnet_shapes())
SAM = _meta(sam_vit_b_shapes())


@pytest.fixture(scope="module")
def resnet50():
    with torch.device("meta"):
        return timm.create_model("resnet50", num_classes=0).state_dict()


@pytest.fixture(scope="module")
def sam():
    return build_backbone("samvit_base_patch16_224", size_px=224).model.state_dict()


def test_the_released_resnet_has_exactly_the_names_of_timms_resnet50(resnet50):
    found, report = match_keys(RESNET50, resnet50)
    assert found.keys() == resnet50.keys()
    assert report == KeyReport(num_wanted=318, matched=tuple(resnet50))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_torchvisions_residual_networks_are_told_apart_and_fit(name):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict()
        ours = timm.create_model(name, num_classes=0).state_dict()
    assert guess_backbone(theirs) == name
    _, report = match_keys(theirs, ours)
    assert report.is_complete
    assert report.ignored == ("fc.bias", "fc.weight")


@pytest.mark.parametrize("name", ["wide_resnet50_2", "resnext50_32x4d"])
def test_wide_and_grouped_networks_are_not_taken_for_plain_ones(name):
    with torch.device("meta"):
        assert guess_backbone(torchvision.models.get_model(name).state_dict()) is None


@pytest.mark.parametrize(
    "prefix",
    ["module.", "backbone.", "model.", "encoder.", "module.model.", "model.backbone.", ""],
)
def test_prefixes_are_taken_off(prefix, resnet50):
    state = {prefix + key: value for key, value in RESNET50.items()}
    assert guess_backbone(readings(state)[-1]) == "resnet50"
    assert match_keys(state, resnet50)[1].is_complete


def test_the_decoder_of_a_larger_model_is_left_out(resnet50):
    state = {f"encoder.{key}": value for key, value in RESNET50.items()}
    state["decoder.conv.weight"] = state["segmentation_head.0.weight"] = torch.empty(1)
    assert match_keys(state, resnet50)[1].is_complete


def test_counters_of_batch_normalisation_may_be_absent(resnet50):
    state = {k: v for k, v in RESNET50.items() if not k.endswith("num_batches_tracked")}
    assert len(state) == 265  # as counted in the public description
    found, report = match_keys(state, resnet50)
    assert found.keys() == resnet50.keys()
    assert report.is_complete
    assert len(report.filled) == 318 - 265


def test_a_missing_tensor_is_reported_by_name(resnet50):
    state = {k: v for k, v in RESNET50.items() if k != "layer3.2.conv2.weight"}
    _, report = match_keys(state, resnet50)
    assert not report.is_complete
    assert report.missing == ("layer3.2.conv2.weight",)
    assert report.summary() == "317 of 318 tensors matched; 1 missing: layer3.2.conv2.weight"


def test_a_deeper_network_does_not_pass_for_a_shallower_one(resnet50):
    state = _meta(resnet_shapes((3, 4, 23, 3)))
    _, report = match_keys(state, resnet50)
    assert report.missing == ()
    assert not report.is_complete
    # 17 more blocks of 3 convolutions and 3 norms of 4 tensors; counters do not matter
    assert len(report.unexpected) == 17 * 3 * 5
    assert report.summary().endswith(", ...")


def test_the_released_vit_fits_the_sam_encoder_and_its_neck_is_of_no_use(sam):
    assert guess_backbone(SAM) == "samvit_base_patch16_224"
    found, report = match_keys(SAM, sam)
    assert found.keys() == sam.keys()
    assert report.is_complete
    assert len(report.matched) == 176 - 6
    assert all(key.startswith("neck.") for key in report.ignored)
    assert len(report.ignored) == 6


def test_a_whole_sam_checkpoint_gives_its_image_encoder(sam):
    state = {f"image_encoder.{key}": value for key, value in SAM.items()}
    state["image_encoder.pos_embed"] = torch.empty(1, 64, 64, 768)
    state["mask_decoder.iou_token.weight"] = torch.empty(1, 256)
    _, report = match_keys(state, sam)
    assert report.is_complete
    assert "pos_embed" in report.ignored


def test_position_embeddings_that_the_released_vit_lacks_become_zero():
    wanted = {"pos_embed": torch.ones(1, 4, 4, 8), "blocks.0.attn.rel_pos_h": torch.ones(7, 4)}
    found, report = match_keys({"blocks.0.attn.rel_pos_h": torch.ones(7, 4)}, wanted)
    assert torch.equal(found["pos_embed"], torch.zeros(1, 4, 4, 8))
    assert report.filled == ("pos_embed",)
    assert report.is_complete


def test_position_embeddings_of_a_plain_vit_are_not_filled_with_zeros():
    _, report = match_keys({"norm.weight": torch.ones(8)}, {"pos_embed": torch.ones(1, 5, 8)})
    assert report.missing == ("pos_embed",)


@pytest.mark.parametrize(
    "content",
    [
        {"a": torch.ones(1)},
        {"state_dict": {"a": torch.ones(1)}, "epoch": 3},
        {"model": {"a": torch.ones(1)}, "optimizer": {}},
        {"state_dict": {"model": {"a": torch.ones(1)}}},
        {"a": torch.ones(1), "epoch": 3},
    ],
)
def test_wrappers_are_opened(content):
    assert list(unwrap(content)) == ["a"]


@pytest.mark.parametrize("content", [None, [torch.ones(1)], {}, {"epoch": 3}, torch.ones(2)])
def test_what_holds_no_named_tensors_gives_none(content):
    assert unwrap(content) == {}


def test_plain_transformers_are_not_guessed():
    with torch.device("meta"):
        state = timm.create_model("vit_tiny_patch16_224").state_dict()
    assert guess_backbone(state) is None
