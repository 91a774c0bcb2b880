"""Files appear complete or not at all, as each system needs it done.

Windows and macOS are imitated here: their rules are put in place of the
system calls that `minimind_core.files` makes.
"""

from __future__ import annotations

import ast
import errno
import os
import re
from pathlib import Path

import pytest
import torch

from minimind_core import files
from minimind_core.checkpoint import (
    checkpoints,
    load_checkpoint,
    save_checkpoint,
    save_model,
)
from minimind_core.errors import OutputError
from minimind_core.files import (
    atomic_file,
    atomic_folder,
    discard,
    read_json,
    write_json,
)
from minimind_core.loading import load_model

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX's own habits")


class System:
    """The module `os` as `files` sees it, with a record of its calls."""

    def __init__(self):
        self.calls = []
        self.opened = {}  # handle -> path and flags
        self.held = {}  # name of a file -> how often it cannot be renamed

    def __getattr__(self, name):
        return getattr(os, name)

    def open(self, path, flags):
        handle = os.open(path, flags)
        self.opened[handle] = path, flags
        return handle

    def fsync(self, handle):
        self.calls.append(("flush", str(self.opened[handle][0])))
        os.fsync(handle)

    def replace(self, source, target):
        if self.held.get(Path(target).name, 0) > 0:
            self.held[Path(target).name] -= 1
            raise PermissionError(errno.EACCES, "Access is denied")
        self.calls.append(("rename", str(target)))
        os.replace(source, target)


class Windows(System):
    def open(self, path, flags):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return super().open(path, flags)

    def fsync(self, handle):
        # _commit() calls FlushFileBuffers, which needs the right to write.
        if not self.opened[handle][1] & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        super().fsync(handle)

    def replace(self, source, target):
        if os.path.isdir(target):
            raise PermissionError(errno.EACCES, "Access is denied")
        super().replace(source, target)


@pytest.fixture
def windows(monkeypatch):
    system = Windows()
    monkeypatch.setattr(files, "os", system)
    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(files, "PAUSES", (0, 0, 0))
    return system


@pytest.fixture
def linux(monkeypatch):
    system = System()
    monkeypatch.setattr(files, "os", system)
    monkeypatch.setattr(files, "fcntl", None)
    return system


# --- Windows ---------------------------------------------------------------


def test_everything_is_saved_where_only_open_files_are_flushed(
    windows, small_runs, tmp_path, monkeypatch
):
    """A descriptor that is read-only made every save fail with EBADF."""
    # Folders, which cannot be opened there, are not waited for.
    monkeypatch.setattr(files, "PAUSES", ("no pause",))
    empty = tmp_path / "folder"
    empty.mkdir()  # and there is no renaming onto it
    with atomic_folder(empty) as partial:
        write_json(partial / "a.json", {"a": 1})
    assert read_json(empty / "a.json") == {"a": 1}
    write_json(empty / "a.json", {"a": 2})
    assert read_json(empty / "a.json") == {"a": 2}

    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"w": torch.ones(2)}, {}, {})
    assert [p.name for p in checkpoints(tmp_path)] == [
        "step_00000002", "step_00000003",
    ]  # fmt: skip
    load_checkpoint(checkpoints(tmp_path)[-1])

    model, tokenizer = load_model(small_runs / "sft")
    for _ in range(2):
        save_model(model, tokenizer, tmp_path / "model")
    load_model(tmp_path / "model")


def test_a_file_that_is_held_for_a_moment_is_waited_for(windows, tmp_path):
    windows.held = {"a.json": 2, "out": 3}
    with atomic_folder(tmp_path / "out") as partial:
        write_json(partial / "a.json", {})
    assert (tmp_path / "out" / "a.json").exists()


def test_a_file_that_stays_held_is_an_error_and_is_left(windows, tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    windows.held = {"a.json": 99}
    with pytest.raises(OutputError, match=r"a\.json.*no other program"):
        write_json(path, {"new": 1})
    assert windows.held["a.json"] == 99 - 4
    assert read_json(path) == {"old": 1}
    windows.held = {"out": 99}
    with pytest.raises(OutputError, match=r"out: cannot be written"):
        with atomic_folder(tmp_path / "out") as partial:
            (partial / "file").touch()
    assert os.listdir(tmp_path) == ["a.json"]


@posix
def test_elsewhere_nobody_waits_for_a_permission(linux, tmp_path):
    linux.held = {"a.json": 1}
    with pytest.raises(OutputError, match="that you may write there and"):
        write_json(tmp_path / "a.json", {})
    assert linux.held == {"a.json": 0}


def test_an_old_checkpoint_that_is_held_stays_whole(tmp_path, monkeypatch):
    """A process that reads it must not end the training."""
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"w": torch.ones(2)}, {}, {})

    def held(source, target):
        if Path(source).name == "step_00000001":
            raise PermissionError(errno.EACCES, "Access is denied")
        os.replace(source, target)

    monkeypatch.setattr(files, "move", held)
    save_checkpoint(tmp_path, 3, {"w": torch.ones(2)}, {}, {})
    monkeypatch.undo()
    assert [p.name[-1] for p in checkpoints(tmp_path)] == ["1", "2", "3"]
    load_checkpoint(checkpoints(tmp_path)[0])
    save_checkpoint(tmp_path, 4, {"w": torch.ones(2)}, {}, {})
    assert [p.name[-1] for p in checkpoints(tmp_path)] == ["3", "4"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_what_is_thrown_away_loses_its_name_first(tmp_path, monkeypatch):
    """A process that is killed while removing leaves no half checkpoint."""
    folder = tmp_path / "step_1"
    folder.mkdir()
    (folder / "file").touch()

    def killed(path, ignore_errors):
        assert not folder.exists() and (path / "file").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(files.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        discard(folder)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".step_1.")


@pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="a processor's /proc"
)
def test_no_weights_file_stays_mapped(small_runs, tmp_path):
    """Windows neither removes nor replaces a file that is."""

    def mapped(folder):
        return str(folder) in Path("/proc/self/maps").read_text()

    saved = save_checkpoint(tmp_path, 1, {"w": torch.ones(9)}, {}, {})
    weights, _, _ = load_checkpoint(saved)
    assert mapped(saved)  # as long as its tensors live, and so the test sees
    del weights
    assert not mapped(saved)
    model, tokenizer = load_model(small_runs / "sft")
    assert not mapped(small_runs / "sft")
    save_model(model, tokenizer, tmp_path / "model")
    assert not mapped(tmp_path / "model")


# --- Linux and macOS -------------------------------------------------------


@posix
def test_all_is_on_the_disk_before_it_has_its_name(linux, tmp_path):
    with atomic_folder(tmp_path / "out") as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "file").write_text("x")
    renamed = linux.calls.index(("rename", str(tmp_path / "out")))
    before = {path for what, path in linux.calls[:renamed]}
    assert before == {
        str(partial), str(partial / "deep"), str(partial / "deep" / "file"),
    }  # fmt: skip
    # and the name itself, which its parent has
    assert linux.calls[renamed + 1 :] == [("flush", str(tmp_path))]

    linux.calls.clear()
    write_json(tmp_path / "a.json", {})
    assert [what for what, _ in linux.calls[:2]] == ["flush", "rename"]


@posix
def test_a_mac_empties_the_cache_of_the_drive(
    linux, tmp_path, monkeypatch
):
    """There fsync stops at the drive; F_FULLFSYNC does not."""
    full, asked = 51, []

    class Calls:
        F_FULLFSYNC = full

        @staticmethod
        def fcntl(handle, command):
            asked.append(command)
            if len(asked) > 1:  # another disk, which does not have it
                raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(files, "fcntl", Calls)
    write_json(tmp_path / "a.json", {})
    assert asked == [full]
    assert "flush" not in dict(linux.calls)
    write_json(tmp_path / "b.json", {})
    assert asked == [full, full]
    assert "flush" in dict(linux.calls)


@posix
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EACCES, errno.EIO])
def test_a_folder_on_a_network_may_not_be_flushed(
    tmp_path, monkeypatch, code
):
    """Some file systems cannot, which is no failure; a broken disk is."""

    class Network(System):
        def fsync(self, handle):
            if os.path.isdir(self.opened[handle][0]):
                raise OSError(code, os.strerror(code))
            super().fsync(handle)

    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(files, "os", Network())
    if code == errno.EIO:
        with pytest.raises(OutputError, match="Input/output error"):
            with atomic_folder(tmp_path / "out"):
                pass
    else:
        with atomic_folder(tmp_path / "out"):
            pass
    assert (tmp_path / "out").exists() == (code != errno.EIO)


@posix
def test_a_folder_has_the_rights_that_the_user_wants(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "out"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


# --- all -------------------------------------------------------------------


def test_a_file_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        with atomic_file(path) as partial:
            partial.write_text("half")
            _ = 1 / 0
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_json_is_the_same_bytes_on_every_system(tmp_path):
    write_json(tmp_path / "a.json", {"a": "é", "b": [1]})
    assert (tmp_path / "a.json").read_bytes() == (
        '{\n  "a": "é",\n  "b": [\n    1\n  ]\n}\n'.encode()
    )


def test_the_library_names_its_encodings(root):
    """Windows would take the one of the country it is set to."""
    inside = root / "minimind_core"
    read = {"read_text": 0, "write_text": 1, "open": 2, "fdopen": 2}
    for path in sorted(inside.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            text = ast.unparse(node)
            # no text files; gzip opens bytes unless it is told otherwise
            other = r"'[rwa]b'|^os\.|^Image|^opener\.|^gzip\.open\(\w+\)$"
            if name not in read or re.search(other, text):
                continue
            options = {option.arg for option in node.keywords}
            named = options & {"encoding", "errors"}
            assert named or len(node.args) > read[name], f"{path}: {text}"


def test_a_byte_order_mark_is_no_error(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('{"a": "é"}'.encode("utf-8-sig"))
    assert read_json(path) == {"a": "é"}


def test_a_model_is_saved_into_a_folder_that_is_new(small_runs, tmp_path):
    model, tokenizer = load_model(small_runs / "sft")
    save_model(model, tokenizer, tmp_path / "deep" / "new")
    again, _ = load_model(tmp_path / "deep" / "new")
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            model.parameters(), again.parameters(), strict=True
        )
    )


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
        (OSError(errno.ENOSPC, "There is not enough space"), "free some"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "make the folder"),
        (PermissionError(errno.EACCES, "denied"), "that you may write there"),
        (OSError(errno.EIO, "Input/output error"), "check the path"),
    ],
)
def test_a_failed_write_says_what_to_do(tmp_path, error, advice):
    with pytest.raises(OutputError, match=advice):
        with files.writing(tmp_path):
            raise error
