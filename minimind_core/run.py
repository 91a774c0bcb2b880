"""The folder of a training run: its metadata and its log.

    from minimind_core.run import open_folder, read_log, read_metadata
    folder = open_folder("runs/pretrain", resume=True)
    folder.checkpoint                # the newest, or None
    read_log("runs/pretrain")[-1]    # the last line of the log
    read_metadata("runs/pretrain")["train"]["lr"]

``minimind.json`` describes a run: its stage, its data, and every setting it
was trained with, so that ``minimind pretrain --config`` of that file repeats
it. It is written when training begins and completed when it ends. Paths in it
are relative to the run folder, so that a run and its data can be moved
together and used from any working directory.
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
    file_digests,
)
from minimind_core.data import is_file_name
from minimind_core.errors import CheckpointError, ConfigError, OutputError
from minimind_core.files import read_json, require_new, write_json, writing
from minimind_core.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Record = dict[str, Any]
"""One line of a log."""


@dataclass
class Run:
    """The result of a training stage.

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
        False if the run had already finished, so that nothing was trained.
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
    """A run folder that has been checked and can be written to.

    Attributes
    ----------
    path : Path
    checkpoint : Path or None
        The checkpoint to continue from.
    finished : bool
        Whether the run has already finished.
    note : str
        Message for the user of a resumed run; may be empty.
    """

    path: Path
    checkpoint: Path | None = None
    finished: bool = False
    note: str = ""

    def begin(self, metadata: Mapping[str, Any]) -> None:
        """Create the folder and write the metadata of the run.

        The files of an earlier attempt are removed, unless there is a
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
    """Check the folder of a run, without writing anything yet.

    Parameters
    ----------
    out : path
    resume : bool
        Continue the run in `out`. If false, `out` must be new.
    steps : int, optional
        Steps of the whole run. A finished run with fewer steps is continued
        from its last checkpoint.

    Raises
    ------
    OutputError
        If `out` is not empty and not a run to resume, or if a finished run
        should get more steps but has no checkpoint.
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
    # A folder with a log or metadata is a run that was killed before its
    # first save or during its last, so all of its files belong to the run.
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
    return RunFolder(path, note=f"{path}: no checkpoint, starting over")


# --- metadata --------------------------------------------------------------


def write_metadata(
    folder: str | Path, values: Mapping[str, Any], *, finished: bool = True
) -> None:
    """Write ``minimind.json``, the metadata of a run or model folder.

    Parameters
    ----------
    folder : path
        An existing folder.
    values : mapping
        ``stage``, ``data`` and any other metadata. The paths in ``data``,
        ``base`` and ``tokenizer`` are written relative to `folder`.
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
            # Of an unfinished run there is nothing yet to be sure of.
            "files": file_digests(folder) if finished else {},
            "minimind_core": __version__,
            "torch": torch.__version__,
        },
    )


def portable(values: Mapping[str, Any], folder: Path) -> Record:
    """Return metadata with its paths relative to a folder."""
    home = folder.resolve()

    def from_here(name: str) -> str:
        target = Path(name).resolve()
        try:
            return Path(os.path.relpath(target, home)).as_posix()
        except ValueError:  # another drive on Windows
            return target.as_posix()

    return _moved(values, from_here)


def read_metadata(run: str | Path) -> Record:
    """Read the metadata in a folder's ``minimind.json``.

    Returns
    -------
    dict
        Its paths are absolute, wherever the folder is now. Empty if there
        is no such file, which means that another program made the folder.

    Raises
    ------
    CheckpointError
        If it is damaged, or another version of the package wrote it in
        another format.
    """
    path = Path(run) / RUN_FILE
    if not path.exists():
        return {}
    try:
        values = read_json(path)
        check_metadata(values, path)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    check_format(values, path)
    home = path.parent.resolve()
    return _moved(values, lambda name: os.path.normpath(home / name))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, str) and one and "\0" not in one for one in value
    )


def check_names(values: Mapping[str, Any], where: str | Path) -> None:
    """Check what a file says of the data and the folders of a run.

    Raises
    ------
    ConfigError
        If one of them is no name, or no list of names.
    """
    for name in ("base", "tokenizer", "preset", "stage"):
        value = values.get(name)
        if value is not None and not _are_names([value]):
            raise ConfigError(f"{where}: {name} must be a name")
    data = values.get("data")
    if data and not _are_names([data] if isinstance(data, str) else data):
        raise ConfigError(f"{where}: data must be a list of names")


def check_metadata(values: Mapping[str, Any], where: str | Path) -> None:
    """Check the types in a ``minimind.json``, which may be damaged.

    Raises
    ------
    ConfigError
        Naming what has another type.
    """
    check_names(values, where)
    before = values.get("trained_on") or []
    if not isinstance(before, list) or not all(map(_are_names, before)):
        raise ConfigError(f"{where}: trained_on must be lists of names")
    if not _are_names(values.get("own_code") or []):
        raise ConfigError(f"{where}: own_code must be a list of names")
    for name in ("train", "model", "runtime"):
        if not isinstance(values.get(name), Mapping | None):
            raise ConfigError(f"{where}: {name} must be an object")


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
    """Return the data of a model's training, stage by stage.

    Parameters
    ----------
    metadata : dict
        Metadata of a run, from `read_metadata`.

    Returns
    -------
    list of list of str
        The ``--data`` of each stage, earlier stages included.
    """
    found = [
        *metadata.get("trained_on", []),
        metadata.get("data", []),
    ]
    return [names for names in found if names]


def read_log(run: str | Path) -> list[Record]:
    """Read the records of a run's ``log.jsonl``.

    A line that is damaged is skipped, such as a last one that a killed
    process left incomplete.
    """
    path = Path(run) / LOG_FILE
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line.decode())
            if isinstance(record, dict) and isinstance(
                record.get("step"), int
            ):
                records.append(record)
    return records
