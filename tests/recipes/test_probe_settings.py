"""What settings of a probe may be."""

import pytest
from pydantic import ValidationError

from lvmmed.recipes.probe_settings import EncoderProbeSettings, resolve_probe_settings
from lvmmed.types import InputError


@pytest.mark.parametrize("fractions", [(1.0, 1.0), (0.1, 1.0, 0.1)])
def test_a_share_of_the_labels_that_stands_twice_is_refused(fractions):
    with pytest.raises(ValidationError, match=r"fractions: got \[.*\], name each share once"):
        EncoderProbeSettings(fractions=fractions)


def test_a_share_twice_on_the_command_line_is_an_error_of_one_line():
    with pytest.raises(InputError, match="name each share once") as error:
        resolve_probe_settings(EncoderProbeSettings(), {}, ["fractions=[1, 1.0]"])
    assert "\n" not in str(error.value)


def test_different_shares_are_taken_in_the_order_given():
    assert EncoderProbeSettings(fractions=(0.1, 1.0, 0.01)).fractions == (0.1, 1.0, 0.01)
