import dataclasses
import json

import pytest

from lvmmed.models.cards import (
    LVMMED_LICENCE,
    card_text,
    is_non_commercial,
    lineage,
    read_card,
)
from lvmmed.types import FORMAT_VERSION, Card, InputError

CARD = Card(
    backbone="resnet18",
    width=512,
    input_size=64,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    datasets={"brain": {"licence": "MIT", "num_images": 3}},
    recipe="lvm-med",
    method="lvm-med",
    step=200,
    sha256="0123456789abcdef",
)


def _write(path, **changes):
    values = {**json.loads(card_text(CARD)), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v != "absent"}))
    return path


def test_a_card_survives_writing_and_reading(tmp_path):
    assert read_card(_write(tmp_path / "card.json")) == CARD


def test_fields_an_older_version_did_not_write_get_their_defaults(tmp_path):
    card = read_card(_write(tmp_path / "card.json", audit="absent", recipe="absent"))
    assert card == dataclasses.replace(CARD, recipe=None)


def test_a_card_of_a_newer_version_is_refused(tmp_path):
    path = _write(tmp_path / "card.json", format_version=FORMAT_VERSION + 1)
    with pytest.raises(InputError, match=r"card.json: format_version 2, .* upgrade lvmmed"):
        read_card(path)


@pytest.mark.parametrize("version", ["1", 0, True, "absent"])
def test_a_version_that_is_no_number_is_refused(tmp_path, version):
    with pytest.raises(InputError, match="need a whole number from 1"):
        read_card(_write(tmp_path / "card.json", format_version=version))


def test_a_missing_card_is_named(tmp_path):
    with pytest.raises(InputError, match=r"card.json: no such file"):
        read_card(tmp_path / "card.json")


@pytest.mark.parametrize(("text", "message"), [("{", "not a JSON file"), ("[]", "holds list")])
def test_a_file_that_is_no_card_gives_one_line(tmp_path, text, message):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_card(tmp_path / "card.json")
    assert "\n" not in str(caught.value)


def test_unknown_and_missing_fields_are_named(tmp_path):
    path = _write(tmp_path / "card.json", width="absent", colour="red")
    with pytest.raises(InputError, match=r"unknown fields \['colour'\], missing \['width'\]"):
        read_card(path)


def test_a_field_of_the_wrong_type_is_refused(tmp_path):
    with pytest.raises(InputError, match="a field has the wrong type"):
        read_card(_write(tmp_path / "card.json", mean=["x"]))


def test_an_untrained_encoder_passes_its_origin_on():
    card = dataclasses.replace(CARD, method=None, derived_from="timm:resnet18")
    assert lineage(card) == "timm:resnet18"


def test_a_trained_encoder_adds_itself_to_the_line():
    assert lineage(CARD) == "lvm-med at step 200, sha256 0123456789ab < random"


def test_the_licence_of_the_released_weights_stays_in_the_line():
    first = dataclasses.replace(CARD, derived_from=f"lvmmed_resnet.torch, {LVMMED_LICENCE}")
    second = dataclasses.replace(CARD, derived_from=lineage(first))
    third = dataclasses.replace(CARD, derived_from=lineage(second))
    assert is_non_commercial(third)
    assert not is_non_commercial(CARD)
