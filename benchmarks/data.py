"""How fast data comes: encoding, reading back, padding, and waiting.

    python benchmarks/data.py                       # 100 MB of stories
    python benchmarks/data.py --megabytes 1000 --out results.json

Everything is measured on stories and conversations of the microworld, written
to files first. The peak of resident memory is that of a process that encodes
the stories and draws rows from them, and of the processes that it starts,
together; libraries that they share are counted once for each. Absolute
figures do not travel: state the processor and its load with each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedTokenizerFast

from minimind_core.cache import cache_folder
from minimind_core.config import TrainConfig, get_preset
from minimind_core.data import (
    Rows,
    collate,
    conversation_encoder,
    document_encoder,
    encode_ahead,
    next_rows,
    open_source,
)
from minimind_core.microworld import conversation, write_story
from minimind_core.model import MiniMind
from minimind_core.precision import detect_device
from minimind_core.tokenizer import (
    load_tokenizer,
    plain_backend,
    save_tokenizer,
    train_tokenizer,
)
from minimind_core.train import Trainer


def stories(start: int, count: int) -> list[str]:
    """Stories as lines of JSON."""
    return [
        json.dumps({"text": write_story(0, i).text}) + "\n"
        for i in range(start, start + count)
    ]


def talks(start: int, count: int) -> list[str]:
    """Conversations as lines of JSON."""
    return [
        json.dumps({"conversations": conversation(0, i).messages}) + "\n"
        for i in range(start, start + count)
    ]


def write_file(path: Path, megabytes: float, block: list[str]) -> None:
    """Write a file of this size, which repeats the lines of a block."""
    size = 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            for line in block:
                file.write(line)
                size += len(line)
                if size >= megabytes * 1e6:
                    break


@contextlib.contextmanager
def peak_memory(found: dict[str, float]) -> Iterator[None]:
    """Note the peak of resident memory, this process's and its children's."""
    process, done = psutil.Process(), threading.Event()
    found["peak_memory"] = 0.0

    def look() -> None:
        while not done.wait(0.2):
            total = process.memory_info().rss
            for child in process.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    total += child.memory_info().rss
            found["peak_memory"] = max(found["peak_memory"], float(total))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def batches(rows: Rows, count: int) -> Iterator[int]:
    """Draw and pad batches of 256 rows; yields their tokens."""
    for _ in range(count):
        found = next_rows(rows, 256)
        collate(found, 0)
        yield sum(len(row.input_ids) for row in found)


def batch_rate(tok: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """Tokens per second of the library's `encode_batch` alone."""
    backend, rates = plain_backend(tok), []
    for at in range(0, len(texts), 4000):
        started = time.perf_counter()
        encodings = backend.encode_batch(texts[at : at + 4000])
        seconds = time.perf_counter() - started
        rates.append(sum(len(one.ids) for one in encodings) / seconds)
    return statistics.median(rates)


def measure(path: Path, talks: Path, tokenizer: Path) -> dict[str, float]:
    """In a new process: encode a file, open it again, draw from it."""
    tok = load_tokenizer(tokenizer)
    found: dict[str, float] = {}
    with peak_memory(found):
        started = time.perf_counter()
        source = open_source(path, "text")
        found["seconds_to_check"] = time.perf_counter() - started
        started = time.perf_counter()
        encoded, read = encode_ahead(source, document_encoder(tok), key={})
        seconds = time.perf_counter() - started
        tokens = encoded.source.tokens  # type: ignore[attr-defined]
        found["tokens"] = tokens
        found["encoding_tokens_per_second"] = tokens / seconds
        started = time.perf_counter()
        source = open_source(path, "text")
        encoded, read = encode_ahead(source, document_encoder(tok), key={})
        found["seconds_of_the_second_start"] = time.perf_counter() - started
        for packed in (True, False):
            rows = Rows(encoded, read, seq_len=512, packed=packed)
            next(batches(rows, 1))  # the order of the first epoch
            started = time.perf_counter()
            drawn = sum(batches(rows, 20))
            name = "packed" if packed else "one_document_a_row"
            rate = drawn / (time.perf_counter() - started)
            found[f"{name}_tokens_per_second"] = rate
    # Beside it, the library alone, on the texts of the first records.
    found["encode_batch_tokens_per_second"] = batch_rate(
        tok, source.records(range(20_000))
    )
    # Conversations, whose template is rendered and whose answers are found.
    source = open_source(talks, "conversations")
    started = time.perf_counter()
    encoded, read = encode_ahead(
        source, conversation_encoder(tok, 512), key={}
    )
    seconds = time.perf_counter() - started
    tokens = encoded.source.tokens  # type: ignore[attr-defined]
    found["conversations_tokens_per_second"] = tokens / seconds
    found["conversations_encode_batch_tokens_per_second"] = batch_rate(tok, [
        str(tok.apply_chat_template(messages, tokenize=False))
        for messages in source.records(range(20_000))
    ])  # fmt: skip
    return found


def measure_waiting(path: Path, tokenizer: Path) -> float:
    """The share of a training step of `tiny` that is spent on its batch."""
    tok = load_tokenizer(tokenizer)
    preset = get_preset("tiny")
    encoded, read = encode_ahead(
        open_source(path, "text"), document_encoder(tok), key={}
    )
    rows = Rows(encoded, read, seq_len=128, packed=True)
    config: TrainConfig = preset.pretrain.replace(
        steps=40, packed=True, validate_every=0, sample_every=0
    )
    shape = preset.model.replace(vocab_size=len(tok))
    trainer = Trainer(MiniMind(shape), rows, config, progress=False)
    trainer.fit()
    return trainer.waited / trainer.seconds


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    os.environ["MINIMIND_CACHE"] = str(work / "cache")
    assert cache_folder() == work / "cache"
    try:
        path = work / "stories.jsonl"
        write_file(path, options.megabytes, stories(0, 60_000))
        write_file(work / "talks.jsonl", options.megabytes / 2,
                   talks(0, 30_000))  # fmt: skip
        texts = [json.loads(line)["text"] for line in stories(0, 3000)]
        save_tokenizer(train_tokenizer(texts, 1024), work / "tokenizer")
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            found = pool.apply(
                measure, (path, work / "talks.jsonl", work / "tokenizer")
            )
        found["share_of_a_step_for_data"] = measure_waiting(
            path, work / "tokenizer"
        )
        found["megabytes"] = path.stat().st_size / 1e6
        found["relative_to_encode_batch"] = (
            found["encode_batch_tokens_per_second"]
            / found["encoding_tokens_per_second"]
        )
        found["conversations_relative_to_encode_batch"] = (
            found["conversations_encode_batch_tokens_per_second"]
            / found["conversations_tokens_per_second"]
        )
    finally:
        shutil.rmtree(work)
    name, load = detect_device("cpu").name, os.getloadavg()[0]
    print(f"{name}, {os.cpu_count()} cores, load {load:.1f}, "
          f"torch {torch.__version__}")  # fmt: skip
    for name, value in found.items():
        print(f"{name:44} {value:16,.3f}")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
