"""One text of several: documents of all sources in turn, so that a few tokens of it hold some of each."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

from groupsae.errors import TextError
from groupsae.storage import write_text
from groupsae.text.documents import documents

MOST_CHARACTERS = 3_000
"""What is kept of a document."""
CHARACTERS_PER_TOKEN = 6
"""More than a token has on average, so that there is text enough."""


def mix(sources: list[str], num_tokens: int, path: Path) -> Path:
    """Write a .jsonl with documents drawn from each source in turn, as text for about `num_tokens` tokens or more.

    The documents of each source come in random order (seed 0), each cut at 3,000 characters. A file that is there
    already is left. Raises TextError if the sources hold no text.
    """
    if path.exists():
        return path
    drawn = []
    for source in sources:
        texts = [document.text[:MOST_CHARACTERS] for document in documents([source])]
        random.Random(0).shuffle(texts)
        drawn.append(texts)
    lines, characters = [], 0
    for text in itertools.chain.from_iterable(itertools.zip_longest(*drawn)):
        if text is None or characters > CHARACTERS_PER_TOKEN * num_tokens:
            continue
        characters += len(text)
        lines.append(json.dumps({"text": text}))
    if not lines:
        raise TextError(f"There is no text in {', '.join(sources)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(lines) + "\n")
    return path
