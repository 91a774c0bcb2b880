"""The set-up of a machine that is not ours."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
import types
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from conftest import ROOT

from minimind_core import calibration
from minimind_core.book import colab
from minimind_core.cache import cache_folder
from minimind_core.errors import ConfigError
from minimind_core.precision import DeviceFacts, StepTimings


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, ...]]:
    """What pip is asked for, in place of doing it."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(colab, "_pip", lambda *args: asked.append(args))
    return asked


def pretend(monkeypatch, *, missing=(), torchao=None, on_colab=False):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name in missing else real(name, *more),
    )

    def its_version(name: str) -> str:
        if name == "torchao":
            if torchao is None:
                raise PackageNotFoundError(name)
            return torchao
        return version(name)

    monkeypatch.setattr(colab, "version", its_version)
    if on_colab:
        monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    else:
        monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)


def test_where_nothing_is_missing_nothing_is_installed(
    calls, monkeypatch, capsys
):
    pretend(monkeypatch)
    colab.set_up()
    assert calls == []
    said = " ".join(capsys.readouterr().out.split())
    assert colab.what_there_is() in said
    assert calibration.detect_device("auto").name in said


def test_only_what_is_missing_is_installed(calls, monkeypatch):
    pretend(monkeypatch, missing=("PIL", "matplotlib"))
    colab.set_up()
    assert calls == [("install", "matplotlib", "pillow")]
    never = {"torch", "transformers", "peft"}
    assert not never & set(colab.NEEDED.values())


@pytest.mark.parametrize(
    ("torchao", "on_colab", "removed"),
    [
        ("0.10.0", True, True),
        ("0.16.0", True, False),
        (None, True, False),
        ("0.10.0", False, False),  # not ours to remove
    ],
)
def test_the_torchao_that_breaks_peft_is_removed_on_colab(
    calls, monkeypatch, torchao, on_colab, removed
):
    pretend(monkeypatch, torchao=torchao, on_colab=on_colab)
    colab.set_up()
    assert calls == [("uninstall", "--yes", "torchao")] * removed


def test_it_says_what_pip_said(monkeypatch, capsys):
    def fails(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "no such thing")

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(subprocess.CalledProcessError):
        colab._pip("install", "nothing")
    assert "no such thing" in capsys.readouterr().out


T4 = DeviceFacts(
    type="cuda", name="Tesla T4", capability=(7, 5), bf16=False,
    memory_bytes=15 * 2**30,
)  # fmt: skip
CPU = DeviceFacts(
    type="cpu", name="a processor", capability=None, bf16=False,
    memory_bytes=2**33,
)  # fmt: skip

XEON = dataclasses.replace(CPU, name="Xeon without AMX", bf16=True)
SLOW = StepTimings(0.2, 0.25, "8 rows of 128 tokens")


@pytest.mark.parametrize(
    ("facts", "on_colab", "expected", "not_said"),
    [
        (T4, True, ["'cuda'", "float16, with a ", "Tesla T4"], "no GPU"),
        (CPU, True, ["'cpu'", "float32", "no GPU", "runtime type"], "cuda"),
        (CPU, False, ["'cpu'", "no chapter needs one"], "runtime type"),
        (XEON, False, ["in float32", "bfloat16 4 steps/s"], "no measurement"),
    ],
)
def test_it_says_which_device_and_dtype_there_are(
    monkeypatch, tmp_path, facts, on_colab, expected, not_said
):
    pretend(monkeypatch, on_colab=on_colab)
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path))
    monkeypatch.setattr(calibration, "detect_device", lambda _: facts)
    monkeypatch.setattr(calibration, "measure_step", lambda *_, **__: SLOW)
    said = colab.what_there_is()
    assert all(text in said for text in expected), said
    assert not_said not in said


def test_colab_is_known_by_its_own_module(monkeypatch):
    pretend(monkeypatch)
    assert not colab.on_colab()
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    assert colab.on_colab()


BOOK = "https://you.github.io/book"


@pytest.mark.parametrize(
    ("on_colab", "chosen", "expected"),
    [
        (True, None, BOOK),
        (True, "off", "off"),
        (True, "http://localhost:8000", "http://localhost:8000"),
        (False, None, None),
    ],
)
def test_models_are_fetched_on_colab_alone(
    calls, monkeypatch, on_colab, chosen, expected
):
    pretend(monkeypatch, on_colab=on_colab)
    # Set first, so that it is taken back when the test ends.
    monkeypatch.setenv("MINIMIND_STAGES", chosen or "")
    if chosen is None:
        monkeypatch.delenv("MINIMIND_STAGES")
    colab.set_up(BOOK)
    assert os.environ.get("MINIMIND_STAGES") == expected


def test_without_an_address_colab_too_fetches_nothing(calls, monkeypatch):
    pretend(monkeypatch, on_colab=True)
    monkeypatch.delenv("MINIMIND_STAGES")
    colab.set_up()
    assert "MINIMIND_STAGES" not in os.environ


@pytest.fixture
def drive(monkeypatch, tmp_path):
    """A Google Drive to mount: what is asked of it."""
    asked = []
    module = types.ModuleType("google.colab.drive")

    def mount(where):
        asked.append(where)
        (Path(where) / "MyDrive").mkdir(parents=True, exist_ok=True)

    module.mount = mount
    parent = types.ModuleType("google.colab")
    parent.drive = module
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", parent)
    monkeypatch.setitem(sys.modules, "google.colab.drive", module)
    monkeypatch.setenv("MINIMIND_CACHE", "")
    return asked


def test_the_cache_can_be_kept_on_drive(drive, tmp_path, capsys):
    mount = str(tmp_path / "drive")
    kept = colab.keep_on_drive("mine", mount)
    assert drive == [mount]
    assert kept == tmp_path / "drive" / "MyDrive" / "mine"
    assert cache_folder() == kept
    assert str(kept) in capsys.readouterr().out


def test_a_drive_that_did_not_appear_is_said(drive, tmp_path):
    sys.modules["google.colab.drive"].mount = lambda where: None
    with pytest.raises(ConfigError, match="MyDrive: is not there"):
        colab.keep_on_drive(mount=str(tmp_path / "drive"))
    assert os.environ["MINIMIND_CACHE"] == ""


def test_elsewhere_there_is_no_drive_to_mount(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", None)
    with pytest.raises(ConfigError, match="set MINIMIND_CACHE to a folder"):
        colab.keep_on_drive()


@pytest.mark.packaging
def test_a_notebook_opened_alone_sets_itself_up():
    """As `make colab-check` does it, with what is installed here.

    Nothing is downloaded: the package is installed from a copy, an old
    torchao is there and removed, and no other package changes.
    """
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "tools" / "colab_check.py",
            *("--in", "here", "--first", "2", "book/02_tokens.ipynb"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok 02_tokens.ipynb" in done.stdout
    assert "'torchao': ('0.10.0', None)" in done.stdout
