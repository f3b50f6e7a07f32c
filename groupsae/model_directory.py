"""What a local directory of a model holds, and what to do where something is missing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from groupsae.errors import ModelError
from groupsae.hookpoints import natural_key

CONFIG, ADAPTER = "config.json", "adapter_config.json"
VOCABULARIES = ("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json")
FILES_NAMED = 6


def require_model_files(name: str) -> None:
    """Raises ModelError, which says what is there, for a local directory without a config or a tokenizer.

    An adapter's directory needs the library peft, and has the config of its base model.
    """
    require_config(name)
    folder = Path(name).expanduser()
    if (folder / CONFIG).is_file():
        _require_tokenizer(name, folder)
    elif folder.is_dir():
        _require_peft(name, adapter_base(folder))


def require_config(name: str) -> None:
    """Raises ModelError, which says what is there, for a local directory without the config of a model or adapter."""
    folder = Path(name).expanduser()
    if folder.is_dir() and not any((folder / file).is_file() for file in (CONFIG, ADAPTER)):
        raise ModelError(f"Model {name!r} cannot be loaded: the directory holds no {CONFIG}. {_remedy(name, folder)}")


def adapter_base(folder: Path) -> str | None:
    """The base model that an adapter's directory names; None for other directories."""
    if not (folder / ADAPTER).is_file() or (folder / CONFIG).is_file():
        return None
    try:
        base = json.loads((folder / ADAPTER).read_bytes()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder / ADAPTER} cannot be read: {error}. Save the adapter again.") from error
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{folder / ADAPTER} names no base model (base_model_name_or_path). Merge the adapter into its model with "
            "peft's merge_and_unload(), save that, and give its directory."
        )
    return base


def config_place(path: str) -> str:
    """Where the config of the model at `path` is: there, or with the base model of an adapter."""
    return adapter_base(Path(path)) or path


def tokenizer_place(path: str) -> str:
    """Where the tokenizer of the model at `path` is: there, or with the base model of an adapter without one."""
    base = adapter_base(Path(path))
    return base if base and not _has_tokenizer(Path(path)) else path


def _require_peft(name: str, base: str | None) -> None:
    """Raises ModelError if an adapter cannot be loaded: its base model is not there, or peft is not installed."""
    is_path = base is not None and (base.startswith((".", "~", "/")) or base.count("/") > 1)
    if base is not None and is_path and not Path(base).expanduser().is_dir():
        raise ModelError(
            f"Model {name!r} is a PEFT adapter of {base!r}, and there is no such directory. Set "
            f"base_model_name_or_path in its {ADAPTER} to where the base model is."
        )
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            f"Model {name!r} is a PEFT adapter of {base!r}, and the library peft is not installed. "
            "Run `pip install peft`, or merge the adapter into its model with peft's merge_and_unload(), save that, "
            "and give its directory."
        )


def _require_tokenizer(name: str, folder: Path) -> None:
    if not _has_tokenizer(folder):
        raise ModelError(
            f"Model {name!r} has no tokenizer: the directory holds no tokenizer.json, tokenizer.model or vocab.json. "
            f"It holds {_listed(folder)}. Put the tokenizer's files beside the weights, for example with "
            f"AutoTokenizer.from_pretrained(ORIGINAL).save_pretrained({str(folder)!r})."
        )


def _has_tokenizer(folder: Path) -> bool:
    return any(
        file.name.startswith("tokenizer") or file.name in VOCABULARIES or file.suffix == ".tiktoken"
        for file in folder.iterdir()
    )


def _remedy(name: str, folder: Path) -> str:
    inner = sorted((path.parent.name for path in folder.glob(f"*/{CONFIG}")), key=natural_key)
    if inner:
        several = f" (of {len(inner)} such directories the last)" if len(inner) > 1 else ""
        return f"It holds {inner[-1]}/, which does{several}. Give {str(Path(name) / inner[-1])!r}."
    adapters = sorted((path.parent.name for path in folder.glob(f"*/{ADAPTER}")), key=natural_key)
    if adapters:
        return f"It holds the adapter {adapters[-1]}/. Give {str(Path(name) / adapters[-1])!r}."
    gguf = sorted(folder.glob("*.gguf"))
    if gguf:
        return (
            f"It holds {gguf[0].name}, a GGUF file, which does not load without one. Give the directory of the model "
            "that it was made from, or its id on the Hugging Face hub."
        )
    weights = sorted(file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    if weights:
        return f"It holds {weights[0]}. Put the model's {CONFIG} and tokenizer beside it."
    return (
        f"It holds {_listed(folder)}. A directory with {CONFIG}, weights and tokenizer is needed, as "
        "save_pretrained writes it."
    )


def _listed(folder: Path) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    more = f" and {len(names) - FILES_NAMED} more" if len(names) > FILES_NAMED else ""
    return (", ".join(names[:FILES_NAMED]) or "nothing") + more
