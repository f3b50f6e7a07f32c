"""`train.json`: what training took; and the lines of `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from groupsae.errors import RunError
from groupsae.partition import Partition
from groupsae.records.types.lineage import Lineage
from groupsae.records.types.record import Record, RecordPart, without_empty

if TYPE_CHECKING:
    from groupsae.records.run_directory import RunDirectory


class TrainedSAE(Lineage):
    """One SAE of a run."""

    hookpoints: tuple[str, ...]
    """The layers it serves."""
    seconds: float
    """Its own steps."""


class KernelRecord(RecordPart):
    """How sums over active latents, and the encoder's product, were computed."""

    name: str
    seconds: dict[str, float] = Field(default_factory=dict)
    """Per batch, of each kernel that was tried."""
    faults: dict[str, str] = Field(default_factory=dict)
    """Why others were left out."""
    precision: str = "float32"
    """That of the encoder's product."""
    bf16_speedup: float | None = None
    """How many times as fast as float32 bfloat16 was, where that decided the precision."""


class TrainedVariant(RecordPart):
    """One SAE setting of a sweep, with one seed."""

    setting: str
    """The name of the setting, without the seed."""
    seed: int
    architecture: str
    d_sae: int
    k: int


class TrainedPass(RecordPart):
    """One pass over the language model, where a sweep took several."""

    seconds: dict[str, float]
    """By part, as for the whole training."""
    saes: tuple[str, ...]
    """The SAEs that were trained in it."""


class RankShare(RecordPart):
    """What one rank did with its time, in seconds, since training began or was last resumed."""

    host: str
    reading: float
    """The language model, on this rank's share of the rows."""
    exchanging: float
    """Sending activations to the ranks that train on them, and filling the shuffle buffer."""
    training: float
    saving: float
    waiting: float
    """For other ranks to have read their share of a block."""
    other: float


class TrainRecord(Record):
    """What training took. Of a sweep, `d_sae` and `k` are those of the first setting."""

    path: ClassVar[str] = "train.json"

    num_tokens: int
    """Tokens that each SAE was to see."""
    tokens_saved: int
    """Tokens not seen because SAEs ended early."""
    d_model: int
    d_sae: int
    k: int
    seconds: dict[str, float]
    """By part: language model, SAE steps, shuffle buffer, checkpoints, other. Of several ranks, summed over them."""
    saes: dict[str, TrainedSAE]
    """By group name."""
    scales: dict[str, float]
    """By hookpoint."""
    snapshots: dict[int, tuple[str, ...]] = Field(default_factory=dict)
    """Files kept for good, by tokens seen."""
    masked_positions: int = 0
    """Positions left out because an activation was NaN or infinite."""
    kernel: KernelRecord
    variants: dict[str, TrainedVariant] = Field(default_factory=dict)
    """In a sweep, its variants by name."""
    passes: tuple[TrainedPass, ...] = ()
    """Where a sweep took several."""
    ranks: tuple[RankShare, ...] = ()
    """Where several processes trained."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_empty(write(self), "variants", "passes", "ranks")

    def seconds_of(self, partition: Partition) -> float | None:
        """Seconds of one suite as if trained alone: its own steps, and everything shared; None if one is missing.

        This is the one definition of a suite's seconds of training (docs/metrics.md).
        """
        if any(name not in self.saes for name in partition.names):
            return None
        own = (each.seconds for each in self.passes if set(partition.names) <= set(each.saes))
        return suite_seconds(next(own, self.seconds), (self.saes[name].seconds for name in partition.names))


class PassRecord(TrainRecord):
    """What one of several passes took, written once its SAEs are."""

    key: str
    """What the training is known by."""
    logs: dict[str, int]
    """How long each log was by then, in bytes."""


class PassesRecord(Record):
    """Which variants of a sweep, by their place, train in each pass. A training that goes on keeps them."""

    path: ClassVar[str] = "checkpoint-passes.json"

    key: str
    passes: tuple[tuple[int, ...], ...]


def suite_seconds(parts: Mapping[str, float], own: Iterable[float]) -> float:
    """Seconds of some SAEs as if trained alone: their own steps, and every part that all SAEs of a pass share."""
    return sum(spent for part, spent in parts.items() if part != "SAE steps") + sum(own)


class LoggedSAE(RecordPart):
    """What the log says of one SAE at a step."""

    tokens: int
    loss: float
    auxk: float
    fvu: float
    l0: float
    dead_share: float
    skipped: int
    spikes: int
    largest_loss: float
    learning_rate: float


class MetricsLine(RecordPart):
    """A line of `metrics.jsonl`."""

    path: ClassVar[str] = "metrics.jsonl"

    step: int
    tokens: int
    groups: dict[str, LoggedSAE]

    def beside(self, before: MetricsLine) -> MetricsLine:
        """This line, and what an earlier one of the same step says of other SAEs."""
        return self.model_copy(update={"groups": before.groups | self.groups})

    @classmethod
    def read_all(cls, run: RunDirectory) -> tuple[Self, ...]:
        """The lines by step. A resumed run may log a step again: its last line counts. A cut-off last line is left out.

        Raises RunError for a damaged line.
        """
        path = run.file(cls.path)
        if not path.exists():
            return ()
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        by_step: dict[int, Self] = {}
        for number, line in enumerate(lines, 1):
            try:
                record = cls.model_validate(json.loads(line))
            except (ValueError, ValidationError) as error:
                if number == len(lines):
                    break
                raise RunError(f"{path} is damaged in line {number}: {error}.") from None
            before = by_step.get(record.step)  # another pass of a sweep, or the same step again
            by_step[record.step] = record.beside(before) if before else record
        return tuple(by_step[step] for step in sorted(by_step))
