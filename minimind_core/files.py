"""Atomic writing of files and folders.

    with atomic_folder("runs/export") as folder:
        write_json(folder / "config.json", {...})
    # only now is there a runs/export

Data is written under a temporary name beside its target, flushed to the disk,
and then renamed. So neither a killed process nor a power cut leaves half a
file under the final name. Linux, macOS and Windows need different system
calls for this, and all of them are in this module.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from minimind_core.errors import ConfigError, OutputError

try:
    import fcntl
except ImportError:  # needs Windows
    fcntl = None  # type: ignore[assignment]

WINDOWS = os.name == "nt"
PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds between two tries on Windows, where a virus scanner or an indexer
may hold a new file open for a moment, and nobody can rename it meanwhile."""

NO_FLUSH = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP)
"""Error codes of file systems that cannot flush a folder."""

T = TypeVar("T")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write into an error that says what to do.

    Parameters
    ----------
    path : Path
        What is being written; the error names it.

    Raises
    ------
    OutputError
        For a full disk, a missing permission and the like.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OutputError(_why_not_written(path, error)) from error
    except RuntimeError as error:
        # torch.save reports a short write as a RuntimeError of its own.
        if "PytorchStreamWriter" not in str(error):
            raise
        raise OutputError(_why_not_written(path, error)) from error


def _why_not_written(path: Path, error: Exception) -> str:
    # Safetensors and torch report the system's message, but not its number.
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full or any(
        text in str(error) for text in ("No space left", "not enough space")
    ):
        advice = "free some space"
    elif isinstance(error, PermissionError):
        advice = "check that you may write there"
        if WINDOWS:
            advice += " and that no other program has it open"
    elif isinstance(error, FileNotFoundError):
        advice = "make the folder that is missing"
    else:
        advice = "check the path"
    return f"{path}: cannot be written ({error}); {advice} and try again"


# --- atomic writes ---------------------------------------------------------


@contextlib.contextmanager
def atomic_folder(out: str | Path) -> Iterator[Path]:
    """Create a folder atomically: it appears complete, or not at all.

    Parameters
    ----------
    out : path
        Must not exist, or must be an empty folder.

    Yields
    ------
    Path
        A temporary folder beside `out`; it is moved to `out` at the end, or
        removed if anything fails.

    Raises
    ------
    OutputError
        If `out` exists or cannot be written.
    """
    out = Path(out)
    require_new(out)
    # Not made by tempfile: its folders are private to their owner, on
    # Windows by an access list that a later chmod does not lift.
    partial = out.parent / f".{out.name}.{secrets.token_hex(4)}"
    try:
        with writing(out):
            partial.mkdir(parents=True)
            yield partial
            flush(partial)
            if out.exists():
                out.rmdir()
            move(partial, out)
            _flush_entry(out.parent)
    except OutputError as error:
        # Code that writes into the folder knows the temporary name only.
        message = str(error).replace(str(partial), str(out))
        raise OutputError(message) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Write or replace a file atomically.

    Parameters
    ----------
    path : path
        May exist. Its folder must exist.

    Yields
    ------
    Path
        A temporary name beside `path`, for you to write to.

    Raises
    ------
    OutputError
        If it cannot be written; what was there before is untouched.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with writing(path):
            yield partial
            _flush_entry(partial)
            move(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Rename a file, replacing any other, or a folder to an unused name."""
    _patiently(lambda: os.replace(source, target))


def discard(folder: Path) -> None:
    """Remove a folder so that its name never refers to half of it.

    On Windows, a folder stays as it is while another program has one of its
    files open.
    """
    leaving = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(PermissionError):
        move(folder, leaving)
        shutil.rmtree(leaving, ignore_errors=True)


def _patiently(action: Callable[[], T]) -> T:
    for pause in PAUSES if WINDOWS else ():
        try:
            return action()
        except PermissionError:
            time.sleep(pause)
    return action()


def require_new(out: str | Path) -> None:
    """Raise an error if a folder exists and is not empty.

    Raises
    ------
    OutputError
    """
    out = Path(out)
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        raise OutputError(
            f"{out}: already exists; name another folder, or remove it first"
        )


def flush(folder: Path) -> None:
    """Flush every file below a folder to the disk."""
    for file in folder.rglob("*"):
        _flush_entry(file)
    _flush_entry(folder)


def _flush_entry(path: Path) -> None:
    if not path.is_dir():
        # Windows flushes only files that are open for writing and reports
        # EBADF otherwise. Elsewhere any descriptor works, so that read-only
        # files can be flushed too.
        _flush(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    elif not WINDOWS:  # where folders cannot be opened
        try:
            _flush(path, os.O_RDONLY)
        except OSError as error:
            if error.errno not in NO_FLUSH:
                raise


def _flush(path: Path, flags: int) -> None:
    handle = _patiently(lambda: os.open(path, flags))
    try:
        _sync(handle)
    finally:
        os.close(handle)


def _sync(handle: int) -> None:
    # On macOS fsync stops at the drive's cache, which a power cut empties
    # in any order; F_FULLFSYNC goes through it. Saving is rare enough for
    # the tens of milliseconds. Some external and network disks lack it.
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(handle, full)
            return
    os.fsync(handle)


# --- JSON ------------------------------------------------------------------


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, with the same bytes on every system.

    Raises
    ------
    OutputError
    """
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object from a file.

    A byte order mark, which editors on Windows may put first, is skipped.

    Raises
    ------
    ConfigError
        Naming the file and the line that is wrong.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error})") from None
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg})"
        ) from None
    except RecursionError:
        raise ConfigError(f"{path}: JSON nested too deeply") from None
    except (OSError, ValueError) as error:
        # A folder, a missing permission, a number of thousands of digits.
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return values
