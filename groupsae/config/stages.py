"""One section per stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from groupsae.config.section import Count, Names, Positive, Section, Share, Whole, as_tuple, several
from groupsae.errors import unknown


class ModelConfig(Section):
    """Which language model, and how it is loaded."""

    name: str = "demo"
    """A hub id, a local directory, a `.gguf` file, or `demo` for the built-in model."""
    gguf_file: str | None = None
    """The GGUF file to read in the directory or hub repository; its weights are dequantized."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Precision of the language model's weights and activations. `auto` evaluates in float32, and reads activations
    to train on in bfloat16 where this machine multiplies so at least 1.3 times faster; a run keeps its choice."""
    device: str = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Only for models you trust."""


class TextConfig(Section):
    """What the model reads."""

    source: Names = ("demo",)
    """Files and folders (.txt .md .py .jsonl .json, also with .gz or .zst; .parquet .arrow), `-` for standard
    input, `hf:NAME` for a Hugging Face dataset, or `demo` for the standard library of the Python that runs this."""
    field: str = "text"
    """The key or column that holds the text, in .jsonl, .json, .parquet, .arrow and datasets. It may be nested
    (`meta.text`), and may hold chat messages or token ids (`input_ids`) in place of a text."""
    split: str = "train"
    """The split of a Hugging Face dataset, or of a folder whose files name splits, as in `test-00000.parquet`;
    `all` reads every file of a folder."""
    packing: Literal["documents", "none"] = "documents"
    """`documents` puts documents back to back and cuts rows out of that; with `none` each document has one row,
    cut to its length or padded."""
    special_in_text: Literal["split", "keep"] = "split"
    """Special tokens that a text spells out (`</s>` in a story): `split` reads them as plain text where the
    tokenizer can, `keep` as special tokens."""
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
    cache: str | None = None
    """The folder of an activation cache that `groupsae harvest` wrote. Training, distances, scales, reconstruction
    and similarity then read it, and the language model is loaded for losses and circuits only."""
    batch_rows: Count = 16
    """Rows per forward pass of the language model."""
    buffer_tokens: Count = 65_536
    """Tokens that are shuffled together before they are trained on."""
    skip_special: bool = True
    """Leave out positions that hold a special token (end of text, padding), and outliers. `false` keeps every
    position, as published."""
    skip_first: Annotated[Whole, Field(ge=0)] = 1
    """Positions at the start of each row that count as outliers: in many models they have huge norms."""
    max_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    """A position is an outlier if its norm at any hookpoint exceeds this many medians; 0 leaves none out by norm."""
    on_nan: Literal["stop", "mask"] = "stop"
    """At a position with NaN or infinity: `stop` with an error, or `mask`: leave it out and count it."""


class DistancesConfig(Section):
    """How alike two layers are."""

    metric: Literal["angular", "cka", "svcca"] = "angular"
    """How the distance between two layers is defined."""
    num_tokens: Count = 1_000_000
    """Tokens over which a distance is averaged, at most; their exact means center the activations."""
    until_stderr: Positive | None = None
    """Stop earlier, once every entry's standard error is below this."""


GROUP_METHODS = ("optimal", "complete", "published", "equal")


PER_LAYER = ("bias", "rotation")


@dataclass(frozen=True)
class PerLayer:
    """What a layer has of its own inside a group: an encoder bias, a rotation."""

    bias: bool = False
    rotation: bool = False

    @property
    def any(self) -> bool:
        """Whether it has anything."""
        return self.bias or self.rotation

    @property
    def names(self) -> tuple[str, ...]:
        """As a config spells it."""
        return tuple(name for name in PER_LAYER if getattr(self, name)) or ("none",)

    def flops(self, d_model: int) -> int:
        """FLOPs per token while training: 2 D^2 for a rotation. A bias is added with b_enc, and like it not counted."""
        return 2 * d_model**2 * self.rotation

    @classmethod
    def parse(cls, names: tuple[str, ...]) -> PerLayer:
        """From `bias` and `rotation`, or `none`. Raises ValueError for anything else."""
        values: dict[str, bool] = {}
        for name in () if names == ("none",) else names:
            if name == "none":
                raise ValueError("per_layer 'none' stands alone; leave it out, or the others")
            if name not in PER_LAYER:
                raise ValueError(unknown("per_layer", name, ("none", *PER_LAYER)))
            values[name] = True
        return cls(**values)


class GroupConfig(Section):
    """How layers are divided into groups."""

    method: str = "complete"
    """`optimal`, `complete` (linkage), `published` (as published), `equal` (chunks), or a TOML or JSON
    file with your own `groups = [["layers.0", "layers.1"], ["layers.2"]]`."""
    objective: Literal["mean-angle", "minimax", "size-weighted"] = "mean-angle"
    """What `optimal` minimizes."""
    max_amad: Positive = 0.2
    """The smallest number of groups whose AMAD is below this is taken."""
    groups: Count | None = None
    """Exactly this many groups, instead of the bound on AMAD."""

    per_layer: Names = ("none",)
    """What each layer of a group has of its own: `none`, or one or both of `bias` (a learned encoder bias) and
    `rotation` (onto the group's middle layer). Together they took 1 to 4 % off the FVU of groups on two small models.
    Without a rotation a latent has one direction at all layers of its group."""

    @property
    def layer_maps(self) -> PerLayer:
        """`per_layer`, parsed."""
        return PerLayer.parse(self.per_layer)

    @field_validator("per_layer")
    @classmethod
    def _known_parts(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        PerLayer.parse(names)
        return names

    @field_validator("method")
    @classmethod
    def _known_or_a_file(cls, method: str) -> str:
        if method not in GROUP_METHODS and not method.endswith((".toml", ".json")):
            raise ValueError(f"{unknown('method', method, GROUP_METHODS)} A .toml or .json file will do as well.")
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

    gpu: Literal["h100", "a100", "l40s", "4090"] | None = None
    """Calculate hours and memory for this GPU, which need not be at hand, instead of timing this machine. What comes
    out is calculated, not measured: docs/roofline.md has the formulas."""
    gpus: Count = 1
    """Calculate for this many of them, as one mesh (docs/scale.md). Without `gpu`, H100s."""
    nodes: Count = 1
    """How many machines the GPUs are in, the same number in each."""
    disk_rate: Positive = 1e9
    """Bytes per second that a disk is assumed to write and read, for what an activation cache is worth."""

    @property
    def gpu_name(self) -> str | None:
        """The GPU that the plan is calculated for; None where this machine is timed."""
        return self.gpu or ("h100" if self.gpus > 1 else None)

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
        if self.gpus % self.nodes:
            raise ValueError(
                f"gpus = {self.gpus} on nodes = {self.nodes}: every node must have the same number of them"
            )
        if self.budget_hours is not None and not self.calibrate and self.gpu_name is None:
            raise ValueError("budget_hours needs calibrate = true: without it no seconds are predicted")
        return self


Tracker = Literal["trackio", "wandb", "tensorboard"]
Direction = Literal["forward", "backward", "group"]


class WarmStartConfig(Section):
    """SAEs of another run to start from, instead of random weights. One SAE is then trained per layer."""

    source: str | None = None
    """The run directory, or saved suite, whose SAEs are started from. Without it, weights are random."""
    direction: Direction = "backward"
    """`forward`: each layer starts from the SAE of the layer before; `backward`: of the layer after;
    `group`: from the SAE that serves the layer itself there, such as that of its group."""
    suite: str | None = None
    """Which of the source's suites; without it, `groups` for `group`, else `baseline`, where it has them."""
    learning_rate: Positive | None = None
    """Adam's rate for SAEs that start warm; without it, a third of the run's."""


class TrainConfig(Section):
    """How the SAEs are trained."""

    num_tokens: Count = 100_000_000
    """Tokens each SAE sees."""
    batch_tokens: Count = 4096
    """Tokens per optimizer step."""
    layers_per_token: Literal[1, "all"] = 1
    """A group sees each token at one of its layers, drawn at random, as published; or at all of them, in steps of
    their own, so that a group of m layers needs m times fewer tokens of text."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Precision of the encoder's product, and of a GPU's other products where it takes the dense path; sums, weights
    and everything else stay float32. `auto` takes bf16 where the machine multiplies so at least 1.3 times faster, which
    it measures for 50 ms; the choice is kept by a training that is resumed, and recorded in train.json."""
    learning_rate: Positive | None = None
    """Adam's rate; without it, 2e-4 / sqrt(d_sae / 2^14)."""
    rescale_encoder_init: bool = False
    """Scale the random encoder to the first tokens, so that the first reconstruction has the right size. The encoder
    then learns faster beside the decoder: lower FVU after few steps, more dead latents. Not for jumprelu."""
    warmup_share: Share = 0.0
    """The first share of the tokens, over which the rate rises linearly from zero; the papers have none."""
    decay_share: Share = 0.2
    """The last share of the tokens, over which the rate falls linearly to zero; 0 keeps it constant."""
    sparsity_warmup_share: Share = 0.05
    """The first share of the tokens, over which a sparsity penalty (relu, jumprelu, gated) rises linearly from zero."""
    clip_norm: Positive = 1.0
    """Largest norm of one SAE's gradient."""
    freeze_decoder: bool = False
    """Keep the decoder rows as they were drawn and train the rest: a control that tells what training them is worth
    (arXiv 2602.14111)."""
    center: bool = True
    """Subtract each hookpoint's mean before encoding; false is as published."""
    scale_tokens: Count = 1_000_000
    """Tokens from which each hookpoint's scale and center are measured. The distances stage measures them on the way,
    so that up to `distances.num_tokens` they cost no pass over the text of their own."""
    warm_start: WarmStartConfig = WarmStartConfig()
    """SAEs of another run to start from, instead of random weights. One SAE is then trained per layer."""
    imported: str | None = None
    """Written by `groupsae import`: where this run's SAEs come from. Such a run trains nothing."""
    stop_below: Positive | None = None
    """End an SAE's training early once its loss falls by less than this share of itself per million
    tokens: the rate then decays over the usual share of the tokens seen. Without it, none ends early."""
    stop_window_tokens: Count = 1_000_000
    """Tokens over which the loss is averaged, to be compared with those before, for `stop_below`."""
    baseline: bool = True
    """Also train one SAE per layer, in the same pass, to compare with."""
    log_every_tokens: Count = 100_000
    """Tokens between two lines of metrics.jsonl."""
    save_every_tokens: Count = 10_000_000
    """Tokens between two checkpoints."""
    keep_checkpoints: Count = 2
    """Checkpoints that are kept; if the last one is damaged, the one before it is gone on from."""
    snapshots: Annotated[tuple[Count, ...], BeforeValidator(as_tuple)] = ()
    """Numbers of tokens at which a checkpoint is kept for good."""
    report_to: Annotated[tuple[Tracker, ...], BeforeValidator(several)] = ()
    """Libraries that receive what metrics.jsonl does: trackio, wandb, tensorboard. They can't stop a run."""
    on_nan: Literal["stop", "skip"] = "stop"
    """At a NaN or infinity in loss or gradient: `stop` with an error, or `skip` the step and count it."""

    @model_validator(mode="after")
    def _warmup_ends_before_decay(self) -> TrainConfig:
        if self.warmup_share + self.decay_share > 1 + 1e-9:
            raise ValueError(
                f"warmup_share = {self.warmup_share} and decay_share = {self.decay_share} overlap: together they are "
                "more than all tokens, and the rate would fall before it has risen; lower one of them"
            )
        return self


class ContextsConfig(Section):
    """Which text latents are shown on, and how much of it is kept."""

    num_tokens: Count = 200_000
    """Tokens that are read, every latent on the same ones."""
    text: Literal["held-out", "training"] = "held-out"
    """`held-out`, text that no SAE has seen, or `training`."""
    window: Annotated[Whole, Field(gt=1)] = 32
    """Tokens per window of text; a row's, where rows are shorter."""
    top: Annotated[Whole, Field(gt=0, lt=255)] = 16
    """Windows in which a latent fires most strongly."""
    quantiles: Annotated[Whole, Field(gt=0, lt=255)] = 10
    """Equal parts of all windows in which a latent fires, ordered by its largest value there."""
    per_quantile: Count = 2
    """Windows drawn at random from each quantile."""
    silent: Count = 10
    """Windows drawn at random in which a latent does not fire."""


class EvalConfig(Section):
    """How the SAEs are judged, on held-out text."""

    num_tokens: Count = 100_000
    """Held-out tokens; every SAE of a run sees the same ones."""
    k: Count | None = None
    """Active latents per token of TopK SAEs while they are evaluated; without it, each SAE's own `k`. One that was
    trained with `nested_k` serves all of those."""

    left_out_when_empty: ClassVar[tuple[str, ...]] = ("k",)
