"""Pairs of prompts as token ids: what a tokenizer allows, and which pairs choose and which test."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from groupsae.evaluation.circuits.pairs import PromptPair
from groupsae.text.tokens import begin_token

SPLIT_ANSWER = "an answer is not one token"
SAME_ANSWER = "both answers begin with the same token"
UNEQUAL_LENGTH = "prompts of unequal length"
TOO_LONG = "longer than the model reads"
SHARED_PROMPT = "a prompt stands on the other side already"
TOO_MANY = "more than asked for"
RARE_LENGTH = "too few prompts of this length"
MIN_OF_A_LENGTH = 4
"""Fewest pairs of one length on each side: below, a mean over them is hardly one."""


class TokenPair(NamedTuple):
    """A pair whose prompts have equal lengths and whose answers are single tokens."""

    clean: tuple[int, ...]
    patch: tuple[int, ...]
    clean_answer: int
    patch_answer: int


@dataclass(frozen=True)
class Prompts:
    """Pairs of one length: ids clean_PT and patch_PT, and answers_P2 (to the clean, to the patched prompt)."""

    clean_PT: Tensor
    patch_PT: Tensor
    answers_P2: Tensor

    @classmethod
    def of(cls, pairs: Iterable[TokenPair], device: torch.device | str = "cpu") -> Prompts:
        """The pairs as tensors."""
        clean, patch, *answers = (torch.tensor(part, device=device) for part in zip(*pairs, strict=True))
        return cls(clean, patch, torch.stack(answers, dim=1))

    def __len__(self) -> int:
        return len(self.clean_PT)

    def split(self, size: int) -> list[Prompts]:
        """The same in portions of at most `size` pairs."""
        parts = (self.clean_PT.split(size), self.patch_PT.split(size), self.answers_P2.split(size))
        return [Prompts(*part) for part in zip(*parts, strict=True)]

    def logit_difference(self, logits_PTV: Tensor) -> Tensor:
        """m = logit(clean answer) - logit(patched answer) after the last position, (P,), float64."""
        found_P2 = logits_PTV[:, -1].double().gather(1, self.answers_P2)
        return found_P2[:, 0] - found_P2[:, 1]


def tokenize_pairs(
    pairs: Iterable[PromptPair], tokenizer: Any, longest: int | None = None
) -> tuple[list[TokenPair], Counter[str]]:
    """The pairs that the tokenizer allows, and how many were left out by reason.

    Prompts of more than `longest` tokens are left out too.

    An answer is tokenized together with its prompt: it must add one token and leave the prompt's as
    they are. Each answer must do so after each of the two prompts.
    """
    kept: dict[TokenPair, None] = {}
    dropped: Counter[str] = Counter()
    for pair in pairs:
        found = _token_pair(pair, tokenizer, longest)
        if isinstance(found, str):
            dropped[found] += 1
        else:
            kept[found] = None
    return list(kept), dropped


def divide(pairs: list[TokenPair], num_pairs: int, seed: int) -> tuple[list[TokenPair], list[TokenPair], Counter[str]]:
    """Pairs to choose latents on, pairs to test them on (half of `num_pairs` each), and what was left out.

    No prompt, clean or patched, stands on both sides. Each side holds at least `MIN_OF_A_LENGTH` pairs
    of every length it holds, and both hold the same lengths.
    """
    left = Counter(len(pair.clean) for pair in pairs)
    dropped: Counter[str] = Counter()
    sides: tuple[list[TokenPair], list[TokenPair]] = ([], [])
    for length in sorted(left, key=lambda length: (-left[length], length)):
        one, other, straddling = _disjoint([pair for pair in pairs if len(pair.clean) == length], seed)
        room = num_pairs // 2 - max(map(len, sides))
        size = min(len(one), len(other), room)
        usable = min(len(one), len(other)) >= MIN_OF_A_LENGTH
        dropped[SHARED_PROMPT] += straddling
        if usable and size >= MIN_OF_A_LENGTH:
            sides[0].extend(one[:size])
            sides[1].extend(other[:size])
            dropped[TOO_MANY] += len(one) + len(other) - 2 * size
        else:
            dropped[TOO_MANY if usable else RARE_LENGTH] += len(one) + len(other)
    return *sides, +dropped


def by_length(pairs: Iterable[TokenPair], device: torch.device | str) -> list[Prompts]:
    """The pairs as one `Prompts` per length, the shortest first."""
    lengths: dict[int, list[TokenPair]] = {}
    for pair in pairs:
        lengths.setdefault(len(pair.clean), []).append(pair)
    return [Prompts.of(lengths[length], device) for length in sorted(lengths)]


def prompt_clusters(prompts: Sequence[Prompts]) -> np.ndarray:
    """The cluster of each pair (P,), numbered from 0: pairs that share a prompt, clean or patched, are in one."""
    pairs = [
        tuple(tuple(ids) for ids in pair)
        for one in prompts
        for pair in zip(one.clean_PT.tolist(), one.patch_PT.tolist(), strict=True)
    ]
    distinct = dict.fromkeys(prompt for pair in pairs for prompt in pair)
    number = {prompt: index for index, prompt in enumerate(distinct)}
    ends_P2 = np.array([[number[prompt] for prompt in pair] for pair in pairs])
    links = coo_array((np.ones(len(pairs)), tuple(ends_P2.T)), shape=(len(number), len(number)))
    labels = connected_components(links, directed=False)[1]
    return np.unique(labels[ends_P2[:, 0]], return_inverse=True)[1]


def _token_pair(pair: PromptPair, tokenizer: Any, longest: int | None) -> TokenPair | str:
    clean, patch = _ids(pair.clean_prefix, tokenizer), _ids(pair.patch_prefix, tokenizer)
    prompts = ((pair.clean_prefix, clean), (pair.patch_prefix, patch))
    answers = [
        {_continuation(prefix, ids, answer, tokenizer) for prefix, ids in prompts}
        for answer in (pair.clean_answer, pair.patch_answer)
    ]
    if any(None in found or len(found) > 1 for found in answers):
        return SPLIT_ANSWER
    if answers[0] == answers[1]:
        return SAME_ANSWER
    if len(clean) != len(patch):
        return UNEQUAL_LENGTH
    if longest is not None and len(clean) > longest:
        return TOO_LONG
    return TokenPair(clean, patch, *(found.pop() for found in answers))


def _ids(text: str, tokenizer: Any) -> tuple[int, ...]:
    begin = begin_token(tokenizer)
    try:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    except Exception:  # tokenizers raises bare exceptions for what a vocabulary lacks
        ids = ()
    return (*(() if begin is None else (begin,)), *ids)


def _continuation(prefix: str, ids: tuple[int, ...], answer: str, tokenizer: Any) -> int | None:
    longer = _ids(prefix + answer, tokenizer)
    return longer[-1] if longer and longer[:-1] == ids else None


def _disjoint(pairs: list[TokenPair], seed: int) -> tuple[list[TokenPair], list[TokenPair], int]:
    """Two sides without a common prompt, and how many pairs would have joined them."""
    order = pairs.copy()
    random.Random(f"sides, {seed}").shuffle(order)
    sides: tuple[list[TokenPair], list[TokenPair]] = ([], [])
    side_of: dict[tuple[int, ...], int] = {}
    for pair in order:
        taken = {side_of[prompt] for prompt in (pair.clean, pair.patch) if prompt in side_of}
        if len(taken) < 2:
            side = taken.pop() if taken else int(len(sides[0]) > len(sides[1]))
            sides[side].append(pair)
            side_of[pair.clean] = side_of[pair.patch] = side
    return *sides, len(pairs) - sum(map(len, sides))
