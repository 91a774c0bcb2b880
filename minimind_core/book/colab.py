"""Set up a machine that a notebook was opened on, as on Colab.

    from minimind_core.book.colab import set_up
    set_up()

The first cell of each chapter does this, after it has installed this package
where it is missing. On a machine that has everything it only says what there
is. Colab's own torch, transformers and ipywidgets stay as they are.
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

from minimind_core.threads import set_wait_policy

# What the chapters import and the package itself does not ask for, with the
# name it is installed by. Colab has all of it.
NEEDED = {
    "IPython": "ipython",
    "ipywidgets": "ipywidgets",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
}
# From here on peft works with it; an older one makes it refuse LoRA.
TORCHAO = (0, 16)


def set_up() -> None:
    """Install what is missing, and say which device and dtype there is.

    Raises
    ------
    subprocess.CalledProcessError
        If pip could not install something; what it said is printed.
    """
    set_wait_policy()  # works only as long as torch is not imported
    if missing := _missing():
        print("installing", *missing)
        _pip("install", *missing)
    if on_colab() and _old_torchao():
        _pip("uninstall", "--yes", "torchao")
        print("removed Colab's torchao, which is too old for peft")
    from transformers.utils import logging

    logging.disable_progress_bar()  # they stay in a page as dead bars
    # peft 0.21 asks transformers 5.23 by a name that is to go. It is between
    # these two, and whoever reads a chapter can do nothing about it.
    warnings.filterwarnings(
        "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
    )
    print(textwrap.fill(what_there_is(), 78))


def on_colab() -> bool:
    """Whether this is one of Colab's machines, where nothing is anyone's."""
    return "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


def what_there_is() -> str:
    """The device of this machine, its dtype, and why that one.

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
