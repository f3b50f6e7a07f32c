"""Tasks that need no data file: three for models of English, three for models of Python source.

Each function draws one pair of prompts. Which of the two forms is the clean one is drawn as well,
so that means over clean prompts say nothing about the answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from groupsae.evaluation.circuits.pairs import PromptPair


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NAMES = _words(
    "John Mary Tom James Dan Sarah Anna Emma Paul David Mark Alice Peter Susan Robert Kate Laura Michael Sam Lucy "
    "Jack Simon Jane Adam Rachel Kevin Jessica Eric Martin Amy Linda Frank Henry Charles"
)
_PLACES = _words("store park school garden office station library beach hospital restaurant")
_THINGS = _words("drink book ring key ball letter phone ticket present basket")
_EVENTS = _words("war siege project strike famine voyage trial journey reign campaign")
_NOUNS = _words("boy girl teacher doctor student author actor king farmer driver worker manager officer player")
_PREPOSITIONS = _words("near behind beside with above")
_IDENTIFIERS = _words(
    "name value key data path line text file size index start end list args result other node item mode count "
    "message token parent buffer format width items func code msg event module prefix filename"
)
_STRINGS = _words(
    "name value key data path line text file size index start end list type class module error string number time "
    "message format version default header"
)


def indirect_object(draw: random.Random) -> PromptPair:
    """`When A and B went to the store, B gave a drink to` -> ` A` (Wang et al. 2022, arXiv 2211.00593)."""
    a, b = draw.sample(_NAMES, 2)
    first, second = draw.sample((a, b), 2)
    opening = f"When {first} and {second} went to the {draw.choice(_PLACES)},"
    ending = f"gave a {draw.choice(_THINGS)} to"
    return PromptPair(f"{opening} {b} {ending}", f"{opening} {a} {ending}", f" {a}", f" {b}")


def greater_than(draw: random.Random) -> PromptPair:
    """`The war lasted from the year 1732 to the year 17` -> `61` over `18`; patched, the war begins in 1701.

    Hanna et al. 2023, arXiv 2305.00586. The patched prompt rules out neither answer.
    """
    century, begin = draw.randint(11, 19), draw.randint(11, 89)
    event = draw.choice(_EVENTS)
    after, before = draw.randint(begin + 1, 99), draw.randint(2, begin - 1)

    def prompt(year: int) -> str:
        return f"The {event} lasted from the year {century}{year:02d} to the year {century}"

    return PromptPair(prompt(begin), prompt(1), f"{after:02d}", f"{before:02d}")


def subject_verb(draw: random.Random) -> PromptPair:
    """`The boys near the king` -> ` are` over ` is`; another noun stands between (Linzen et al. 2016)."""
    site, other = draw.sample(_NOUNS, 2)
    tail = f"{draw.choice(_PREPOSITIONS)} the {other}{draw.choice(('', 's'))}"
    singular, plural = (f"The {site} {tail}", " is"), (f"The {site}s {tail}", " are")
    return _either_way(draw, singular, plural)


def closing_bracket(draw: random.Random) -> PromptPair:
    """`value = self.items[key` -> `]` over `)`, by the bracket that was opened."""
    target, holder, inner = draw.sample(_IDENTIFIERS, 3)
    opening = draw.choice((f"\n    {target} = self.{holder}", f"\n        return {holder}", f"\n    if {holder}"))
    return _either_way(draw, (f"{opening}[{inner}", "]"), (f"{opening}({inner}", ")"))


def closing_quote(draw: random.Random) -> PromptPair:
    """`name = "value` -> `"` over `'`, by the quote that was opened."""
    holder = draw.choice(_IDENTIFIERS)
    word = draw.choice(_STRINGS)
    opening = draw.choice((f"\n    {holder} = ", "\n        return ", f"\n    if {holder} == "))
    return _either_way(draw, (f'{opening}"{word}', '"'), (f"{opening}'{word}", "'"))


def repeated_name(draw: random.Random) -> PromptPair:
    """`def f(self, key):  self.key =` -> ` key`: a name that stands in the prompt, over one that does not."""
    function, one, other = draw.sample(_IDENTIFIERS, 3)

    def prompt(name: str) -> tuple[str, str]:
        return f"\n    def {function}(self, {name}):\n        self.{name} =", f" {name}"

    return _either_way(draw, prompt(one), prompt(other))


GENERATORS: dict[str, Callable[[random.Random], PromptPair]] = {
    "indirect-object": indirect_object,
    "greater-than": greater_than,
    "subject-verb": subject_verb,
    "closing-bracket": closing_bracket,
    "closing-quote": closing_quote,
    "repeated-name": repeated_name,
}


def generate_pairs(task: str, count: int, seed: int = 0) -> list[PromptPair]:
    """At most `count` distinct pairs of a task of `GENERATORS`; the same arguments give the same pairs."""
    draw = random.Random(f"{task}, {seed}")
    drawn = dict.fromkeys(GENERATORS[task](draw) for _ in range(4 * count))
    return list(drawn)[:count]


def _either_way(draw: random.Random, *forms: tuple[str, str]) -> PromptPair:
    (clean, answer), (patch, other) = draw.sample(forms, 2)
    return PromptPair(clean, patch, answer, other)
