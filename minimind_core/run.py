"""The folder a training call fills, and what is read back from it.

    from minimind_core.run import open_folder, read_log
    folder = open_folder("runs/pretrain", resume=True)
    folder.checkpoint                # the newest, or None
    read_log("runs/pretrain")[-1]   # the last line of the log
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from minimind_core.checkpoint import (
    CHECKPOINTS,
    LOG_FILE,
    RUN_FILE,
    checkpoints,
)
from minimind_core.errors import OutputError
from minimind_core.files import read_json, require_new, write_json, writing
from minimind_core.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Record = dict[str, Any]
"""One line of a log."""


@dataclass
class Run:
    """What a training call returns.

    Attributes
    ----------
    model : nn.Module
        The trained model, in evaluation mode.
    tokenizer : PreTrainedTokenizerFast
    history : list of dict
        The lines of ``log.jsonl``.
    path : Path
        The run folder.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerFast
    history: list[Record]
    path: Path

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one logged quantity, ready to plot."""
        return column(self.history, name)


def column(
    history: Sequence[Record], name: str
) -> tuple[list[int], list[float]]:
    """Steps and values of one logged quantity.

    Parameters
    ----------
    history : sequence of dict
    name : str
        For example ``loss`` or ``validation_loss``.

    Returns
    -------
    steps, values : list
        Only the records that have it.
    """
    found = [r for r in history if r.get(name) is not None]
    return [r["step"] for r in found], [r[name] for r in found]


@dataclass(frozen=True)
class RunFolder:
    """A run folder that is about to be filled.

    Attributes
    ----------
    path : Path
    checkpoint : Path or None
        What to go on from.
    finished : bool
        There is nothing left to do.
    note : str
        What a resumed run should be told; empty if nothing.
    """

    path: Path
    checkpoint: Path | None = None
    finished: bool = False
    note: str = ""

    def begin(self) -> None:
        """Make the folder, empty unless there is a checkpoint."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if self.checkpoint is None:
                shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)
                (self.path / LOG_FILE).unlink(missing_ok=True)

    def finish(self, facts: Record) -> None:
        """Write ``minimind.json``: what this run was, and that it ended.

        Parameters
        ----------
        facts : dict
            ``stage``, ``data`` and whatever else should be known later.
        """
        import torch

        write_json(
            self.path / RUN_FILE,
            {
                **facts,
                "finished": True,
                "minimind_core": __version__,
                "torch": torch.__version__,
            },
        )


def open_folder(out: str | Path, *, resume: bool) -> RunFolder:
    """Look at where a run is to go; nothing is written yet.

    Parameters
    ----------
    out : path
    resume : bool
        Go on with what is there. Without, `out` must be new.

    Raises
    ------
    OutputError
        If `out` has something in it that is not to be resumed.
    """
    path = Path(out)
    if not resume:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if (path / CHECKPOINTS).exists() and not is_finished(path):
                raise OutputError(
                    f"{path}: an unfinished run is there; continue it with "
                    "--resume, or remove it first"
                )
        require_new(path)
        return RunFolder(path)
    if is_finished(path):
        return RunFolder(path, finished=True, note=f"{path} is finished")
    saved = checkpoints(path)
    if saved:
        note = f"resuming {path} from {saved[-1].name}"
        return RunFolder(path, checkpoint=saved[-1], note=note)
    known = {LOG_FILE, CHECKPOINTS}
    # With a log in it, it is a run that was killed before its first save, or
    # in its last: whatever else is there was this run's.
    if path.exists() and not (path / LOG_FILE).exists():
        strange = [
            p.name
            for p in path.iterdir()
            if p.name not in known and "token" not in p.name
            and p.suffix != ".jinja" and not p.name.startswith(".")
        ]  # fmt: skip
        if strange:
            raise OutputError(
                f"{path}: not an unfinished run (it holds {strange[0]}); "
                "name another folder"
            )
    return RunFolder(path, note=f"{path}: no checkpoint, starting afresh")


def is_finished(run: str | Path) -> bool:
    """Whether a run folder is complete."""
    path = Path(run) / RUN_FILE
    return path.exists() and bool(read_json(path).get("finished"))


def read_metadata(run: str | Path) -> Record:
    """What ``minimind.json`` says of a run; empty if there is none."""
    path = Path(run) / RUN_FILE
    return read_json(path) if path.exists() else {}


def training_data(metadata: Mapping[str, Any]) -> list[list[str]]:
    """What a model was trained on, in its stages and those before them.

    Parameters
    ----------
    metadata : dict
        Of a run, as `read_metadata` gives it.

    Returns
    -------
    list of list of str
        For each stage what its ``--data`` was.
    """
    found = [
        *metadata.get("trained_on", []),
        metadata.get("data", []),
        metadata.get("skill_data", []),
    ]
    return [names for names in found if names]


def read_log(run: str | Path) -> list[Record]:
    """The records of a run's ``log.jsonl``.

    A last line that a killed process left unfinished is passed over.
    """
    path = Path(run) / LOG_FILE
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records
