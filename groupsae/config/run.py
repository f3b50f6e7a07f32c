"""A whole run's config, and the TOML file it is read from."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tomli_w
from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from groupsae.config.circuits import CircuitsConfig
from groupsae.config.saes import SAEConfig, TopKConfig, sae_section
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
from groupsae.config.variants import Variant, variants_of
from groupsae.errors import ConfigError

Seed = Annotated[Whole, Field(ge=0, lt=2**31)]


def _seeds(value: Any) -> Any:
    if isinstance(value, list) and not value:
        raise ValueError("seeds is an empty list; give at least one seed, or leave the key out")
    return tuple(value) if isinstance(value, list) else value


class RunConfig(Section):
    """A whole run.

    A sweep holds several SAE settings, as `[[sae]]` tables, or several seeds; all are trained side by side.
    """

    left_out_when_empty: ClassVar[tuple[str, ...]] = ("seeds", "other_saes")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """The run's folder below `runs/`."""
    seed: Seed = 0
    """Decides every random choice."""
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_seeds)] = ()
    """Train every SAE once per seed, from other initial weights on the same batches: [0, 1, 2]."""
    model: ModelConfig = ModelConfig()
    text: TextConfig = TextConfig()
    activations: ActivationsConfig = ActivationsConfig()
    distances: DistancesConfig = DistancesConfig()
    group: GroupConfig = GroupConfig()
    plan: PlanConfig = PlanConfig()
    sae: SAEConfig = Field(TopKConfig(), discriminator="architecture")
    other_saes: tuple[SAEConfig, ...] = ()
    """The SAE settings after the first; a file writes all of them as `[[sae]]` tables."""
    train: TrainConfig = TrainConfig()
    contexts: ContextsConfig = ContextsConfig()
    eval: EvalConfig = EvalConfig()
    circuits: CircuitsConfig = CircuitsConfig()

    def __init__(self, **values: Any) -> None:
        if isinstance(values.get("sae"), list | tuple):
            first, *others = self._settings(values["sae"])
            values = values | {"sae": first, "other_saes": tuple(others)}
        super().__init__(**values)

    @classmethod
    def _settings(cls, given: list[Any] | tuple[Any, ...]) -> list[Any]:
        """The sections of several `[[sae]]` tables."""
        if not given:
            raise ConfigError("sae is an empty list; write at least one [[sae]] table, or leave the key out.")
        found: list[Any] = []
        for place, value in enumerate(given, 1):
            if not isinstance(value, dict | Section):
                raise ConfigError(f"entry {place} of sae is {value!r}; write each setting as a [[sae]] table.")
            try:
                if isinstance(value, dict):
                    found.append(sae_section(value.get("architecture", "topk"))(**value))
                else:
                    found.append(value)
            except ConfigError as error:
                raise ConfigError(f"in table {place} of [[sae]]: {error}") from None
        return found

    @property
    def saes(self) -> tuple[SAEConfig, ...]:
        """Every SAE setting."""
        return (self.sae, *self.other_saes)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Every SAE setting with every seed."""
        return variants_of(self.saes, self.seeds or (self.seed,))

    @model_serializer(mode="wrap")
    def _as_written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = super()._as_written(write)
        others = values.pop("other_saes", ())
        return values | ({"sae": [values["sae"], *others]} if others else {})

    @model_validator(mode="after")
    def _variants_have_names(self) -> RunConfig:
        twice = sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"seeds holds {', '.join(map(str, twice))} more than once; give each seed once")
        if len(self.seeds) > 1 and self.train.warm_start.source is not None:
            raise ValueError(
                "seeds decide initial weights, which train.warm_start takes from another run, so that all seeds would "
                "give the same SAEs; leave one of the two out"
            )
        variants_of(self.saes, self.seeds or (self.seed,))
        return self

    @model_validator(mode="after")
    def _k_can_be_chosen(self) -> RunConfig:
        others = sorted({sae.architecture for sae in self.saes} - {"topk"})
        if self.eval.k and others:
            raise ValueError(f"eval.k = {self.eval.k} is for architecture 'topk' only, not for {', '.join(others)}")
        return self

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
        if self.train.rescale_encoder_init and any(sae.architecture == "jumprelu" for sae in self.saes):
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
        if key == "sae" and config.other_saes:
            lines += [line for sae in config.saes for line in _commented_section(f"[{key}]", sae)]
        elif isinstance(value, Section):
            lines += _commented_section(key, value)
        elif key != "other_saes":
            given = value or key not in config.left_out_when_empty
            lines += [
                f"{key} = {_toml_value(value)}  # {field.description}" if given else f"# {key}: {field.description}"
            ]
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
