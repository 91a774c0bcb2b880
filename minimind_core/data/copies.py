"""Plain copies of compressed files, tables and published data sets.

    from minimind_core.data.copies import plain_files
    plain_files("stories.jsonl.gz")     # [PlainFile(path=.../x.jsonl, ...)]
    plain_files("hf:roneneldan/TinyStories:train[:100000]")

Training reads records in a random order, which a compressed file or a table
allows only at a great cost. So each is unpacked once into the cache, as text
or as JSON lines, a piece at a time, so that memory does not grow with its
size. A copy is named by the path, size and time of what it was made from, and
is made again if its digest is not what it was. Errors name the original.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import itertools
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock
from tqdm import tqdm

from minimind_core.cache import cache_folder
from minimind_core.data.records import is_jsonl
from minimind_core.errors import DataError
from minimind_core.files import (
    atomic_file,
    read_json,
    write_json,
    writing,
)

HUB = "hf:"
"""What the names of data sets of the Hugging Face hub begin with."""
COMPRESSED = (".gz", ".zst")
READ = (".txt", ".jsonl", ".json", ".ndjson", ".parquet")
"""The formats that are read; the first four also compressed."""
MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"PAR1": ".parquet",
         b"PK\x03\x04": ".zip"}  # fmt: skip
"""The first bytes of formats, which tell more than a name."""
COLUMNS = (
    "text", "conversations", "messages", "tools", "system", "chosen",
    "rejected", "prompt",
)  # fmt: skip
"""The columns of a table that are read; the others are not copied."""

PIECE = 2**16
"""Bytes that are read, or that gzip gives, at a time."""
FRAME_PIECE = 2**10
"""Bytes that Zstandard gets at a time. It gives all that they hold, which is
at most 128 KiB for each four of them, so this bounds the memory."""
ROWS = 256
"""Rows of a table that are converted at a time."""


@dataclass(frozen=True)
class PlainFile:
    """A file whose records can be read from the places where they begin.

    Attributes
    ----------
    path : Path
        The file itself, or the copy in the cache.
    name : str
        What the user called it, for errors.
    unit : {"line", "row"}
        What is counted in errors: the lines of the original, or its rows.
    """

    path: Path
    name: str
    unit: str = "line"

    def at(self, number: int) -> str:
        """Name a place in the original; `number` is counted from 1."""
        return f"{self.name}, {self.unit} {number}"


def is_hub(name: str | Path) -> bool:
    """Whether a name is one of a data set: ``hf:owner/name``."""
    return str(name).startswith(HUB)


def format_of(path: Path) -> str:
    """The format of a file by its first bytes, else by its suffix.

    Returns
    -------
    str
        A suffix in lower case, such as ``.gz`` or ``.txt``.
    """
    with path.open("rb") as file:
        start = file.read(4)
    for magic, suffix in MAGIC.items():
        if start.startswith(magic):
            return suffix
    return path.suffix.lower()


def files_below(folder: Path) -> list[Path]:
    """The data files in a folder and its subfolders, in the order of names.

    Hidden files and folders and files of other formats are ignored.

    Raises
    ------
    DataError
        If there are none.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if any(part.startswith(".") for part in inside):
            continue
        if path.is_file() and _inner_suffix(path) in READ:
            found.append(path)
    if not found:
        raise DataError(
            f"{folder}: a folder without data files; they end in "
            f"{', '.join(READ)}, or in one of these and .gz or .zst"
        )
    return found


def _inner_suffix(path: Path) -> str:
    """The suffix without that of the compression."""
    packed = path.suffix.lower() in COMPRESSED
    return (path.with_suffix("") if packed else path).suffix.lower()


def plain_files(name: str | Path) -> list[PlainFile]:
    """Return the files to read for a path, unpacking what is not plain.

    Parameters
    ----------
    name : path
        A file, a folder, or ``hf:owner/name[/file][:split]``.

    Raises
    ------
    DataError
        If something is missing, damaged or of another format.
    OutputError
        If the cache cannot be written.
    """
    if is_hub(name):
        return [_hub_copy(str(name))]
    path = Path(name)
    if path.is_dir():
        return [one for p in files_below(path) for one in plain_files(p)]
    kind = format_of(path)
    if kind not in (*COMPRESSED, ".parquet"):
        return [PlainFile(path, str(path))]
    identity = [_identity(path)]
    if kind == ".parquet":
        copy = _copy(
            str(path), identity, ".jsonl", lambda: _table(path, str(path))
        )
        return [PlainFile(copy, str(path), "row")]
    suffix = ".jsonl" if is_jsonl(Path(f"x{_inner_suffix(path)}")) else ".txt"
    copy = _copy(
        str(path), identity, suffix, lambda: _unpacked(path, str(path))
    )
    return [PlainFile(copy, str(path))]


def _identity(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


# --- the cache -------------------------------------------------------------


def _copy(
    name: str,
    identity: Sequence[Any],
    suffix: str,
    pieces: Callable[[], Iterable[bytes]],
) -> Path:
    """Return the copy that is named by `identity`; write it if need be."""
    key = hashlib.sha256(json.dumps(list(identity)).encode()).hexdigest()[:16]
    path = cache_folder() / "data" / f"{key}{suffix}"
    if _is_whole(path):
        return path
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes of one training ask for it at the same time.
        lock = FileLock(path.with_suffix(".lock")).acquire()
    with lock:
        if not _is_whole(path):
            _write(name, path, pieces())
    return path


def _note(path: Path) -> Path:
    """The file beside a copy with its size and digest."""
    return path.with_suffix(".json")


def _write(name: str, path: Path, pieces: Iterable[bytes]) -> None:
    digest, size = hashlib.sha256(), 0
    # Shown only in a terminal, and only if it takes a while.
    shown = tqdm(
        desc=f"unpacking {name}", unit="B", unit_scale=True, leave=False,
        delay=1, disable=None, file=sys.stderr,
    )  # fmt: skip
    with shown, atomic_file(path) as partial, partial.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
            shown.update(len(piece))
    write_json(
        _note(path),
        {"name": name, "size": size, "sha256": digest.hexdigest()},
    )


def _is_whole(path: Path) -> bool:
    """Whether a copy is there and is what was written."""
    try:
        status, note = path.stat(), read_json(_note(path))
    except Exception:
        # Whatever is wrong with it, it is made again.
        return False
    same = _digest(path, status.st_size, status.st_mtime_ns)
    return note.get("sha256") == same


@functools.lru_cache(maxsize=64)
def _digest(path: Path, size: int, time: int) -> str:
    """Digest of a file, computed once a process while it is unchanged."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- compressed files and tables -------------------------------------------


def _unpacked(path: Path, name: str) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from _decompressed(file, format_of(path), name)


def _decompressed(
    file: BinaryIO, kind: str, name: str
) -> Iterator[bytes]:
    if kind == ".zst":
        yield from _from_zstandard(file, name)
        return
    try:
        with gzip.open(file) as unpacked:
            while piece := unpacked.read(PIECE):
                yield piece
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(name, error) from None


def _from_zstandard(file: BinaryIO, name: str) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise _not_installed(name, "zstandard") from error
    # Frame by frame, because the library's own stream ends without a word
    # where a file was cut off.
    frame = None
    try:
        while piece := file.read(FRAME_PIECE):
            while piece:
                if frame is None or frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(piece)
                piece = frame.unused_data if frame.eof else b""
    except zstandard.ZstdError as error:
        raise _damaged(name, error) from None
    if frame is None or not frame.eof:
        raise _damaged(name, "it ends too early")


def _damaged(name: str, error: Any) -> DataError:
    return DataError(
        f"{name}: cannot be decompressed ({error}); the file is damaged or "
        "was not downloaded to its end, so fetch it again"
    )


def _not_installed(name: str, package: str) -> DataError:
    return DataError(
        f"{name}: reading it requires the package {package}: pip install "
        f"{package}, or the extra minimind-core[data]"
    )


def _table(file: Path | BinaryIO, name: str) -> Iterator[bytes]:
    """The rows of a parquet file as JSON lines."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise _not_installed(name, "pyarrow") from error
    try:
        # Reading ahead keeps every group of rows in memory to the end.
        table = pyarrow.parquet.ParquetFile(file, pre_buffer=False)
        columns = table.schema_arrow.names
        wanted = [column for column in COLUMNS if column in columns]
        if not wanted:
            raise DataError(
                f"{name}: none of its columns ({', '.join(columns[:9])}) is "
                f"read; rename one to {', '.join(COLUMNS[:3])}, or to chosen "
                "and rejected"
            )
        for batch in table.iter_batches(ROWS, columns=wanted):
            yield b"".join(map(json_line, batch.to_pylist()))
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{name}: cannot be read as parquet ({reason}); the file is "
            "damaged or was not downloaded to its end, so fetch it again"
        ) from None


def json_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line of JSON, without the empty fields of a table."""
    value = without_nulls(record)
    text = json.dumps(value, ensure_ascii=False, default=str)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        # Half of a surrogate pair can only be written as its escape. What
        # reads the record says what is wrong with it.
        return json.dumps(value, default=str).encode() + b"\n"


def without_nulls(value: Any) -> Any:
    """Remove the fields that a row has only because other rows need them."""
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if v is not None}
        return {k: without_nulls(v) for k, v in kept.items()}
    if isinstance(value, list | tuple):
        return [without_nulls(v) for v in value]
    return value


# --- data sets of the hub --------------------------------------------------


def parse_hub(name: str) -> tuple[str, str | None, str, int | None]:
    """Parse the name of a data set.

    Parameters
    ----------
    name : str
        ``hf:owner/name``, ``hf:owner/name:split``, with a file of the data
        set ``hf:owner/name/file.jsonl``, or a local folder of the same
        layout ``hf:./folder:split``. ``split[:1000]`` is the first thousand
        records, as in `datasets`.

    Returns
    -------
    repository : str
        ``owner/name``, or the absolute path of a folder.
    file : str or None
    split : str
        ``train``, if not given.
    limit : int or None
        Maximum number of records.

    Raises
    ------
    DataError
    """
    whole = name.removeprefix(HUB)
    limit = None
    if cut := re.search(r"(:[\w.-]+)\[:(\d+)\]$", whole):
        limit = int(cut[2])
        whole = whole[: cut.end(1)]
    place, colon, split = whole.rpartition(":")
    if not colon or not re.fullmatch(r"[\w.-]+", split):
        place, split = whole, "train"
    path = Path(place).expanduser()
    if place and path.is_dir():
        return str(path.resolve()), None, split, limit
    if path.is_file():
        return str(path.resolve().parent), path.name, split, limit
    parts = place.replace("\\", "/").split("/")  # Windows' paths have these
    local = place.startswith((".", "/", "~", "\\")) or path.is_absolute()
    if local or len(parts) < 2 or not all(parts):
        raise DataError(
            f"{name}: no such folder; write hf:owner/name, hf:owner/name:"
            "split, or hf: and the path of a folder of the same layout"
        )
    return "/".join(parts[:2]), "/".join(parts[2:]) or None, split, limit


def canonical(name: str) -> str:
    """The name of a data set with an absolute path and its split."""
    repository, file, split, limit = parse_hub(name)
    cut = "" if limit is None else f"[:{limit}]"
    place = f"{repository}/{file}" if file else repository
    return f"{HUB}{place}:{split}{cut}"


def _hub_copy(name: str) -> PlainFile:
    repository, file, split, limit = parse_hub(name)
    identity: list[Any] = [repository, file, split, limit]
    if Path(repository).is_dir():
        root = Path(repository)
        chosen = [root / file] if file else sorted(root.rglob("*"))
        identity += [_identity(one) for one in chosen if one.is_file()]
    # Of the hub's data sets only the name is known without asking it. A run
    # must find the records it began with, so the copy is kept until the
    # cache is emptied, even if the data set has changed since.
    records = functools.partial(_stream, name)
    copy = _copy(name, identity, ".jsonl", records)
    return PlainFile(copy, name, "row")


def _stream(name: str) -> Iterator[bytes]:
    """The records of a data set as JSON lines, as they are downloaded."""
    try:
        import fsspec
        from datasets import load_dataset, load_dataset_builder
    except ImportError as error:
        raise _not_installed(name, "datasets") from error
    repository, file, split, limit = parse_hub(name)
    try:
        found = load_dataset_builder(repository, data_files=file)
        files = found.config.data_files or {}
        splits = {str(key): urls for key, urls in files.items()}
        if splits and split not in splits:
            raise DataError(
                f"{name}: there is no split {split!r}; there is "
                f"{', '.join(splits)}"
            )
        urls = [str(url) for url in splits.get(split, ())]
        known = (".jsonl", ".ndjson", ".parquet")
        pieces: Iterable[bytes]
        if urls and all(_inner_suffix(Path(url)) in known for url in urls):
            # `datasets` has found the files. They are read here, line by
            # line, because its reader of JSON takes the fields of a message
            # from the first block of a file.
            pieces = itertools.chain.from_iterable(
                _remote(fsspec.open(url, "rb"), url, name) for url in urls
            )
        else:
            rows = load_dataset(
                repository, data_files=file, split=split, streaming=True
            )
            pieces = map(json_line, rows)
        yield from pieces if limit is None else first_lines(pieces, limit)
    except DataError:
        raise
    except Exception as error:
        # The hub's client and the readers raise errors of many families.
        remote = not Path(repository).is_dir()
        advice = (
            ". Without access to the hub, set HF_ENDPOINT to a mirror before "
            "Python starts, or download the data set elsewhere and give the "
            "folder: hf:./folder"
        )  # fmt: skip
        raise DataError(
            f"{name}: cannot be read ({type(error).__name__}: {error})"
            f"{advice if remote else ''}"
        ) from error


def _remote(opening: Any, url: str, name: str) -> Iterator[bytes]:
    """The content of one file of a data set, as JSON lines."""
    path = Path(url)
    where, kind = f"{name}, {path.name}", path.suffix.lower()
    with opening as file:
        if kind == ".parquet":
            yield from _table(file, where)
            return
        pieces: Iterable[bytes]
        if kind in COMPRESSED:
            pieces = _decompressed(file, kind, where)
        else:
            pieces = iter(functools.partial(file.read, PIECE), b"")
        last = b"\n"
        for last in pieces:
            yield last
        if not last.endswith(b"\n"):
            yield b"\n"  # another file may follow


def first_lines(pieces: Iterable[bytes], count: int) -> Iterator[bytes]:
    """The first lines of a text that comes in pieces, and no piece more."""
    if not count:
        return
    for piece in pieces:
        here = piece.count(b"\n")
        if here >= count:
            end = 0
            for _ in range(count):
                end = piece.index(b"\n", end) + 1
            yield piece[:end]
            return
        yield piece
        count -= here
