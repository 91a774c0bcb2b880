"""The program of one of the processes that encode large files.

    python -m minimind_core.data.encoding_process FOLDER NUMBER

It is started by `minimind_core.data.parallel`, which writes the folder. It
prints a line of JSON after each batch, and at the end one with the shards or
with what was wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from minimind_core.data.copies import PlainFile
from minimind_core.data.encoding import (
    Encoder,
    conversation_encoder,
    document_encoder,
)
from minimind_core.data.shards import write_shards
from minimind_core.data.sources import Files
from minimind_core.errors import DataError
from minimind_core.tokenizer import load_tokenizer


def say(**values: Any) -> None:
    """Print a line for the process that has started this one."""
    print(json.dumps(values), flush=True)


def main(folder: Path, number: int) -> None:
    """Encode one part of the records."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    files = Files.from_positions(
        folder,
        [
            PlainFile(Path(path), name, unit)
            for path, name, unit in job["files"]
        ],
        job["kind"],
    )
    tokenizer = load_tokenizer(folder / "tokenizer")
    encode: Encoder
    if job["encoder"] is None:
        encode = document_encoder(tokenizer)
    else:
        encode = conversation_encoder(tokenizer, **job["encoder"])
    start, stop = job["parts"][number]
    try:
        shards = write_shards(
            files, encode, Path(job["out"]), range(start, stop),
            lambda records, tokens: say(records=records, tokens=tokens),
            name=f"{number:03d}-",
        )  # fmt: skip
    except DataError as error:
        say(data_error=str(error))
    except OSError as error:
        say(output_error=str(error))
    else:
        say(shards=shards)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
