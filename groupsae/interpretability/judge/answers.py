"""What is read out of a judge's answer. Models answer in many ways; what cannot be read is None, never a guess."""

from __future__ import annotations

import re

LABEL = "[EXPLANATION]:"
LONGEST = 1000
"""Characters of an explanation that are kept."""

_THINKING = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_LABELED = re.compile(r"\[?\**\s*explanation\s*\**\]?\s*\**\s*:\s*\**", re.IGNORECASE)
_LISTS = re.compile(r"\[([\s01,]*)\]")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def read_explanation(text: str) -> str | None:
    """The explanation after the last label, or an answer that is one paragraph; None for anything else.

    It is one line of text, which may hold anything, HTML too: whoever shows it must escape it.
    """
    parts = _LABELED.split(_THINKING.sub("", text))
    paragraphs = re.split(r"\n\s*\n", parts[-1].strip())
    if len(parts) == 1 and len(paragraphs) > 1:
        return None
    explanation = plain(paragraphs[0]).strip("* ")
    quoted = len(explanation) > 1 and explanation[0] == explanation[-1] == '"' and explanation.count('"') == 2
    return explanation[quoted : len(explanation) - quoted][:LONGEST].strip() or None


def read_verdicts(text: str, windows: int) -> tuple[bool, ...] | None:
    """The last list of as many 0 and 1 as there were windows, as false and true; None if there is none."""
    for inside in reversed(_LISTS.findall(_THINKING.sub("", text))):
        found = re.findall(r"[01]", inside)
        well_formed = re.fullmatch(r"\s*[01](\s*,\s*[01])*\s*,?\s*", inside)
        if well_formed and len(found) == windows:
            return tuple(digit == "1" for digit in found)
    return None


def plain(text: str) -> str:
    """A text as one line without control characters."""
    return " ".join(_UNPRINTABLE.sub(" ", text).split())
