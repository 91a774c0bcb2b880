"""Send a run's log to an experiment tracker, live or afterwards.

    python -m minimind_core.tracking runs/pretrain --to tensorboard
    python -m minimind_core.tracking runs/pretrain --to wandb --follow

The training loop writes ``log.jsonl`` and knows nothing about trackers. This
module reads that file in another process, or on another day, so that a
tracker that is down, slow or not installed never stops a training. The
trackers are those of `accelerate`. For a table you need none of them::

    table = pandas.read_json("runs/pretrain/log.jsonl", lines=True)
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from minimind_core.errors import MiniMindError
from minimind_core.run import Record, is_finished, read_log, read_metadata

TRACKERS = ("tensorboard", "wandb", "trackio")


class TrackerError(MiniMindError):
    """A tracker is unknown or not installed, or there is nothing to send."""


class Tracker(Protocol):
    """What `send` calls. Every tracker of `accelerate.tracking` has it."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Take the numbers of one step."""

    def finish(self) -> None:
        """Send or write what is left."""


def numbers(record: Record) -> dict[str, float]:
    """The part of a log record that can be drawn over the steps.

    Parameters
    ----------
    record : dict
        A line of ``log.jsonl``.

    Returns
    -------
    dict of str to float
        All numbers except the step; true and false are 1 and 0. Texts, such
        as samples, are left out.
    """
    return {
        name: float(value)
        for name, value in record.items()
        if name != "step" and isinstance(value, bool | int | float)
    }


def open_tracker(
    name: str, run: str | Path, *, project: str = "minimind"
) -> Tracker:
    """Start one of accelerate's trackers for a run.

    Parameters
    ----------
    name : {"tensorboard", "wandb", "trackio"}
        TensorBoard's files go into the run's folder ``tensorboard``.
    run : path
        Names the run, and gives it its settings once it is finished.
    project : str
        Under which wandb and trackio show the run.

    Raises
    ------
    TrackerError
        If the tracker is unknown or not installed.
    """
    if name not in TRACKERS:
        raise TrackerError(
            f"unknown tracker {name!r}; there is {', '.join(TRACKERS)}"
        )
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    run = Path(run).resolve()
    options: dict[str, Any] = {"run_name": project, "name": run.name}
    if name == "tensorboard":
        options = {"run_name": name, "logging_dir": run}
    elif metadata := read_metadata(run):
        options["config"] = metadata
    PartialState()  # accelerate's own messages need it
    try:
        tracker = LOGGER_TYPE_TO_CLASS[name](**options)
        tracker.start()
    except ImportError as error:
        raise TrackerError(
            f"the tracker {name} is not installed ({error}): "
            f"pip install {name}"
        ) from error
    return tracker


def send(
    run: str | Path,
    tracker: Tracker,
    *,
    follow: bool = False,
    every: float = 2.0,
    patience: float = 600.0,
) -> int:
    """Send a run's log, each step once.

    Parameters
    ----------
    run : path
        Its log need not exist yet if it is followed.
    tracker : Tracker
        From `open_tracker`, or an object of your own. It is finished
        afterwards, whatever happens.
    follow : bool
        Go on until the run is finished. A run that is resumed repeats the
        steps after its checkpoint; they are not sent again.
    every : float
        Seconds between two looks at the log.
    patience : float
        Seconds without anything new after which the run counts as dead.

    Returns
    -------
    int
        How many records were sent.

    Raises
    ------
    TrackerError
        If there was nothing to send.
    """
    run = Path(run)
    sent, last, heard = 0, 0, time.monotonic()
    try:
        while True:
            # Asked first, so that no record comes after the last look.
            finished = is_finished(run)
            for record in read_log(run):
                if record["step"] > last:
                    last = record["step"]
                    tracker.log(numbers(record), last)
                    sent, heard = sent + 1, time.monotonic()
            quiet = time.monotonic() - heard
            if finished or not follow or quiet > patience:
                break
            time.sleep(every)
    finally:
        tracker.finish()
    if not sent:
        raise TrackerError(f"{run}: no log of a run is there")
    return sent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 2 is for what cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m minimind_core.tracking",
        description="Send a run's log to a tracker.",
    )
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--to", required=True, choices=TRACKERS)
    parser.add_argument("--project", default="minimind", metavar="NAME")
    parser.add_argument(
        "--follow", action="store_true", help="until the run is finished"
    )
    options = parser.parse_args(arguments)
    try:
        # Before a tracker writes or sends anything of its own.
        if not options.follow and not read_log(options.run):
            raise TrackerError(f"{options.run}: no log of a run is there")
        tracker = open_tracker(
            options.to, options.run, project=options.project
        )
        sent = send(options.run, tracker, follow=options.follow)
    except MiniMindError as error:
        print(f"tracking: {error}", file=sys.stderr)
        return 2
    print(f"sent {sent} records of {options.run} to {options.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
