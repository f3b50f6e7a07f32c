"""Each hookpoint's mean activation and mean norms, measured once for all that needs them.

Distances center by these means and scales are made of these norms. A run measures them with its distances, in two
passes over the text: one for means and norms, one for distances and norms of centered activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from groupsae.activations.source import ActivationSource, read_by_row, row_order, worked_stream
from groupsae.distributed.ranks import ALONE, Ranks
from groupsae.errors import ConfigError, NumericalError, RunError, TextError

_ELEMENTS = {"cpu": 2**22}
_ELEMENTS_ON_ACCELERATOR = 2**26


@dataclass(frozen=True)
class ActivationStats:
    """Statistics over `count` tokens, float64: mean (L, D), mean norm (L,), and mean norm of x - mean (L,).

    The last is None where it was not measured: it takes a second pass, since the mean must be known.
    """

    hookpoints: tuple[str, ...]
    count: int
    mean_LD: Tensor
    mean_norm_L: Tensor
    centered_norm_L: Tensor | None = None


def measure_stats(
    source: ActivationSource,
    num_tokens: int,
    seed: int = 0,
    *,
    centered: bool = False,
    progress: Callable[[int], None] | None = None,
    ranks: Ranks = ALONE,
) -> ActivationStats:
    """The statistics of the tokens of `stream(source, num_tokens, seed)`: one pass, two if norms are `centered` too.

    Sums are float64. `progress` receives the number of tokens newly read. Raises ConfigError for less than one token,
    TextError if the source has none, NumericalError naming the hookpoints that hold NaN or infinity.
    """
    stats = measure_stats_at(source, (num_tokens,), seed, progress=progress, ranks=ranks)[num_tokens]
    return CenteringSource(source, stats, seed, ranks).finish(progress) if centered else stats


def measure_stats_at(
    source: ActivationSource,
    num_tokens: Iterable[int],
    seed: int = 0,
    *,
    progress: Callable[[int], None] | None = None,
    ranks: Ranks = ALONE,
) -> dict[int, ActivationStats]:
    """The statistics of the first so many tokens, for several numbers of tokens, in one pass over the largest.

    Several ranks share the reading; their statistics have the same bits as those of one.
    """
    wanted = sorted(set(num_tokens))
    if wanted[0] < 1:
        raise ConfigError(f"num_tokens = {wanted[0]}; at least 1 token is needed, sensibly 100,000 or more.")
    sums, found = _Sums(source), {}
    of = lambda x_LND, _: sums.of(x_LND)  # noqa: E731
    for tokens, results in worked_stream(source, wanted[-1], seed, of, places=wanted, ranks=ranks):
        sums.add(tokens, *results)
        if sums.count in wanted:
            found[sums.count] = sums.stats()
        if progress:
            progress(tokens)
    if not sums.count:
        raise TextError("The source gave no tokens, so there is nothing to measure. Give it more text.")
    return {tokens: found.get(tokens) or sums.stats() for tokens in wanted}  # what text there is, where it is shorter


class CenteringSource:
    """A source that measures mean norms of x - mean while others read it, so that they cost no pass of their own.

    Only rows in the order of `stream(source, ..., seed)` count, each once; `finish` reads those that nobody read.
    """

    def __init__(self, source: ActivationSource, stats: ActivationStats, seed: int, ranks: Ranks = ALONE) -> None:
        self._source, self._stats, self._seed, self._ranks = source, stats, seed, ranks
        self._center_L1D = stats.mean_LD.float().to(source.device)[:, None]
        self._norm_L = torch.zeros_like(stats.mean_norm_L)
        self._rows, self._left = row_order(source.num_rows, seed, 0).tolist(), stats.count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def read(self, rows: Sequence[int]) -> Tensor:
        """The activations x_LND of these rows, as the source gives them."""
        return self.read_by_row(rows)[0]

    def read_by_row(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The same, and how many tokens each row gave (B,)."""
        x_LND, count_B = read_by_row(self._source, rows)
        if self._ranks.alone and list(rows) == self._rows[: len(rows)]:
            self._rows = self._rows[len(rows) :]
            self._add(x_LND[:, : self._left])
        return x_LND, count_B

    def finish(self, progress: Callable[[int], None] | None = None) -> ActivationStats:
        """The statistics with `centered_norm_L`, once the rows that were not read yet have been read.

        Of several ranks none reads all rows, so they read them again, together.
        """
        if not self._ranks.alone:
            of = lambda x_LND, _: [self._norms(x_LND)]  # noqa: E731
            for tokens, (norm_L,) in worked_stream(self._source, self._left, self._seed, of, ranks=self._ranks):
                self._norm_L += norm_L.to(self._norm_L.device)
                if progress:
                    progress(tokens)
            return replace(self._stats, centered_norm_L=self._norm_L / self._stats.count)
        while self._left and self._rows:
            before = self._left
            self.read(self._rows[: self._source.batch_rows])
            if progress:
                progress(before - self._left)
        return replace(self._stats, centered_norm_L=self._norm_L / self._stats.count)

    def _add(self, x_LND: Tensor) -> None:
        self._left -= x_LND.shape[1]
        self._norm_L += self._norms(x_LND)

    def _norms(self, x_LND: Tensor) -> Tensor:
        """The sum of norms of x - mean over these tokens, (L,)."""
        total_L = torch.zeros_like(self._norm_L)
        for x_LnD in token_blocks(x_LND):
            norm_Ln = (x_LnD.float() - self._center_L1D).norm(dim=-1)
            total_L += norm_Ln.to(total_L.device).sum(1, dtype=torch.float64)
        return total_L


def save_stats(stats: Mapping[int, ActivationStats], path: Path) -> None:
    """Write one safetensors file: `<tokens>.count`, `<tokens>.mean` (L, D), and `<tokens>.mean_norm` and, where it was
    measured, `<tokens>.centered_norm` (L,).
    """
    tensors = {}
    for tokens, one in stats.items():
        tensors[f"{tokens}.count"] = torch.tensor(one.count)
        tensors[f"{tokens}.mean"] = one.mean_LD.cpu().contiguous()
        tensors[f"{tokens}.mean_norm"] = one.mean_norm_L.cpu().contiguous()
        if one.centered_norm_L is not None:
            tensors[f"{tokens}.centered_norm"] = one.centered_norm_L.cpu().contiguous()
    save_file(tensors, path)


def load_stats(path: Path, hookpoints: tuple[str, ...]) -> dict[int, ActivationStats]:
    """The statistics that `save_stats` wrote, by their number of tokens. Raises RunError for a damaged file."""
    try:
        tensors = load_file(path)
        numbers = [int(name.removesuffix(".count")) for name in tensors if name.endswith(".count")]
        stats = {
            tokens: ActivationStats(
                hookpoints,
                int(tensors[f"{tokens}.count"]),
                tensors[f"{tokens}.mean"],
                tensors[f"{tokens}.mean_norm"],
                tensors.get(f"{tokens}.centered_norm"),
            )
            for tokens in numbers
        }
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise RunError(f"{path} is missing or damaged: {error}. Measure the distances again to make it.") from error
    for one in stats.values():
        norms = [norm_L for norm_L in (one.mean_norm_L, one.centered_norm_L) if norm_L is not None]
        shapes = {tuple(one.mean_LD.shape[:1]), *(tuple(norm_L.shape) for norm_L in norms)}
        finite = all(torch.isfinite(each).all() for each in (one.mean_LD, *norms))
        if one.mean_LD.ndim != 2 or shapes != {(len(hookpoints),)} or not finite:
            raise RunError(f"{path} does not hold a finite mean and norm for each hookpoint. Measure distances again.")
    return stats


def token_blocks(x_LND: Tensor, per_token: int = 0) -> Iterator[Tensor]:
    """The activations in blocks of tokens, each small enough that L D + `per_token` numbers per token stay small."""
    layers, _, width = x_LND.shape
    elements = _ELEMENTS.get(x_LND.device.type, _ELEMENTS_ON_ACCELERATOR)
    yield from x_LND.split(max(1, elements // (layers * width + per_token)), dim=1)


def accumulator_device(device: torch.device) -> torch.device:
    """Where float64 sums are kept: on the device, or on the CPU if the device has no float64 (mps)."""
    return torch.device("cpu") if device.type == "mps" else device


class _Sums:
    """Sums over tokens: of x, and of its norm."""

    def __init__(self, source: ActivationSource) -> None:
        layers, device = len(source.hookpoints), accumulator_device(source.device)
        self._hookpoints, self.count = source.hookpoints, 0
        self._sum_LD = torch.zeros(layers, source.d_model, dtype=torch.float64, device=device)
        self._norm_L = torch.zeros(layers, dtype=torch.float64, device=device)

    def of(self, x_LND: Tensor) -> tuple[Tensor, Tensor]:
        """The sums over these tokens alone."""
        sum_LD, norm_L = torch.zeros_like(self._sum_LD), torch.zeros_like(self._norm_L)
        for x_LnD in token_blocks(x_LND):
            sum_LD += x_LnD.to(sum_LD.device).sum(1, dtype=torch.float64)
            norm_L += x_LnD.float().norm(dim=-1).to(sum_LD.device).sum(1, dtype=torch.float64)
        return sum_LD, norm_L

    def add(self, tokens: int, sum_LD: Tensor, norm_L: Tensor) -> None:
        self._sum_LD += sum_LD.to(self._sum_LD.device)
        self._norm_L += norm_L.to(self._sum_LD.device)
        self.count += tokens
        _require_finite(self._sum_LD, self._hookpoints)

    def stats(self) -> ActivationStats:
        return ActivationStats(self._hookpoints, self.count, self._sum_LD / self.count, self._norm_L / self.count)


def _require_finite(total_LD: Tensor, hookpoints: tuple[str, ...]) -> None:
    finite_L = torch.isfinite(total_LD).all(dim=1).tolist()
    if not all(finite_L):
        broken = ", ".join(name for name, finite in zip(hookpoints, finite_L, strict=True) if not finite)
        raise NumericalError(
            f"The activations at {broken} hold NaN or infinity. Load the model in float32 or bfloat16, "
            "or leave these hookpoints out."
        )
