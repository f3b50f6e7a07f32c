"""What the judge is asked: to explain windows of text, and to say which windows fit an explanation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from groupsae.interpretability.judge.answers import LABEL
from groupsae.interpretability.window import Window

OPEN, CLOSE = "<<", ">>"
"""What stands around tokens on which a latent fires."""
Method = Literal["detection", "fuzzing"]
METHODS: tuple[Method, ...] = ("detection", "fuzzing")
EXPLANATION_TOKENS, VERDICT_TOKENS = 300, 100
"""Most tokens of an answer."""
THINKING_TOKENS = 4000
"""Most tokens of an answer with the thoughts before it."""


@dataclass(frozen=True)
class RequestForm:
    """The model that is asked, and whether it thinks before it answers.

    One that thinks needs room for it. Servers want that as `max_completion_tokens`, and no temperature.
    """

    model: str
    thinks: bool = False

    def body(self, task: str, text: str, max_tokens: int) -> dict[str, Any]:
        """The body of a request."""
        messages = [{"role": "system", "content": task}, {"role": "user", "content": text}]
        limits = {"temperature": 0, "max_tokens": max_tokens}
        if self.thinks:
            limits = {"max_completion_tokens": THINKING_TOKENS + max_tokens}
        return {"model": self.model, "messages": messages, **limits}


_EXPLAIN = f"""\
You study one unit of a language model. It is active on some tokens of a text and silent on all others.
Below are excerpts, one a line, with the strongest first. Active tokens stand between {OPEN} and {CLOSE}. After each \
excerpt its active tokens are listed with their strength, from 1 to 10. \\n is a line break.
Find out what the active tokens have in common: the tokens themselves, their meaning, or what stands around them.
Write one short sentence that would let somebody else tell where the unit is active. Do not mention the excerpts, \
their number or the marks. End your answer with a line of this form:
{LABEL} your sentence"""
_EXPLAIN_NOW = f"What do the active tokens have in common? Answer in one line that begins with {LABEL}"
"""Repeats at the end what small models have forgotten by then."""

_DETECT = """\
You are given an explanation of one unit of a language model, and numbered excerpts of text, one a line. \
\\n is a line break.
The unit is active on at least one token of some excerpts, and on no token of the others. There may be any number of \
either.
Decide for each excerpt whether it has a token that fits the explanation."""

_FUZZ = f"""\
You are given an explanation of one unit of a language model, and numbered excerpts of text, one a line. \
\\n is a line break.
In each excerpt some tokens are marked by {OPEN} and {CLOSE}. In some excerpts the marked tokens are those on which \
the unit is active, in the others they were chosen at random. There may be any number of either.
Decide for each excerpt whether its marked tokens fit the explanation."""

_VERDICTS = """\
 Answer with a list of {windows} numbers, 1 for yes and 0 for no, in the order of the excerpts, and nothing else. \
A list for four excerpts looks like this: [0, 1, 1, 0]"""

_VERDICTS_NOW = "Answer with the list of {windows} numbers, 0 or 1, and nothing else."

_QUESTION = {"detection": _DETECT, "fuzzing": _FUZZ}


def explanation_request(form: RequestForm, windows: Sequence[Window]) -> dict[str, Any]:
    """The body of a request to explain a latent from windows on which it fires."""
    strongest = max((window.peak for window in windows), default=0.0)
    lines = [f"{_line(window, marked=True)}\nActive: {_strengths(window, strongest)}" for window in windows]
    return form.body(_EXPLAIN, "\n\n".join([*lines, _EXPLAIN_NOW]), EXPLANATION_TOKENS)


def score_request(form: RequestForm, method: Method, explanation: str, windows: Sequence[Window]) -> dict[str, Any]:
    """The body of a request to say which windows fit an explanation; for fuzzing their marks are judged."""
    lines = [f"{number}. {_line(one, marked=method == 'fuzzing')}" for number, one in enumerate(windows, 1)]
    task, now = (text.format(windows=len(windows)) for text in (_QUESTION[method] + _VERDICTS, _VERDICTS_NOW))
    return form.body(task, "\n".join([f"Explanation: {explanation}", "", *lines, "", now]), VERDICT_TOKENS)


def _line(window: Window, *, marked: bool) -> str:
    """A window as one line; runs of tokens with a value above 0 stand between marks where they are asked for."""
    parts, inside = [], False
    for token, value in zip(window.tokens, window.values, strict=True):
        if marked and (value > 0) != inside:
            inside = not inside
            parts.append(OPEN if inside else CLOSE)
        parts.append(_plain(token))
    return "".join([*parts, CLOSE if inside else ""])


def _plain(token: str) -> str:
    """A token without line breaks, and without marks of its own."""
    text = token.replace("\r", "").replace("\n", "\\n")
    return text.replace(OPEN, "< <").replace(CLOSE, "> >")


def _strengths(window: Window, strongest: float) -> str:
    """The active tokens with their strength, 1 to 10 of the strongest value of all."""
    pairs = zip(window.tokens, window.values, strict=True)
    return ", ".join(f'"{_plain(token)}" {max(1, round(10 * v / strongest))}' for token, v in pairs if v > 0)
