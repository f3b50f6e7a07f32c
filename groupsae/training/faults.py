"""What goes wrong in steps: losses or gradients that are not numbers, and losses that jump.

A step whose loss or gradient is NaN or infinite leaves weights, moments and counters as they were.
That is decided on the device, and only what is read at log and save steps is brought to the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from groupsae.partition import Group

SPIKE = 3.0
"""A loss this many times the mean of the interval before is a spike."""


class FaultMonitor:
    """Counts faulty steps and spikes of one group since the last reading, and keeps the first fault."""

    NAMES = ("skipped", "spikes", "largest_loss", "loss", "steps", "level", "fault_step", "fault_tokens")

    def __init__(self, group: Group, device: torch.device) -> None:
        self.group, self.layers_G = group, torch.arange(len(group), device=device)
        self.sums = torch.zeros(len(self.NAMES) + len(group), dtype=torch.float64, device=device)
        """As in NAMES, then whether each hookpoint's activations were at fault in the first faulty step.

        Steps count from 1 here, so that 0 is none; `level` is the mean loss of the interval before.
        """

    def check(self, loss: Tensor, norm: Tensor, z_ND: Tensor, layers_N: Tensor, step: int, tokens: float) -> Tensor:
        """Whether a step's loss and gradient are finite, as one boolean on the device."""
        sound = torch.isfinite(loss) & torch.isfinite(norm)
        skipped, spikes, largest, total, steps, level = self.sums[:6].unbind()
        value = torch.where(sound, loss.detach(), 0).double()
        jumped = (value > SPIKE * level) & (level > 0)
        self.sums[:5] = torch.stack(
            [skipped + ~sound, spikes + jumped, torch.maximum(largest, value), total + value, steps + sound]
        )
        faults_N = ~torch.isfinite(z_ND.detach().sum(1))
        faults_G = (faults_N & (layers_N == self.layers_G[:, None])).any(1)
        # Filled on the device: a tensor made of Python's numbers would be copied there, and waited for.
        where = [self.sums.new_full((1,), number) for number in (step + 1, tokens)]
        fault = torch.cat([*where, faults_G.double()])
        self.sums[6:] = torch.where((self.sums[6] == 0) & ~sound, fault, self.sums[6:])
        return sound

    def read(self) -> dict[str, float]:
        """Skipped steps, spikes and the largest loss since the last reading, which starts anew."""
        found = dict(zip(self.NAMES, self.sums.tolist(), strict=False))
        self.sums[5] = found["loss"] / found["steps"] if found["steps"] else found["level"]
        self.sums[:5] = 0
        return {"skipped": int(found["skipped"]), "spikes": int(found["spikes"]), "largest_loss": found["largest_loss"]}

    @property
    def all_skipped(self) -> bool:
        """Whether no step since the last reading was sound."""
        return bool((self.sums[0] > 0) & (self.sums[4] == 0))

    def first_fault(self) -> str | None:
        """The first faulty step in words: which step, which batch, which hookpoints; None if there was none."""
        step, tokens, *faults_G = self.sums[6:].tolist()
        if not step:
            return None
        at_fault = [name for name, fault in zip(self.group, faults_G, strict=True) if fault]
        cause = f"in the activations of {', '.join(at_fault)}" if at_fault else "in loss or gradient"
        return f"NaN or infinity {cause}, at step {int(step)}, in the batch after token {int(tokens):,}"
