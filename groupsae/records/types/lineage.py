"""Where an SAE comes from: the tokens it was trained on, and the SAE that its first weights were taken from."""

from __future__ import annotations

from groupsae.records.types.record import RecordPart


class Lineage(RecordPart):
    """The tokens an SAE was trained on itself, and its origin; None if it began with random weights."""

    tokens: int
    origin: Origin | None = None

    @property
    def total_tokens(self) -> int:
        """Tokens of this SAE and of all before it."""
        before = self.origin.lineage if self.origin else None
        return self.tokens + (before.total_tokens if before else 0)


class Origin(RecordPart):
    """The SAE that first weights were taken from.

    `hookpoint` is the place whose activations it was used for there; `group` the name of the group it
    served; `direction` how it was chosen (`forward`, `backward`, `group`); `run` and `suite` where it lay,
    None if it was in memory; `sha256` the hash of the weights as they were taken; `lineage` its own.
    """

    hookpoint: str
    group: str
    direction: str
    sha256: str
    run: str | None = None
    suite: str | None = None
    lineage: Lineage | None = None


Lineage.model_rebuild()  # it names Origin, which is defined after it
