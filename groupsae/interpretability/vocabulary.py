"""The tokens of a tokenizer as text that people can read, one by one."""

from __future__ import annotations

from typing import Any

_WORD_START = "\u2581"
"""How SentencePiece writes a space inside a token."""
_UNDECODED = "\ufffd"


def token_texts(tokenizer: Any, size: int) -> tuple[str, ...]:
    """The text of each id below `size`, with the space before a word; empty for ids without a token.

    A token that is a part of a character is written by its bytes, such as `\\xe2\\x80`.
    """
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    found = [_text(tokenizer, index, piece) for index, piece in enumerate(pieces)]
    return (*found, *[""] * (size - len(found)))


def _text(tokenizer: Any, index: int, piece: str | None) -> str:
    if piece is None:
        return ""
    if _WORD_START in piece:
        return piece.replace(_WORD_START, " ")
    text = tokenizer.decode([index], clean_up_tokenization_spaces=False)
    return text if text and _UNDECODED not in text else _bytes(piece)


def _bytes(piece: str) -> str:
    """A byte-level piece by its bytes; a piece of another kind as it is."""
    known = [_BYTES.get(character) for character in piece]
    if any(byte is None for byte in known):
        return piece
    return "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in known if byte is not None)


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes bytes with, as in GPT-2: printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_alphabet()
