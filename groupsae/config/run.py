"""A whole run's config, and the TOML file it is read from."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import Field, model_validator

from groupsae.config.circuits import CircuitsConfig
from groupsae.config.saes import SAEConfig, TopKConfig
from groupsae.config.section import Section, Whole
from groupsae.config.stages import (
    ActivationsConfig,
    ContextsConfig,
    DistancesConfig,
    EvalConfig,
    GroupConfig,
    ModelConfig,
    PlanConfig,
    TextConfig,
    TrainConfig,
)
from groupsae.errors import ConfigError


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
    sae: SAEConfig = Field(TopKConfig(), discriminator="architecture")
    train: TrainConfig = TrainConfig()
    contexts: ContextsConfig = ContextsConfig()
    eval: EvalConfig = EvalConfig()
    circuits: CircuitsConfig = CircuitsConfig()

    @model_validator(mode="after")
    def _buffer_holds_a_batch(self) -> RunConfig:
        if self.activations.buffer_tokens < self.train.batch_tokens:
            raise ValueError(
                f"activations.buffer_tokens = {self.activations.buffer_tokens} holds less than one batch of "
                f"train.batch_tokens = {self.train.batch_tokens}; raise the first or lower the second"
            )
        return self

    @model_validator(mode="after")
    def _padding_is_left_out(self) -> RunConfig:
        if self.text.packing == "none" and not self.activations.skip_special:
            raise ValueError(
                "text.packing = 'none' pads rows with special tokens, which activations.skip_special = false would "
                "train on; set it to true, or text.packing to 'documents'"
            )
        return self

    @model_validator(mode="after")
    def _encoder_can_be_fitted(self) -> RunConfig:
        if self.train.rescale_encoder_init and self.sae.architecture == "jumprelu":
            raise ValueError(
                "train.rescale_encoder_init = true does not serve sae.architecture = 'jumprelu', whose gradients "
                "have a window made for an unscaled encoder; leave it false, or take another architecture"
            )
        return self


def load_config(path: Path) -> RunConfig:
    """The config in a TOML file. Raises ConfigError with the file's name and the key at fault."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no config file {path}. `groupsae init` writes one to start from.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from None
    try:
        return RunConfig(**({"name": path.stem} | values))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def commented_toml(config: RunConfig) -> str:
    """The config as TOML to start from: every key with what it means."""
    lines = [f"# {line}" if line else "#" for line in (RunConfig.__doc__ or "").splitlines()]
    for key, field in type(config).model_fields.items():
        value = getattr(config, key)
        if isinstance(value, Section):
            lines += _commented_section(key, value)
        else:
            lines += [f"{key} = {_toml_value(value)}  # {field.description}"]
    return "\n".join(lines) + "\n"


def _commented_section(path: str, section: Section) -> list[str]:
    keys = type(section).model_fields
    inner = {key: getattr(section, key) for key in keys if isinstance(getattr(section, key), Section)}
    lines = ["", f"# {(type(section).__doc__ or '').splitlines()[0]}", f"[{path}]"]
    lines += [line for key in keys if key not in inner for line in _commented(section, key)]
    return lines + [line for key, value in inner.items() for line in _commented_section(f"{path}.{key}", value)]


def _commented(section: Section, key: str) -> list[str]:
    value = getattr(section, key)
    described = [f"# {line}" for line in (type(section).model_fields[key].description or "").splitlines()]
    return [*described, f"# {key} = ..." if value is None else f"{key} = {_toml_value(value)}"]


def _toml_value(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return tomli_w.dumps({"x": plain}, multiline_strings=False).removeprefix("x = ").strip()
