"""What stages of one run share while they are in memory: the model, its tokenizer, its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from groupsae.activations.cache import CachedActivations
from groupsae.activations.harvest import Harvester
from groupsae.activations.positions import OutlierRule
from groupsae.distributed.launch import current_ranks
from groupsae.errors import ConfigError, ModelError, PartitionError
from groupsae.model_structure import find_blocks, find_hookpoints, longest_row, require_causal
from groupsae.models import device_name, has_weights, load_model, load_skeleton, load_tokenizer, pick_device
from groupsae.planning.architecture import Architecture
from groupsae.progress import say
from groupsae.recipes.run_cache import open_cache, read_cache_manifest
from groupsae.records import RunDirectory
from groupsae.records.types.manifest import ModelRecord
from groupsae.records.types.positions import PositionsRecord
from groupsae.text.tokenizing import known_text
from groupsae.text.tokens import TokenRows
from groupsae.training.precision import choose_precision

ROWS_FILE = "tokens/rows.safetensors"
STATS_FILE = "stats.safetensors"


class RunContext:
    """Lazily loads the model, tokenizer and token rows of a run.

    With `overwrite`, existing results are not resumed. With `from_model`, activations are read from the language model
    even where the config names a cache. `dtype` is the precision of the language model instead of the config's.
    """

    def __init__(
        self, run: RunDirectory, overwrite: bool = False, *, from_model: bool = False, dtype: str | None = None
    ) -> None:
        self.run, self.overwrite, self._dtype = run, overwrite, dtype
        self.cached = run.config.activations.cache is not None and not from_model
        """Whether activations are read from a cache."""
        self.ranks = current_ranks()

    @cached_property
    def dtype(self) -> str:
        """The precision of the language model. `auto` is decided once, before the run has any tokens, and recorded."""
        wanted = self._dtype or self.run.config.model.dtype
        if wanted != "auto":
            return wanted
        known = self.run.manifest.model
        if known is not None and known.dtype is not None:
            return known.dtype
        chosen, speedup = choose_precision(pick_device(self.run.config.model.device))
        if speedup is not None:
            say(f"model.dtype = auto: bfloat16 products are {speedup:.2f} times as fast as float32; {chosen} is taken")
        return "bfloat16" if chosen == "bf16" else "float32"

    def for_evaluation(self) -> RunContext:
        """This context, or one that reads in float32 where `auto` took bfloat16 to train on."""
        if self.run.config.model.dtype != "auto" or self.dtype == "float32":
            return self
        self.__dict__.pop("source", None)  # holds the model, which would take memory twice
        self.__dict__.pop("_loaded", None)
        return RunContext(self.run, self.overwrite, from_model=not self.cached, dtype="float32")

    @cached_property
    def _loaded(self) -> tuple[nn.Module, Any]:
        from transformers.utils import logging

        logging.disable_progress_bar()
        settings = self.run.config.model
        say(f"loading model {settings.name} ...")
        if settings.trust_remote_code:
            say(f"WARNING: code that comes with model {settings.name} is run, as --trust-remote-code allows.")
        return load_model(
            settings.name,
            device=settings.device,
            dtype=self.dtype,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            gguf_file=settings.gguf_file,
        )

    @property
    def model(self) -> nn.Module:
        """The language model."""
        return self._loaded[0]

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return load_tokenizer(**self._place) if self.cached else self._loaded[1]

    @property
    def structure(self) -> nn.Module:
        """The modules of the language model; without its weights where activations come from a cache."""
        return self._skeleton if self.cached else self.model

    @cached_property
    def _skeleton(self) -> nn.Module:
        return load_skeleton(**self._place)

    @property
    def _place(self) -> dict[str, Any]:
        settings = self.run.config.model
        return settings.model_dump(include={"name", "revision", "trust_remote_code", "gguf_file"})

    @cached_property
    def hookpoints(self) -> tuple[str, ...]:
        """The hookpoints of this run."""
        return find_hookpoints(self.structure, self.run.config.activations.hookpoints)

    @cached_property
    def rows(self) -> TokenRows:
        """The rows that the tokens stage wrote."""
        self.run.require("tokens")
        return TokenRows.load(self.run.file(ROWS_FILE))

    @cached_property
    def source(self) -> Harvester | CachedActivations:
        """Activations of the training rows, from the language model or from the config's cache."""
        return open_cache(self) if self.cached else self.harvester(self.rows, self.hookpoints)

    def harvester(
        self, rows: TokenRows, hookpoints: Sequence[str], norm_limits: Mapping[str, float] | None = None
    ) -> Harvester:
        """A reader of activations with this run's settings; the only place that builds one for its stages."""
        settings = self.run.config.activations
        return Harvester(
            self.model,
            rows,
            hookpoints,
            batch_rows=settings.batch_rows,
            skip_special=settings.skip_special,
            outliers=OutlierRule(settings.skip_first, settings.max_norm),
            norm_limits=norm_limits or self._known_limits(hookpoints),
            on_nan=settings.on_nan,
        )

    def _known_limits(self, hookpoints: Sequence[str]) -> Mapping[str, float] | None:
        """The limits on norms as the distances stage measured them; None where it has not, and they are measured."""
        if "distances" not in self.run.own_stages or self.run.status("distances") != "done":
            return None
        record = PositionsRecord.find(self.run)
        if record is None or not record.max_norm or not set(hookpoints) <= set(record.median_norm):
            return None
        return {name: record.max_norm * record.median_norm[name] or float("inf") for name in hookpoints}

    def note_positions(self) -> list[str]:
        """Write down which positions are left out, and say it; the file's name. Nothing where all are kept."""
        settings = self.run.config.activations
        if not settings.skip_special:
            return []
        facts = self.source.position_facts
        if facts is None:
            return []
        record = PositionsRecord(
            skip_first=settings.skip_first,
            max_norm=settings.max_norm,
            median_norm=facts.median_norm,
            shares=facts.shares,
            variance_share=facts.variance_share,
            num_positions=facts.num_positions,
        )
        say(record.sentence)
        return [record.write(self.run)]

    @cached_property
    def width(self) -> int:
        """Width of the activations at this run's hookpoints, known before there is any text."""
        if self.cached:
            return read_cache_manifest(self.run.config).d_model
        return Harvester(self.model, TokenRows(np.zeros((1, 2), dtype=np.uint16)), self.hookpoints).d_model

    @cached_property
    def architecture(self) -> Architecture:
        """The model's sizes, counted from its modules; its weights are not needed for that."""
        model = self.structure if self.has_weights else self._skeleton
        counted = Architecture.of(model, list(find_blocks(model)[1]))
        if counted.unpriced:
            say(f"plan: the FLOPs of the language model leave out {'; '.join(counted.unpriced)}")
        return counted

    @cached_property
    def has_weights(self) -> bool:
        """False for a local directory that holds a config.json only, enough to plan with."""
        return has_weights(self.run.config.model.name, self.run.config.model.gguf_file)

    @property
    def on_device(self) -> bool:
        """Whether the model lies on an accelerator."""
        return pick_device(self.run.config.model.device).type != "cpu"

    def require_possible(self) -> None:
        """Raises, before any text is read, what is wrong between the config and the model."""
        method = Path(self.run.config.group.method)
        if method.suffix and not method.is_file():
            raise ConfigError(f"group.method names the file {method}, which is not there.")
        self.require_tasks()
        longest = longest_row(self.structure)
        if longest and self.run.config.text.context_length > longest:
            raise ConfigError(
                f"text.context_length = {self.run.config.text.context_length}, but the model reads at most {longest} "
                "tokens; lower it."
            )
        self._require_different_saes()
        wanted = self.run.config.group.groups
        if wanted and wanted > len(self.hookpoints):
            raise PartitionError(
                f"group.groups = {wanted}, but there are only {len(self.hookpoints)} hookpoints to divide "
                f"({self.hookpoints[0]} ... {self.hookpoints[-1]}); ask for 1 to {len(self.hookpoints)}."
            )

    def _require_different_saes(self) -> None:
        """Raises ConfigError for more active latents than there are, and for two settings of one width and else alike.

        `expansion` and `d_sae` may say the same, which is known only with the model.
        """
        saes = self.run.config.saes
        alike = [sae.model_copy(update={"expansion": 1.0, "d_sae": sae.width(self.width)}) for sae in saes]
        for place, sae in enumerate(alike):
            if sae in alike[:place]:
                raise ConfigError(
                    f"SAE settings {alike.index(sae) + 1} and {place + 1} give the same SAEs: expansion and d_sae come "
                    f"to {sae.d_sae:,} latents in both. Leave one of them out."
                )

    def require_causal(self) -> None:
        """Raises ModelError, before text is read, for a model whose predictions depend on later tokens.

        `groupsae run` ends with losses and circuits, which mean nothing then. With a cache, the eval stage asks: no
        other needs the language model.
        """
        if self.cached:
            return
        ids = self.tokenizer(known_text(self.tokenizer), add_special_tokens=False)["input_ids"]
        length = min(8, self.run.config.text.context_length)
        ids_1T = torch.tensor([(ids * length)[:length]], device=next(self.model.parameters()).device)
        try:
            require_causal(self.model, ids_1T, "Losses and circuits, which the eval stage measures,")
        except ModelError as error:
            raise ModelError(
                f"{error} Nothing was trained. `groupsae tokens RUN`, then distances, group and train, train it one "
                "stage at a time, and `groupsae eval RUN reconstruction similarity` evaluates those two."
            ) from None

    def require_tasks(self) -> None:
        """Raises ConfigError for a file of circuits.tasks that is not there."""
        for task in self.run.config.circuits.files:
            if not task.is_file():
                raise ConfigError(f"circuits.tasks names the file {task}, which is not there.")

    @property
    def _gguf(self) -> Any:
        """What was dequantized, where the weights came from a GGUF file."""
        if self.cached:
            return read_cache_manifest(self.run.config).facts.get("gguf")
        return getattr(self.model.config, "gguf", None)

    def describe(self) -> None:
        """Write what the model is, and what it runs on, into the manifest."""
        parameters = sum(p.numel() for p in self.structure.parameters())
        config = self.structure.config
        model = ModelRecord(
            name=self.run.config.model.name,
            kind=type(self.structure).__name__,
            blocks=len(find_blocks(self.structure)[1]),
            d_model=self.width,
            parameters=parameters,
            dtype=self.dtype,
            hookpoints=self.hookpoints,
            commit=getattr(config, "_commit_hash", None),
            gguf=self._gguf,
        )
        self.run.describe(model, device_name(pick_device(self.run.config.model.device)))
