import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvmmed.data.intensity import (
    IntensityPolicy,
    default_policy,
    finite_limits,
    parse_policy,
    to_uint8,
)
from lvmmed.types import ImageRecord, InputError

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


def record(pixels) -> ImageRecord:
    return ImageRecord(pixels=np.asarray(pixels), source="a.png")


@given(center=NUMBERS, width=st.floats(1e-3, 1e6), invert=st.booleans())
def test_a_window_survives_the_way_through_its_text(center, width, invert):
    policy = IntensityPolicy(kind="window", center=center, width=width, invert=invert)
    assert parse_policy(str(policy)) == policy


@given(low=st.floats(0, 49), high=st.floats(50, 100), limits=st.tuples(NUMBERS, NUMBERS))
def test_percentiles_survive_the_way_through_their_text(low, high, limits):
    policy = IntensityPolicy(
        kind="percentile",
        low=low,
        high=high,
        scope="volume",
        from_value=limits[0],
        to_value=limits[1],
    )
    assert parse_policy(str(policy)) == policy


def test_the_text_of_a_policy_is_what_the_store_documents():
    policy = IntensityPolicy(
        kind="percentile", low=0.5, high=99.5, scope="volume", from_value=3, to_value=812
    )
    assert str(policy) == "percentile(low=0.5,high=99.5,scope=volume,from=3,to=812)"
    assert str(policy.generic()) == "percentile(low=0.5,high=99.5,scope=volume)"
    assert str(IntensityPolicy(kind="none")) == "none"
    assert str(IntensityPolicy(kind="none", invert=True)) == "none(invert=true)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("squash", "'squash': allowed kinds are none, percentile, window, voi, minmax"),
        ("window(40", "write it as kind(name=value,...)"),
        ("window(middle=4)", "no parameter 'middle'; allowed are low, high, center, width"),
        ("window(center=x,width=3)", "center needs a number"),
        ("window(center=40)", "need a center and a width above 0"),
        ("window(center=40,width=0)", "need a center and a width above 0"),
        ("voi(function=linear)", "need a center and a width above 0"),
        ("percentile(low=60,high=40)", "need 0 <= low < high <= 100"),
        ("percentile(low=1,high=99,scope=world)", "scope='world'; allowed are image, volume"),
    ],
)
def test_a_wrong_policy_is_refused_in_one_line(text, message):
    with pytest.raises(InputError) as caught:
        parse_policy(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_window_maps_its_ends_to_black_and_white():
    # -160 -> 0, 240 -> 255, 40 is the middle: 127.5 rounds up; outside is cut
    policy = IntensityPolicy(kind="window", center=40, width=400)
    out = to_uint8(record(np.array([[-1000, -160, 40], [240, 3000, 140]], np.int16)), policy)
    assert out.pixels.tolist() == [[0, 0, 128], [255, 255, 191]]
    assert out.intensity == "window(center=40,width=400)"


def test_a_linear_voi_window_follows_the_formula_of_the_standard():
    # PS3.3 C.11.2.1.2.1 example c=2048 w=4096: 0 -> 0, 4095 -> full; ours shifted: c=50, w=101
    # gives x <= -0.5 black, x > 99.5 white, 49.5 the middle
    policy = IntensityPolicy(kind="voi", function="linear", center=50, width=101)
    out = to_uint8(record(np.array([[-0.5, 99.5, 49.5]], np.float32)), policy).pixels
    assert out.tolist() == [[0, 255, 128]]
    standard = IntensityPolicy(kind="voi", function="linear", center=2048, width=4096)
    out = to_uint8(record(np.array([[0, 4095]], np.int16)), standard).pixels
    assert out.tolist() == [[0, 255]]


def test_an_exact_and_a_sigmoid_voi_window():
    # linear exact: c - w/2 = 0, c + w/2 = 100. Sigmoid: 255 / (1 + exp(-4 (x - c) / w)),
    # at x = 75: 255 / (1 + e^-1) = 186.4
    values = record(np.array([[0, 25, 50, 75, 100]], np.int16))
    exact = IntensityPolicy(kind="voi", function="linear_exact", center=50, width=100)
    assert to_uint8(values, exact).pixels.tolist() == [[0, 64, 128, 191, 255]]
    sigmoid = IntensityPolicy(kind="voi", function="sigmoid", center=50, width=100)
    assert to_uint8(values, sigmoid).pixels.tolist() == [[30, 69, 128, 186, 225]]


def test_a_window_of_one_step_is_a_threshold():
    policy = IntensityPolicy(kind="voi", function="linear", center=10, width=1)
    out = to_uint8(record(np.array([[9, 10, 11]], np.int16)), policy).pixels
    assert out.tolist() == [[0, 255, 255]]


def test_sixteen_bits_keep_their_contrast_through_percentiles():
    # all values share the upper byte: cut to 8 bits first they would be one grey
    pixels = (40_000 + np.arange(200).reshape(10, 20)).astype(np.uint16)
    out = to_uint8(record(pixels))
    assert len(np.unique(out.pixels)) > 190
    policy = parse_policy(out.intensity)
    assert (policy.from_value, policy.to_value) == tuple(np.percentile(pixels, (0.5, 99.5)))
    assert str(policy.generic()) == "percentile(low=0.5,high=99.5,scope=image)"


def test_the_recorded_policy_gives_the_same_pixels_again():
    rng = np.random.default_rng(0)
    raw = record(rng.normal(7, 3, (9, 11)).astype(np.float32))
    once = to_uint8(raw)
    assert np.array_equal(to_uint8(raw, parse_policy(once.intensity)).pixels, once.pixels)


def test_eight_bits_stay_and_binary_images_are_stretched():
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(to_uint8(record(pixels)).pixels, pixels)
    mask = np.array([[0, 1], [1, 0]], np.uint8)
    assert to_uint8(record(mask)).pixels.tolist() == [[0, 255], [255, 0]]


def test_inversion_swaps_dark_and_bright_and_is_recorded():
    out = to_uint8(
        record(np.array([[0, 10], [255, 7]], np.uint8)), IntensityPolicy(kind="none", invert=True)
    )
    assert out.pixels.tolist() == [[255, 245], [0, 248]]
    assert "invert=true" in out.intensity


def test_nan_and_infinity_are_replaced_with_a_warning():
    values = np.array([[np.nan, np.inf], [-np.inf, 0.0], [1.0, 2.0]], np.float32)
    policy = IntensityPolicy(kind="minmax")
    out = to_uint8(record(values), policy)
    assert out.pixels.tolist() == [[0, 255], [0, 0], [128, 255]]
    assert out.warnings == ("NaN or infinite values replaced",)


@pytest.mark.parametrize("value", [5.0, np.nan])
def test_an_image_without_contrast_becomes_zeros_with_a_warning(value):
    out = to_uint8(record(np.full((4, 4), value, np.float32)))
    assert not out.pixels.any()
    assert "image without contrast" in out.warnings


@pytest.mark.parametrize(
    "policy",
    [
        IntensityPolicy(kind="window", center=40, width=400),
        IntensityPolicy(kind="voi", function="linear", center=-900, width=100),
        IntensityPolicy(kind="voi", function="sigmoid", center=9000, width=100, invert=True),
        IntensityPolicy(
            kind="percentile", low=0.5, high=99.5, scope="volume", from_value=0, to_value=800
        ),
    ],
    ids=lambda policy: str(policy),
)
def test_values_outside_the_limits_are_said_to_show_nothing(policy):
    values = np.array([[-700, -600], [-500, -400]], np.int16)
    if policy.function == "linear":
        values = -values  # all above the window: white
    out = to_uint8(record(values), policy)
    assert len(np.unique(out.pixels)) == 1
    assert out.warnings == ("image without contrast",)


def test_a_few_bright_dots_are_not_lost_to_the_percentiles():
    pixels = np.zeros((100, 100), np.uint16)
    pixels[50, 50] = 900
    assert finite_limits(pixels) == (0.0, 900.0)
    assert to_uint8(record(pixels)).pixels[50, 50] == 255


def test_a_policy_is_not_applied_twice():
    done = to_uint8(record(np.zeros((4, 4), np.uint16)))
    with pytest.raises(InputError, match=r"a\.png: intensity policy percentile.* already"):
        to_uint8(done)


def test_none_is_refused_for_deep_pixels():
    with pytest.raises(InputError, match="none needs 8-bit pixels, got uint16"):
        to_uint8(record(np.zeros((4, 4), np.uint16)), IntensityPolicy(kind="none"))


def test_deep_colour_shares_its_limits_over_the_channels():
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 1000, (20, 20, 3)).astype(np.uint16)
    pixels[..., 2] //= 2
    policy = default_policy(record(pixels))
    out = to_uint8(record(pixels), policy).pixels
    assert out[..., 2].max() < 140 < out[..., 0].max()
