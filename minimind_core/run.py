"""The folder that a training run fills, and what is read back from it.

    from minimind_core.run import open_folder, read_log, read_metadata
    folder = open_folder("runs/pretrain", resume=True)
    folder.checkpoint                # the newest, or None
    read_log("runs/pretrain")[-1]    # the last line of the log
    read_metadata("runs/pretrain")["train"]["lr"]

``minimind.json`` describes a run: its stage, its data, and every setting it
was trained with, so that ``minimind pretrain --config`` of that file repeats
it. It is written when training begins and completed when it ends. Paths in it
are relative to the run folder: a run and its data may be moved together, and
may be used from any working directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from minimind_core.checkpoint import (
    CHECKPOINTS,
    LOG_FILE,
    RUN_FILE,
    RUN_FORMAT,
    check_format,
    checkpoints,
)
from minimind_core.data import is_file_name
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
    trained : bool
        False if the run was finished before, so that nothing was trained.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerFast
    history: list[Record]
    path: Path
    trained: bool = True

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
        What to continue from.
    finished : bool
        There is nothing left to do.
    note : str
        What a resumed run should be told; empty if nothing.
    """

    path: Path
    checkpoint: Path | None = None
    finished: bool = False
    note: str = ""

    def begin(self, metadata: Mapping[str, Any]) -> None:
        """Make the folder, and describe the run that will be in it.

        What an earlier attempt has left is removed, unless there is a
        checkpoint to continue from.

        Parameters
        ----------
        metadata : mapping
            See `write_metadata`.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if self.checkpoint is None:
                shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)
                (self.path / LOG_FILE).unlink(missing_ok=True)
        write_metadata(self.path, metadata, finished=False)

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Record that the run has ended."""
        write_metadata(self.path, metadata)


def open_folder(
    out: str | Path, *, resume: bool, steps: int | None = None
) -> RunFolder:
    """Look at where a run is to go; nothing is written yet.

    Parameters
    ----------
    out : path
    resume : bool
        Continue what is there. Without, `out` must be new.
    steps : int, optional
        Of the whole run. A finished run that had fewer is continued from
        its last checkpoint.

    Raises
    ------
    OutputError
        If `out` has something in it that is not to be resumed, or a
        finished run that is to get more steps has no checkpoint.
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
    saved = checkpoints(path)
    if is_finished(path):
        done = read_metadata(path).get("train", {}).get("steps", 0)
        if steps is None or steps <= done:
            note = f"{path} is finished, after {done} steps"
            return RunFolder(path, finished=True, note=note)
        if not saved:
            raise OutputError(
                f"{path}: is finished, and kept no checkpoint to continue "
                f"from; train on from its weights with --from {path} and "
                "another --out"
            )
    if saved:
        note = f"resuming {path} from {saved[-1].name}"
        return RunFolder(path, checkpoint=saved[-1], note=note)
    known = {LOG_FILE, CHECKPOINTS, RUN_FILE}
    # With a log or a description in it, it is a run that was killed before
    # its first save, or in its last: whatever else is there was this run's.
    started = any((path / name).exists() for name in (LOG_FILE, RUN_FILE))
    if path.exists() and not started:
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


# --- the description of a run ----------------------------------------------


def write_metadata(
    folder: str | Path, values: Mapping[str, Any], *, finished: bool = True
) -> None:
    """Write ``minimind.json``: what is in a folder, and how it was made.

    Parameters
    ----------
    folder : path
        An existing folder.
    values : mapping
        ``stage``, ``data`` and whatever else should be known later. The
        paths in ``data``, ``base`` and ``tokenizer`` are written relative
        to `folder`.
    finished : bool
        False while the run is being trained.

    Raises
    ------
    OutputError
    """
    folder = Path(folder)
    write_json(
        folder / RUN_FILE,
        {
            "format": RUN_FORMAT,
            **portable(values, folder),
            "finished": finished,
            "minimind_core": __version__,
            "torch": torch.__version__,
        },
    )


def portable(values: Mapping[str, Any], folder: Path) -> Record:
    """Metadata whose paths are relative to a folder, not to this process."""
    home = folder.resolve()

    def from_here(name: str) -> str:
        target = Path(name).resolve()
        try:
            return Path(os.path.relpath(target, home)).as_posix()
        except ValueError:  # another drive of Windows
            return target.as_posix()

    return _moved(values, from_here)


def read_metadata(run: str | Path) -> Record:
    """What ``minimind.json`` says of a folder.

    Returns
    -------
    dict
        Its paths are absolute, wherever the folder is now. Empty if there
        is no such file: the folder is not one of this package's.

    Raises
    ------
    CheckpointError
        If another version of the package wrote it in another format.
    """
    path = Path(run) / RUN_FILE
    if not path.exists():
        return {}
    values = read_json(path)
    check_format(values, path)
    home = path.parent.resolve()
    return _moved(values, lambda name: os.path.normpath(home / name))


def _moved(values: Mapping[str, Any], move: Callable[[str], str]) -> Record:
    """Metadata with each path in it rewritten."""
    found = dict(values)
    for name in ("base", "tokenizer"):
        if found.get(name):
            found[name] = move(str(found[name]))

    def moved(names: Sequence[str]) -> list[str]:
        return [move(name) if is_file_name(name) else name for name in names]

    if found.get("data"):
        found["data"] = moved(found["data"])
    if found.get("trained_on"):
        found["trained_on"] = [moved(names) for names in found["trained_on"]]
    return found


def is_finished(run: str | Path) -> bool:
    """Whether a run folder is complete."""
    return bool(read_metadata(run).get("finished"))


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
