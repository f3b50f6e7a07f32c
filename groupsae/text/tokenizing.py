"""Documents into token ids, and what can be known of a tokenizer by trying it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal

import numpy as np

from groupsae.errors import TextError
from groupsae.text.document import Document
from groupsae.text.notes import ReadingNotes

DOCUMENTS_AT_ONCE = 128
CHARACTERS_AT_ONCE = 2**20
"""Longer documents are tokenized in stretches, as a tokenizer needs some hundred bytes for each character."""
LINES, WORDS = re.compile(r".*\S\n(?=\S)", re.DOTALL), re.compile(r".*\S(?= \S)", re.DOTALL)
"""As many whole lines, or words, as there are; no run of white space is cut, so tokens are those of the whole text."""
TOKENS_TRIED = 64
"""Tokens of a vocabulary that are tried before a tokenizer counts as one that gives none."""
NEVER = re.compile(r"(?!)")


def tokenized(
    texts: Iterable[Document], tokenizer: Any, notes: ReadingNotes, special: Literal["split", "keep"] = "split"
) -> Iterator[tuple[Document, np.ndarray]]:
    """Each document with its token ids, in order.

    Special tokens that a text spells out, such as `</s>` in a story, are tokenized like other text
    ("split") where the tokenizer can, or become special tokens ("keep"). Chat messages go through the
    tokenizer's template, whose special tokens stay. Raises TextError for messages without a template,
    and for token ids outside the vocabulary.
    """
    encoder = _Encoder(tokenizer, notes, special)
    remaining = iter(texts)
    while batch := list(islice(_until_long(remaining), DOCUMENTS_AT_ONCE)):
        short = [document for document in batch if _is_short_text(document)]
        short_ids = iter(encoder.texts([document.text for document in short]))
        for document in batch:
            yield document, next(short_ids) if _is_short_text(document) else encoder.other(document)


def _until_long(texts: Iterator[Document]) -> Iterator[Document]:
    """Documents up to the first long one, so that no more than one of these is held at a time."""
    for document in texts:
        yield document
        if len(document.text) > CHARACTERS_AT_ONCE:
            return


def _is_short_text(document: Document) -> bool:
    return document.ids is None and document.messages is None and len(document.text) <= CHARACTERS_AT_ONCE


class _Encoder:
    """Calls a tokenizer for texts, chat messages and ready ids, and counts the special tokens in texts."""

    def __init__(self, tokenizer: Any, notes: ReadingNotes, special: Literal["split", "keep"]) -> None:
        self.tokenizer, self.notes, self.split = tokenizer, notes, special == "split"
        written = special_texts(tokenizer)
        self.written = re.compile("|".join(map(re.escape, written))) if written else NEVER
        unknown = getattr(tokenizer, "unk_token_id", None)
        named = [tokenizer.convert_tokens_to_ids(text) for text in written]
        self.special_ids = np.array(sorted({i for i in named if i is not None and i != unknown}), dtype=np.int64)
        self.vocabulary = len(tokenizer)

    def texts(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of texts."""
        spelled = [len(self.written.findall(text)) for text in texts]
        plain = iter(self._encode([text for text, count in zip(texts, spelled, strict=True) if not count]))
        return [self._with_special(text, n) if n else next(plain) for text, n in zip(texts, spelled, strict=True)]

    def other(self, document: Document) -> np.ndarray:
        """The ids of a long text, of chat messages, or those that a document brings."""
        if document.ids is not None:
            return self._ready(document.ids)
        if document.messages is not None:
            return self._chat(document.messages)
        return np.concatenate([self.texts([stretch])[0] for stretch in stretches(document.text)])

    def _encode(self, texts: list[str], **options: Any) -> list[np.ndarray]:
        if not texts:
            return []
        try:
            encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False, **options)["input_ids"]
        except Exception as error:  # tokenizers raises bare exceptions for what a vocabulary lacks
            raise TextError(
                f"The tokenizer cannot read this text: {error}. The text begins with {texts[0][:40]!r}. Give text "
                "of the kind that the model was trained on."
            ) from error
        return [np.asarray(ids, dtype=np.int32) for ids in encoded]

    def _with_special(self, text: str, spelled: int) -> np.ndarray:
        (ids,) = self._encode([text], split_special_tokens=True) if self.split else self._encode([text])
        kept = min(spelled, int(np.isin(ids, self.special_ids).sum()))
        self.notes.num_special_kept += kept
        self.notes.num_special_split += spelled - kept
        return ids

    def _chat(self, messages: tuple[dict[str, Any], ...]) -> np.ndarray:
        try:
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False)
        except Exception as error:  # the template is a program of its own
            has_template = getattr(self.tokenizer, "chat_template", None)
            reason = f"it fails: {error}" if has_template else "the tokenizer has none"
            raise TextError(
                f"text.field holds chat messages, which need the tokenizer's chat template, but {reason}. Take a "
                "model with a chat template, or write the conversations out as text."
            ) from error
        contents = [message["content"] for message in messages if isinstance(message["content"], str)]
        self.notes.num_special_kept += sum(len(self.written.findall(content)) for content in contents)
        (ids,) = self._encode([text])
        bos = self.tokenizer.bos_token_id
        return ids[1:] if bos is not None and len(ids) and ids[0] == bos else ids  # rows and documents get their own

    def _ready(self, ids: np.ndarray) -> np.ndarray:
        if ids.max(initial=0) >= self.vocabulary:
            raise TextError(
                f"text.field holds the token id {ids.max()}, but the tokenizer knows {self.vocabulary} tokens (0 to "
                f"{self.vocabulary - 1}). The ids were made with another tokenizer; give its model, or the text."
            )
        first, last = 0, len(ids)
        ending = {self.tokenizer.eos_token_id, self.tokenizer.pad_token_id} - {None}
        while last and int(ids[last - 1]) in ending:
            last -= 1
        if first < last and self.tokenizer.bos_token_id is not None and ids[0] == self.tokenizer.bos_token_id:
            first = 1
        return ids[first:last].astype(np.int32)


def stretches(text: str) -> Iterator[str]:
    """The text in stretches that end with a line where they can, else before a space, where tokens end as well."""
    start = 0
    while len(text) - start > CHARACTERS_AT_ONCE:
        most = start + CHARACTERS_AT_ONCE
        found = LINES.match(text, start, most) or WORDS.match(text, start, most)
        end = found.end() if found else most
        yield text[start:end]
        start = end
    yield text[start:]


def special_texts(tokenizer: Any) -> list[str]:
    """How special tokens are written, the longest first. Single letters, as in DNA, are text."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    written = {str(token) for token in tokenizer.all_special_tokens}
    written |= {str(token) for token in added if getattr(token, "special", False)}
    return sorted((text for text in written if len(text) > 2), key=lambda text: (-len(text), text))


def known_text(tokenizer: Any) -> str | None:
    """A short text that a tokenizer has tokens for; None if it seems to have none for anything.

    A tokenizer of DNA, proteins or moves of a game need not know the letter a.
    """
    special = set(tokenizer.all_special_ids)
    for text in _short_texts(tokenizer):
        try:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        except Exception:  # tokenizers raises bare exceptions for what a vocabulary lacks
            continue
        if len(ids) and not special & set(ids):
            return text
    return None


def _short_texts(tokenizer: Any) -> Iterator[str]:
    yield "a"
    special = set(tokenizer.all_special_ids)
    ordinary = (index for index in range(len(tokenizer)) if index not in special)
    for index in islice(ordinary, TOKENS_TRIED):
        yield tokenizer.decode([index])


def begin_token(tokenizer: Any) -> int | None:
    """The token that a tokenizer puts before every text; None for one that does not."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return None
    ids = tokenizer(known_text(tokenizer) or "")["input_ids"]
    return bos if len(ids) and ids[0] == bos else None


def end_token(tokenizer: Any) -> int | None:
    """The token that is put between documents; None for a tokenizer without one."""
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
