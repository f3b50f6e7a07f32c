"""The interpret verb: a judge explains latents of every suite of a run, and its explanations are scored."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from groupsae.errors import ConfigError, Interrupted, RunError, unknown
from groupsae.interpretability.judge.cache import AnswerCache
from groupsae.interpretability.judge.client import Judge
from groupsae.interpretability.judge.cost import CostEstimate, Prices, estimate_cost
from groupsae.interpretability.judge.gather import gather_windows
from groupsae.interpretability.judge.results import interpretation_record
from groupsae.interpretability.judge.rounds import Unread, explain, questions, score, shuffle
from groupsae.interpretability.judge.sampling import Gathered
from groupsae.interpretability.judge.settings import KEY_VARIABLE, JudgeServer, Sampling
from groupsae.interrupt import noted
from groupsae.partition import Partition
from groupsae.progress import bar, say
from groupsae.recipes.context import RunContext
from groupsae.recipes.eval_inputs import EvalInputs, eval_inputs
from groupsae.recipes.run import alone
from groupsae.records import RunDirectory
from groupsae.records.types.interpretation import InterpretationRecord
from groupsae.saes.suite import read_suite_index
from groupsae.storage import digest
from groupsae.units import format_duration

FILE = InterpretationRecord.path
CACHE_FILE = "interpretation/answers.sqlite"


def interpret(
    run: RunDirectory,
    server: JudgeServer,
    sampling: Sampling,
    *,
    prices: Prices = Prices(),  # noqa: B008 - frozen
    cache: Path | None = None,
    overwrite: bool = False,
) -> InterpretationRecord:
    """Explain and score latents of every suite: `eval/interpretation.json`.

    Answers are kept in `cache`, or `interpretation/answers.sqlite` of the run, and none is asked for twice. A result
    with requests that had no answer is completed; a complete one is left as it is. Raises RunError, before anything is
    read, for a run that is not trained, or a result of other settings unless it is to be replaced.
    """
    _require_possible(run, sampling)
    before = _result_so_far(run, server, sampling, overwrite)
    if before and before.complete:
        say(f"interpret: done already (--overwrite makes it again, with the answers in {CACHE_FILE})")
        return before
    with alone(run), AnswerCache(cache or run.file(CACHE_FILE)) as answers:
        inputs = eval_inputs(RunContext(run, overwrite))
        began = time.perf_counter()
        gathered = _gather(inputs, sampling)
        say(estimate_sentence(estimate_cost(server, gathered.latents, sampling, answers, prices)))
        _warn_of_key(server)
        record = _judge(inputs, server, sampling, gathered, answers)
        record.write(run)
        seconds = time.perf_counter() - began
        run.finish("eval", seconds, [FILE], part=FILE, beside=_settings_digest(server, sampling))
    return record


def estimate(
    run: RunDirectory,
    server: JudgeServer,
    sampling: Sampling,
    *,
    prices: Prices = Prices(),  # noqa: B008 - frozen
    cache: Path | None = None,
) -> CostEstimate:
    """What `interpret` would send and what that takes. Nothing is sent; windows are read, which runs the model."""
    _require_possible(run, sampling)
    with alone(run), AnswerCache(cache or run.file(CACHE_FILE)) as answers:
        gathered = _gather(eval_inputs(RunContext(run)), sampling)
        return estimate_cost(server, gathered.latents, sampling, answers, prices)


def _result_so_far(
    run: RunDirectory, server: JudgeServer, sampling: Sampling, overwrite: bool
) -> InterpretationRecord | None:
    status = run.status("eval", FILE, beside=_settings_digest(server, sampling))
    if overwrite or status == "missing":
        return None
    if status == "stale":
        raise RunError(
            f"{run.path} holds {FILE}, made by another judge, with other settings, or from older results. Give "
            "--overwrite to replace it; answers that were paid for are kept and used again where they fit."
        )
    return InterpretationRecord.read(run)


def _settings_digest(server: JudgeServer, sampling: Sampling) -> str:
    return digest({"model": server.model, "thinks": server.thinks, **asdict(sampling)})


def _gather(inputs: EvalInputs, sampling: Sampling) -> Gathered:
    source, rows = inputs.source, inputs.ctx.rows.held_out
    tokens = min(source.num_rows, -(-sampling.num_tokens // source.row_tokens)) * source.row_tokens
    with bar("windows, two passes", 2 * tokens) as advance:
        gathered = gather_windows(inputs.suites, source, rows.ids_RT, inputs.ctx.tokenizer, sampling, progress=advance)
    _say_missing(inputs, sampling, gathered)
    return gathered


def _say_missing(inputs: EvalInputs, sampling: Sampling, gathered: Gathered) -> None:
    for name, suite in inputs.suites.items():
        found = [one.hookpoint for one in gathered.latents if one.suite == name]
        short = {layer: found.count(layer) for layer in _layers(suite.partition, sampling)}
        short = {layer: count for layer, count in short.items() if count < sampling.latents}
        if short:
            say(
                f"{name}: fewer than {sampling.latents} latents fire in {sampling.scored} windows of each half of "
                f"{gathered.num_tokens:,} tokens: {', '.join(f'{layer} {count}' for layer, count in short.items())}"
            )


def estimate_sentence(found: CostEstimate) -> str:
    """An estimate in words."""
    cost = "" if found.dollars is None else f", {found.dollars:,.2f} dollars"
    rate = "as fast as the answers in the cache" if found.seconds_measured else "at 2 s a request, which is a guess"
    return (
        f"judge: {found.requests:,} requests to send ({found.explanations:,} explanations, {found.scores:,} scores), "
        f"{found.cached:,} answered already; about {found.prompt_tokens:,} tokens in and {found.completion_tokens:,} "
        f"out{cost}, {format_duration(found.seconds)} {rate}"
    )


def _warn_of_key(server: JudgeServer) -> None:
    if server.key and not server.is_local and server.url.startswith("http://"):
        say(f"WARNING: the key in {KEY_VARIABLE} is sent to {server.url} without encryption.")


def _judge(
    inputs: EvalInputs, server: JudgeServer, sampling: Sampling, gathered: Gathered, answers: AnswerCache
) -> InterpretationRecord:
    latents, unread = gathered.latents, Unread()
    with noted("waiting for the answers under way; nothing more is sent.") as stopped:
        judge = Judge(server, answers, stopped=stopped)
        with bar("explanations", 2 * len(latents), "requests") as advance:
            found = shuffle(latents, explain(judge, latents, unread, advance), sampling.seed)
        asked = list(questions(latents, found, sampling.shown, sampling.seed))
        with bar("scores", len(asked), "requests") as advance:
            counts = score(judge, latents, asked, unread, advance)
        _require_not_stopped(stopped, answers)
    layers = {name: _layers(suite.partition, sampling) for name, suite in inputs.suites.items()}
    return interpretation_record(server, sampling, gathered, found, counts, judge.tally, unread, layers)


def _layers(partition: Partition, sampling: Sampling) -> tuple[str, ...]:
    """The layers of a suite whose latents are judged."""
    return tuple(name for name in partition.hookpoints if name in (sampling.layers or partition.hookpoints))


def _require_possible(run: RunDirectory, sampling: Sampling) -> None:
    """Raises RunError for a run that is not trained, ConfigError for a layer that it does not have."""
    run.require(*run.before("eval"))
    known = dict.fromkeys(name for one in read_suite_index(run.path).values() for name in one.hookpoints)
    for name in sampling.layers:
        if name not in known:
            raise ConfigError(unknown("layer", name, known))


def _require_not_stopped(stopped: Callable[[], int], answers: AnswerCache) -> None:
    if stopped():
        raise Interrupted(
            stopped(),
            f"Interrupted. {len(answers):,} answers are in {answers.path}; the same command goes on from them.",
        )
