import errno
import json

import pytest
import safetensors.torch
import torch
import torchvision
from reference.weight_files import resnet_shapes, sam_vit_b_shapes, tensors

from lvmmed.models import weights
from lvmmed.models.backbones import build_backbone
from lvmmed.models.cards import is_non_commercial
from lvmmed.models.weights import card_for, load_encoder, save_encoder
from lvmmed.types import InputError

IMAGES = torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64)


@pytest.fixture(scope="module")
def encoder():
    return build_backbone("resnet18", size_px=64, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def run(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_encoder(encoder, folder, card_for(encoder))
    return folder


@pytest.fixture(scope="module")
def resnet18_state():
    """Torchvision's network with statistics that are not 0 and 1, and its output."""
    model = torchvision.models.resnet18(weights=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model.train()(torch.randn(8, 3, 64, 64))
    return model.state_dict()


def _torchvision_map(state):
    model = torchvision.models.resnet18(weights=None)
    model.load_state_dict(state)
    trunk = torch.nn.Sequential(*list(model.eval().children())[:-2])
    return trunk(IMAGES)


def _same_output(first, second):
    with torch.no_grad():
        return torch.equal(first.eval()(IMAGES).map, second.eval()(IMAGES).map)


def test_an_encoder_survives_writing_and_reading(encoder, run):
    loaded = load_encoder(str(run))
    assert _same_output(encoder, loaded.backbone)
    assert loaded.report.is_complete
    assert (loaded.card.backbone, loaded.card.width, loaded.card.input_size) == (
        "resnet18",
        512,
        64,
    )
    assert loaded.card.derived_from == "random"


def test_the_file_itself_can_be_named_as_well_as_its_folder(encoder, run):
    loaded = load_encoder(str(run / "encoder.safetensors"), backbone="resnet18")
    assert _same_output(encoder, loaded.backbone)


def test_the_card_as_written_describes_the_encoder_and_not_what_the_caller_claims(
    encoder, tmp_path
):
    claimed = card_for(build_backbone("vit_tiny_patch16_224", size_px=32))
    written = save_encoder(encoder, tmp_path, claimed)
    assert (written.backbone, written.width, written.input_size) == ("resnet18", 512, 64)
    assert load_encoder(str(tmp_path)).card == written


def test_nothing_but_the_two_files_is_left_behind(run):
    assert sorted(path.name for path in run.iterdir()) == ["card.json", "encoder.safetensors"]


def test_a_write_that_fails_leaves_the_old_encoder_whole(encoder, tmp_path, monkeypatch):
    save_encoder(encoder, tmp_path, card_for(encoder))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half_written(_state, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(weights.safetensors.torch, "save_file", half_written)
    with pytest.raises(InputError, match="no space left"):
        save_encoder(encoder, tmp_path, card_for(encoder))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_encoder_that_does_not_fit_its_card_is_refused(encoder, tmp_path):
    save_encoder(encoder, tmp_path, card_for(encoder))
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(InputError, match=r"sha256 differs from the one in card\.json"):
        load_encoder(str(tmp_path))


def test_a_card_of_a_newer_version_is_refused(encoder, tmp_path):
    save_encoder(encoder, tmp_path, card_for(encoder))
    card = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps({**card, "format_version": 99}))
    with pytest.raises(InputError, match="format_version 99"):
        load_encoder(str(tmp_path))


def test_random_weights_are_a_function_of_the_seed():
    one, again, other = (
        load_encoder("random", backbone="resnet18", size_px=64, seed=s) for s in (1, 1, 2)
    )
    assert _same_output(one.backbone, again.backbone)
    assert not _same_output(one.backbone, other.backbone)
    assert one.card.derived_from == "random"


def test_random_weights_need_a_name():
    with pytest.raises(InputError, match=r"'random': name the encoder with --set model.backbone"):
        load_encoder("random")


@pytest.mark.parametrize(
    ("file", "wrap"),
    [
        ("plain.pth", lambda s: s),
        ("plain.pt", lambda s: {"state_dict": s, "epoch": 1}),
        ("plain.torch", lambda s: {"model": {f"module.{k}": v for k, v in s.items()}}),
        ("plain.ckpt", lambda s: {"state_dict": {f"model.encoder.{k}": v for k, v in s.items()}}),
    ],
)
def test_a_torchvision_file_gives_torchvisions_output(tmp_path, resnet18_state, file, wrap):
    torch.save(wrap(resnet18_state), tmp_path / file)
    loaded = load_encoder(str(tmp_path / file), size_px=64)
    assert loaded.card.backbone == "resnet18"
    assert "licence unknown" in loaded.card.derived_from
    with torch.no_grad():
        ours = loaded.backbone.eval()(IMAGES).map
    torch.testing.assert_close(ours, _torchvision_map(resnet18_state))


def test_a_safetensors_file_without_card_is_read_as_a_state_dict(tmp_path, resnet18_state):
    safetensors.torch.save_file(resnet18_state, tmp_path / "plain.safetensors")
    assert load_encoder(str(tmp_path / "plain.safetensors")).card.backbone == "resnet18"


@pytest.mark.slow
def test_the_released_resnet_is_loaded_and_its_terms_are_kept(tmp_path):
    state = tensors(resnet_shapes())
    torch.save(state, tmp_path / "lvmmed_resnet.torch")
    loaded = load_encoder(str(tmp_path / "lvmmed_resnet.torch"))
    assert (loaded.card.backbone, loaded.card.width, loaded.card.input_size) == (
        "resnet50",
        2048,
        224,
    )
    assert is_non_commercial(loaded.card)
    assert loaded.card.datasets["LVM-Med pre-training mixture"]["num_images"] == 1_294_015
    key = "layer4.2.conv3.weight"
    assert torch.equal(loaded.backbone.model.state_dict()[key], state[key])


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "image_encoder."])
def test_the_released_vit_is_loaded_and_its_terms_are_kept(tmp_path, prefix):
    state = tensors(sam_vit_b_shapes())
    torch.save({prefix + k: v for k, v in state.items()}, tmp_path / "lvmmed_vit.pth")
    loaded = load_encoder(str(tmp_path / "lvmmed_vit.pth"))
    assert (loaded.card.backbone, loaded.card.width) == ("samvit_base_patch16_224", 768)
    assert is_non_commercial(loaded.card)
    ours = loaded.backbone.model.state_dict()
    assert torch.equal(ours["blocks.7.mlp.fc2.weight"], state["blocks.7.mlp.lin2.weight"])
    assert torch.equal(ours["blocks.0.attn.rel_pos_h"], state["blocks.0.attn.rel_pos_h"])
    global_blocks = {f"blocks.{i}.attn.rel_pos_{axis}" for i in (2, 5, 8, 11) for axis in "hw"}
    assert set(loaded.report.resampled) == global_blocks


def test_efficientnet_lites_own_names_are_paired_by_order(tmp_path, generator):
    """Two tensors are checked by hand: first and last convolution."""
    encoder = build_backbone("tf_efficientnet_lite0", size_px=64, generator=generator)
    ours = {k: v for k, v in encoder.model.state_dict().items() if "num_batches" not in k}
    names = {"conv_stem.weight": "_conv_stem.weight", "conv_head.weight": "_conv_head.weight"}
    blocks = sorted({tuple(map(int, k.split(".")[1:3])) for k in ours if k.startswith("blocks")})
    theirs = {}
    for key, value in ours.items():
        if key.startswith("blocks"):
            stage, index, *rest = key.split(".")[1:]
            flat = blocks.index((int(stage), int(index)))
            theirs[f"_blocks.{flat}._{'.'.join(rest)}"] = value
        else:
            theirs[names.get(key, f"_{key}")] = value
    theirs |= {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    torch.save(theirs, tmp_path / "lite0.pth")
    loaded = load_encoder(str(tmp_path / "lite0.pth"), size_px=64)
    assert loaded.card.backbone == "tf_efficientnet_lite0"
    assert _same_output(encoder, loaded.backbone)


def test_the_positions_of_a_transformer_follow_the_size_of_the_images(tmp_path, generator):
    encoder = build_backbone("vit_tiny_patch16_224", size_px=64, generator=generator)
    save_encoder(encoder, tmp_path, card_for(encoder))
    loaded = load_encoder(str(tmp_path), size_px=96)
    assert loaded.backbone(torch.zeros(1, 3, 96, 96)).map.shape == (1, 192, 6, 6)
    assert loaded.card.input_size == 96
    assert loaded.report.resampled == ("pos_embed",)


def test_a_file_of_another_encoder_is_refused_with_the_first_names(tmp_path, resnet18_state):
    torch.save(resnet18_state, tmp_path / "r18.pth")
    with pytest.raises(InputError, match=r"not a resnet50 at 64 px \(.* missing: .*\)") as caught:
        load_encoder(str(tmp_path / "r18.pth"), backbone="resnet50", size_px=64)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(tmp_path, resnet18_state):
    state = {**resnet18_state, "conv1.weight": torch.zeros(64, 1, 7, 7)}
    torch.save(state, tmp_path / "grey.pth")
    message = r"conv1.weight \(64, 1, 7, 7\) instead of \(64, 3, 7, 7\)"
    with pytest.raises(InputError, match=message):
        load_encoder(str(tmp_path / "grey.pth"), size_px=64)


def test_a_transformer_without_a_class_token_is_refused_with_both_shapes(tmp_path, generator):
    encoder = build_backbone("vit_tiny_patch16_224", size_px=32, generator=generator)
    state = {**encoder.model.state_dict(), "pos_embed": torch.zeros(1, 196, 192)}
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(
        InputError, match=r"pos_embed \(1, 196, 192\) instead of \(1, 5, 192\)"
    ) as caught:
        load_encoder(str(tmp_path / "vit.pth"), backbone="vit_tiny_patch16_224", size_px=32)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.to(torch.float8_e4m3fn), "float8_e4m3fn,"),
        (lambda w: w.to(torch.complex64), "complex64,"),
        (lambda w: w.to(torch.int64), "int64,"),
        (lambda w: w.to(torch.bool), "bool,"),
        (lambda w: w.to_sparse(), "float32 of layout torch.sparse_coo,"),
        (lambda w: w.to("meta"), "float32 without values,"),
    ],
)
def test_tensors_that_are_not_dense_and_real_are_refused(tmp_path, resnet18_state, change, says):
    state = {**resnet18_state, "bn1.weight": change(resnet18_state["bn1.weight"])}
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=rf"odd.pth: tensor bn1.weight is {says} need real"):
        load_encoder(str(tmp_path / "odd.pth"), size_px=64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_real_numbers_of_other_lengths_are_read(tmp_path, resnet18_state, dtype):
    state = {key: value.to(dtype) for key, value in resnet18_state.items()}
    state |= {key: value.int() for key, value in state.items() if "num_batches" in key}
    torch.save(state, tmp_path / "half.pth")
    loaded = load_encoder(str(tmp_path / "half.pth"), size_px=64).backbone.model.state_dict()
    expected = resnet18_state["conv1.weight"].to(dtype).float()
    assert torch.equal(loaded["conv1.weight"], expected)
    assert loaded["bn1.num_batches_tracked"] == 1


def test_weights_that_are_not_finite_are_refused(tmp_path, resnet18_state):
    state = {**resnet18_state, "conv1.weight": torch.full((64, 3, 7, 7), float("nan"))}
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(InputError, match=r"1 tensors hold nan or inf, first conv1.weight"):
        load_encoder(str(tmp_path / "nan.pth"), size_px=64)


def test_names_that_say_nothing_ask_for_the_encoder(tmp_path):
    torch.save({"some.weight": torch.zeros(2)}, tmp_path / "what.pth")
    with pytest.raises(InputError, match=r"cannot tell the encoder .*some.weight.*model.backbone"):
        load_encoder(str(tmp_path / "what.pth"))


class _Payload:
    """Pickling this stores a call that would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_code_in_a_file_is_not_run(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"a": _Payload(trace)}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="more than tensors, which could run code") as caught:
        load_encoder(str(tmp_path / "evil.pth"))
    assert not trace.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04half"])
def test_a_damaged_file_gives_one_line(tmp_path, suffix, content):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"broken{suffix}: ") as caught:
        load_encoder(str(path))
    assert "\n" not in str(caught.value)


# torch.load raises a KeyError of a number, an IndexError and a struct.error on these
@pytest.mark.parametrize("content", [b"junk\n", b"(0", b"\x80\x02\x8a"])
def test_a_file_of_other_content_is_refused_in_words(tmp_path, content):
    path = tmp_path / "junk.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"junk\.pth: ") as caught:
        load_encoder(str(path))
    assert "state_dict()" in str(caught.value)
    assert not any(character.isdigit() for character in str(caught.value).split("junk.pth")[1])


def test_a_file_without_named_tensors_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(InputError, match="holds no named tensors"):
        load_encoder(str(tmp_path / "list.pth"))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a weight file ends in one of \.safetensors, \.pth"):
        load_encoder(str(tmp_path / "model.onnx"))


def test_a_missing_source_is_named_with_what_is_allowed():
    with pytest.raises(InputError, match=r"'nowhere.pth': no such file or folder; allowed are"):
        load_encoder("nowhere.pth")


def test_a_name_that_the_system_refuses_gives_one_line():
    with pytest.raises(InputError, match=r"x: cannot be read \(File name too long\)"):
        load_encoder(300 * "x")


def test_a_timm_name_without_its_prefix_gets_a_hint():
    with pytest.raises(InputError, match=r"did you mean 'timm:resnet50'\?"):
        load_encoder("resnet50")


def test_a_run_without_an_encoder_says_how_to_finish_it(tmp_path):
    with pytest.raises(InputError, match="finish the run with --resume"):
        load_encoder(str(tmp_path))


def test_another_encoder_than_asked_for_is_refused(run):
    with pytest.raises(InputError, match=r"hold resnet18, but model.backbone is 'resnet50'"):
        load_encoder(str(run), backbone="resnet50")
    with pytest.raises(InputError, match=r"hold resnet18.a1_in1k, but .* 'resnet50'"):
        load_encoder("timm:resnet18.a1_in1k", backbone="resnet50")


def test_timm_weights_are_asked_of_timm_by_name(monkeypatch, encoder):
    asked = {}

    def fake(name, **options):
        asked.update(name=name, **options)
        return encoder

    monkeypatch.setattr(weights, "build_backbone", fake)
    loaded = load_encoder("timm:resnet18.a1_in1k", backbone="resnet18", size_px=64)
    assert (asked["name"], asked["pretrained"]) == ("resnet18.a1_in1k", True)
    assert loaded.card.derived_from == "timm:resnet18.a1_in1k"
