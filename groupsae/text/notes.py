"""What a user should know about how text was read: counts, and the files that were passed over."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class ReadingNotes:
    """Counts that grow while text is read. `sentences` tells what is not zero."""

    num_replaced: int = 0
    """Places where bytes that are not UTF-8 became U+FFFD."""
    num_empty: int = 0
    """Documents without text: null, an empty text or an empty list."""
    num_without_tokens: int = 0
    """Documents with text, for which the tokenizer has no tokens."""
    num_cut: int = 0
    """Documents longer than a row, cut where each row holds one document."""
    num_special_split: int = 0
    """Special tokens that texts spell out, tokenized like other text."""
    num_special_kept: int = 0
    """Special tokens that texts spell out, and that became special tokens."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Files that no reader knows, by suffix."""
    cards: list[str] = field(default_factory=list)
    """Names of cards, licenses and code that lie beside data."""
    other_splits: Counter[str] = field(default_factory=Counter)
    """Files of splits that were not asked for, by split."""

    def sentences(self) -> list[str]:
        """One sentence for each note, plain English."""
        found = []
        if self.unknown:
            found.append(f"{_count(self.unknown)} of an unknown kind passed over: {_listed(self.unknown)}")
        if self.cards:
            names = ", ".join(sorted(self.cards)[:3]) + (" ..." if len(self.cards) > 3 else "")
            found.append(f"{counted(len(self.cards), 'card or code file')} beside the data passed over: {names}")
        if self.other_splits:
            found.append(
                f"{_count(self.other_splits)} of other splits passed over: {_listed(self.other_splits)} "
                "(text.split chooses)"
            )
        if self.num_replaced:
            found.append(f"{counted(self.num_replaced, 'place')} not in the text's encoding, read as U+FFFD")
        if self.num_empty:
            found.append(f"{counted(self.num_empty, 'document')} left out: null or empty")
        if self.num_without_tokens:
            found.append(
                f"{counted(self.num_without_tokens, 'document')} left out: the tokenizer knows none of its text"
            )
        if self.num_cut:
            found.append(f"{counted(self.num_cut, 'document')} longer than a row, cut to its length")
        if self.num_special_split:
            found.append(f"{counted(self.num_special_split, 'special token')} written in the text, read as plain text")
        if self.num_special_kept:
            found.append(
                f"{counted(self.num_special_kept, 'special token')} written in the text, kept as special tokens"
            )
        return found


def _count(files: Counter[str]) -> str:
    return counted(files.total(), "file")


def counted(count: int, noun: str) -> str:
    """A number with its noun, in the plural where that is due."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _listed(files: Counter[str]) -> str:
    return ", ".join(f"{name} ({count:,})" if len(files) > 1 else name for name, count in sorted(files.items()))
