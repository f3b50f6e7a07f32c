"""Language models: load one with its tokenizer, or the parts of it that a run needs without its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from groupsae.errors import ModelError, NumericalError
from groupsae.gguf_files import GGUFFacts, read_gguf, require_loadable
from groupsae.hookpoints import natural_key
from groupsae.model_directory import config_place, require_config, require_model_files, tokenizer_place
from groupsae.model_structure import find_blocks
from groupsae.storage import describe, digest
from groupsae.text.tokenizing import known_text

DEMO_MODEL = Path(__file__).parent / "text" / "demo" / "model"


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
) -> tuple[nn.Module, Any]:
    """The causal LM and tokenizer of a hub id, a local directory, a `.gguf` file, or `demo`: frozen, in eval mode.

    `gguf_file` names a GGUF file in the directory; its weights are dequantized, and `model.config.gguf` says which.
    The directory of a PEFT adapter gives its base model with the adapter; that needs the library peft.
    Raises ModelError if there is no such model or its files lack weights or a tokenizer (transformers
    would go on with random ones and an empty one), NumericalError if weights hold NaN or infinity.
    """
    import transformers

    path, gguf = _place(name, gguf_file)
    if not gguf:
        require_model_files(path)
    where = pick_device(device)
    options = {"revision": revision, "trust_remote_code": trust_remote_code, **gguf}
    facts = _gguf_facts(path, gguf, getattr(torch, dtype))
    try:
        tokenizer = _load_tokenizer(tokenizer_place(path), options)
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), output_loading_info=True, **options, **(_unpacked() if gguf else {})
        )
        if facts:
            model.config.gguf = facts.to_json()
    except Exception as error:
        raise ModelError(
            f"Model {name!r} cannot be loaded: {_first_line(error)} "
            "Give the id of a causal LM on the Hugging Face hub, a local directory with config.json, "
            "weights and tokenizer, a .gguf file, or 'demo'."
        ) from error
    _require_complete(loading["missing_keys"], tokenizer, name)
    _require_finite(model, name)
    find_blocks(model)
    return model.to(where).eval().requires_grad_(False), tokenizer


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False, gguf_file: str | None = None
) -> Any:
    """The tokenizer of a model, without its weights. Raises ModelError if there is none."""
    path, gguf = _place(name, gguf_file)
    try:
        options = {"revision": revision, "trust_remote_code": trust_remote_code, **gguf}
        tokenizer = _load_tokenizer(tokenizer_place(path), options)
    except Exception as error:
        raise ModelError(f"The tokenizer of model {name!r} cannot be loaded: {_first_line(error)}") from error
    _require_complete((), tokenizer, name)
    return tokenizer


def weights_digest(name: str, gguf_file: str | None = None) -> str | None:
    """SHA-256 of the names and contents of a local model's weight files; None for a model of the hub."""
    path, gguf = _place(name, gguf_file)
    folder = Path(path)
    if not folder.is_dir():
        return None
    wanted = [gguf["gguf_file"]] if gguf else ["*.safetensors", "*.bin"]
    files = sorted(file for pattern in wanted for file in folder.glob(pattern))
    return digest([[file.name, describe(file)["sha256"]] for file in files])


def _load_tokenizer(place: str, options: Mapping[str, Any]) -> Any:
    """The tokenizer at a place, as its own files describe it.

    For some kinds of models (Qwen2) transformers builds the tokenizer of that family instead, which has no tokens
    where the files hold another sort.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(place, **options)
    if known_text(tokenizer) is None and (Path(place) / "tokenizer.json").is_file():
        return transformers.PreTrainedTokenizerFast.from_pretrained(place)
    return tokenizer


def load_model_config(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False, gguf_file: str | None = None
) -> Any:
    """The config of a model, without its weights. Raises ModelError if there is none."""
    import transformers

    path, gguf = _place(name, gguf_file)
    if not gguf:
        require_config(path)
    try:
        return transformers.AutoConfig.from_pretrained(
            config_place(path), revision=revision, trust_remote_code=trust_remote_code, **gguf
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"The config of model {name!r} cannot be loaded: {_first_line(error)}") from error


def load_skeleton(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False, gguf_file: str | None = None
) -> nn.Module:
    """The causal LM of a config without its weights, on the meta device: its sizes, at no memory.

    Raises ModelError if there is no config, or transformers builds no causal LM from it.
    """
    import transformers

    config = load_model_config(name, revision=revision, trust_remote_code=trust_remote_code, gguf_file=gguf_file)
    try:
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(
            f"The config of model {name!r} builds no causal LM: {_first_line(error)} "
            "The config of a decoder-only language model is needed."
        ) from error


def has_weights(name: str, gguf_file: str | None = None) -> bool:
    """False for a local directory without weight files: enough to plan a run, not to do one."""
    folder = Path(model_path(name))
    return (
        gguf_file is not None
        or not folder.is_dir()
        or any(
            file.suffix in (".safetensors", ".bin") or file.name.endswith(".index.json") for file in folder.iterdir()
        )
    )


def model_path(name: str) -> str:
    """What `from_pretrained` should be given for this name. Raises ModelError for a directory that is not there."""
    if name == "demo":
        return str(DEMO_MODEL)
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.is_file():
        raise ModelError(
            f"There is no model directory {name!r}. Give a directory that holds config.json, weights and "
            "tokenizer, a .gguf file, the id of a model on the Hugging Face hub, or 'demo'."
        )
    return name


def _place(name: str, gguf_file: str | None) -> tuple[str, dict[str, str]]:
    """What `from_pretrained` should be given: the place, and the name of a GGUF file there."""
    path = Path(model_path(name))
    if path.suffix == ".gguf" and path.is_file():
        if gguf_file is not None and gguf_file != path.name:
            raise ModelError(f"Model {name!r} is a GGUF file itself; leave out model.gguf_file = {gguf_file!r}.")
        return str(path.parent), {"gguf_file": path.name}
    files = sorted(file.name for file in path.glob("*.gguf")) if path.is_dir() else []
    if gguf_file is not None:
        if path.is_dir() and gguf_file not in files:
            found = f"it holds {', '.join(files)}" if files else "it holds no .gguf file"
            raise ModelError(f"There is no model.gguf_file = {gguf_file!r} in {name!r}; {found}.")
        return str(path), {"gguf_file": gguf_file}
    if files and not (path / "config.json").exists():
        raise ModelError(
            f"{name!r} has no config.json, but it holds {', '.join(files)}. "
            f"Set model.gguf_file = {files[0]!r} to read it."
        )
    return model_path(name), {}


def _unpacked() -> dict[str, Any]:
    """What makes transformers unpack the weights of a GGUF file; versions before 5.24 always do."""
    import transformers

    packed = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": packed(dequantize=True)} if packed else {}


def _gguf_facts(path: str, gguf: dict[str, str], dtype: torch.dtype) -> GGUFFacts | None:
    """The facts of a GGUF file on this machine, checked before it is loaded; None for other models."""
    if not gguf or not Path(path).is_dir():
        return None
    facts = read_gguf(Path(path) / gguf["gguf_file"])
    require_loadable(facts, dtype.itemsize)
    return facts


def pick_device(device: str) -> torch.device:
    """The device named, `auto` being a GPU where there is one. Raises ModelError if it is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(1, device=picked, dtype=torch.float64)  # in which sums are kept; mps has none
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ModelError(f"Device {device!r} cannot be used: {_first_line(error)} Try 'auto' or 'cpu'.") from error
    return picked


def device_name(device: torch.device) -> str:
    """What a device is called: the card's name, or `cpu` and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device} ({torch.get_num_threads()} threads)"


def _require_complete(missing: Iterable[str], tokenizer: Any, name: str) -> None:
    lacking = sorted(missing, key=natural_key)
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ModelError(
            f"The files of model {name!r} lack {', '.join(lacking[:3])}{more}. "
            "All weights of a causal LM are needed, its head included."
        )
    if known_text(tokenizer) is None:
        raise ModelError(
            f"The tokenizer of model {name!r} gives no tokens; its files are missing or empty. "
            "Put the tokenizer's files (tokenizer.json) beside the weights."
        )


def _require_finite(model: nn.Module, name: str) -> None:
    for key, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise NumericalError(f"Weight {key} of model {name!r} holds NaN or infinity; the files may be damaged.")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."
