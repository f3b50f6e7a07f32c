"""One section per SAE architecture; `architecture` says which."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias, cast, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from groupsae.config.section import Count, Positive, Section, as_tuple, member_named
from groupsae.errors import ConfigError

KINDS = "The kind of SAE: topk, batchtopk, matryoshka, relu, jumprelu or gated."
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SAESection(Section):
    """What every SAE has."""

    dense_start: ClassVar[bool] = True
    """Whether early steps may hold all pre-activations of a batch at once."""
    vectors: ClassVar[int] = 1
    """Numbers per latent beside its two rows: its bias, and what the architecture adds."""

    architecture: str
    expansion: Positive = 16.0
    """Latents per dimension of the activations."""
    d_sae: Count | None = None
    """The number of latents itself, instead of `expansion`."""
    k: Count = 128
    """Active latents per token."""
    dead_after_tokens: Count = 10_000_000
    """A latent that has not fired for this many tokens is dead."""

    def __init__(self, **values: Any) -> None:
        for key in values:
            owners = [
                kind.model_fields["architecture"].default for kind in get_args(SAEConfig) if key in kind.model_fields
            ]
            if owners and key not in type(self).model_fields:
                here = type(self).model_fields["architecture"].default
                raise ConfigError(
                    f"unknown key {key!r} for architecture {here!r}; it is a key of {', '.join(owners)}. Leave it out, "
                    "or set architecture."
                )
        super().__init__(**values)

    @property
    def trained_k(self) -> int:
        """Active latents per token while training."""
        return self.k

    @model_validator(mode="after")
    def _k_latents_exist(self) -> SAESection:
        if self.d_sae is not None:  # else the width is known only with the model
            self.width(self.d_sae)
        return self

    def width(self, d_model: int) -> int:
        """The number of latents for activations of this width. Raises ConfigError if k exceeds it."""
        width = self.d_sae or max(1, round(self.expansion * d_model))
        if self.trained_k > width:
            key = "k" if self.trained_k == self.k else "nested_k"
            raise ConfigError(
                f"sae.{key} = {self.trained_k} is more than the {width} latents there are; lower {key} or raise d_sae."
            )
        return width


class TopKConfig(SAESection):
    """A TopK SAE: the k strongest latents of each token."""

    dense_start: ClassVar[bool] = False
    left_out_when_empty: ClassVar[tuple[str, ...]] = ("nested_k",)

    architecture: Literal["topk"] = Field("topk", description=KINDS)
    auxk_weight: Weight = 1 / 32
    """Weight of the auxiliary loss that revives dead latents."""
    nested_k: Annotated[tuple[Count, ...], BeforeValidator(as_tuple)] = ()
    """Numbers of active latents that one SAE is trained for at once, in growing order, such as [8, 16, 32, 64]. It is
    used with `k`, which must be one of them; `eval.k` evaluates it with another."""

    @property
    def trained_k(self) -> int:
        """Active latents per token while training."""
        return self.nested_k[-1] if self.nested_k else self.k

    @model_validator(mode="after")
    def _nested_sizes_grow(self) -> TopKConfig:
        sizes = self.nested_k
        if sizes and (len(sizes) < 2 or list(sizes) != sorted(set(sizes))):
            raise ValueError(f"nested_k = {list(sizes)} must hold at least two numbers that grow, such as [8, 16, 32]")
        if sizes and self.k not in sizes:
            raise ValueError(
                f"k = {self.k} is not among nested_k = {list(sizes)}; set k to one of them, with which the SAE is used"
            )
        return self


class BatchTopKConfig(SAESection):
    """A BatchTopK SAE: the strongest latents of a batch, k per token on average."""

    architecture: Literal["batchtopk"] = Field("batchtopk", description=KINDS)
    auxk_weight: Weight = 1 / 32
    """Weight of the auxiliary loss that revives dead latents."""


class MatryoshkaConfig(SAESection):
    """A Matryoshka BatchTopK SAE: dictionaries inside each other, each of which reconstructs."""

    architecture: Literal["matryoshka"] = Field("matryoshka", description=KINDS)
    prefixes: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)
    """The nested dictionaries' sizes, as shares of all latents, in growing order; the last is 1."""
    auxk_weight: Weight = 1 / 32
    """Weight of the auxiliary loss that revives dead latents."""

    @field_validator("prefixes", mode="before")
    @classmethod
    def _from_toml(cls, prefixes: object) -> object:
        return tuple(map(float, prefixes)) if isinstance(prefixes, list) else prefixes

    @field_validator("prefixes")
    @classmethod
    def _nested(cls, prefixes: tuple[float, ...]) -> tuple[float, ...]:
        if not prefixes or prefixes[-1] != 1 or list(prefixes) != sorted(set(prefixes)):
            raise ValueError(f"prefixes {prefixes} must grow and end with 1, such as 0.1, 0.4, 1")
        return prefixes

    def sizes(self, d_sae: int) -> tuple[int, ...]:
        """The nested dictionaries' numbers of latents, each once; at least one latent in the smallest."""
        return tuple(dict.fromkeys(max(1, round(share * d_sae)) for share in self.prefixes))


class PenaltyConfig(SAESection):
    """An SAE whose sparsity comes from a penalty in its loss."""

    sparsity_coefficient: Positive | None = None
    """Weight of the sparsity penalty; without it, the weight is steered so that k latents are active on average."""


class ReLUConfig(PenaltyConfig):
    """A ReLU SAE with an L1 penalty."""

    architecture: Literal["relu"] = Field("relu", description=KINDS)


class JumpReLUConfig(PenaltyConfig):
    """A JumpReLU SAE: a threshold per latent, learned with an L0 penalty."""

    vectors: ClassVar[int] = 2

    architecture: Literal["jumprelu"] = Field("jumprelu", description=KINDS)
    bandwidth: Positive | None = None
    """Width of the window around a threshold in which it has a gradient; without it, 0.5 / sqrt(k)."""
    auxk_weight: Weight = 1 / 32
    """Weight of the auxiliary loss that revives dead latents."""


class GatedConfig(PenaltyConfig):
    """A Gated SAE: which latents are active is decided apart from how strong they are."""

    vectors: ClassVar[int] = 3

    architecture: Literal["gated"] = Field("gated", description=KINDS)


SAEConfig: TypeAlias = TopKConfig | BatchTopKConfig | MatryoshkaConfig | ReLUConfig | JumpReLUConfig | GatedConfig


def sae_section(architecture: str) -> type[SAESection]:
    """The section of an architecture. Raises ConfigError, with the nearest name, for an unknown one."""
    return cast(type[SAESection], member_named(get_args(SAEConfig), "architecture", architecture))


def as_architecture(section: SAESection, architecture: str) -> SAESection:
    """The same settings for another architecture: all that both have are kept, the rest are its own defaults."""
    kind = sae_section(architecture)
    if isinstance(section, kind):
        return section
    shared = (kind.model_fields.keys() & type(section).model_fields.keys()) - {"architecture"}
    return kind(**{key: getattr(section, key) for key in shared})
