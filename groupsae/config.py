"""The run's config: one frozen section per stage, read from TOML, overridden by flags.

Unknown keys are errors that name the nearest known one. Nothing here imports torch, so that
`groupsae --help` is fast. Only `recipes` and `cli` see a whole `RunConfig`; every other function
receives its own section.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from groupsae.errors import ConfigError


def _whole(value: Any) -> Any:
    """TOML's `1e6` as the integer it means."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _several(value: Any) -> Any:
    """One name, or TOML's list of names, as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(_several)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Frozen; unknown keys, wrong types and impossible values are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**{key: self._section(key, value) for key, value in values.items()})
        except ValidationError as error:
            raise ConfigError(_explain(error, type(self))) from None

    @classmethod
    def _section(cls, key: str, value: Any) -> Any:
        """Builds a nested section first, so that its errors say where they are."""
        field = cls.model_fields.get(key)
        if not isinstance(value, dict) or field is None or not _is_section(field.annotation):
            return value
        try:
            return field.annotation(**value)
        except ConfigError as error:
            raise ConfigError(f"in [{key}]: {error}") from None


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


class ModelConfig(Section):
    """Which language model, and how it is loaded."""

    name: str = "demo"
    """A hub id, a local directory, or `demo` for the built-in model."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the language model's weights and activations."""
    device: str = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, `mps`."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Only for models you trust."""


class TextConfig(Section):
    """What the model reads."""

    source: Names = ("demo",)
    """Files and folders (.txt .md .py .jsonl .parquet), `-` for standard input, `hf:NAME` for a
    Hugging Face dataset, or `demo` for the standard library of the Python that runs this."""
    field: str = "text"
    """The key or column that holds the text, in .jsonl, .parquet and datasets."""
    split: str = "train"
    """The split of a Hugging Face dataset."""
    context_length: Annotated[Whole, Field(gt=1)] = 256
    """Tokens per row: what the language model sees at once."""
    held_out_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the documents that are kept for evaluation and never trained on."""
    max_tokens: Count = 100_000_000
    """Reading stops after this many training tokens."""
    max_held_out_tokens: Count = 5_000_000
    """Held-out documents beyond this many tokens are left out."""


class ActivationsConfig(Section):
    """Where activations are read, and in what portions."""

    hookpoints: Names = ("residual",)
    """`residual` for every block but the last, or module paths with wildcards: `layers.*.mlp`."""
    batch_rows: Count = 16
    """Rows per forward pass of the language model."""
    buffer_tokens: Count = 65_536
    """Tokens that are shuffled together before they are trained on."""
    skip_special: bool = True
    """Leave out positions that hold a special token (end of text, padding)."""


class DistancesConfig(Section):
    """How alike two layers are."""

    metric: Literal["angular", "cka", "svcca"] = "angular"
    """How the distance between two layers is defined."""
    num_tokens: Count = 1_000_000
    """Tokens over which it is averaged, at most."""
    until_stderr: Positive | None = None
    """Stop earlier, once every entry's standard error is below this."""


GROUP_METHODS = ("optimal", "complete", "legacy", "equal")


class GroupConfig(Section):
    """How layers are divided into groups."""

    method: str = "complete"
    """`optimal`, `complete` (linkage), `legacy` (as published), `equal` (chunks), or a TOML or JSON
    file with your own `groups = [["layers.0", "layers.1"], ["layers.2"]]`."""
    objective: Literal["mean-angle", "minimax", "size-weighted"] = "mean-angle"
    """What `optimal` minimises."""
    max_amad: Positive = 0.2
    """The smallest number of groups whose AMAD is below this is taken."""
    groups: Count | None = None
    """Exactly this many groups, instead of the bound on AMAD."""

    @field_validator("method")
    @classmethod
    def _known_or_a_file(cls, method: str) -> str:
        if method not in GROUP_METHODS and not method.endswith((".toml", ".json")):
            near = difflib.get_close_matches(method, GROUP_METHODS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"method {method!r} is unknown; {hint}known are {', '.join(GROUP_METHODS)}, or a file")
        return method


class PlanConfig(Section):
    """What a run will cost, and a choice of groups by cost or quality instead of AMAD."""

    calibrate: bool = True
    """Time a few batches on this machine, to predict seconds. Without it there are FLOPs only."""
    pilot: bool = False
    """Train a few SAEs on few tokens first, to predict quality on this model."""
    budget_flops: Positive | None = None
    """Take the most groups whose training costs at most this many FLOPs."""
    budget_hours: Positive | None = None
    """Take the most groups whose training takes at most this long."""
    max_fvu_increase: Positive | None = None
    """Take the fewest groups whose FVU is predicted to grow by at most this share, such as 0.1."""

    @property
    def chooses(self) -> bool:
        """Whether the plan decides the number of groups, instead of the bound on AMAD."""
        return any(value is not None for value in (self.budget_flops, self.budget_hours, self.max_fvu_increase))

    @model_validator(mode="after")
    def _one_rule(self) -> PlanConfig:
        rules = ("budget_flops", "budget_hours", "max_fvu_increase")
        given = [rule for rule in rules if getattr(self, rule) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both set; choose the number of groups by one of them")
        if self.budget_hours is not None and not self.calibrate:
            raise ValueError("budget_hours needs calibrate = true: without it no seconds are predicted")
        return self


class TopKConfig(Section):
    """A TopK SAE."""

    architecture: Literal["topk"] = "topk"
    """The kind of SAE."""
    expansion: Positive = 16.0
    """Latents per dimension of the activations."""
    d_sae: Count | None = None
    """The number of latents itself, instead of `expansion`."""
    k: Count = 128
    """Latents kept per token."""
    auxk_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1 / 32
    """Weight of the auxiliary loss that revives dead latents."""
    dead_after_tokens: Count = 10_000_000
    """A latent that has not fired for this many tokens is dead."""

    @model_validator(mode="after")
    def _k_latents_exist(self) -> TopKConfig:
        if self.d_sae is not None:  # else the width is known only with the model
            self.width(self.d_sae)
        return self

    def width(self, d_model: int) -> int:
        """The number of latents for activations of this width. Raises ConfigError if k exceeds it."""
        width = self.d_sae or max(1, round(self.expansion * d_model))
        if self.k > width:
            raise ConfigError(f"sae.k = {self.k} is more than the {width} latents there are; lower k or raise d_sae.")
        return width


class TrainConfig(Section):
    """How the SAEs are trained."""

    num_tokens: Count = 100_000_000
    """Tokens each SAE sees."""
    batch_tokens: Count = 4096
    """Tokens per optimizer step."""
    learning_rate: Positive | None = None
    """Adam's rate; without it, 2e-4 / sqrt(d_sae / 2^14)."""
    decay_share: Share = 0.2
    """The last share of the tokens, over which the rate falls linearly to zero; 0 keeps it constant."""
    clip_norm: Positive = 1.0
    """Largest norm of one SAE's gradient."""
    centre: bool = False
    """Subtract each hookpoint's mean before encoding."""
    scale_tokens: Count = 1_000_000
    """Tokens from which each hookpoint's scale and centre are measured."""
    baseline: bool = True
    """Also train one SAE per layer, in the same pass, to compare with."""
    log_every_tokens: Count = 100_000
    """Tokens between two lines of metrics.jsonl."""
    save_every_tokens: Count = 10_000_000
    """Tokens between two checkpoints."""


class EvalConfig(Section):
    """How the SAEs are judged, on held-out text."""

    num_tokens: Count = 100_000
    """Held-out tokens; every SAE of a run sees the same ones."""


class RunConfig(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """The run's folder below `runs/`."""
    seed: Annotated[Whole, Field(ge=0, lt=2**31)] = 0
    """Decides every random choice."""
    model: ModelConfig = ModelConfig()
    text: TextConfig = TextConfig()
    activations: ActivationsConfig = ActivationsConfig()
    distances: DistancesConfig = DistancesConfig()
    group: GroupConfig = GroupConfig()
    plan: PlanConfig = PlanConfig()
    sae: TopKConfig = TopKConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _buffer_holds_a_batch(self) -> RunConfig:
        if self.activations.buffer_tokens < self.train.batch_tokens:
            raise ValueError(
                f"activations.buffer_tokens = {self.activations.buffer_tokens} holds less than one batch of "
                f"train.batch_tokens = {self.train.batch_tokens}; raise the first or lower the second"
            )
        return self


def load_config(path: Path) -> RunConfig:
    """The config in a TOML file. Raises ConfigError with the file's name and the key at fault."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no config file {path}. `groupsae init` writes one to start from.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from None
    try:
        return RunConfig(**({"name": path.stem} | values))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def dump_config(config: Section) -> str:
    """The config as TOML, every value written out; what is None is left out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def commented_toml(config: RunConfig) -> str:
    """The config as TOML to start from: every key with what it means."""
    lines = [f"# {line}" if line else "#" for line in (RunConfig.__doc__ or "").splitlines()]
    for key, field in type(config).model_fields.items():
        value = getattr(config, key)
        if isinstance(value, Section):
            lines += ["", f"# {(type(value).__doc__ or '').splitlines()[0]}", f"[{key}]"]
            lines += [line for name in type(value).model_fields for line in _commented(value, name)]
        else:
            lines += [f"{key} = {_toml_value(value)}  # {field.description}"]
    return "\n".join(lines) + "\n"


def _commented(section: Section, key: str) -> list[str]:
    value = getattr(section, key)
    described = [f"# {line}" for line in (type(section).model_fields[key].description or "").splitlines()]
    return [*described, f"# {key} = ..." if value is None else f"{key} = {_toml_value(value)}"]


def _toml_value(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return tomli_w.dumps({"x": plain}, multiline_strings=False).removeprefix("x = ").strip()


def differing_keys(one: Section, other: Section, prefix: str = "") -> list[str]:
    """The dotted keys whose values differ, with both values: `train.num_tokens: 1 -> 2`."""
    lines = []
    for key in type(one).model_fields:
        a, b = getattr(one, key), getattr(other, key)
        if isinstance(a, Section) and type(a) is type(b):
            lines += differing_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


def _explain(error: ValidationError, section: type[Section]) -> str:
    lines = []
    for fault in error.errors():
        where = ".".join(map(str, fault["loc"]))
        if fault["type"] == "extra_forbidden":
            lines.append(f"unknown key {where!r}; {_nearest(where, section)}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            given = "" if fault["type"] in ("missing", "value_error") else f", given {fault['input']!r}"
            lines.append(f"{where}: {message}{given}" if where else message)
    return "; ".join(lines)


def _nearest(key: str, section: type[Section]) -> str:
    known = list(section.model_fields)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
