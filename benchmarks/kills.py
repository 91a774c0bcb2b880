"""Kill training at random moments, resume it, and compare the weights.

    python benchmarks/kills.py                  # 50 kills of each stage
    python benchmarks/kills.py --kills 5 --seed 7

Pretraining, fine-tuning and LoRA run in processes of their own, with small
settings that save every second step, so that many kills come in a save. Each
run gets SIGKILL at a random moment of its life, from its first import to its
last line, and again with a probability of one half while it is resumed; then
it goes on to its end. Its weights must equal those of a run that nobody
killed, bit by bit.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file

from minimind_core import export_hf
from minimind_core.data import tokenizer_texts
from minimind_core.tokenizer import train_tokenizer

SMALL = "steps=16, batch_size=4, save_every=2, device='cpu', progress=False"
CODE = {
    "pretrain": f"""
from minimind_core import pretrain
pretrain(out, tokenizer=base / "tokenizer", resume=True, seq_len=48, {SMALL})
""",
    "sft": f"""
from minimind_core import sft
sft(base / "pretrain", out, resume=True, {SMALL})
""",
    "lora": f"""
from minimind_core import train_lora
train_lora(base / "hf", out, resume=True, {SMALL})
""",
}
START = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
base, out = map(Path, sys.argv[1:])
"""


def run(stage: str, base: Path, out: Path, after: float | None) -> bool:
    """Run a stage, killed after some seconds; whether it came to its end."""
    process = subprocess.Popen(
        [sys.executable, "-c", START + CODE[stage], base, out],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    try:
        _, errors = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode:
        sys.exit(f"{stage} in {out} could not go on:\n{errors}")
    return True


def same(one: Path, other: Path, stage: str) -> bool:
    """Whether two results have the same weights, to the bit."""
    name = "adapter_model" if stage == "lora" else "model"
    a, b = (load_file(path / f"{name}.safetensors") for path in (one, other))
    return a.keys() == b.keys() and all(a[n].equal(b[n]) for n in a)


def begin(base: Path) -> dict[str, float]:
    """Run each stage once without a kill; how long each takes."""
    texts = tokenizer_texts("microworld", count=200)
    train_tokenizer(texts, 500, out=base / "tokenizer")
    seconds = {}
    for stage in CODE:
        begun = time.perf_counter()
        run(stage, base, base / stage, None)
        seconds[stage] = time.perf_counter() - begun
        if stage == "sft":
            export_hf(base / "sft", base / "hf")
    return seconds


def kill(
    stage: str,
    base: Path,
    out: Path,
    seconds: float,
    uniform: Callable[[float, float], float],
) -> int:
    """Kill a run once or twice and let it end; the number of kills."""
    kills = 0
    while True:
        often = kills == 0 or (kills == 1 and uniform(0, 1) < 0.5)
        after = uniform(0, seconds) if often else None
        if run(stage, base, out, after):
            return kills
        kills += 1


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=50, help="of each stage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random_ = random.Random(options.seed)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        base.mkdir()
        seconds = begin(base)
        for stage in CODE:
            equal = runs = kills = 0
            while kills < options.kills:
                out = Path(folder) / "run"
                kills += kill(
                    stage, base, out, seconds[stage], random_.uniform
                )
                runs += 1
                equal += same(base / stage, out, stage)
                shutil.rmtree(out)
            wrong += runs - equal
            print(
                f"{stage:<9} {kills} kills of {seconds[stage]:.1f} s, "
                f"{equal} of {runs} runs equal to the bit",
                flush=True,
            )
    if wrong:
        sys.exit(f"{wrong} runs ended with other weights")


if __name__ == "__main__":
    main()
