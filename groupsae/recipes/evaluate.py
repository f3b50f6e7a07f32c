"""The eval stage: every suite of a run on the same held-out tokens."""

from __future__ import annotations

from dataclasses import asdict

from groupsae.evaluation import losses, reconstruction
from groupsae.progress import bar
from groupsae.saes.suite import Suite, read_suite_index
from groupsae.workbench import Workbench


def evaluate(bench: Workbench) -> list[str]:
    """Reconstruction and losses per suite and hookpoint: `eval/`."""
    run, num_tokens, seed = bench.run, bench.run.config.eval.num_tokens, bench.run.config.seed
    held_out = bench.source.held_out()
    suites = {name: Suite.load(run.path, name, device=str(held_out.device)) for name in read_suite_index(run.path)}
    total = min(num_tokens, held_out.rows.ids_RT.size)
    read: list[int] = []
    with bar("eval reconstruction", total) as advance:

        def progress(tokens: int) -> None:
            read.append(tokens)
            advance(tokens)

        found = reconstruction.evaluate_reconstructions(suites, held_out, num_tokens, seed=seed, progress=progress)
    record = {
        "num_tokens": sum(read),
        "units": reconstruction.UNITS,
        "suites": {name: {hookpoint: asdict(r) for hookpoint, r in suite.items()} for name, suite in found.items()},
    }
    run.write_json("eval/reconstruction.json", record)
    with bar("eval losses", total) as advance:
        spliced = losses.evaluate_losses(suites, held_out, num_tokens, seed=seed, progress=advance)
    run.write_json("eval/losses.json", {"units": losses.UNITS, **asdict(spliced)})
    return ["eval/reconstruction.json", "eval/losses.json"]
