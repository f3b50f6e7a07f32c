"""How each library trains SAEs for every layer: the contenders of `end_to_end.py`, each in a process of its own.

    python bench/contenders.py NAME FOLDER

reads the task, the model and the rows in FOLDER and writes FOLDER/NAME: the suite in our form, and
the seconds of `train()`. They begin when the model is in memory and end when the SAEs are on disk.
Rates are the best of those tried: ours 4e-3, 6e-3 and 1e-2 in 98 steps of 2,048 tokens; sparsify 4e-3 and
1e-2, SAELens 1e-3 and 3e-3 in 195 steps of 1,024.
"""

from __future__ import annotations

import argparse
import json
import time
from abc import ABC, abstractmethod
from pathlib import Path

import results
import torch
from safetensors.torch import load_file
from task import Task, ordered_ids, read_source, require_same, suite_of

from groupsae.config import TrainConfig
from groupsae.grouping.choose import group_layers
from groupsae.grouping.measure import measure_distances
from groupsae.partition import Partition
from groupsae.saes.suite import Suite
from groupsae.training.trainer import train
from groupsae.training.warm_start import WarmStart


class Contender(ABC):
    """A library with the model loaded; `output` is a folder of its own."""

    rate: float | None
    """The optimizer's learning rate; None for the library's own."""

    def __init__(self, task: Task, folder: Path, output: Path) -> None:
        self.task, self.folder, self.output = task, folder, output
        self.source = read_source(task, folder)

    @abstractmethod
    def train(self) -> None:
        """Train and save SAEs for every hookpoint; this is timed."""

    @abstractmethod
    def suite(self) -> Suite:
        """The trained SAEs in our form."""

    def sample(self) -> torch.Tensor:
        """Held-out activations x_LND to compare a converted SAE with its original on."""
        return self.source.held_out().read([0, 1])


class OneSAEPerLayer(Contender):
    """groupsae, the baseline: as many SAEs as layers, from one pass over the model.

    The first encoder is scaled to the first tokens, and the rate rises over a twentieth of the steps.
    """

    rate = 6e-3

    def train(self) -> None:
        self.trained = self.suite_of(self.partition(), self.task.num_tokens)
        self.trained.save(self.output / "own")

    def suite_of(self, partition: Partition, num_tokens: int, start: WarmStart | None = None, **settings: str) -> Suite:
        """A suite on so many tokens per SAE; `settings` are further keys of [train]."""
        task = self.task
        config = TrainConfig(
            num_tokens=num_tokens,
            batch_tokens=task.batch_tokens,
            learning_rate=self.rate,
            scale_tokens=task.scale_tokens,
            rescale_encoder_init=True,
            warmup_share=0.05,
            **settings,
        )
        return train(
            self.source, partition, task.sae, config, seed=task.seed, buffer_tokens=task.buffer_tokens, start=start
        )

    def partition(self) -> Partition:
        """Which layers share an SAE."""
        return Partition.singletons(self.source.hookpoints)

    def suite(self) -> Suite:
        return self.trained


class OneSAEPerGroup(OneSAEPerLayer):
    """groupsae, groups: the fewest whose AMAD is below 0.2; the distances are measured on the clock."""

    def partition(self) -> Partition:
        return group_layers(measure_distances("angular", self.source, self.task.distance_tokens, seed=self.task.seed))


class EveryLayerOfGroups(OneSAEPerGroup):
    """groupsae, groups that see every token at each of their layers: as many tokens per SAE from less text."""

    def train(self) -> None:
        self.trained = self.suite_of(self.partition(), self.task.num_tokens, layers_per_token="all")
        self.trained.save(self.output / "own")


class GroupsThenLayers(OneSAEPerGroup):
    """groupsae, groups on half the tokens, every layer of each; then each layer from its group's SAE on a quarter."""

    def train(self) -> None:
        tokens = self.task.num_tokens
        groups = self.suite_of(self.partition(), tokens // 2, layers_per_token="all")
        layers = Partition.singletons(self.source.hookpoints)
        self.trained = self.suite_of(layers, tokens // 4, start=WarmStart(groups, "group"))
        self.trained.save(self.output / "own")


class SAELens(Contender):
    """SAELens' `MultiSAETrainingRunner` on TopK SAEs.

    Adam with `rate`, decaying over the last fifth as ours does; inputs scaled to a mean norm of sqrt(D),
    folded by the runner at the end; its mixing buffer holds as many tokens as our buffer; special tokens
    left out. Everything else as it comes: decoder rows of norm 0.1, not kept at any norm, AuxK at 1.
    """

    rate = 3e-3

    def __init__(self, task: Task, folder: Path, output: Path) -> None:
        from datasets import Dataset
        from sae_lens.load_model import load_model

        super().__init__(task, folder, output)
        base = type(self.source.model).base_model_prefix
        self.hooks = {hookpoint: f"{base}.{hookpoint}" for hookpoint in self.source.hookpoints}
        options = {"dtype": torch.float32}
        self.model = load_model("AutoModelForCausalLM", str(folder / "model"), "cpu", options, [*self.hooks.values()])
        self.dataset = Dataset.from_dict({"input_ids": ordered_ids(task, self.source.rows).numpy()})
        self.config = self._config()

    def train(self) -> None:
        from sae_lens import MultiSAETrainingRunner

        self.saes = MultiSAETrainingRunner(self.config, self.dataset, self.model).run()

    def _config(self) -> object:
        from sae_lens import MultiSAETrainingRunnerConfig, TopKTrainingSAEConfig
        from sae_lens.config import LoggingConfig

        task, length = self.task, self.source.row_tokens
        sae = {"d_in": self.source.d_model, "d_sae": task.d_sae, "k": task.k}
        return MultiSAETrainingRunnerConfig(
            saes={
                name: TopKTrainingSAEConfig(**sae, normalize_activations="expected_average_only_in")
                for name in self.hooks
            },
            hook_names=self.hooks,
            model_name=str(self.folder / "model"),
            model_class_name="AutoModelForCausalLM",
            context_size=length,
            n_batches_in_buffer=task.buffer_tokens // length,
            training_tokens=task.num_tokens,
            store_batch_size_prompts=task.batch_rows,
            prepend_bos=False,
            seed=task.seed,
            train_batch_size_tokens=task.batch_tokens,
            lr=self.rate,
            lr_decay_steps=task.steps // 5,
            logger=LoggingConfig(log_to_wandb=False),
            checkpoint_path=None,
            output_path=str(self.output / "own"),
            exclude_special_tokens=list(self.source.rows.special_ids),
            n_batches_for_norm_estimate=max(1, task.scale_tokens // task.batch_tokens),
        )

    def suite(self) -> Suite:
        weights = {}
        for name, sae in self.saes.items():
            norms_S = sae.W_dec.norm(dim=1)  # latents are chosen by pre-activation times this norm
            weights[name] = {
                "W_enc": (sae.W_enc * norms_S).T,
                "b_enc": sae.b_enc * norms_S,
                "W_dec": sae.W_dec / norms_S[:, None],
                "b_dec": sae.b_dec,
            }
        suite = suite_of(self.task, weights)
        for (name, sae), x_ND in zip(self.saes.items(), self.sample(), strict=True):
            require_same(suite[name], sae.eval(), x_ND)
        return suite


class SparsifyAdam(Contender):
    """sparsify's `Trainer` with Adam: `rate` is reached after a twentieth of the steps, then falls linearly to zero.

    Its own warm-up of 1,000 steps would be longer than the run. A batch is whole rows (it has no shuffle
    buffer), inputs are not scaled; special tokens left out. The model comes without its head.
    """

    rate = 1e-2
    optimizer = "adam"

    def __init__(self, task: Task, folder: Path, output: Path) -> None:
        from datasets import Dataset
        from transformers import AutoModel

        super().__init__(task, folder, output)
        self.model = AutoModel.from_pretrained(folder / "model", dtype=torch.float32)
        ids_RT = ordered_ids(task, self.source.rows)
        kept = self.source.rows.keep(ids_RT).sum(1).cumsum(0)
        wanted = int((kept < task.num_tokens).sum()) + 1
        self.dataset = Dataset.from_dict({"input_ids": ids_RT[:wanted].numpy()}).with_format("torch")
        self.config = self._config()

    def train(self) -> None:
        from sparsify import Trainer

        Trainer(self.config, self.dataset, self.model).fit()

    def _config(self) -> object:
        from sparsify import SparseCoderConfig, TrainConfig

        task = self.task
        return TrainConfig(
            SparseCoderConfig(num_latents=task.d_sae, k=task.k),
            batch_size=task.batch_tokens // self.source.row_tokens,
            optimizer=self.optimizer,
            lr=self.rate,
            lr_warmup_steps=task.steps // 20,
            exclude_tokens=list(self.source.rows.special_ids),
            hookpoints=list(self.source.hookpoints),
            init_seeds=[task.seed],
            log_to_wandb=False,
            save_dir=str(self.output),
            run_name="own",
        )

    def suite(self) -> Suite:
        from sparsify import SparseCoder

        weights, originals = {}, {}
        for name in self.source.hookpoints:
            tensors = load_file(self.output / "own" / name / "sae.safetensors")
            renamed = {"W_enc": tensors.pop("encoder.weight"), "b_enc": tensors.pop("encoder.bias")}
            weights[name] = tensors | renamed
            originals[name] = SparseCoder.load_from_disk(self.output / "own" / name)
        suite = suite_of(self.task, weights)
        for (name, sae), x_ND in zip(originals.items(), self.sample(), strict=True):
            require_same(suite[name], lambda x_ND, sae=sae: sae(x_ND).sae_out, x_ND)
        return suite


class SparsifyDefault(SparsifyAdam):
    """sparsify's `Trainer` with its default optimizer, schedule-free sign descent, at its own rate."""

    rate = None
    optimizer = "signum"


CONTENDERS: dict[str, type[Contender]] = {
    "groupsae-layers": OneSAEPerLayer,
    "groupsae-groups": OneSAEPerGroup,
    "groupsae-groups-every-layer": EveryLayerOfGroups,
    "groupsae-groups-then-layers": GroupsThenLayers,
    "saelens": SAELens,
    "sparsify-adam": SparsifyAdam,
    "sparsify-default": SparsifyDefault,
}


def main() -> None:
    """Run one contender."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rate", type=float, help="another learning rate than the contender's own")
    options = parser.parse_args()
    task = Task.load(options.folder)
    results.set_conditions(task.threads)
    kind = CONTENDERS[options.name]
    kind.rate = options.rate or kind.rate
    contender = kind(task, options.folder, options.folder / options.name)
    began, worked = time.perf_counter(), time.process_time()
    contender.train()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - worked
    suite = contender.suite()
    suite.save(contender.output / "suite")
    facts = {"seconds": seconds, "cpu_seconds": cpu_seconds, "rate": contender.rate, "saes": len(suite.saes)}
    (contender.output / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
