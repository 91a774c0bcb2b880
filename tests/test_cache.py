"""The cache: where it is, and that nothing ever fails because of it."""

import os
import sys
from pathlib import Path

import platformdirs
import pytest

from minimind_core import cache
from minimind_core.cache import cache_folder, recall, remember

KEY = {"processor": "Zen 4", "threads": 2, "shape": (1, 2)}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_folder_is_where_it_is_asked_to_be(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("MINIMIND_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv("MINIMIND_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / "xdg" / "minimind_core"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache_folder() == Path.home() / ".cache/minimind_core"


@pytest.mark.parametrize(
    ("system", "expected"),
    [("macos", "Library/Caches/minimind_core"), ("windows", "minimind_core")],
)
def test_the_folders_that_the_readme_names(
    tmp_path, monkeypatch, system, expected
):
    """Asked of platformdirs' own classes for the other two systems."""
    from importlib import import_module

    module = import_module(f"platformdirs.{system}")
    there = {"macos": "MacOS", "windows": "Windows"}[system]
    base = tmp_path if system == "windows" else Path.home()
    monkeypatch.delenv("MINIMIND_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(
        platformdirs, "PlatformDirs", getattr(module, there)
    )
    if system == "windows":
        monkeypatch.setattr(
            module, "get_win_folder", lambda name: str(tmp_path)
        )
    assert cache_folder() == base / expected


def test_a_value_comes_back(folder):
    assert recall("steps", KEY) is None
    assert remember("steps", KEY, {"float32": 0.23, "bfloat16": 0.27})
    assert recall("steps", KEY) == {"float32": 0.23, "bfloat16": 0.27}
    # The order of the keys does not count; their values do.
    backwards = dict(reversed(KEY.items()))
    assert recall("steps", backwards) == recall("steps", KEY)
    assert recall("steps", {**KEY, "threads": 1}) is None
    assert recall("other", KEY) is None
    assert remember("steps", KEY, {"float32": 1.0})
    assert recall("steps", KEY) == {"float32": 1.0}
    assert len(entries(folder)) == 1, "no partial file is left behind"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"key": {}, "value": {}}', "\xff\xfe"]
)
def test_a_damaged_entry_is_a_missing_one(folder, text):
    assert remember("steps", KEY, {"float32": 0.23})
    (file,) = entries(folder)
    file.write_bytes(text.encode("latin-1"))
    assert recall("steps", KEY) is None
    assert remember("steps", KEY, {"float32": 0.23})
    assert recall("steps", KEY) == {"float32": 0.23}


def test_an_entry_whose_value_is_no_object_is_a_missing_one(folder):
    remember("steps", KEY, {"float32": 0.23})
    (file,) = entries(folder)
    file.write_text(file.read_text().replace('{\n    "float32": 0.23', "3 #"))
    assert recall("steps", KEY) is None
    remember("steps", KEY, {})
    (file,) = entries(folder)
    text = file.read_text()
    assert '"value": {}' in text
    file.write_text(text.replace('"value": {}', '"value": 3'))
    assert recall("steps", KEY) is None


def test_a_folder_that_cannot_be_written_is_no_error(folder):
    # A file where the folder should be: so even for the root user.
    folder.write_text("")
    assert remember("steps", KEY, {"float32": 0.23}) is False
    assert recall("steps", KEY) is None


def test_a_full_disk_leaves_the_old_entry(folder, monkeypatch):
    assert remember("steps", KEY, {"float32": 0.23})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    assert remember("steps", KEY, {"float32": 9.9}) is False
    monkeypatch.undo()
    monkeypatch.setenv("MINIMIND_CACHE", str(folder))
    assert recall("steps", KEY) == {"float32": 0.23}
    assert len(entries(folder)) == 1
    assert cache.recall("steps", KEY) is not None
