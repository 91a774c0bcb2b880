"""Set up the machine that runs a notebook, such as one on Colab.

    from minimind_core.book.colab import set_up
    set_up()

The first cell of each chapter calls this, after installing this package if
necessary. On a machine that has everything it only prints the device. Colab's
own versions of torch, transformers and ipywidgets are kept.

On Colab, whose machines are empty each time, chapters may fetch trained
models from the published book, if the first cell names its address. What is
trained there is lost with the machine, unless it is kept on Google Drive::

    from minimind_core.book.colab import keep_on_drive
    keep_on_drive()         # before anything is trained
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import textwrap
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from minimind_core.book.published import VARIABLE
from minimind_core.errors import ConfigError
from minimind_core.threads import set_wait_policy

# Modules that the chapters import but the package does not depend on, with
# the names to install them by. Colab has all of them.
NEEDED = {
    "IPython": "ipython",
    "ipywidgets": "ipywidgets",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
}
# The first version that peft works with; it refuses LoRA with older ones.
TORCHAO = (0, 16)


def set_up(book: str = "") -> None:
    """Install missing packages, and print the device and its dtype.

    Parameters
    ----------
    book : str
        Address of the published book. On Colab, trained models are fetched
        from there, unless ``MINIMIND_STAGES`` says otherwise; elsewhere
        nothing is fetched unless that variable is set.

    Raises
    ------
    subprocess.CalledProcessError
        If pip fails; its output is printed.
    """
    set_wait_policy()  # works only as long as torch is not imported
    if missing := _missing():
        print("installing", *missing)
        _pip("install", *missing)
    if on_colab() and _old_torchao():
        _pip("uninstall", "--yes", "torchao")
        print("removed Colab's torchao, which is too old for peft")
    if book and on_colab() and VARIABLE not in os.environ:
        os.environ[VARIABLE] = book
        print(f"Trained models are fetched from {book}, if they fit.")
    from transformers.utils import logging

    logging.disable_progress_bar()  # they remain in a page as static bars
    # peft 0.21 uses a name that transformers 5.23 has deprecated. Readers of
    # a chapter can do nothing about this warning.
    warnings.filterwarnings(
        "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
    )
    print(textwrap.fill(what_there_is(), 78))


def keep_on_drive(
    folder: str = "minimind", mount: str = "/content/drive"
) -> Path:
    """Keep the trained models, and their checkpoints, on Google Drive.

    A training whose machine disappears is then continued from its last
    checkpoint by the same call, on the next machine: `stages.get_stage`
    looks into this folder first. The versions of this package and of torch
    have to be the same, because models of other versions are kept apart.

    Parameters
    ----------
    folder : str
        In the Drive's main folder.
    mount : str
        Where the Drive appears on this machine. Colab asks for permission.

    Returns
    -------
    Path
        The folder, which is the cache from now on.

    Raises
    ------
    ConfigError
        If this is not Colab, or the Drive did not appear.
    """
    try:
        from google.colab import drive
    except ImportError:
        raise ConfigError(
            "Google Drive can be mounted on Colab only; elsewhere, set "
            "MINIMIND_CACHE to a folder that outlives the machine"
        ) from None
    drive.mount(mount)
    home = Path(mount) / "MyDrive"
    if not home.is_dir():
        raise ConfigError(f"{home}: is not there, so Drive is not mounted")
    kept = home / folder
    os.environ["MINIMIND_CACHE"] = str(kept)
    print(f"Trained models and their checkpoints are kept in {kept}.")
    return kept


def on_colab() -> bool:
    """Whether this is one of Colab's machines, which are disposable."""
    return "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


def what_there_is() -> str:
    """Describe the device of this machine and the choice of its dtype.

    Returns
    -------
    str
        Two or three sentences.
    """
    from minimind_core.calibration import choose_precision
    from minimind_core.config import get_preset

    tiny = get_preset("tiny")
    choice = choose_precision(
        model=tiny.model,
        batch_size=tiny.pretrain.batch_size,
        seq_len=tiny.pretrain.seq_len,
        optimizer=tiny.pretrain.optimizer,
    )
    scaler = "with" if choice.needs_scaler else "without"
    said = (
        f"Training here runs on {choice.device!r} in {choice.dtype}, "
        f"{scaler} a gradient scaler: {choice.reason}."
    )
    if choice.device == "cpu":
        said += " There is no GPU, and no chapter needs one."
        if on_colab():
            said += " (Runtime, Change runtime type, T4 GPU adds one.)"
    return said


def _missing() -> list[str]:
    return [
        package
        for module, package in NEEDED.items()
        if importlib.util.find_spec(module) is None
    ]


def _old_torchao() -> bool:
    try:
        numbers = version("torchao").split(".")[:2]
    except PackageNotFoundError:
        return False
    return tuple(map(int, numbers)) < TORCHAO


def _pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--quiet"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        print(done.stdout + done.stderr)
    done.check_returncode()
    importlib.invalidate_caches()
