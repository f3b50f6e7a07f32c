"""A window of text with the value of one latent at each of its tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Consecutive tokens as text, and one latent's value at each of them: 0 where it does not fire."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def peak(self) -> float:
        """The largest value; 0 where the latent does not fire."""
        return max(self.values, default=0.0)

    @property
    def fires(self) -> bool:
        """Whether the latent fires anywhere in the window."""
        return self.peak > 0
