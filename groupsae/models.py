"""Language models: load one with its tokenizer, find its blocks, name its hookpoints.

Works with every Hugging Face causal LM whose blocks sit in one `ModuleList`, whether the blocks
return a tensor (most of transformers 5) or a tuple.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from groupsae.errors import HookpointError, ModelError, NumericalError
from groupsae.gguf_files import GGUFFacts, read_gguf, require_loadable
from groupsae.hookpoints import expand, natural_key
from groupsae.model_directory import config_place, require_config, require_model_files, tokenizer_place
from groupsae.storage import describe, digest
from groupsae.text.tokenizing import known_text

OTHER_TOWERS = ("vision", "visual", "image", "audio", "speech")
"""Parts of the names of modules that read something else than text."""

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


def longest_row(model: nn.Module) -> int | None:
    """The most tokens that a model reads at once; None if its config sets no limit."""
    config = text_config(model)
    found = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def text_config(model: nn.Module) -> Any:
    """The config of the language model, which may be a part of the model's config; None for plain modules."""
    config = getattr(model, "config", None)
    find = getattr(config, "get_text_config", None)
    return find(decoder=True) if find else config


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


def base_model(model: nn.Module) -> nn.Module:
    """The model without its head: what hookpoints are counted from.

    Of a model that peft wrapped it is that of the model inside, so hookpoints have the same names. Raises
    ModelError for an adapter that puts tokens of its own before the text.
    """
    wrapped: Any = model
    if hasattr(model, "get_base_model"):
        if getattr(model, "active_peft_config", None) is not None and wrapped.active_peft_config.is_prompt_learning:
            raise ModelError(
                f"{type(model).__name__} holds a prompt or prefix adapter, whose own positions come before the text. "
                "Adapters inside the modules, such as LoRA, can be used."
            )
        model = wrapped.get_base_model()
    return getattr(model, "base_model", model)


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The path below the base model and the list of the decoder blocks.

    It is the shallowest `ModuleList` as long as the config's number of layers (the longest one,
    where there is no config). A list that encodes images or sound is never taken. Raises ModelError if
    there is none.
    """
    lists = [(name, m) for name, m in _language_modules(model) if isinstance(m, nn.ModuleList) and len(m)]
    longest = max((len(blocks) for _, blocks in lists), default=0)
    count = getattr(text_config(model), "num_hidden_layers", None) or longest
    fitting = [(name, blocks) for name, blocks in lists if len(blocks) == count]
    if not fitting:
        found = ", ".join(f"{name} ({len(blocks)})" for name, blocks in lists) or "none"
        raise ModelError(
            f"{type(model).__name__} has no list of {count} blocks; module lists found: {found}. "
            "A model whose blocks sit in one ModuleList is needed."
        )
    return min(fitting, key=lambda item: item[0].count("."))


def _language_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules below the base model that belong to the language model, by their path.

    In a model with several towers it is the one that holds the embedding of tokens.
    """
    base = base_model(model)
    text = text_config(model)
    if text is None or text is getattr(model, "config", None):
        yield from base.named_modules()
        return
    whole: Any = model
    embedding = whole.get_input_embeddings()
    owner = next((name.rpartition(".")[0] for name, module in base.named_modules() if module is embedding), None)
    for name, module in base.named_modules():
        inside = owner is not None and (not owner or name == owner or name.startswith(f"{owner}."))
        if inside and not any(word in part for part in name.split(".") for word in OTHER_TOWERS):
            yield name, module


def residual_stream(model: nn.Module) -> tuple[str, ...]:
    """The hookpoints of the residual stream after every block: `layers.0`, `layers.1`, ..."""
    name, blocks = find_blocks(model)
    return tuple(f"{name}.{index}" for index in range(len(blocks)))


def find_hookpoints(model: nn.Module, patterns: Iterable[str]) -> tuple[str, ...]:
    """The hookpoints that patterns select: `residual` is every block but the last, others are paths.

    Raises HookpointError, naming the nearest path, for a pattern that selects nothing.
    """
    names = [name for name, _ in base_model(model).named_modules() if name]
    chosen: list[str] = []
    for pattern in patterns:
        if pattern == "residual":
            pattern_names = residual_stream(model)[:-1]
            if not pattern_names:
                raise HookpointError(
                    "The model has one block only, and the last block is not grouped; name hookpoints yourself."
                )
            chosen.extend(pattern_names)
        else:
            chosen.extend(expand([pattern], names, owner=type(model).__name__))
    return expand(dict.fromkeys(chosen), names)


@torch.no_grad()
def require_causal(model: nn.Module, ids_BT: Tensor, purpose: str) -> None:
    """Raises ModelError if a model's predictions depend on later tokens. `purpose` names what needs that they do not.

    Two passes over the first row of ids that differ in the last token must give the same logits before it.
    """
    if ids_BT.shape[1] < 2:
        return
    ids_1T = ids_BT[:1]
    other_1T = ids_1T.clone()
    other_1T[0, -1] = (ids_1T[0, -1] + 1) % (getattr(text_config(model), "vocab_size", None) or 2)
    logits_TV, other_TV = (_logits(model, ids).float()[0] for ids in (ids_1T, other_1T))
    earlier = (logits_TV[:-1] - other_TV[:-1]).abs().max()
    rounding = max(64 * torch.finfo(torch.float32).eps, 4 * torch.finfo(next(model.parameters()).dtype).eps)
    if earlier > rounding * max(1.0, logits_TV.abs().max().item()):
        raise ModelError(
            f"{type(model).__name__} sees the future: another last token changes its predictions before it, by up to "
            f"{earlier:.3g}. {purpose} would mean nothing. Only causal language models can be evaluated so; of this "
            "one, reconstruction and similarity can be. If it was trained to be causal, say so in its config.json "
            "(is_decoder = true)."
        )


def _logits(model: nn.Module, ids_BT: Tensor) -> Tensor:
    options = {"use_cache": False} if hasattr(model, "config") else {}
    output = model(ids_BT, **options)
    return first_tensor(output) if getattr(output, "logits", None) is None else output.logits


def first_tensor(output: Any) -> Tensor:
    """The hidden state in what a module returned: the tensor itself, or the first of a tuple."""
    return output[0] if isinstance(output, tuple | list) else output


def with_first_tensor(output: Any, hidden: Tensor) -> Any:
    """What a module returned, with its hidden state replaced; the type stays as found."""
    return type(output)((hidden, *output[1:])) if isinstance(output, tuple | list) else hidden


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
