"""Files that are whole or not there, and errors that say which.

    with atomic_folder("runs/export") as folder:
        write_json(folder / "config.json", {...})
    # only now is there a runs/export
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minimind_core.errors import ConfigError, OutputError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write into an error that says what to do.

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
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    full = full or "No space left" in str(error)
    advice = "free some space" if full else "check the path and your rights"
    return f"{path}: cannot be written ({error}); {advice} and try again"


@contextlib.contextmanager
def atomic_folder(out: str | Path) -> Iterator[Path]:
    """A folder that appears complete, or not at all.

    Parameters
    ----------
    out : path
        Must not exist, unless as an empty folder.

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
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        part = tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent)
    partial = Path(part)
    try:
        with writing(out):
            yield partial
            partial.chmod(0o755)
            flush(partial)
            if out.exists():
                out.rmdir()
            partial.rename(out)
            _flush_entry(out.parent)
    except OutputError as error:
        # Whoever writes a file in it knows the temporary name only.
        told = str(error).replace(str(partial), str(out))
        raise OutputError(told) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_new(out: str | Path) -> None:
    """Refuse to write over a folder that has something in it.

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
    """Bring every file below to the disk before its folder gets a name."""
    for file in folder.rglob("*"):
        _flush_entry(file)
    _flush_entry(folder)


def _flush_entry(path: Path) -> None:
    # A folder cannot be opened for this on Windows; renaming is all it has.
    with contextlib.suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object from a file.

    Raises
    ------
    ConfigError
        Naming the file and the line that is wrong.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error})") from None
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg})"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return values
