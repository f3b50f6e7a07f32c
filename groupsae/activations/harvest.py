"""Reads activations of a language model: one forward pass feeds every hookpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from groupsae.errors import HookpointError, NumericalError, TextError
from groupsae.hookpoints import natural_key
from groupsae.models import base_model, first_tensor
from groupsae.tokens import TokenRows


class Harvester:
    """Activations of a language model on rows of tokens, at several hookpoints at once.

    The model runs once per batch, without its head, and stops as soon as the last hookpoint has
    been read. Positions that hold a special token are left out unless `skip_special` is false.

        acts = Harvester(model, rows, ["layers.0", "layers.1"])
        x_LND = acts.read([0, 1, 2])

    Raises HookpointError before anything is read if a hookpoint is missing, is not reached by a
    forward pass, or has another width than the others; TextError if the rows are longer than the
    model reads, or hold a token that it does not know.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: TokenRows,
        hookpoints: Sequence[str],
        *,
        batch_rows: int = 16,
        skip_special: bool = True,
    ) -> None:
        self.model, self.rows = model, rows
        self.hookpoints = tuple(sorted(hookpoints, key=natural_key))
        self.batch_rows, self.skip_special = batch_rows, skip_special
        self.num_rows, self.row_tokens = len(rows), rows.context_length
        self.device = next(model.parameters()).device
        self.forwards = 0
        self._modules = [_module(model, hookpoint) for hookpoint in self.hookpoints]
        _require_readable(rows, model)
        self.d_model = self._probe()

    def held_out(self) -> Harvester:
        """The same hookpoints on the text that is kept for evaluation."""
        return Harvester(
            self.model,
            self.rows.held_out,
            self.hookpoints,
            batch_rows=self.batch_rows,
            skip_special=self.skip_special,
        )

    def read(self, rows: Sequence[int]) -> Tensor:
        """The activations x_LND of these rows' tokens, in the model's precision.

        Raises NumericalError naming the hookpoint and the row if they hold NaN or infinity.
        """
        x_LBTD, special_BT = self._read(rows)
        if self.skip_special:
            return torch.stack([x[~special_BT] for x in x_LBTD])
        return torch.stack([x.flatten(0, 1) for x in x_LBTD])

    def read_positions(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The activations x_LBTD at every position of these rows, and special_BT, true at special tokens.

        Raises NumericalError as `read` does.
        """
        x_LBTD, special_BT = self._read(rows)
        return torch.stack(x_LBTD), special_BT

    def _read(self, rows: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        ids_BT = self.rows[rows].to(self.device)
        x_LBTD = self._forward(ids_BT)
        for hookpoint, x in zip(self.hookpoints, x_LBTD, strict=True):
            if not torch.isfinite(x.sum(dtype=torch.float32)) and not torch.isfinite(x).all():
                raise NumericalError(_not_finite(hookpoint, x, rows))
        return x_LBTD, ~self.rows.keep(ids_BT)

    @torch.no_grad()
    def _forward(self, ids_BT: Tensor) -> list[Tensor]:
        seen: dict[int, Tensor] = {}

        def reader(index: int) -> Callable[..., None]:
            def read_output(module: nn.Module, inputs: Any, output: Any) -> None:
                seen[index] = first_tensor(output)
                if len(seen) == len(self._modules):
                    raise _AllRead

            return read_output

        handles = [module.register_forward_hook(reader(i)) for i, module in enumerate(self._modules)]
        try:
            base_model(self.model)(ids_BT, **no_cache(self.model))
        except _AllRead:
            pass
        finally:
            for handle in handles:
                handle.remove()
        self.forwards += 1
        missing = [name for i, name in enumerate(self.hookpoints) if i not in seen]
        if missing:
            raise HookpointError(f"A forward pass does not reach {', '.join(missing)}; choose modules that are used.")
        return [seen[i] for i in range(len(self._modules))]

    def _probe(self) -> int:
        shapes = [x.shape for x in self._forward(torch.zeros(1, 2, dtype=torch.long, device=self.device))]
        self.forwards = 0
        widths = {hookpoint: shape[-1] for hookpoint, shape in zip(self.hookpoints, shapes, strict=True)}
        if any(len(shape) != 3 for shape in shapes) or len(set(widths.values())) != 1:
            raise HookpointError(
                f"Hookpoints must all give (rows, positions, width) of one width; found {widths} with shapes "
                f"{[tuple(shape) for shape in shapes]}. Train places of different width in separate runs."
            )
        return shapes[0][-1]


class _AllRead(Exception):
    """Stops the forward pass once every hookpoint has been read."""


def _require_readable(rows: TokenRows, model: nn.Module) -> None:
    config = getattr(model, "config", None)
    longest = getattr(config, "max_position_embeddings", None)
    if longest and rows.context_length > longest:
        raise TextError(
            f"Rows have {rows.context_length} tokens, but {type(model).__name__} reads at most {longest}. "
            f"Set text.context_length to {longest} or less and make the tokens again."
        )
    known = getattr(config, "vocab_size", None)
    largest = int(rows.ids_RT.max(initial=0))
    if known and largest >= known:
        raise TextError(
            f"The rows hold token {largest}, but {type(model).__name__} knows {known} tokens. "
            "They were made with the tokenizer of another model."
        )


def _not_finite(hookpoint: str, x_BTD: Tensor, rows: Sequence[int]) -> str:
    finite_B = torch.isfinite(x_BTD).flatten(1).all(1).tolist()
    row = next(row for row, finite in zip(rows, finite_B, strict=True) if not finite)
    return (
        f"Activations at {hookpoint} hold NaN or infinity in row {row}. "
        "Try model.dtype = 'float32' or 'bfloat16', or look at the text of this row."
    )


def no_cache(model: nn.Module) -> dict[str, bool]:
    """The keyword that keeps a Hugging Face model from building a cache; none for plain modules."""
    return {"use_cache": False} if hasattr(model, "config") else {}


def _module(model: nn.Module, hookpoint: str) -> nn.Module:
    try:
        return base_model(model).get_submodule(hookpoint)
    except AttributeError:
        raise HookpointError(f"{hookpoint!r} is no module of {type(model).__name__}.") from None
