"""How fast MiniMind trains and writes, beside transformers' own Qwen3.

    python benchmarks/speed.py                  # both tables
    python benchmarks/speed.py --rounds 9 --out benchmarks/results/speed.json

Both models hold the same weights and see the same batches, in turn, one
thread each; a figure is the median over the rounds of CPU time used, and a
ratio is taken round by round, so that a busy machine does not tilt it.
Absolute figures do not travel, ratios do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from minimind_core.config import ModelConfig, TrainConfig
from minimind_core.generate import generate_tokens
from minimind_core.model import MiniMind
from minimind_core.optim import build_optimizer, gradient_norm
from minimind_core.precision import detect_device, resolve

SHAPES = {  # name: width, layers, heads, kv heads, vocabulary, time, batch
    "128 x 2": (128, 2, 4, 2, 1024, 96, 32),
    "256 x 6": (256, 6, 8, 4, 6400, 256, 8),
}


def make(name: str) -> tuple[MiniMind, torch.nn.Module, torch.Tensor]:
    """Our model and transformers', with the same weights, and a batch."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    width, layers, heads, kv, vocab, length, batch = SHAPES[name]
    config = ModelConfig(
        vocab_size=vocab, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv,
        max_position_embeddings=1024,
    )  # fmt: skip
    torch.manual_seed(0)
    ours = MiniMind(config)
    theirs = Qwen3ForCausalLM(Qwen3Config(**config.to_hf()))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, torch.randint(3, vocab, (batch, length))


def training_step(
    model: torch.nn.Module, ids: torch.Tensor, dtype: str
) -> Callable[[], None]:
    """Forward, backward, clip and AdamW, as a function of nothing."""
    precision = resolve("cpu", dtype)
    optimizer = build_optimizer(model, TrainConfig(optimizer="adamw"))

    def step() -> None:
        with precision.autocast():
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        gradient_norm(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def writing(
    model: torch.nn.Module, batch: int, new: int
) -> Callable[[], None]:
    """Greedy generation of `new` tokens after a prompt of 32."""
    prompt = torch.randint(3, 1000, (batch, 32))

    def write() -> None:
        generate_tokens(
            model, prompt, max_new_tokens=new, temperature=0.0,
            eos_token_id=None,
        )  # fmt: skip

    return write


def compare(
    runs: dict[str, Callable[[], None]], rounds: int
) -> dict[str, dict[str, float]]:
    """Median seconds of each, and how much faster it is than the first."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.thread_time()
            run()
            seconds[name].append(time.thread_time() - start)
    base = next(iter(seconds.values()))
    return {
        name: {
            "seconds": statistics.median(own),
            "times_faster": statistics.median(
                b / o for b, o in zip(base, own, strict=True)
            ),
        }
        for name, own in seconds.items()
    }


def main() -> None:
    """Run both comparisons and print them as tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    processor = detect_device("cpu")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in SHAPES:
        ours, theirs, ids = make(name)
        runs = {
            "transformers, float32": training_step(theirs, ids, "float32"),
            "MiniMind, float32": training_step(ours, ids, "float32"),
        }
        if processor.bf16:
            runs["transformers, bfloat16"] = training_step(
                theirs, ids, "bfloat16"
            )
            runs["MiniMind, bfloat16"] = training_step(ours, ids, "bfloat16")
        found[f"training {name}"] = compare(runs, options.rounds)
    ours, theirs, _ = make("256 x 6")
    for batch, new in ((1, 128), (16, 128)):
        runs = {
            "transformers": writing(theirs.eval(), batch, new),
            "MiniMind": writing(ours.eval(), batch, new),
        }
        title = f"writing 256 x 6, batch {batch}, {new} new tokens"
        found[title] = compare(runs, min(options.rounds, 5))
    for title, rows in found.items():
        print(f"\n{title}")
        for name, row in rows.items():
            print(f"  {name:<24} {row['seconds']:7.3f} s"
                  f"  {row['times_faster']:5.2f} x")  # fmt: skip
    if options.out:
        about = {
            "command": "python benchmarks/speed.py",
            "torch": torch.__version__,
            "processor": processor.name,
            "rounds": options.rounds,
            "results": found,
        }
        options.out.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
