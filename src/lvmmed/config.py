"""Typed configuration of a run: frozen models, YAML files and dotted overrides.

A run is described by the groups data, views, model, method, train and log. The group `method` has
its fields defined beside the method itself (`lvmmed.ssl`), so `build_config` takes the table of
method configurations from its caller.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator

from lvmmed.types import InputError

ModelT = TypeVar("ModelT", bound=BaseModel)

MAX_SEED = 2**63 - 1
"""Largest seed that torch takes as a signed number."""


SEEDS = f"different numbers from 0 to {MAX_SEED}"
"""What a list of seeds has to be."""


def are_seeds(numbers: Sequence[int]) -> bool:
    """Whether numbers, one at least, can be the seeds of several runs: as `SEEDS` says."""
    is_between = len(numbers) > 0 and min(numbers) >= 0 and max(numbers) <= MAX_SEED
    return is_between and len(set(numbers)) == len(numbers)


class Settings(BaseModel):
    """Base of every configuration group: frozen; unknown fields, inf and nan are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class DataConfig(Settings):
    """Which images a run sees, and in which order."""

    store: str | None = None
    """Folder of the image store (written by `lvmmed prepare`)."""
    balance: Literal["none", "dataset", "modality"] = "none"
    """Groups that are drawn equally often: none = every image once an epoch. A group with fewer
    images than its share of a batch gives each of them to every batch, once."""
    composition: Literal["mixed", "dataset", "volume"] = "mixed"
    """What shares a graph: anything, images of one data set, or slices of one volume."""


class ViewsConfig(Settings):
    """How two views are made of an image (paper section 4.1; design section 5, point 1)."""

    size: int = Field(224, ge=16, le=1024)
    """Side of a view in pixels."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Range of the crop's area as a fraction of the image."""
    ratio: tuple[float, float] = (0.75, 4.0 / 3.0)
    """Range of the crop's width / height."""
    flip_probability: float = Field(0.5, ge=0, le=1)
    """Chance of a left-right flip."""
    jitter_probability: float = Field(0.8, ge=0, le=1)
    """Chance that brightness, contrast, saturation and hue are changed."""
    brightness: float = Field(0.4, ge=0, le=1)
    """Largest relative change of brightness."""
    contrast: float = Field(0.4, ge=0, le=1)
    """Largest relative change of contrast."""
    saturation: float = Field(0.4, ge=0, le=1)
    """Largest relative change of saturation; grey images skip it."""
    hue: float = Field(0.1, ge=0, le=0.5)
    """Largest shift of hue as a fraction of the colour circle; grey images skip it."""
    grey_probability: float = Field(0.2, ge=0, le=1)
    """Chance that a colour image becomes grey."""
    blur_probability: float = Field(0.5, ge=0, le=1)
    """Chance of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's sigma in pixels of a 224-px view; scaled with `size`."""
    small_crops: int = Field(0, ge=0, le=16)
    """Small crops of each image beside its two views, for methods with multi-crop."""
    small_size: int | None = Field(None, ge=16, le=1024)
    """Side of a small crop in pixels; none = 3/7 of `size` (96 at 224), a multiple of 16 >= 32."""
    small_scale: tuple[float, float] = (0.05, 0.2)
    """Range of a small crop's area as a fraction of the image."""

    @model_validator(mode="after")
    def _check_ranges(self) -> "ViewsConfig":
        for name in ("scale", "ratio", "blur_sigma", "small_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"views.{name}: got [{low}, {high}], need 0 < low <= high")
        for name in ("scale", "small_scale"):
            high = getattr(self, name)[1]
            if high > 1:
                raise ValueError(f"views.{name}: got {high}, need at most 1 (all)")
        return self

    def small(self) -> "ViewsConfig":
        """Settings of one small crop: those of a view but for side and area."""
        size = self.small_size or max(32, 16 * round(self.size * 3 / 7 / 16))
        return self.model_copy(update={"size": size, "scale": self.small_scale})


class ModelConfig(Settings):
    """The encoder."""

    backbone: str = "resnet50"
    """Name in timm with a 2-D feature map (resnet50, vit_small_patch16_224, ...)."""
    weights: str = "random"
    """Where training starts: random, timm:NAME, a run folder or a weight file."""
    frozen_batch_norm: bool = False
    """Keep the batch-norm statistics that the starting weights came with; for short runs.

    Features can drift into saturation then: lower `train.learning_rate` too, to 3e-4 say.
    """


class TrainConfig(Settings):
    """Optimisation."""

    batch_size: int = Field(256, ge=2)
    """Images a step over all ranks; each gives two views."""
    steps: int | None = Field(None, ge=1)
    """Length of the run in steps; exclusive with `epochs`."""
    epochs: float | None = Field(None, gt=0)
    """Length of the run in passes over the images that are trained on, rounded up to a whole step
    at the end; exclusive with `steps`."""
    optimizer: Literal["adamw", "adam", "sgd", "lars"] = "adamw"
    """Update rule; sgd and lars use momentum 0.9."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate; not rescaled by the batch size."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay; biases and norm parameters are exempt."""
    schedule: Literal["cosine", "constant", "halving"] = "cosine"
    """Course after warm-up: to zero by a cosine, none, or halved at 20, 40, 60 and 80 %."""
    warmup_frac: float = Field(0.1, ge=0, lt=1)
    """Share of the run over which the learning rate rises linearly from zero."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest gradient norm; none = no clipping."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the encoder; auto = bf16 where the GPU has it, else fp32. A processor without
    bf16 runs bf16 in fp32, and warns. Convolutions of NVIDIA GPUs take TF32 for fp32, as torch
    does."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    deterministic: bool = False
    """Ask torch for deterministic algorithms (exact on a GPU too, slower)."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Start of every random stream of the run."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between training checkpoints. The last step always has one, and so has the first one
    to end more than ten minutes after the last checkpoint."""

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"train.steps and train.epochs: got {self.steps} and {self.epochs}, need exactly "
                "one of them"
            )
        return self


class LogConfig(Settings):
    """What a run writes down."""

    every: int = Field(10, ge=1)
    """Steps between rows of metrics.jsonl."""
    probe_data: str | None = None
    """Labelled images for a kNN probe while training (train and val only; tests are not read)."""
    samples: int = Field(8, ge=0)
    """Images whose views and matching are kept for the report at the end."""


class MethodConfig(Settings):
    """Fields of one self-supervised method; each method derives its own."""

    name: str
    """Row of the table of methods."""


class RunConfig(Settings):
    """Everything that decides a pre-training run."""

    recipe: str = "custom"
    """Name of the recipe it started from."""
    data: DataConfig = DataConfig()
    """Which images, in which order."""
    views: ViewsConfig = ViewsConfig()
    """How views are made."""
    model: ModelConfig = ModelConfig()
    """The encoder."""
    method: SerializeAsAny[MethodConfig]
    """What is learnt."""
    train: TrainConfig
    """Optimisation."""
    log: LogConfig = LogConfig()
    """What is written down."""

    def to_yaml(self) -> str:
        """Write every field, resolved, as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def did_you_mean(name: str, allowed: Sequence[str]) -> str:
    """Phrase the nearest allowed names as a hint, or list all when none is near."""
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(sorted(allowed))}"


def parse_override(text: str) -> tuple[list[str], Any]:
    """Split `a.b=value` into its path and its YAML value.

    An InputError says so when there is no "=", a part of the path is empty or the value is no YAML.
    """
    name, equals, value = text.partition("=")
    path = name.strip().split(".")
    if not equals or not all(path):
        raise InputError(f"--set {text!r}: write it as group.field=value, as in train.steps=200")
    try:
        return path, parse_scalar(value)
    except ValueError as error:
        raise InputError(
            f"--set {name.strip()}: got {value!r}, which is no YAML value ({error}); write text "
            f"as --set '{name.strip()}=\"...\"'"
        ) from error


def parse_scalar(text: str) -> Any:
    """Read a YAML value or raise ValueError; unlike YAML 1.1, `1e-4` is a number."""
    if "e" in text.lower():
        try:
            return float(text)
        except ValueError:
            pass  # text with an e
    return _parse_yaml(text)


def _parse_yaml(text: str) -> Any:
    """Read YAML; a ValueError says in one line why it is none."""
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        raise ValueError(error.problem) from error
    # of dates such as 2024-13-01, unfit tags and deep nesting PyYAML lets other types through
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(str(error).split("\n")[0]) from error


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay `a.b=value` texts over nested values; the input is left as it is."""
    result = merge(values, {})
    for text in overrides:
        path, value = parse_override(text)
        nested: Any = value
        for key in reversed(path):
            nested = {key: nested}
        result = merge(result, nested)
    return result


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested mapping over another; leaves of `top` win."""
    result = {k: merge(v, {}) if isinstance(v, Mapping) else v for k, v in base.items()}
    for key, value in top.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file; InputError if it is missing, not YAML, or no mapping."""
    try:
        values = _parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # not UTF-8, or not YAML
        raise InputError(f"{path}: not a YAML file ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds {type(values).__name__}, need a mapping of groups")
    return values


def validated(model: type[ModelT], values: Mapping[str, Any], *, prefix: str = "") -> ModelT:
    """Build a settings model, turning the first mistake into one line with the field's name.

    Args:
        model: class to build.
        values: field values, possibly nested.
        prefix: where the values stand in the whole configuration, such as "method.".

    Returns:
        The checked model.

    Raises:
        InputError: a field is unknown (with a did-you-mean), missing or out of range.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError(_first_mistake(model, error, prefix)) from error


def _first_mistake(model: type[BaseModel], error: ValidationError, prefix: str) -> str:
    first = error.errors()[0]
    field = prefix + ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        names = _field_names(model, [str(part) for part in first["loc"][:-1]])
        return f"{field}: no such field; {did_you_mean(str(first['loc'][-1]), names)}"
    if first["type"] in ("missing", "too_long") and isinstance(first["input"], Sequence):
        pair = prefix + ".".join(str(part) for part in first["loc"] if isinstance(part, str))
        return f"{pair}: got {first['input']!r}; need two numbers, [low, high]"
    if first["type"] == "missing":
        return f"{field}: missing; give it with --set {field}=..."
    if first["type"] == "tuple_type":
        return f"{field}: got {first['input']!r}; need a list in brackets, [...]"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and isinstance(first["input"], Mapping):
        return message  # of a whole group, which names its fields
    return f"{field}: got {first['input']!r}; {message}"


def _field_names(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def build_config(
    values: Mapping[str, Any], *, methods: Mapping[str, type[MethodConfig]]
) -> RunConfig:
    """Check nested values and turn them into a `RunConfig`.

    Args:
        values: groups and fields, as in a YAML file.
        methods: method name -> class of its configuration.

    Returns:
        The configuration, every field resolved.

    Raises:
        InputError: an unknown method, group or field, or a value out of range.
    """
    method = values.get("method")
    if not isinstance(method, Mapping) or "name" not in method:
        raise InputError(f"method.name: missing; allowed are {', '.join(sorted(methods))}")
    name = str(method["name"])
    if name not in methods:
        raise InputError(f"method.name: got {name!r}; {did_you_mean(name, list(methods))}")
    config = validated(methods[name], method, prefix="method.")
    return validated(RunConfig, {**values, "method": config})
