"""The trained models of the book, from the cache or trained on demand.

    from minimind_core.book.stages import get_stage
    folder = get_stage("sft")          # instantly, or after a few minutes

    python -m minimind_core.book       # train everything the pages need

The cache key includes a digest of the code that trains a model, and the
versions of the libraries that it trains with. An edit to that code retrains
the models, and so does an upgrade; an edit to a comment or a docstring does
not.

If an address is set, stages are fetched from the published book instead, as
`minimind_core.book.published` explains. They are kept apart from those that
were trained here, in the folder ``published`` of the cache, so that a book
that is built here shows what was trained here. As soon as this machine has
begun to train a model itself, it uses its own.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

import minimind_core
from minimind_core.adapters import merge_lora
from minimind_core.book import published
from minimind_core.book.sizes import Size, is_confirmed, require_consent
from minimind_core.cache import cache_folder
from minimind_core.callbacks import Callback, Training
from minimind_core.checkpoint import weights_of
from minimind_core.config import get_preset
from minimind_core.data import parse_data, tokenizer_texts
from minimind_core.errors import ConfigError
from minimind_core.export import export_hf
from minimind_core.recipes import pretrain, sft, train_lora
from minimind_core.run import Record, is_finished
from minimind_core.tokenizer import train_tokenizer

STAGES = ("tokenizer", "pretrain", "sft", "hf", "lora", "merged")
"""In training order; each stage needs the ones before it."""

# Modules that a trained model does not depend on.
BESIDE = {
    "__init__", "__main__", "book", "cache", "calibration", "cli", "cost",
    "system", "talk", "threads", "tracking",
}  # fmt: skip
KEEP = 3

# Libraries that, besides torch, have a part in what a trained model is.
LIBRARIES = ("transformers", "tokenizers", "peft", "safetensors")

SAVE_EVERY = {"pretrain": 200, "sft": 200, "lora": 50}
"""Steps between two checkpoints of a stage, from which it goes on."""

SNAPSHOTS = (20, 60, 150, 300, 600)
"""After these steps of pretraining the weights are kept: see
`get_snapshots`."""


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Return a digest of the code that makes a trained model.

    It ignores comments, docstrings and modules that only display results or
    start training. It includes the data that the code reads, and the
    settings, but no versions of libraries: see `local_digest`.
    """
    root = Path(minimind_core.__file__).parent
    files = [
        file
        for file in sorted((*root.rglob("*.py"), *root.rglob("*.json")))
        if file.relative_to(root).parts[0].removesuffix(".py") not in BESIDE
    ]
    return digest(files, "")


def versions() -> dict[str, str]:
    """Return the version of each library that a model is trained with."""
    found = {"torch": torch.__version__}
    return found | {name: metadata.version(name) for name in LIBRARIES}


def local_digest() -> str:
    """Return a digest of the code, and of the libraries installed here."""
    found = hashlib.sha256(code_digest().encode())
    found.update(json.dumps(versions()).encode())
    return found.hexdigest()[:12]


def digest(files: Iterable[Path], start: str) -> str:
    """Return a digest of the code in files, without comments.

    Parameters
    ----------
    files : iterable of path
        Python files of this package, and data files in JSON.
    start : str
        Further text that the digest depends on.
    """
    root = Path(minimind_core.__file__).parent
    found = hashlib.sha256(start.encode())
    for file in files:
        inside = file.is_relative_to(root)
        name = file.relative_to(root).as_posix() if inside else file.name
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            found.update(f"{name}\n{json.dumps(json.loads(text))}\n".encode())
            continue
        tree = ast.parse(text)
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if (
                isinstance(body, list)
                and body
                and isinstance(body[0], ast.Expr)
                and isinstance(body[0].value, ast.Constant)
            ):
                body[0].value.value = ""
        found.update(f"{name}\n{ast.dump(tree)}\n".encode())
    return found.hexdigest()[:12]


class Shelf(NamedTuple):
    """A place in the cache where the results of one version lie.

    Attributes
    ----------
    base : Path
        The cache, or in it the folder of what was fetched.
    digest : str
        With this the names of the results begin.
    fetched : bool
        Whether what is missing there may be fetched.
    """

    base: Path
    digest: str
    fetched: bool

    def stages(self, suffix: str) -> Path:
        """Return the folder of the stages of one size, data and seed."""
        return self.base / "stages" / f"{self.digest}-{suffix}"

    def fetch(self, name: str, target: Path, progress: bool) -> bool:
        """Fetch an entry into this shelf, if that is what it is for."""
        if not self.fetched:
            return False
        return published.fetch(
            name, target, code_digest(), progress=progress
        )


def find_shelf(
    preset: str = "tiny",
    *,
    data: str = "microworld",
    seed: int = 0,
    train: bool = False,
    progress: bool = True,
) -> Shelf:
    """Return where results are kept: those made here, or those fetched.

    Parameters
    ----------
    preset, data, seed
        As in `get_stage`.
    train : bool
        Fetch nothing, and use nothing that was fetched.
    progress : bool
        Print what is fetched.

    Returns
    -------
    Shelf
        For what is fetched, if an address is set, nothing was trained here
        yet, and the tokenizer, with which everything begins, can be had.
    """
    suffix = _suffix(get_preset(preset).name, str(parse_data(data)), seed)
    own = Shelf(cache_folder(), local_digest(), fetched=False)
    if train or not published.address() or own.stages(suffix).exists():
        return own
    theirs = Shelf(cache_folder() / "published", code_digest(), fetched=True)
    folder = theirs.stages(suffix)
    with locked(folder.parent, f"{folder.name}-{STAGES[0]}"):
        first = folder / STAGES[0]
        name = f"{suffix}/{STAGES[0]}"
        if first.exists():
            return theirs
        if theirs.fetch(name, first, progress):
            _forget_old(folder.parent, folder)
            return theirs
    return own


def get_stage(
    name: str,
    *,
    preset: str = "tiny",
    data: str = "microworld",
    seed: int = 0,
    progress: bool = True,
    train: bool = False,
    confirm: bool = False,
) -> Path:
    """Return the folder of a trained stage, training it if necessary.

    A training that was interrupted, even if its process was killed, goes on
    from its last checkpoint. On a machine that may disappear, the folder of
    the cache has to outlive it: see `book.colab.keep_on_drive`.

    Parameters
    ----------
    name : {"tokenizer", "pretrain", "sft", "hf", "lora", "merged"}
    preset : {"tiny", "t4", "small", "base"}
        The model's size. The larger ones are for a GPU.
    data : str
        ``microworld`` or ``microworld:zh``.
    seed : int
    progress : bool
        Print progress if it has to be trained now, and where it came from
        if it is fetched.
    train : bool
        Fetch nothing from the published book, even if its address is set,
        but train here what was not trained here yet.
    confirm : bool
        Agree to a training of more than ten minutes at a larger size; a
        `Size` whose cost was agreed to does the same.

    Returns
    -------
    Path
        Do not write to this folder.

    Raises
    ------
    ConfigError
        For an unknown stage or preset; with the cost, if a larger size
        would be trained for more than ten minutes and nobody agreed to it.
    """
    if name not in STAGES:
        raise ConfigError(
            f"unknown stage {name!r}; expected one of {', '.join(STAGES)}"
        )
    size = Size(preset, confirm or is_confirmed(preset))
    spec = str(parse_data(data))
    shelf = find_shelf(
        size, data=data, seed=seed, train=train, progress=progress
    )
    suffix = _suffix(size, spec, seed)
    folder = shelf.stages(suffix)
    base, key = folder.parent, folder.name
    fresh = not folder.exists()
    before = None
    wanted = STAGES[: STAGES.index(name) + 1]
    for stage in wanted:
        # If two processes ask at once, the second waits for the first. Who
        # asks for an earlier stage does not wait for the later ones.
        with locked(base, f"{key}-{stage}"):
            out = folder / stage
            # A stage that was trained here is not continued by one that was
            # trained elsewhere.
            may = before is None or published.was_fetched(before)
            if out.exists() or not (
                may and shelf.fetch(f"{suffix}/{stage}", out, progress)
            ):
                require_consent(size, _missing(folder, wanted))
                _make(stage, folder, size, spec, seed, progress)
        before = out
    if fresh:
        _forget_old(base, folder)
    return folder / name


def _missing(folder: Path, stages: Iterable[str]) -> list[str]:
    """Those of the stages that are not complete yet."""
    return [stage for stage in stages if not is_finished(folder / stage)]


def _suffix(size: str, spec: str, seed: int) -> str:
    """What tells apart the models of one version of the code."""
    suffix = f"{spec.replace(':', '-')}-{seed}"
    return suffix if size == "tiny" else f"{suffix}-{size}"


class Snapshots(Callback):
    """Keep a model's weights after some of its steps.

    Parameters
    ----------
    folder : path
        Gets a file ``<step>.safetensors`` for each.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_step_end(self, trainer: Training, record: Record) -> None:
        """Write the weights, if this is one of the steps."""
        if trainer.step not in SNAPSHOTS:
            return
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{trainer.step}.safetensors"
        part = file.with_suffix(".part")
        save_file(weights_of(trainer.model), part)
        part.replace(file)


def get_snapshots(*, progress: bool = True) -> dict[int, Path]:
    """Return files with the weights of the model as it is being pretrained.

    They are those of the model that is trained here: the published book does
    not offer them.

    Parameters
    ----------
    progress : bool
        Print progress if it has to be trained now.

    Returns
    -------
    dict of int to Path
        Step -> a safetensors file with the names of the model's state dict,
        in the order of the steps. The steps are those of `SNAPSHOTS`; after
        the last step of all, the weights are the stage ``pretrain`` itself.
    """
    stage = get_stage("pretrain", progress=progress, train=True)
    folder = stage.parent / "steps"
    files = {step: folder / f"{step}.safetensors" for step in SNAPSHOTS}
    with locked(stage.parent.parent, f"{stage.parent.name}-steps"):
        if not all(file.exists() for file in files.values()):
            # Trained by a version that kept no snapshots: the same again.
            with tempfile.TemporaryDirectory() as again:
                pretrain(
                    Path(again) / "pretrain", progress=progress,
                    tokenizer=stage.parent / "tokenizer",
                    callbacks=[Snapshots(folder)],
                )  # fmt: skip
    return files


@contextlib.contextmanager
def locked(base: Path, key: str) -> Iterator[None]:
    """Hold a file lock, so that only one process at a time makes `key`."""
    from filelock import FileLock

    base.mkdir(parents=True, exist_ok=True)
    with FileLock(base / f"{key}.lock"):
        yield


def _make(
    stage: str,
    folder: Path,
    preset: str,
    data: str,
    seed: int,
    progress: bool,
) -> None:
    out = folder / stage
    trained = stage in ("pretrain", "sft", "lora")
    if is_finished(out) if trained else out.exists():
        return
    if stage == "tokenizer":
        size = get_preset(preset).vocab_size
        train_tokenizer(tokenizer_texts(data), size, out=out)
    elif stage == "pretrain":
        small = preset == "tiny"  # what the pages show
        snapshots = [Snapshots(folder / "steps")] if small else []
        pretrain(
            out, preset=preset, data=data, seed=seed, progress=progress,
            tokenizer=folder / "tokenizer", resume=True,
            save_every=SAVE_EVERY[stage], callbacks=snapshots,
        )  # fmt: skip
    elif stage == "sft":
        sft(
            folder / "pretrain", out, data=data, seed=seed,
            progress=progress, resume=True, save_every=SAVE_EVERY[stage],
        )  # fmt: skip
    elif stage == "hf":
        export_hf(folder / "sft", out)
    elif stage == "lora":
        train_lora(
            folder / "hf", out, data=data, seed=seed, progress=progress,
            resume=True, save_every=SAVE_EVERY[stage],
        )  # fmt: skip
    else:
        merge_lora(folder / "lora", out)


def _forget_old(base: Path, newest: Path) -> None:
    """Remove all stages but those of the last few versions of the code."""
    suffix = newest.name.partition("-")[2]
    folders = [f for f in base.glob(f"*-{suffix}") if f.is_dir()]
    folders.sort(key=lambda f: f.stat().st_mtime)
    for old in folders[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
        for lock in base.glob(f"{old.name}-*.lock"):
            lock.unlink(missing_ok=True)
