"""Send a run's log to a tracker, live or afterwards.

    python -m minimind_core.tracking runs/pretrain --to tensorboard
    python -m minimind_core.tracking runs/pretrain --to wandb --follow

    from minimind_core.tracking import open_tracker, send
    send("runs/pretrain", open_tracker("csv", "runs/pretrain"))

The training loop writes ``log.jsonl`` and knows of no tracker. This module
reads that file, from another process or on another day, so a tracker that is
down, slow or missing never stops a training. Tried with tensorboard 2.21,
wandb 0.31 (offline) and trackio 0.43.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from minimind_core.errors import MiniMindError
from minimind_core.files import writing
from minimind_core.run import Record, is_finished, read_log, read_metadata

CSV_FILE = "log.csv"
BOARD = "tensorboard"


class TrackerError(MiniMindError):
    """A tracker is unknown, or not installed."""


class Tracker(Protocol):
    """What a tracker must be able to do."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Take the numbers of one step."""

    def finish(self) -> None:
        """Write what has not been written yet."""


def numbers(record: Record) -> dict[str, float]:
    """What of a log's record can be drawn over steps.

    Parameters
    ----------
    record : dict
        A line of ``log.jsonl``.

    Returns
    -------
    dict of str to float
        All numbers but the step; true and false are 1 and 0. Texts, such as
        samples, are left out.
    """
    return {
        name: float(value)
        for name, value in record.items()
        if name != "step" and isinstance(value, bool | int | float)
    }


# --- the trackers ----------------------------------------------------------


class CsvTracker:
    """A table beside the log, for a spreadsheet; needs nothing installed.

    Parameters
    ----------
    run : Path
    """

    def __init__(self, run: Path) -> None:
        self.path = run / CSV_FILE
        self.rows: list[dict[str, float]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        """Remember one row."""
        self.rows.append({"step": step, **values})

    def finish(self) -> None:
        """Write the table; a column that a row lacks stays empty there."""
        columns = list(dict.fromkeys(k for row in self.rows for k in row))
        partial = self.path.with_name(f".{self.path.name}.partial")
        with writing(self.path):
            with partial.open("w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, columns)
                table.writeheader()
                table.writerows(self.rows)
            partial.replace(self.path)


class TensorBoardTracker:
    """Curves for ``tensorboard --logdir RUNS``.

    Parameters
    ----------
    run : Path
        The curves go into its folder ``tensorboard``.
    """

    def __init__(self, run: Path) -> None:
        _require("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        # Calls of a library that carries no types of its own.
        make: Any = SummaryWriter
        self.writer = make(log_dir=str(run / BOARD))

    def log(self, values: dict[str, float], step: int) -> None:
        """Add one point to each curve."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self) -> None:
        """Close the file."""
        self.writer.close()


class ModuleTracker:
    """Weights & Biases, or a module with the same three calls.

    Parameters
    ----------
    module : {"wandb", "trackio"}
        ``init(project=, name=, config=)`` gives a run with ``log`` and
        ``finish``.
    run : Path
        Gives the run its name, and its settings once it is finished.
    project : str
    """

    def __init__(self, module: str, run: Path, project: str) -> None:
        found = _require(module)
        config = read_metadata(run)
        self.run = found.init(
            project=project, name=run.resolve().name, config=config
        )

    def log(self, values: dict[str, float], step: int) -> None:
        """Send the numbers of one step."""
        self.run.log(values, step=step)

    def finish(self) -> None:
        """End the run, which sends what is left."""
        self.run.finish()


TRACKERS: dict[str, Callable[[Path, str], Tracker]] = {
    "csv": lambda run, project: CsvTracker(run),
    "tensorboard": lambda run, project: TensorBoardTracker(run),
    "wandb": lambda run, project: ModuleTracker("wandb", run, project),
    "trackio": lambda run, project: ModuleTracker("trackio", run, project),
}


def _require(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise TrackerError(
            f"the tracker {module} is not installed ({error}): "
            f"pip install {module}, or use csv, which needs nothing"
        ) from error


def open_tracker(
    name: str, run: str | Path, *, project: str = "minimind"
) -> Tracker:
    """A tracker, ready to take the log of a run.

    Parameters
    ----------
    name : {"csv", "tensorboard", "wandb", "trackio"}
    run : path
        The run folder.
    project : str
        Under which wandb and trackio show it.

    Raises
    ------
    TrackerError
        If it is unknown or not installed.
    """
    if name not in TRACKERS:
        raise TrackerError(
            f"unknown tracker {name!r}; there is {', '.join(TRACKERS)}"
        )
    return TRACKERS[name](Path(run), project)


# --- sending ---------------------------------------------------------------


def send(run: str | Path, tracker: Tracker) -> int:
    """Send the log that is there now.

    Parameters
    ----------
    run : path
    tracker : Tracker
        Finished afterwards.

    Returns
    -------
    int
        How many records were sent.

    Raises
    ------
    TrackerError
        If there is no log.
    """
    return follow(run, tracker, wait=False)


def follow(
    run: str | Path,
    tracker: Tracker,
    *,
    every: float = 2.0,
    patience: float = 600.0,
    wait: bool = True,
) -> int:
    """Send a log while it is written, until the run is finished.

    Parameters
    ----------
    run : path
        Its log need not be there yet.
    tracker : Tracker
        Finished afterwards, whatever happens.
    every : float
        Seconds between two looks.
    patience : float
        Seconds without anything new after which the run counts as dead.
    wait : bool
        Without it, one look is all.

    Returns
    -------
    int
        How many records were sent. A run that was resumed repeats the steps
        after its checkpoint; each step is sent once.

    Raises
    ------
    TrackerError
        If there is no log at the end.
    """
    run = Path(run)
    sent, last, heard = 0, 0, time.monotonic()
    try:
        while True:
            # Looked at first: what was logged before the end is all there.
            finished = is_finished(run)
            for record in read_log(run):
                if record["step"] > last:
                    last = record["step"]
                    tracker.log(numbers(record), last)
                    sent, heard = sent + 1, time.monotonic()
            quiet = time.monotonic() - heard
            if finished or not wait or quiet > patience:
                break
            time.sleep(every)
    finally:
        tracker.finish()
    if not sent:
        raise TrackerError(f"{run}: no log of a run is there")
    return sent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 2 for what cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m minimind_core.tracking",
        description="Send a run's log to a tracker.",
    )
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--to", default="csv", choices=TRACKERS)
    parser.add_argument("--project", default="minimind", metavar="NAME")
    parser.add_argument(
        "--follow", action="store_true", help="until the run is finished"
    )
    options = parser.parse_args(arguments)
    try:
        # Before the tracker makes anything of its own.
        if not options.follow and not read_log(options.run):
            raise TrackerError(f"{options.run}: no log of a run is there")
        tracker = open_tracker(
            options.to, options.run, project=options.project
        )
        sent = follow(options.run, tracker, wait=options.follow)
    except MiniMindError as error:
        print(f"tracking: {error}", file=sys.stderr)
        return 2
    print(f"sent {sent} records of {options.run} to {options.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
