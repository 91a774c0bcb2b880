"""Train a preset to its end on stories of the microworld, and try it.

    python benchmarks/preset.py t4 --out runs/t4 --set compile=true

The stories and conversations are written to files first, by all cores, so
that the run takes the way of real data: a file that is checked, encoded once
and read back. Prints how long each part took, what the model reaches, and
samples; with --json, the same is written to a file.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from minimind_core import answer, pretrain, sft
from minimind_core.config import get_preset
from minimind_core.cost import tokens_of
from minimind_core.evaluation import evaluate
from minimind_core.microworld import conversation, write_story
from minimind_core.precision import detect_device
from minimind_core.run import Run, read_log
from minimind_core.settings import parse_assignments

STORY_TOKENS = 72
"""Fewer than an average story has, so that there are enough stories."""
CHUNK = 2000
ASKED = (
    "Write a story about Sam at the river on a sunny day.",
    "Who are you?",
    "One day Mia met Tom at the lake. Mia had a red ball. Mia gave the "
    "ball to Tom. Who has the ball?",
)


def write_stories(start: int) -> str:
    """Lines with the stories from `start` on."""
    return "".join(
        json.dumps({"text": write_story(0, i).text}) + "\n"
        for i in range(start, start + CHUNK)
    )


def write_talks(start: int) -> str:
    """Lines with the conversations from `start` on."""
    return "".join(
        json.dumps({"conversations": conversation(0, i).messages}) + "\n"
        for i in range(start, start + CHUNK)
    )


def write_file(
    path: Path, lines: Callable[[int], str], count: int
) -> Path:  # fmt: skip
    """Write so many records, with all cores."""
    with (
        multiprocessing.Pool() as pool,
        path.open("w", encoding="utf-8") as file,
    ):
        for text in pool.imap(lines, range(0, count, CHUNK)):
            file.write(text)
    return path


def main() -> None:
    """Write the data, train both stages, evaluate, and ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", nargs="?", default="t4")
    parser.add_argument("--out", type=Path, default=Path("runs/preset"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--share", type=float, default=1.0,
                        help="of the preset's steps")  # fmt: skip
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    preset = get_preset(options.preset)
    own = parse_assignments(options.set).get("train", {})
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"preset": preset.name, "share": options.share}
    seconds: dict[str, float] = {}
    now = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal now
        seconds[name] = round(time.perf_counter() - now, 1)
        now = time.perf_counter()
        print(f"{name}: {seconds[name]:.0f} s", flush=True)

    stages = {}
    for stage in ("pretrain", "sft"):
        config = getattr(preset, stage)
        stages[stage] = config.replace(
            steps=max(1, int(config.steps * options.share)), **own
        )
    needed = int(tokens_of(stages["pretrain"]) / STORY_TOKENS)
    stories = write_file(out / "stories.jsonl", write_stories, needed)
    rows = stages["sft"].steps * stages["sft"].batch_size
    talks = write_file(out / "talks.jsonl", write_talks, min(rows, 200_000))
    lap("writing the data")
    device = detect_device()
    found |= {
        "device": device.name, "torch": torch.__version__,
        "cores": os.cpu_count(),
    }  # fmt: skip

    def keep(name: str, run: Run) -> None:
        """Add what a finished stage has reached, and write it at once."""
        last = read_log(run.path)[-1]
        found[name] = {
            key: last.get(key)
            for key in ("step", "loss", "validation_loss", "tokens",
                        "seconds", "tokens_per_second")
        }  # fmt: skip
        found["parameters"] = sum(p.numel() for p in run.model.parameters())
        lap(f"{name}, with encoding")
        found[name] |= evaluate(run.path, data="microworld")
        found[name]["answers"] = {
            ask: answer(run.model, run.tokenizer, [
                {"role": "user", "content": ask}
            ]) for ask in ASKED
        }  # fmt: skip
        lap(f"evaluation of {name}")
        found["seconds"] = seconds
        text = json.dumps(found, indent=1, ensure_ascii=False, default=str)
        if options.json:
            options.json.write_text(text + "\n", encoding="utf-8")
        print(text, flush=True)

    keep("base", pretrain(
        out / "base", preset=preset, config=stages["pretrain"], data=stories
    ))  # fmt: skip
    keep("chat", sft(
        out / "base", out / "chat", preset=preset, config=stages["sft"],
        data=talks,
    ))  # fmt: skip


if __name__ == "__main__":
    main()
