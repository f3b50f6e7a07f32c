"""What every section of a config is: frozen, strict, with errors that say what to write instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, cast, get_args

import tomli_w
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)
from pydantic.fields import FieldInfo

from groupsae.errors import ConfigError, meant, unknown


def _whole(value: Any) -> Any:
    """TOML's `1e6` as the integer it means."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def as_tuple(value: Any) -> Any:
    """TOML's list as a tuple."""
    return tuple(value) if isinstance(value, list) else value


def several(value: Any) -> Any:
    """One name, or TOML's list of names, as a tuple."""
    return (value,) if isinstance(value, str) else as_tuple(value)


Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(several)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Frozen; unknown keys, wrong types and impossible values are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    left_out_when_empty: ClassVar[tuple[str, ...]] = ()
    """Keys that are only written where they hold something."""

    @model_serializer(mode="wrap")
    def _as_written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in write(self).items() if key not in self.left_out_when_empty or value}

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**{key: self._section(key, value) for key, value in values.items()})
        except ValidationError as error:
            raise ConfigError(_explain(error, type(self))) from None

    @classmethod
    def _section(cls, key: str, value: Any) -> Any:
        """Builds a nested section first, so that its errors say where they are."""
        field = cls.model_fields.get(key)
        if not isinstance(value, dict) or field is None or not (field.discriminator or _is_section(field.annotation)):
            return value
        try:
            return _kind(field, value)(**value)
        except ConfigError as error:
            raise ConfigError(f"in [{key}]: {error}") from None


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _kind(field: FieldInfo, value: dict[str, Any]) -> type[Section]:
    """The section that a dict is of: the field's own, or of several the one that the discriminator names."""
    if not isinstance(field.discriminator, str):
        return cast(type[Section], field.annotation)
    name = value.get(field.discriminator, getattr(field.default, field.discriminator))
    return member_named(get_args(field.annotation), field.discriminator, name)


def member_named(members: Sequence[type[Section]], key: str, name: Any) -> type[Section]:
    """Of several sections the one whose default for `key` is `name`. Raises ConfigError with the nearest name."""
    named = {member.model_fields[key].default: member for member in members}
    if not isinstance(name, str) or name not in named:
        raise ConfigError(unknown(key, str(name), named))
    return named[name]


def dump_config(config: Section) -> str:
    """The config as TOML, every value written out; what is None is left out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def flat(config: Section, prefix: str = "") -> dict[str, Any]:
    """The config's values, as JSON holds them, by dotted key."""
    values: dict[str, Any] = {}
    for key, value in config:
        if isinstance(value, Section):
            values |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, tuple):
            plain = [flat(each) if isinstance(each, Section) else each for each in value]
            values |= {prefix + key: plain} if plain or key not in config.left_out_when_empty else {}
        else:
            values[prefix + key] = value
    return values


def differing_keys(one: Section, other: Section, prefix: str = "") -> list[str]:
    """The dotted keys whose values differ, with both values: `train.num_tokens: 1 -> 2`."""
    lines = []
    for key in type(one).model_fields:
        a, b = getattr(one, key), getattr(other, key, None)
        if not a and not b and key in one.left_out_when_empty:
            continue
        if isinstance(a, Section) and isinstance(b, Section):
            lines += differing_keys(a, b, f"{prefix}{key}.")
        elif a != b and _holds_sections(a, b):
            lines.append(f"{prefix}{key}: {[flat(each) for each in a]} -> {[flat(each) for each in b or ()]}")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


def _holds_sections(*values: Any) -> bool:
    return any(isinstance(each, Section) for value in values if isinstance(value, tuple) for each in value)


def _explain(error: ValidationError, section: type[Section]) -> str:
    lines = []
    for fault in error.errors():
        where = ".".join(map(str, fault["loc"]))
        if fault["type"] == "extra_forbidden":
            lines.append(f"unknown key {where!r}.{_nearest(where, section)}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            given = "" if fault["type"] in ("missing", "value_error") else f", given {fault['input']!r}"
            lines.append(f"{where}: {message}{given}" if where else message)
    return "; ".join(lines)


def _nearest(key: str, section: type[Section]) -> str:
    known = list(section.model_fields)
    return meant(key, known) or f" Known are {', '.join(known)}."
