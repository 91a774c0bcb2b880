"""What a busy program beside it costs a training, by how its threads wait.

    python benchmarks/threads.py
    python benchmarks/threads.py --busy 5 --rounds 5 --seconds 8

Trains the smallest preset in a new process each time, alone and beside
programs that each keep a core busy, in three ways: with OpenMP's defaults,
with waiting threads that sleep (`set_wait_policy`), and in the way that
`minimind pretrain` does it, where the number of threads is chosen at the
start as well (`choose_threads`). The ways take turns, and a ratio is taken
within a round, because the speed of a shared machine changes all the time.
The machine should be idle otherwise: the load is printed for this reason.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from minimind_core.threads import (
    available_cores,
    busy_cores,
    choose_threads,
    set_wait_policy,
)

WAYS = ("spinning", "sleeping", "chosen")
SETTINGS = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT", "KMP_BLOCKTIME",
)  # fmt: skip


def train(way: str, seconds: float) -> None:
    """Train for a while and print tokens per second and threads."""
    if way != "spinning":
        set_wait_policy()  # before torch is imported, which comes next
    import torch

    from minimind_core.config import get_preset
    from minimind_core.model import MiniMind
    from minimind_core.optim import build_optimizer, gradient_norm

    preset = get_preset("tiny")
    config = preset.pretrain
    if way == "chosen":
        torch.set_num_threads(choose_threads(preset.model).number)
    model = MiniMind(preset.model)
    optimizer = build_optimizer(model, config)
    shape = (config.batch_size, config.seq_len)
    ids = torch.randint(preset.model.vocab_size, shape)
    begun, steps = time.perf_counter(), -1
    while steps < 1 or time.perf_counter() < begun + seconds:
        if steps == 0:  # the first step was not counted
            begun = time.perf_counter()
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        gradient_norm(model, 1.0)
        optimizer.step()
        steps += 1
    speed = steps * ids.numel() / (time.perf_counter() - begun)
    print(json.dumps([speed, torch.get_num_threads()]))


def measure(way: str, seconds: float, busy: int) -> tuple[float, int]:
    """The speed of one way of training, beside busy programs or alone."""
    environment = {k: v for k, v in os.environ.items() if k not in SETTINGS}
    beside = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(busy)
    ]
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--train", way,
             "--seconds", str(seconds)],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        for program in beside:
            program.kill()
            program.wait()
    speed, threads = json.loads(done.stdout)
    return speed, threads


def main() -> None:
    """Print a table of speeds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", type=int, default=1, help="programs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--train", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.train, options.seconds)
        return
    print(f"{available_cores()} cores, of which {busy_cores(1.0):.1f} are "
          "busy before we begin")  # fmt: skip
    shares: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(1, options.rounds + 1):
        for way in WAYS:
            alone, threads = measure(way, options.seconds, 0)
            beside, fewer = measure(way, options.seconds, options.busy)
            shares[way].append(beside / alone)
            print(
                f"round {number}  {way:<9} alone {alone:7,.0f} tokens/s "
                f"({threads} threads)  beside {options.busy} busy "
                f"{beside:7,.0f} ({fewer})  {beside / alone:4.0%}",
                flush=True,
            )
    print()
    for way, found in shares.items():
        print(f"{way:<9} keeps {statistics.median(found):4.0%} of its speed")


if __name__ == "__main__":
    main()
