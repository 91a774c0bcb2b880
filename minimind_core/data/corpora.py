"""Download records of a published data set, check them and save them.

    python -m minimind_core.data.corpora roneneldan/TinyStories \\
        --records 100000 --out tinystories.jsonl
    minimind pretrain --preset small --data tinystories.jsonl --out runs/p

    python -m minimind_core.data.corpora jingyaogong/minimind_dataset \\
        --file sft_t2t_mini.jsonl --kind conversations --out sft.jsonl

This is `datasets.load_dataset` with streaming, which downloads only the
records that are asked for. They are checked as the trainers check them and
written as ``.jsonl``, so that a run can be resumed to the bit, and repeated
without a network.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minimind_core.data.copies import json_line
from minimind_core.data.records import parse_record
from minimind_core.errors import DataError, MiniMindError
from minimind_core.files import atomic_file, require_new

KINDS = ("text", "conversations")
READERS = {".parquet": "parquet", ".csv": "csv"}
"""The readers of `datasets` for single files; all others are JSON."""
MESSAGE_FIELDS = (
    "role", "content", "reasoning_content", "tools", "tool_calls",
)  # fmt: skip
"""The fields of a message in MiniMind's data; each is a text, or missing."""


def stream_records(
    name: str,
    *,
    kind: str = "text",
    file: str | None = None,
    split: str = "train",
) -> Iterator[Mapping[str, Any]]:
    """Stream the records of a data set.

    Parameters
    ----------
    name : str
        A data set of the Hugging Face hub, or the path of a ``.jsonl``,
        a ``.parquet`` or a ``.csv``, compressed or not.
    kind : {"text", "conversations"}
        For conversations the fields of a message are declared, as in
        MiniMind's own code (dataset/lm_dataset.py, line 63, commit d65ef2c).
        Otherwise `datasets` infers them from the first block of a file, and
        fails in a later block that has more.
    file : str, optional
        One file of a data set that has several.
    split : str

    Raises
    ------
    DataError
        If `datasets` is not installed, or the data cannot be reached.
    """
    try:
        from datasets import Features, Value, load_dataset
    except ImportError as error:
        raise DataError(
            "reading published data requires the package datasets: "
            "pip install datasets"
        ) from error
    features = None
    if kind == "conversations":
        message = {field: Value("string") for field in MESSAGE_FIELDS}
        features = Features({kind: [message]})
    source, advice = name, (
        ". Without access to the hub, set HF_ENDPOINT to a mirror before "
        "Python starts, or download the file elsewhere and give its path"
    )  # fmt: skip
    if Path(name).is_file():
        reader = READERS.get(Path(name).suffix.lower(), "json")
        source, file, advice = reader, name, ""
    try:
        yield from load_dataset(
            source, data_files=file, split=split, features=features,
            streaming=True,
        )  # fmt: skip
    except Exception as error:
        # The hub's client and the readers raise errors of many families.
        raise DataError(
            f"{name}: cannot be read "
            f"({type(error).__name__}: {error}){advice}"
        ) from error


def save_records(
    records: Iterable[Mapping[str, Any]],
    out: str | Path,
    *,
    kind: str = "text",
    limit: int | None = None,
) -> int:
    """Write records as a ``.jsonl`` file that the trainers accept.

    Parameters
    ----------
    records : iterable of mapping
        Read no further than needed.
    out : path
        The new file; it appears complete or not at all.
    kind : {"text", "conversations"}
    limit : int, optional
        Maximum number of records.

    Returns
    -------
    int
        How many were written.

    Raises
    ------
    DataError
        If a record is of another kind (the error gives its number), or if
        there are no records.
    OutputError
        If `out` exists or cannot be written.
    """
    if kind not in KINDS:
        raise DataError(
            f"unknown kind {kind!r}; expected {' or '.join(KINDS)}"
        )
    out = Path(out)
    require_new(out)
    count = 0
    with atomic_file(out) as partial:
        out.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            for record in itertools.islice(records, limit):
                line = json_line(record)
                count += 1
                parse_record(line, kind, f"record {count}")
                file.write(line)
        if not count:
            raise DataError(f"{out}: there were no records to write")
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status, 2 for errors."""
    parser = argparse.ArgumentParser(
        prog="python -m minimind_core.data.corpora",
        description="Save part of a published data set as .jsonl.",
    )
    parser.add_argument("name", help="hub name, or a path")
    parser.add_argument("--file", help="only this file of the data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--kind", default="text", choices=KINDS)
    parser.add_argument("--records", type=int, metavar="N",
                        help="maximum number of records (all)")  # fmt: skip
    parser.add_argument("--out", required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        count = save_records(
            stream_records(
                options.name, kind=options.kind, file=options.file,
                split=options.split,
            ),
            options.out, kind=options.kind, limit=options.records,
        )  # fmt: skip
    except MiniMindError as error:
        print(f"corpora: {error}", file=sys.stderr)
        return 2
    print(f"wrote {count} records to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
