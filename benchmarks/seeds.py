"""Whether a seed decides how well the default pretraining ends.

    python benchmarks/seeds.py                  # about three minutes for each
    python benchmarks/seeds.py --seeds 0 1 --dtypes float32

Trains `tiny` on the microworld with each seed in each number format, one
after the other and with one thread, and prints the loss of held-out stories
over their floor every hundred steps, and how many of 200 stories that each
model writes are valid.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from minimind_core.evaluation import evaluate
from minimind_core.recipes import pretrain


def train(seed: int, dtype: str, folder: Path) -> str:
    """Train and evaluate one model; returns a row of the table."""
    started = time.process_time()
    run = pretrain(
        folder, seed=seed, dtype=dtype, device="cpu", threads=1,
        sample_every=0, progress=False,
    )  # fmt: skip
    seconds = time.process_time() - started
    _, ratios = run.column("loss_over_floor")
    found = evaluate(run, seed=seed)
    way = " ".join(f"{ratio:.3f}" for ratio in ratios)
    return (
        f"| {seed} | {dtype} | {found['loss_over_floor']:.4f} | "
        f"{found['valid_fraction']:.0%} | {seconds:.0f} | {way} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4, 1234]
    )
    parser.add_argument(
        "--dtypes", nargs="+", default=["bfloat16", "float32"]
    )
    options = parser.parse_args()
    print("| seed | dtype | loss over floor | valid | CPU seconds | on the "
          "way |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for dtype in options.dtypes:
            for seed in options.seeds:
                out = Path(folder) / f"{dtype}-{seed}"
                print(train(seed, dtype, out), flush=True)


if __name__ == "__main__":
    main()
