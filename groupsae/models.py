"""Language models: load one with its tokenizer, find its blocks, name its hookpoints.

Works with every Hugging Face causal LM whose blocks sit in one `ModuleList`, whether the blocks
return a tensor (most of transformers 5) or a tuple.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from groupsae.errors import HookpointError, ModelError, NumericalError
from groupsae.hookpoints import expand, natural_key
from groupsae.model_directory import config_place, require_config, require_model_files, tokenizer_place
from groupsae.text.tokenizing import known_text

DEMO_MODEL = Path(__file__).parent / "text" / "demo" / "model"


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[nn.Module, Any]:
    """The causal LM and tokenizer of a hub id, a local directory, or `demo`: frozen, in eval mode.

    The directory of a PEFT adapter gives its base model with the adapter; that needs the library peft.
    Raises ModelError if there is no such model or its files lack weights or a tokenizer (transformers
    would go on with random ones and an empty one), NumericalError if weights hold NaN or infinity.
    """
    import transformers

    path = model_path(name)
    require_model_files(path)
    where = pick_device(device)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_place(path), **options)
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), output_loading_info=True, **options
        )
    except Exception as error:
        raise ModelError(
            f"Model {name!r} cannot be loaded: {_first_line(error)} "
            "Give the id of a causal LM on the Hugging Face hub, a local directory with config.json, "
            "weights and tokenizer, or 'demo'."
        ) from error
    _require_complete(loading["missing_keys"], tokenizer, name)
    _require_finite(model, name)
    find_blocks(model)
    return model.to(where).eval().requires_grad_(False), tokenizer


def load_model_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The config of a model, without its weights. Raises ModelError if there is none."""
    import transformers

    path = model_path(name)
    require_config(path)
    try:
        return transformers.AutoConfig.from_pretrained(
            config_place(path), revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"The config of model {name!r} cannot be loaded: {_first_line(error)}") from error


def has_weights(name: str) -> bool:
    """False for a local directory without weight files: enough to plan a run, not to do one."""
    folder = Path(model_path(name))
    return not folder.is_dir() or any(
        file.suffix in (".safetensors", ".bin") or file.name.endswith(".index.json") for file in folder.iterdir()
    )


def model_path(name: str) -> str:
    """What `from_pretrained` should be given for this name. Raises ModelError for a directory that is not there."""
    if name == "demo":
        return str(DEMO_MODEL)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.is_file():
        raise ModelError(
            f"There is no model directory {name!r}. Give a directory that holds config.json, weights and "
            "tokenizer, the id of a model on the Hugging Face hub, or 'demo'."
        )
    return name


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
    if hasattr(model, "get_base_model"):
        if getattr(model, "active_peft_config", None) is not None and model.active_peft_config.is_prompt_learning:
            raise ModelError(
                f"{type(model).__name__} holds a prompt or prefix adapter, whose own positions come before the text. "
                "Adapters inside the modules, such as LoRA, can be used."
            )
        model = model.get_base_model()
    return getattr(model, "base_model", model)


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The path below the base model and the list of the decoder blocks.

    It is the shallowest `ModuleList` as long as the config's number of layers (the longest one,
    where there is no config). Raises ModelError if there is none.
    """
    lists = [(name, m) for name, m in base_model(model).named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    count = getattr(getattr(model, "config", None), "num_hidden_layers", max((len(m) for _, m in lists), default=0))
    fitting = [(name, blocks) for name, blocks in lists if len(blocks) == count]
    if not fitting:
        found = ", ".join(f"{name} ({len(blocks)})" for name, blocks in lists) or "none"
        raise ModelError(
            f"{type(model).__name__} has no list of {count} blocks; module lists found: {found}. "
            "A model whose blocks sit in one ModuleList is needed."
        )
    return min(fitting, key=lambda item: item[0].count("."))


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
