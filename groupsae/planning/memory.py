"""What a run occupies: device, host and disk, before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from groupsae.errors import FitError
from groupsae.planning.architecture import Architecture

PROCESS_BYTES = 505 * 2**20
"""Python with torch, transformers, a model's class and its tokenizer, and what the first steps load. Measured on
Linux: 493 to 495 MiB before the first step, about 10 more after it."""
READ_COPIES = 4
"""Copies of what a batch of rows gives at all hookpoints that are alive at once: as the modules returned it, without
the positions that are left out, stacked, and the batch of rows before."""
ENTRY_BYTES = 64
"""Bytes per active latent in a sparse step: value, index, and the same sorted by latent with what sorting takes."""
TILE_BYTES, TILE_BYTES_ON_DEVICE = 16 * 2**20, 2**30
"""Pre-activations held at once by the sparse encoder, on a CPU and on an accelerator; at least one token's."""

DENSE_TENSORS = 8
"""Tensors of all pre-activations alive at once in a step that lists none; measured: 4.2 (relu) to 8.2 (jumprelu)."""

_FLOAT32 = 4


@dataclass(frozen=True)
class Footprint:
    """The settings of a run that decide what it occupies.

    `num_saes` SAEs of width `d_sae` train side by side on `num_hookpoints` hookpoints; `k` latents of a token are
    active. Of each token the buffer keeps `num_slots` activations (by default one per hookpoint).
    `bytes_per_number` is the language model's precision (4 for float32, 2 for bfloat16), in which activations are
    kept. `vectors` and `dense_start` are those of the SAE's section; `biases` layers have an encoder bias of their
    own; `ordered_layers` counts the layers of all groups. `stored_tokens` are those of all rows of text. On a CPU
    (`on_device` false) everything lies on the host.
    """

    architecture: Architecture
    num_hookpoints: int
    num_saes: int
    d_sae: int
    batch_tokens: int
    batch_rows: int
    context_length: int
    buffer_tokens: int
    bytes_per_number: int = 4
    num_slots: int | None = None
    stored_tokens: int = 0
    checkpoints: int = 2
    on_device: bool = True
    vectors: int = 1
    dense_start: bool = False
    biases: int = 0
    k: int = 0
    ordered_layers: int | None = None

    @property
    def slots(self) -> int:
        """Activations that the buffer keeps of each token."""
        return self.num_hookpoints if self.num_slots is None else self.num_slots

    @property
    def layers_in_groups(self) -> int:
        """Layers of all groups that are trained, each as often as a group has it; by default one per hookpoint."""
        return self.num_hookpoints if self.ordered_layers is None else self.ordered_layers

    @property
    def sae_bytes(self) -> int:
        """Bytes of one SAE's weights, float32: (2 D S + vectors S + D) * 4."""
        width = self.architecture.d_model
        return _FLOAT32 * (2 * width * self.d_sae + self.vectors * self.d_sae + width)

    @property
    def learned_bytes(self) -> int:
        """Bytes of all that is learned: every SAE's weights, and the layers' own biases."""
        return self.num_saes * self.sae_bytes + _FLOAT32 * self.biases * self.d_sae

    @property
    def pre_activation_bytes(self) -> int:
        """Bytes of pre-activations: a tile of one SAE's or, where steps may be dense, all of them several times."""
        whole = self.batch_tokens * self.d_sae * _FLOAT32
        most = TILE_BYTES_ON_DEVICE if self.on_device else TILE_BYTES
        tile = min(whole, max(most, self.d_sae * _FLOAT32))
        return max(tile, DENSE_TENSORS * whole) if self.dense_start else tile


@dataclass(frozen=True)
class Memory:
    """Predicted peak bytes, by what they are for; `device`, `host` and `disk` are their sums."""

    lm_weights: int
    lm_activations: int
    buffer: int
    batch: int
    sae_weights: int
    adam_moments: int
    gradients: int
    pre_activations: int
    text: int
    process: int
    disk: int
    on_device: bool

    @property
    def working(self) -> int:
        """Bytes of all tensors: what stays, and what the two phases, reading and stepping, take for the moment.

        On a device the larger of the two counts, since its allocator gives one the memory of the other. On a CPU
        their sum does: what one has freed lies in pieces that the other does not fit into (measured).
        """
        stays = self.lm_weights + self.sae_weights + self.adam_moments + self.buffer
        reading = self.lm_activations
        stepping = self.batch + self.gradients + self.pre_activations
        return stays + (max(reading, stepping) if self.on_device else reading + stepping)

    @property
    def device(self) -> int:
        """Peak bytes on the accelerator; 0 without one."""
        return self.working if self.on_device else 0

    @property
    def host(self) -> int:
        """Peak bytes in main memory: with an accelerator, what is copied there while loading and saving."""
        copied = max(self.lm_weights, 3 * self.gradients)
        return self.process + self.text + (copied if self.on_device else self.working)


@dataclass(frozen=True)
class Available:
    """Free bytes; None is not checked."""

    device: int | None = None
    host: int | None = None
    disk: int | None = None


def predict_memory(run: Footprint) -> Memory:
    """The predicted peak of a run, in bytes. p = `bytes_per_number`, P = bytes of one SAE with its layers' biases.

    - language model: weights p each; per token of a batch of rows 4 D + 2 I numbers inside a block,
      and `READ_COPIES` times L D numbers of what is read
    - buffer: `buffer_tokens` (at least a row) * slots * D * p, and 16 bytes per token and layer of a group for the
      order in which its layers come, of this block and the one before
    - batch: `batch_tokens` * D * p, four times one group's activations in float32, `ENTRY_BYTES` per active latent
    - text: the rows, in memory as on disk
    - per SAE weights P and Adam's moments 2 P; gradients P of one SAE at a time; pre-activations
      a tile of one SAE at a time, or `DENSE_TENSORS` times all of a batch where early steps may be dense
    - disk: the checkpoints that are kept and the next one (3 P per SAE each), the SAEs (P), and stored tokens
    """
    model, size = run.architecture, run.bytes_per_number
    row_tokens = run.batch_rows * run.context_length
    read_D = run.num_hookpoints * model.d_model
    tokens_buffered = max(run.buffer_tokens, run.context_length)
    token_bytes = 2 if model.vocab_size <= 2**16 else 4
    return Memory(
        lm_weights=model.parameter_bytes(size),
        lm_activations=row_tokens * size * (4 * model.d_model + 2 * model.intermediate_size + READ_COPIES * read_D),
        buffer=tokens_buffered * (run.slots * model.d_model * size + 16 * run.layers_in_groups),
        batch=run.batch_tokens * (model.d_model * (size + 4 * _FLOAT32) + ENTRY_BYTES * run.k),
        text=run.stored_tokens * token_bytes,
        sae_weights=run.learned_bytes,
        adam_moments=2 * run.learned_bytes,
        gradients=run.sae_bytes + _FLOAT32 * run.biases * run.d_sae,
        pre_activations=run.pre_activation_bytes,
        process=PROCESS_BYTES,
        disk=(3 * (run.checkpoints + 1) + 1) * run.learned_bytes + run.stored_tokens * token_bytes,
        on_device=run.on_device,
    )


def require_fits(run: Footprint, available: Available) -> Memory:
    """The predicted memory, if it fits; otherwise FitError says what is short and what to lower to what.

    The proposal halves one value, or if none alone is enough several in turn, until the run fits:
    buffer_tokens, batch_rows, batch_tokens, the number of SAEs trained together, d_sae.
    """
    memory = predict_memory(run)
    short = _short(memory, available)
    if not short:
        return memory
    proposal = _proposal(run, available)
    advice = f"Lower {proposal}." if proposal else "No setting makes it fit; use a smaller model or a larger machine."
    raise FitError(f"The run does not fit: {'; '.join(short)}. {advice}")


def _short(memory: Memory, available: Available) -> list[str]:
    lines = []
    for name, word in (("device", "device memory"), ("host", "main memory"), ("disk", "disk space")):
        free, needed = getattr(available, name), getattr(memory, name)
        if free is not None and needed > free:
            lines.append(f"it needs {_readable(needed)} of {word}, {_readable(free)} are free")
    return lines


_KNOBS: dict[str, tuple[str, Callable[[Footprint], int]]] = {
    "buffer_tokens": ("activations.buffer_tokens", lambda run: run.batch_tokens),
    "batch_rows": ("activations.batch_rows", lambda run: 1),
    "batch_tokens": ("train.batch_tokens", lambda run: 256),
    "num_saes": ("the number of groups", lambda run: 1),
    "d_sae": ("sae.d_sae", lambda run: run.architecture.d_model),
}


def _proposal(run: Footprint, available: Available) -> str:
    for knob in _KNOBS:
        for smaller in _halvings(run, knob):
            if not _short(predict_memory(smaller), available):
                return _describe(run, smaller)
    lowered = run
    for knob in _KNOBS:
        for smaller in _halvings(lowered, knob):
            if not _short(predict_memory(smaller), available):
                return _describe(run, smaller)
            lowered = smaller
    return ""


def _halvings(run: Footprint, knob: str) -> Iterator[Footprint]:
    least, value = _KNOBS[knob][1](run), getattr(run, knob)
    while value > least:
        value = max(least, value // 2)
        yield replace(run, **{knob: value})


def _describe(before: Footprint, after: Footprint) -> str:
    changed = [knob for knob in _KNOBS if getattr(before, knob) != getattr(after, knob)]
    return ", ".join(
        f"{_KNOBS[knob][0]} from {getattr(before, knob):,} to {getattr(after, knob):,}" for knob in changed
    )


def _readable(count: int) -> str:
    """Bytes as people read them: `3.4 GiB`."""
    power = min(4, int(math.log2(max(count, 1)) // 10))
    return f"{count / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
