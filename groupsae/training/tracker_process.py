"""The process that holds one tracking library: reads records from stdin, hands them on, says on stdout how that ended.

A library that hangs, asks for a password, prints, or ends the process does so here, and not in the training.

    stdin    a line of JSON with what the run is (`name`, `project`, `folder`, `config`), then one for each record:
             `step` and `values`. The end of the input ends the tracking
    stdout   one line of JSON: `done`, where the records are; or `fault`, why there are none from now on
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Log = Callable[[int, Mapping[str, float]], None]


@contextmanager
def _tensorboard(run: Mapping[str, Any]) -> Iterator[tuple[Log, str]]:
    from torch.utils.tensorboard import SummaryWriter

    folder = str(Path(run["folder"]) / "tensorboard")
    # A resumed run repeats the steps since its checkpoint; those of before are struck out from its first step on.
    writer = SummaryWriter(folder, purge_step=run["first_step"])
    writer.add_text("config", f"```\n{json.dumps(run['config'], indent=1)}\n```")

    def log(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    yield log, f"{folder} (tensorboard --logdir {folder})"
    writer.close()


@contextmanager
def _wandb(run: Mapping[str, Any]) -> Iterator[tuple[Log, str]]:
    import wandb

    folder = Path(run["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    # Without an account it would ask for one.
    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
    settings = wandb.Settings(console="off", silent=True)
    opened = wandb.init(
        project=run["project"],
        name=run["name"],
        group=run["name"],
        dir=str(folder),
        config=dict(run["config"]),
        mode=mode,
        settings=settings,
    )
    place = opened.url or f"{Path(opened.dir).parent} (wandb sync {Path(opened.dir).parent})"
    yield lambda step, values: opened.log(dict(values), step=step), place
    opened.finish()


@contextmanager
def _trackio(run: Mapping[str, Any]) -> Iterator[tuple[Log, str]]:
    import trackio

    # Runs of one name are one run there, and a training from the start is another than the one before it.
    name = f"{run['name']} {time.strftime('%Y-%m-%d %H:%M:%S')}"
    trackio.init(project=run["project"], name=name, config=dict(run["config"]), embed=False)
    yield lambda step, values: trackio.log(dict(values), step=step), f"trackio show --project {run['project']}"
    trackio.finish()


LIBRARIES = {"trackio": _trackio, "wandb": _wandb, "tensorboard": _tensorboard}


def main(name: str) -> None:
    """Track one run with one library, from stdin to its end."""
    lines, answer = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # what the library reads and prints is its own affair
        os.dup2(quiet, descriptor)
    try:
        with LIBRARIES[name](json.loads(lines.readline())) as (log, place):
            for line in lines:
                record = json.loads(line)
                log(record["step"], record["values"])
        said = {"done": place}
    except BaseException as error:  # libraries end the process too
        first_line = (str(error).strip().splitlines() or ["no reason given"])[0]
        said = {"fault": f"{type(error).__name__}: {first_line}"}
    answer.write(json.dumps(said) + "\n")
    answer.flush()


if __name__ == "__main__":
    main(sys.argv[1])
