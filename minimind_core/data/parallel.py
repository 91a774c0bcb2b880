"""Encode large files in several processes.

    from minimind_core.data.parallel import tokenize_files
    tokenize_files(files, document_encoder(tokenizer), folder)

The tokenizers library encodes a batch of texts with all cores by itself. What
is around it is Python, though: reading the records, rendering a chat template
and labelling the answers, which takes longer than the encoding. So each
process does all of it for a part of the records. The processes are
interpreters that run `minimind_core.data.encoding_process`. They are not
forked, because a fork of a process with threads can hang; nor are they made
by `multiprocessing`, which would run the user's script in each of them again
unless it has a guard against that.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minimind_core.data.encoding import (
    ConversationEncoder,
    DocumentEncoder,
    Encoder,
)
from minimind_core.data.shards import (
    Report,
    Say,
    Tokenized,
    progress,
    tokenize,
    write_index,
)
from minimind_core.data.sources import Files
from minimind_core.errors import DataError, OutputError
from minimind_core.files import atomic_folder, write_json
from minimind_core.threads import available_cores
from minimind_core.tokenizer import (
    load_tokenizer,
    save_tokenizer,
    tokenizer_digest,
)

PROGRAM = "minimind_core.data.encoding_process"
PER_PROCESS = 2**24
"""Bytes of records that are worth a process, which takes seconds to start."""


def tokenize_files(
    files: Files,
    encode: Encoder,
    folder: str | Path,
    *,
    say: Say | None = None,
    every: float = 10.0,
    processes: int | None = None,
) -> Tokenized:
    """Encode all records of files into a folder, and open it.

    Parameters
    ----------
    files, encode, folder, say, every
        See `shards.tokenize`.
    processes : int, optional
        By default one for each available core, if the files are large enough.
        Another encoder than those of `data.encoding` is always called in
        this process.

    Returns
    -------
    Tokenized
        Its records do not depend on the number of processes.

    Raises
    ------
    DataError, OutputError
        See `shards.tokenize`. No process is left running.
    """
    if processes is None:
        # Other processes of a distributed run wait for this one.
        processes = min(
            available_cores(environment={}), sum(files.lengths) // PER_PROCESS
        )
    with tempfile.TemporaryDirectory() as kept:
        job = Path(kept)
        if (
            processes < 2
            or not isinstance(encode, DocumentEncoder | ConversationEncoder)
            or not _prepare(job, files, encode)
        ):
            return tokenize(files, encode, folder, say=say, every=every)
        with atomic_folder(folder) as partial:
            report = progress(files.size, say, every)
            shards = _encode(job, files, encode, partial, processes, report)
            write_index(partial, files, shards)
    return Tokenized(folder)


def _prepare(
    job: Path, files: Files, encode: DocumentEncoder | ConversationEncoder
) -> bool:
    """Write what the processes need; False if they could not have it."""
    save_tokenizer(encode.tokenizer, job / "tokenizer")
    again = load_tokenizer(job / "tokenizer")
    if tokenizer_digest(again) != tokenizer_digest(encode.tokenizer):
        return False
    files.save_positions(job)
    return True


def _parts(lengths: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Cut records into parts of about as many bytes each."""
    ends = np.cumsum(lengths, dtype=np.int64)
    goals = ends[-1] * np.arange(1, count) // count
    cuts = [0, *np.searchsorted(ends, goals).tolist(), len(lengths)]
    return list(itertools.pairwise(cuts))


def _encode(
    job: Path,
    files: Files,
    encode: DocumentEncoder | ConversationEncoder,
    out: Path,
    processes: int,
    report: Report,
) -> list[dict[str, Any]]:
    """Start the processes, follow them, and return their shards in order."""
    options = None
    if isinstance(encode, ConversationEncoder):
        options = {"seq_len": encode.seq_len, "skip": encode.skip}
    write_json(job / "job.json", {
        "files": [[str(f.path), f.name, f.unit] for f in files.plain],
        "kind": files.kind,
        "encoder": options,
        "parts": _parts(files.lengths, processes),
        "out": str(out.resolve()),
    })  # fmt: skip
    counts = [(0, 0)] * processes
    shards: list[list[dict[str, Any]]] = [[] for _ in range(processes)]
    said: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        for number in range(processes):
            stack.enter_context(_started(job, number, said))
        left = processes
        while left:
            number, line = said.get()
            if "shards" in line:
                shards[number] = line["shards"]
                left -= 1
            elif "records" in line:
                counts[number] = (line["records"], line["tokens"])
                report(*map(sum, zip(*counts, strict=True)))
            elif "data_error" in line:
                raise DataError(line["data_error"])
            elif "output_error" in line:
                raise OutputError(line["output_error"])
            elif not shards[number]:
                raise RuntimeError(
                    "a process that encodes data has ended: "
                    f"{line['ended']}"
                )
    return list(itertools.chain.from_iterable(shards))


@contextlib.contextmanager
def _started(
    job: Path,
    number: int,
    said: queue.SimpleQueue[tuple[int, dict[str, Any]]],
) -> Iterator[None]:
    """Run a process; what it says is put into the queue with its number."""
    # The package may have been found through the working directory only.
    where = str(Path(__file__).parents[2])
    paths = [where, os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    errors = job / f"{number}.txt"

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said.put((number, json.loads(line)))
        process.wait()
        lines = errors.read_text(encoding="utf-8", errors="replace")
        last = lines.strip().rpartition("\n")[2]
        said.put((number, {"ended": last or f"exit {process.returncode}"}))

    with errors.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", PROGRAM, str(job), str(number)],
            env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=file, text=True, encoding="utf-8",
        )  # fmt: skip
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        process.kill()
        listener.join()
