"""Reads activations of a language model: one forward pass feeds every hookpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, nn

from groupsae.activations.outputs import OutputReader
from groupsae.activations.positions import SAMPLE_ROWS, OutlierRule, PositionFacts, beyond, measure_positions
from groupsae.activations.source import row_order
from groupsae.errors import HookpointError, ModelError, NumericalError, TextError
from groupsae.hookpoints import natural_key
from groupsae.model_structure import base_model, first_tensor, longest_row, text_config
from groupsae.oom import SplitOnOOM
from groupsae.text.tokens import TokenRows

Result = TypeVar("Result")


class Harvester:
    """Activations of a language model on rows of tokens, at several hookpoints at once.

    The model runs once per batch, without its head, and stops as soon as the last hookpoint has
    been read. Positions that hold a special token, and outliers (`groupsae.activations.positions`), are left
    out unless `skip_special` is false. The limits on norms are measured when they are first needed, on a few
    rows, unless `norm_limits` gives them.

        acts = Harvester(model, rows, ["layers.0", "layers.1"])
        x_LND = acts.read([0, 1, 2])

    Raises HookpointError before anything is read if a hookpoint is missing, is not reached by a
    forward pass, runs more than once in it, or has another width than the others; TextError if the
    rows are longer than the model reads, or hold a token that it does not know; ModelError for a model
    in training mode, whose dropout would make activations a matter of chance. With `on_nan="mask"` positions whose
    activations hold NaN or infinity at any hookpoint are left out, and counted in `num_masked`.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: TokenRows,
        hookpoints: Sequence[str],
        *,
        batch_rows: int = 16,
        skip_special: bool = True,
        outliers: OutlierRule = OutlierRule(),  # noqa: B008 - frozen
        norm_limits: Mapping[str, float] | None = None,
        on_nan: str = "stop",
    ) -> None:
        if any(module.training for module in model.modules()):
            raise ModelError(f"{type(model).__name__} is in training mode; call model.eval() first.")
        self.model, self.rows = model, rows
        self.hookpoints = tuple(sorted(hookpoints, key=natural_key))
        self.batch_rows, self.skip_special, self.on_nan = batch_rows, skip_special, on_nan
        self.outliers, self._norm_limits = outliers, norm_limits
        self._facts: PositionFacts | None = None
        self._split = SplitOnOOM("a read of activations", "one row of tokens", "Lower text.context_length.")
        self.num_rows, self.row_tokens = len(rows), rows.context_length
        self.device = next(model.parameters()).device
        self.num_masked = 0
        self._outputs = OutputReader({hookpoint: _module(model, hookpoint) for hookpoint in self.hookpoints})
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
            outliers=self.outliers,
            norm_limits=self.norm_limits,
            on_nan=self.on_nan,
        )

    def narrowed(self, hookpoints: tuple[str, ...]) -> Harvester:
        """The same text at some of the hookpoints; the model stops at the deepest of them.

        Where positions are left out by what is read there (NaN, large norms), it stays at all hookpoints, since any
        of them decides.
        """
        if self.on_nan == "mask" or (self.skip_special and self.outliers.max_norm):
            return self
        narrow = copy.copy(self)
        narrow.hookpoints = tuple(name for name in self.hookpoints if name in hookpoints)
        modules = {hookpoint: _module(self.model, hookpoint) for hookpoint in narrow.hookpoints}
        narrow._outputs = OutputReader(modules, self._outputs.written)
        return narrow

    def read(self, rows: Sequence[int]) -> Tensor:
        """The activations x_LND of these rows' tokens, in the model's precision.

        Raises NumericalError naming the hookpoint and the row if they hold NaN or infinity, unless those are masked.
        Out of memory, it reads in twice as many parts from then on; FitError if not even one row can be read.
        """
        return self.read_by_row(rows)[0]

    def read_by_row(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What `read` gives, and how many tokens each row gave (B,), on the CPU."""
        if not len(rows):
            nothing_LND = next(self.model.parameters()).new_zeros(len(self.hookpoints), 0, self.d_model)
            return nothing_LND, torch.zeros(0, dtype=torch.long)
        parts = self._in_parts(rows, self._read)
        return torch.cat([x_LND for x_LND, _ in parts], dim=1), torch.cat([count_B for _, count_B in parts])

    def read_positions(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The activations x_LBTD at every position of these rows, and out_BT, true at positions that are left out.

        Those are special tokens, outliers, and positions that are masked because their activations are not finite,
        whatever `skip_special` says. Raises as `read` does.
        """
        parts = self._in_parts(rows, self._read_positions)
        return torch.cat([x_LBTD for x_LBTD, _ in parts], dim=1), torch.cat([special_BT for _, special_BT in parts])

    def documents(self, rows: Sequence[int]) -> Tensor:
        """The number of each row's document, int64 (B,), as `TokenRows.document_of_row` has it."""
        return self._document_R[list(rows)]

    @cached_property
    def _document_R(self) -> Tensor:
        return torch.from_numpy(self.rows.document_of_row())

    def _in_parts(self, rows: Sequence[int], read: Callable[[Sequence[int]], Result]) -> list[Result]:
        numbers, masked = torch.arange(len(rows)), self.num_masked

        def undo() -> None:
            self.num_masked = masked

        def work(parts: int) -> list[Result]:
            return [read([rows[number] for number in part.tolist()]) for part in numbers.tensor_split(parts)]

        return self._split.run(work, undo, len(rows))

    def _read(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        x_LBTD, out_BT = self._forward_checked(rows)
        count_B = (~out_BT).sum(1).cpu()
        kept_N = (~out_BT).flatten().nonzero().squeeze(1)
        if len(kept_N) < out_BT.numel():
            return torch.stack([x.flatten(0, 1)[kept_N] for x in x_LBTD]), count_B
        return torch.stack([x.flatten(0, 1) for x in x_LBTD]), count_B

    def _read_positions(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        x_LBTD, out_BT = self._forward_checked(rows)
        if not self.skip_special:  # otherwise they are among those that are left out already
            out_BT = out_BT | self.left_out(self.rows[rows].to(self.device), x_LBTD)
        return torch.stack([torch.nan_to_num(x, 0.0, 0.0, 0.0) for x in x_LBTD]), out_BT

    def left_out(self, ids_BT: Tensor, x_LBTD: Sequence[Tensor]) -> Tensor:
        """out_BT: true at special tokens and outliers, given the activations at every hookpoint of this source."""
        out_BT = self.left_out_by_token(ids_BT)
        if not self.outliers.max_norm:
            return out_BT
        return out_BT | beyond(x_LBTD, [self.norm_limits[hookpoint] for hookpoint in self.hookpoints])

    def left_out_of(self, ids_BT: Tensor) -> Tensor:
        """out_BT as in `left_out`, for ids that need not be rows of this source; one forward pass where norms count."""
        if not self.outliers.max_norm:
            return self.left_out_by_token(ids_BT)
        return self.left_out(ids_BT, self._forward(ids_BT))

    def left_out_by_token(self, ids_BT: Tensor) -> Tensor:
        """out_BT: true at special tokens and at the first positions of a row, which no activation decides."""
        return ~self.rows.keep(ids_BT) | self.outliers.first_BT(ids_BT)

    @property
    def norm_limits(self) -> Mapping[str, float]:
        """The largest norm that counts as ordinary, by hookpoint; infinite where norms do not count."""
        if self._norm_limits is None:
            counts = bool(self.outliers.max_norm and len(self.rows))
            self._norm_limits = self.position_facts.limit if counts else dict.fromkeys(self.hookpoints, float("inf"))
        return self._norm_limits

    @property
    def position_facts(self) -> PositionFacts:
        """What a sample of this source's rows says of the positions that are left out."""
        if self._facts is None:
            rows = row_order(len(self.rows), 0, 0)[:SAMPLE_ROWS].tolist()
            parts = [
                self._forward(self.rows[rows[start : start + self.batch_rows]].to(self.device))
                for start in range(0, len(rows), self.batch_rows)
            ]
            x_LBTD = {name: torch.cat([part[i] for part in parts]) for i, name in enumerate(self.hookpoints)}
            self._facts = measure_positions(x_LBTD, ~self.rows.keep(self.rows[rows].to(self.device)), self.outliers)
        return self._facts

    def _forward_checked(self, rows: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Activations at each hookpoint, and true at positions that are left out: special, or masked."""
        ids_BT = self.rows[rows].to(self.device)
        x_LBTD = self._forward(ids_BT)
        faulty = _not_finite_among(x_LBTD)
        if faulty and self.on_nan == "stop":
            raise NumericalError(_not_finite(self.hookpoints[faulty[0]], x_LBTD[faulty[0]], rows))
        out_BT = self.left_out(ids_BT, x_LBTD) if self.skip_special else torch.zeros_like(ids_BT, dtype=torch.bool)
        if faulty:
            finite_BT = torch.stack([torch.isfinite(x_LBTD[index]).all(2) for index in faulty]).all(0)
            self.num_masked += int((~out_BT & ~finite_BT).sum())
            out_BT |= ~finite_BT
        return x_LBTD, out_BT

    @torch.no_grad()
    def _forward(self, ids_BT: Tensor, *, stop_early: bool = True) -> list[Tensor]:
        """The first tensor that each hookpoint's module returns, as it was when the module returned."""

        def forward() -> None:
            base_model(self.model)(ids_BT, **no_cache(self.model))

        seen, _ = self._outputs.run(forward, stop_early=stop_early)
        missing = [name for name in self.hookpoints if name not in seen]
        if missing:
            raise HookpointError(f"A forward pass does not reach {', '.join(missing)}; choose modules that are used.")
        return [first_tensor(seen[name]) for name in self.hookpoints]

    def _probe(self) -> int:
        ids_BT = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        shapes = [x.shape for x in self._forward(ids_BT, stop_early=False)]
        repeated = [name for name in self.hookpoints if self._outputs.calls[name] > 1]
        if repeated:
            raise HookpointError(
                f"{', '.join(repeated)}: this module runs more than once in a forward pass, so its output is not one "
                "tensor. Choose modules that run once, such as the blocks."
            )
        widths = {hookpoint: shape[-1] for hookpoint, shape in zip(self.hookpoints, shapes, strict=True)}
        if any(len(shape) != 3 for shape in shapes) or len(set(widths.values())) != 1:
            raise HookpointError(
                f"Hookpoints must all give (rows, positions, width) of one width; found {widths} with shapes "
                f"{[tuple(shape) for shape in shapes]}. Train places of different width in separate runs."
            )
        return shapes[0][-1]


def _require_readable(rows: TokenRows, model: nn.Module) -> None:
    longest = longest_row(model)
    if longest and rows.context_length > longest:
        raise TextError(
            f"Rows have {rows.context_length} tokens, but {type(model).__name__} reads at most {longest}. "
            f"Set text.context_length to {longest} or less and make the tokens again."
        )
    known = getattr(text_config(model), "vocab_size", None)
    largest = int(rows.ids_RT.max(initial=0))
    if known and largest >= known:
        raise TextError(
            f"The rows hold token {largest}, but {type(model).__name__} knows {known} tokens. "
            "They were made with the tokenizer of another model."
        )


def _not_finite_among(x_LBTD: Sequence[Tensor]) -> list[int]:
    """Which hold NaN or infinity; what finite sums show is asked of the device at once."""
    finite_L = torch.isfinite(torch.stack([x.sum(dtype=torch.float32) for x in x_LBTD])).tolist()
    return [index for index, finite in enumerate(finite_L) if not (finite or torch.isfinite(x_LBTD[index]).all())]


def _not_finite(hookpoint: str, x_BTD: Tensor, rows: Sequence[int]) -> str:
    finite_B = torch.isfinite(x_BTD).flatten(1).all(1).tolist()
    row = next(row for row, finite in zip(rows, finite_B, strict=True) if not finite)
    return (
        f"Activations at {hookpoint} hold NaN or infinity in row {row}. "
        "Try model.dtype = 'float32' or 'bfloat16', look at the text of this row, or leave such positions out by "
        "activations.on_nan = 'mask'."
    )


def no_cache(model: nn.Module) -> dict[str, bool]:
    """The keyword that keeps a Hugging Face model from building a cache; none for plain modules."""
    return {"use_cache": False} if hasattr(model, "config") else {}


def _module(model: nn.Module, hookpoint: str) -> nn.Module:
    try:
        return base_model(model).get_submodule(hookpoint)
    except AttributeError:
        raise HookpointError(f"{hookpoint!r} is no module of {type(model).__name__}.") from None
