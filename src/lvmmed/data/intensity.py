"""Intensity policies: how raw values of any depth become 8-bit grey, recorded so it can be redone.

A policy is written into the store for each image as text, such as `none`,
`window(center=40,width=400)` or `percentile(low=0.5,high=99.5,scope=volume,from=3,to=812)`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, cast, get_args

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from lvmmed.types import ImageRecord, InputError

Kind = Literal["none", "percentile", "window", "voi", "minmax"]
Scope = Literal["image", "volume"]
Function = Literal["linear", "linear_exact", "sigmoid", "lut"]

LOW_PERCENT = 0.5
HIGH_PERCENT = 99.5
SOFT_TISSUE_HU = (40.0, 400.0)
"""Center and width of the default CT window, -160 to 240 Hounsfield units (soft tissue)."""

NO_CONTRAST = "image without contrast"
MAX_SAMPLES = 4_000_000
"""Percentiles of larger arrays are taken over every n-th value."""

_KINDS: tuple[str, ...] = get_args(Kind)
_TEXT = re.compile(r"^([a-z]+)(?:\((.*)\))?$")
_NAMES = {"from": "from_value", "to": "to_value"}
_FLOATS = ("low", "high", "center", "width", "from_value", "to_value")


@dataclass(frozen=True, kw_only=True, slots=True)
class IntensityPolicy:
    """How values become 0..255.

    - `none`: 8-bit values stay as they are.
    - `percentile`: `low` percent becomes 0 and `high` percent becomes 255, measured over the image
      or over its whole volume; the measured limits are kept in `from_value` and `to_value`, and
      where they are given they are used instead of measuring again.
    - `window`: `center` - `width`/2 becomes 0, `center` + `width`/2 becomes 255.
    - `voi`: the window of the DICOM header, by the header's `function` (DICOM PS3.3 C.11.2.1.2);
      `lut` means that the reader applied the header's table and `from_value` to `to_value` is the
      range of its output.
    - `minmax`: smallest to largest value, for masks and other images of few values.

    Attributes:
        kind: one of the above.
        low: lower percentile, 0..100.
        high: upper percentile, 0..100, above `low`.
        scope: what the percentiles are measured over.
        center: middle of the window in the units of the file.
        width: width of the window in the units of the file, positive.
        function: shape of a `voi` window.
        from_value: value that became 0.
        to_value: value that became 255.
        invert: dark and bright are swapped afterwards (MONOCHROME1).
    """

    kind: Kind
    low: float | None = None
    high: float | None = None
    scope: Scope | None = None
    center: float | None = None
    width: float | None = None
    function: Function | None = None
    from_value: float | None = None
    to_value: float | None = None
    invert: bool = False

    def __post_init__(self) -> None:
        """Refuse missing parameters and values out of range."""
        if self.kind == "percentile" and not (
            self.low is not None and self.high is not None and 0 <= self.low < self.high <= 100
        ):
            raise InputError(
                f"intensity policy percentile: got low={self.low}, high={self.high}; "
                "need 0 <= low < high <= 100"
            )
        has_window = self.center is not None and self.width is not None and self.width > 0
        if not has_window and (
            self.kind == "window" or (self.kind == "voi" and self.function != "lut")
        ):
            raise InputError(
                f"intensity policy {self.kind}: got center={self.center}, width={self.width}; "
                "need a center and a width above 0"
            )

    def __str__(self) -> str:
        """Write the policy as text that `parse_policy` reads back."""
        names = {value: key for key, value in _NAMES.items()}
        parts = []
        for item in fields(self)[1:]:
            value = getattr(self, item.name)
            if value is None or value is False:
                continue
            parts.append(f"{names.get(item.name, item.name)}={_write(value)}")
        return f"{self.kind}({','.join(parts)})" if parts else self.kind

    def generic(self) -> "IntensityPolicy":
        """Drop what was measured on one image or stands in one header: the rule alone."""
        if self.kind in ("percentile", "minmax"):
            return replace(self, from_value=None, to_value=None)
        return self


def _write(value: float | str | bool) -> str:
    if isinstance(value, bool):
        return "true"
    if isinstance(value, str):
        return value
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def parse_policy(text: str) -> IntensityPolicy:
    """Read a policy from its text form.

    Args:
        text: what `str(policy)` writes.

    Returns:
        The policy.

    Raises:
        InputError: the text is not of the form `kind(name=value,...)`, or a name or value is wrong.
    """
    match = _TEXT.match(text.strip())
    if match is None:
        raise InputError(f"intensity policy {text!r}: write it as kind(name=value,...)")
    if match.group(1) not in _KINDS:
        raise InputError(f"intensity policy {text!r}: allowed kinds are {', '.join(_KINDS)}")
    values: dict[str, object] = {}
    for part in filter(None, (match.group(2) or "").split(",")):
        key, equals, value = part.partition("=")
        name = _NAMES.get(key.strip(), key.strip())
        values[name] = _parse_value(text, name, value.strip() if equals else "")
    return IntensityPolicy(kind=cast(Kind, match.group(1)), **values)  # type: ignore[arg-type]


def _parse_value(text: str, name: str, value: str) -> object:
    allowed: dict[str, Sequence[str]] = {
        "scope": get_args(Scope),
        "function": get_args(Function),
        "invert": ("true",),
    }
    if name in _FLOATS:
        try:
            return float(value)
        except ValueError as error:
            raise InputError(f"intensity policy {text!r}: {name} needs a number") from error
    if name not in allowed:
        names = ", ".join((*_FLOATS[:4], "from", "to", *allowed))
        raise InputError(f"intensity policy {text!r}: no parameter {name!r}; allowed are {names}")
    if value not in allowed[name]:
        raise InputError(
            f"intensity policy {text!r}: {name}={value!r}; allowed are {', '.join(allowed[name])}"
        )
    return True if name == "invert" else value


def finite_limits(
    values: Shaped[np.ndarray, "..."],
    *,
    low: float = LOW_PERCENT,
    high: float = HIGH_PERCENT,
) -> tuple[float, float]:
    """Measure percentiles over the finite values.

    Args:
        values: numbers of any real type and shape; more than `MAX_SAMPLES` are thinned evenly.
        low: lower percentile, 0..100.
        high: upper percentile, 0..100.

    Returns:
        (lower, upper) value. Where both fall together although the values differ (an image of a
        few bright dots), smallest and largest value; (0, 0) where no value is finite.
    """
    flat = values.reshape(-1)
    sample = flat[:: max(1, -(-flat.size // MAX_SAMPLES))]
    if sample.dtype.kind == "f":
        sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return 0.0, 0.0
    lower, upper = (float(v) for v in np.percentile(sample, (low, high)))
    if lower < upper:
        return lower, upper
    whole = flat[np.isfinite(flat)] if flat.dtype.kind == "f" else flat
    return float(whole.min()), float(whole.max())


def default_policy(record: ImageRecord) -> IntensityPolicy:
    """Choose a policy for a record.

    What the reader found (`SourceRecord.policy`: CT window in Hounsfield units, limits of a
    volume, window of a header) comes first. Else 8-bit stays as it is, unless no value is
    above 1, and everything deeper is stretched between its own percentiles 0.5 and 99.5.
    """
    suggested = getattr(record, "policy", None)
    if isinstance(suggested, IntensityPolicy):
        return suggested
    if record.pixels.dtype == np.uint8:
        return IntensityPolicy(kind="minmax" if record.pixels.max() <= 1 else "none")
    return IntensityPolicy(kind="percentile", low=LOW_PERCENT, high=HIGH_PERCENT, scope="image")


def to_uint8(record: ImageRecord, policy: IntensityPolicy | None = None) -> ImageRecord:
    """Apply an intensity policy to a raw record.

    NaN becomes the lower limit, infinities the limit on their side; an image without contrast
    between the limits of its own measurement becomes zeros. Both are said in `warnings`, and so is
    every other image that becomes one grey.

    Args:
        record: pixels in the units of the file, `intensity` "raw".
        policy: how; None asks `default_policy`.

    Returns:
        The record with uint8 pixels, and in `intensity` the policy with all measured limits, so
        that `to_uint8(record, parse_policy(result.intensity))` gives the same pixels.

    Raises:
        InputError: a policy was applied already, or `none` is asked for pixels that are not uint8.
    """
    if record.intensity != "raw":
        raise InputError(
            f"{record.source}: intensity policy {record.intensity} was applied already; "
            "give the raw record"
        )
    policy = default_policy(record) if policy is None else policy
    notes: list[str] = []
    if policy.kind == "none":
        if record.pixels.dtype != np.uint8:
            raise InputError(
                f"{record.source}: intensity policy none needs 8-bit pixels, got "
                f"{record.pixels.dtype}; use percentile, window or minmax"
            )
    else:
        policy = _measured(record.pixels, policy)
        if not np.isfinite(record.pixels).all():
            notes.append("NaN or infinite values replaced")
    out = grey_levels(record.pixels, policy)
    if out.min() == out.max():
        notes.append(NO_CONTRAST)
    if policy.invert:
        out = 255 - out
    return replace(
        record,
        pixels=np.ascontiguousarray(out, dtype=np.uint8),
        intensity=str(policy),
        warnings=tuple(dict.fromkeys((*record.warnings, *notes))),
    )


def _measured(pixels: Shaped[np.ndarray, "..."], policy: IntensityPolicy) -> IntensityPolicy:
    """Fill in the limits of a percentile or minmax policy that has none yet."""
    if policy.kind not in ("percentile", "minmax") or policy.from_value is not None:
        return policy
    low = 0.0 if policy.low is None else policy.low
    high = 100.0 if policy.high is None else policy.high
    lower, upper = finite_limits(pixels, low=low, high=high)
    return replace(policy, from_value=lower, to_value=upper)


def policy_limits(policy: IntensityPolicy) -> tuple[float, float]:
    """Give the values that become 0 and 255 (for a sigmoid: the ends of its window).

    Source:
        DICOM PS3.3 C.11.2.1.2.1: LINEAR runs from c - 0.5 - (w-1)/2 to c - 0.5 + (w-1)/2.
    """
    if policy.center is None or policy.width is None:
        assert policy.from_value is not None
        assert policy.to_value is not None
        return policy.from_value, policy.to_value
    if policy.kind == "voi" and policy.function in (None, "linear"):
        half = (policy.width - 1) / 2
        return policy.center - 0.5 - half, policy.center - 0.5 + half
    return policy.center - policy.width / 2, policy.center + policy.width / 2


def grey_levels(
    pixels: Shaped[np.ndarray, "*shape"], policy: IntensityPolicy
) -> UInt8[np.ndarray, "*shape"]:
    """Scale values to 0..255 by a policy whose limits are known.

    Args:
        pixels: numbers of any real type; for `none` uint8, which are given back as they are.
        policy: how; `invert` is left to the caller.

    Returns:
        Grey levels; zeros where measured limits coincide.
    """
    if policy.kind == "none":
        return pixels
    lower, upper = policy_limits(policy)
    values: Float32[np.ndarray, "*shape"] = pixels.astype(np.float32)
    if not np.isfinite(values).all():
        values = np.nan_to_num(values, nan=lower, posinf=upper, neginf=lower)
    if policy.function == "sigmoid":
        assert policy.center is not None
        assert policy.width is not None
        share = 1 / (1 + np.exp(np.clip(-4 * (values - policy.center) / policy.width, -80, 80)))
    elif lower < upper:
        share = (values - lower) / (upper - lower)
    elif policy.kind in ("window", "voi"):
        share = (values > upper).astype(np.float32)  # a window of no width is a threshold
    else:
        return np.zeros(values.shape, np.uint8)
    grey: UInt8[np.ndarray, "*shape"] = np.clip(share * 255 + 0.5, 0, 255.5).astype(np.uint8)
    return grey
