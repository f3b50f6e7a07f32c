"""The verb that has a language model explain latents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from groupsae.cli.printing import print_json
from groupsae.cli.target import config_of, directory_of, open_run, split_name
from groupsae.errors import ConfigError
from groupsae.metrics import fixed
from groupsae.records import RunDirectory
from groupsae.units import format_duration

if TYPE_CHECKING:
    from rich.table import Table

    from groupsae.records.types.interpretation import InterpretationRecord, MeanAccuracyRecord

KINDS = {"own": "", "shuffled": "another's", "random": "random"}


@dataclass(frozen=True)
class Options:
    """groupsae interpret: have a language model explain latents, and score how well that predicts where they fire.

    The judge is any server that speaks OpenAI's chat protocol. Its key, if it needs one, is read from the environment
    variable GROUPSAE_JUDGE_KEY.

    Args:
        judge_url: Address of the server up to /chat/completions, such as http://127.0.0.1:8000/v1
        judge_model: The model's name there.
        judge_thinks: The model thinks before it answers: it gets 4,000 tokens more, and no temperature.
        latents: Latents per SAE and layer, drawn at random.
        layers: Only these hookpoints, such as layers.3; all without a name.
        num_tokens: Held-out tokens to take windows from, at most.
        concurrent: Most requests at once.
        timeout: Seconds to wait for one answer.
        retries: How often a request is sent again after a fault that may pass.
        price_in: Dollars per million tokens sent, for the estimate.
        price_out: Dollars per million tokens answered, for the estimate.
        cache: The file of answers, instead of RUN/interpretation/answers.sqlite. Several runs may share one.
        dry_run: Print what would be sent and what it takes; send nothing.
        overwrite: Replace a result of other settings.
        json: Print results as JSON.
        trust_remote_code: Run code that comes with the model. Only for models you trust.
    """

    judge_url: str
    judge_model: str
    judge_thinks: bool = False
    latents: int = 64
    layers: tuple[str, ...] = ()
    num_tokens: int = 1_000_000
    concurrent: int = 8
    timeout: float = 60.0
    retries: int = 4
    price_in: float = 0.0
    price_out: float = 0.0
    cache: Path | None = None
    dry_run: bool = False
    overwrite: bool = False
    json: bool = False
    trust_remote_code: bool = False

    @property
    def out(self) -> None:
        """The run is where its name says."""


def interpret(rest: list[str]) -> None:
    """`groupsae interpret RUN --judge-url URL --judge-model NAME`."""
    import tyro

    name, flags = split_name("interpret", rest)
    options = tyro.cli(Options, prog="groupsae interpret RUN", args=flags, config=(tyro.conf.FlagCreatePairsOff,))
    if min(options.price_in, options.price_out) < 0:
        raise ConfigError("--price-in and --price-out are dollars per million tokens, and cannot be negative.")
    place = directory_of(name)
    RunDirectory.open(place)
    run = open_run(place, config_of(place), options)
    with run.blamed():
        _interpret(run, options)


def _interpret(run: RunDirectory, options: Options) -> None:
    from groupsae.interpretability.judge.cost import Prices
    from groupsae.interpretability.judge.settings import JudgeServer, Sampling
    from groupsae.recipes import interpret as recipe

    server = JudgeServer(
        options.judge_url,
        options.judge_model,
        options.concurrent,
        options.timeout,
        options.retries,
        thinks=options.judge_thinks,
    )
    sampling = Sampling(options.latents, options.num_tokens, seed=run.config.seed, layers=options.layers)
    prices = Prices(options.price_in, options.price_out)
    if options.dry_run:
        found = recipe.estimate(run, server, sampling, prices=prices, cache=options.cache)
        print_json(asdict(found)) if options.json else print(recipe.estimate_sentence(found))
        return
    record = recipe.interpret(run, server, sampling, prices=prices, cache=options.cache, overwrite=options.overwrite)
    if options.json:
        print_json({"run": str(run.path), **record.model_dump(mode="json")})
        return
    from groupsae.cli import tables

    tables.show(_scores(record))
    print("\n".join([*_requests(record), f"explanations: {run.file(record.path)}"]))


def _scores(record: InterpretationRecord) -> Table:
    """Mean balanced accuracy of every suite, over layers and at each, beside its floors."""
    from groupsae.cli import tables

    columns = [f"{method} {title}".strip() for method in ("detection", "fuzzing") for title in KINDS.values()]
    table = tables.titled_table(
        f"balanced accuracy of {record.judge.model}'s verdicts, with 95 % intervals",
        ("suite", "layer", "latents", *columns),
        right=("latents", *columns),
    )
    for suite, layers in record.layers.items():
        table.add_row(suite, "all", *_cells(record.over_layers[suite]), style="bold")
        for layer, means in layers.items():
            table.add_row("", layer, *_cells(means))
    table.caption, table.caption_justify = (
        "another's: with the explanation of another latent of the same SAE and layer. random: with an explanation of "
        "random windows.\nNeither knows the latent; an explanation is worth what it is above them.",
        "left",
    )
    return table


def _cells(means: dict[str, dict[str, MeanAccuracyRecord]]) -> Iterator[str]:
    yield str(max(one.latents for methods in means.values() for one in methods.values()))
    for method in ("detection", "fuzzing"):
        for kind in KINDS:
            one = means[kind][method]
            interval = f" [{fixed(one.interval[0], 2)}, {fixed(one.interval[1], 2)}]" if one.interval else ""
            yield fixed(one.mean, 2) + interval


def _requests(record: InterpretationRecord) -> Iterator[str]:
    """What became of the requests, in sentences."""
    judge = record.judge
    yield (
        f"requests: {judge.requests:,}, of which {judge.cached:,} answered before and {judge.answered:,} now, in "
        f"{format_duration(judge.seconds)}; {judge.prompt_tokens:,} tokens in, {judge.completion_tokens:,} out"
    )
    if judge.unread_explanations or judge.unread_scores:
        yield (
            f"answers that could not be read: {judge.unread_explanations:,} explanations, {judge.unread_scores:,} "
            "scores; their windows are not counted"
        )
    if judge.faults:
        yield "faults on the way: " + _counts(judge.faults)
    for status, message in judge.said.items():
        yield f"{status}: the server said {message!r}"
    if judge.lost:
        yield f"requests without an answer: {_counts(judge.lost)}; the same command asks them again"
    if judge.verdict:
        yield f"the judge was given up: {judge.verdict}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} x {name}" for name, count in counts.items())
