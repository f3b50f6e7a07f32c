"""The contexts stage: one pass over text, and what it says about every latent of every suite of the run."""

from __future__ import annotations

import shutil

import numpy as np
import torch

from groupsae.activations.source import row_clusters
from groupsae.config import ContextsConfig
from groupsae.evaluation.masks import chosen_rows, nothing_left
from groupsae.evaluation.sites import sites
from groupsae.interpretability.build import ContextBuilder, ContextText, dictionaries_of
from groupsae.interpretability.firings import FiringFiles, write_firings
from groupsae.interpretability.profile import HISTOGRAM_BINS
from groupsae.interpretability.selection import WindowRule
from groupsae.interpretability.store import FOLDER, TEXT_FILE, write_arrays
from groupsae.interpretability.vocabulary import token_texts
from groupsae.progress import bar
from groupsae.recipes.context import RunContext
from groupsae.recipes.eval_inputs import EvalInputs
from groupsae.records import RunDirectory
from groupsae.records.types.contexts import ContextsRecord, DictionaryRecord, VocabularyRecord
from groupsae.records.types.interpretability import InterpretabilityRecord
from groupsae.saes.suite import Suite
from groupsae.storage import digest

FIRINGS_FOLDER = f"{FOLDER}/firings"
LATENTS_FOLDER = f"{FOLDER}/latents"


def contexts(ctx: RunContext) -> list[str]:
    """Read the text, and write the contexts of every latent: `contexts/`.

    Interrupted, it continues from the last chunk of text, or shard of latents, that is on disk. The firings themselves
    are removed once the shards are written. Raises TextError where no text is left.
    """
    run, settings, inputs = ctx.run, ctx.run.config.contexts, EvalInputs(ctx)
    if ctx.overwrite and run.file(FOLDER).exists():
        shutil.rmtree(run.file(FOLDER))
    run.file(InterpretabilityRecord.path).unlink(missing_ok=True)  # scores of other contexts; eval makes them again
    source = inputs.source if settings.text == "held-out" else inputs.reader(ctx.rows)
    rows = np.sort(chosen_rows(source, settings.num_tokens, run.config.seed).numpy())
    key, firings = _key(run), run.file(FIRINGS_FOLDER)
    firings.mkdir(parents=True, exist_ok=True)
    with bar("contexts read", len(rows) * source.row_tokens) as advance:
        write_firings(sites(inputs.suites), source, rows.tolist(), firings, key, advance)
    files = FiringFiles(firings)
    ids_RT, cluster_R = source.rows.ids_RT[rows].astype(np.int32), row_clusters(source, torch.from_numpy(rows))
    text = ContextText(ids_RT, files.kept_RT(), cluster_R)
    if not text.kept_RT.any():
        raise nothing_left()
    written = _write(ctx, inputs.suites, files, text, rows, key)
    shutil.rmtree(firings)
    for path in run.file(LATENTS_FOLDER).rglob("*.safetensors"):
        if path.relative_to(run.path).as_posix() not in written:  # of an interrupted pass under another config
            path.unlink()
    return written


def _write(
    ctx: RunContext, suites: dict[str, Suite], files: FiringFiles, text: ContextText, rows: np.ndarray, key: str
) -> list[str]:
    run, settings = ctx.run, ctx.run.config.contexts
    window = min(settings.window, text.ids_RT.shape[1])
    builder = ContextBuilder(
        dictionaries_of(suites),
        files,
        text,
        ctx.model,
        WindowRule(window, settings.top, settings.quantiles, settings.per_quantile, settings.silent),
        seed=run.config.seed,
        key=key,
        root=run.path,
        folder=LATENTS_FOLDER,
    )
    write_arrays(run.file(TEXT_FILE), {"ids": text.ids_RT, "kept": text.kept_RT.astype(np.uint8), "row": rows})
    with bar("contexts latents", sum(one.d_sae for one in builder.dictionaries), "latents") as advance:
        dictionaries = tuple(builder.write_all(advance))
    VocabularyRecord(tokens=token_texts(ctx.tokenizer, len(builder.embedding_VD))).write(run)
    _record(settings, window, text, builder, dictionaries).write(run)
    shards = [shard.file for one in dictionaries for shard in one.shards]
    return [ContextsRecord.path, VocabularyRecord.path, TEXT_FILE, *shards]


def _record(
    settings: ContextsConfig,
    window: int,
    text: ContextText,
    builder: ContextBuilder,
    dictionaries: tuple[DictionaryRecord, ...],
) -> ContextsRecord:
    return ContextsRecord(
        text=settings.text,
        num_tokens=int(text.kept_RT.sum()),
        num_rows=len(text.ids_RT),
        row_tokens=text.ids_RT.shape[1],
        window=window,
        top=settings.top,
        quantiles=settings.quantiles,
        per_quantile=settings.per_quantile,
        final_norm=builder.unembedding.norm_name if builder.unembedding else None,
        promotes=builder.unembedding is not None,
        histogram_bins=HISTOGRAM_BINS,
        dictionaries=dictionaries,
    )


def _key(run: RunDirectory) -> str:
    """What chunks and shards are made from, as a hash: config, text and SAEs."""
    stages = run.manifest.stages
    made_from = [stages[stage].files_digest for stage in ("tokens", "train")]
    return digest([run.fingerprint("contexts"), *made_from])
