"""Steps and stories that a loss takes, for batches of different size.

    from minimind_core.book.studies import get_study
    get_study("batches")["runs"][0]     # batch, rate, steps to each loss

A larger batch needs fewer steps and more stories. McCandlish et al. (2018)
found that both are related by ``(S / S_min - 1) (E / E_min - 1) = 1``, and
that the noise of the gradients tells beforehand where the trade turns bad.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from minimind_core.book.stages import get_stage
from minimind_core.book.studies.scaling import narrower
from minimind_core.config import get_preset
from minimind_core.data import (
    Row,
    Rows,
    collate,
    count_labels,
    document_encoder,
    open_source,
    parse_data,
)
from minimind_core.model import MiniMind
from minimind_core.tokenizer import load_tokenizer
from minimind_core.train import Trainer

WIDTH = 0.375
"""Width of the model, as a share of the preset's."""
BATCHES = (1, 2, 4, 8, 16, 32, 64)
RATES = (0.004, 0.008, 0.016)
"""Peak learning rates of AdamW, each tried with each batch."""
LOSSES = (1.6, 1.0)
"""The training losses, in nats per token, to which the runs are followed."""
STORIES = 6000
"""After so many stories, or `STEPS` steps, a run that is not there ends."""
STEPS = 150
WINDOW = 256
"""The loss is a mean over about so many stories."""
NOISE = 64
"""Groups of `GROUP` stories from which the noise scale is estimated."""
GROUP = 8


def batches(preset: str, progress: bool) -> dict[str, Any]:
    """Train until a loss is reached, with each batch size and rate.

    All runs begin with the same weights and read the same stories in the
    same order, each story once.

    Returns
    -------
    dict
        ``losses``; ``runs``, a list of dict with ``batch``, ``rate`` and
        ``steps``, the step at which each loss was reached or None;
        ``noise``, for each loss the noise scale of the gradients in stories;
        and ``seconds``.
    """
    started = time.perf_counter()
    tokenizer = load_tokenizer(get_stage("tokenizer", preset=preset))
    stream = Rows(
        open_source(parse_data("microworld"), "text", seed=0),
        document_encoder(tokenizer), seq_len=128, seed=0,
    )  # fmt: skip
    longest = max(STORIES, STEPS * BATCHES[-1])
    rows = [stream.next_row() for _ in range(longest + NOISE * GROUP)]
    rows, others = rows[:longest], rows[longest:]
    runs: list[dict[str, Any]] = []
    noise: list[float] = []
    for batch in BATCHES:
        for rate in RATES:
            trainer = _trainer(preset, len(tokenizer), rows, batch, rate)
            steps: list[float | None] = [None] * len(LOSSES)
            seen: list[float] = []
            window = max(2, WINDOW // batch)
            while trainer.step < trainer.config.steps and None in steps:
                seen.append(trainer.train_step(trainer.model)["loss"])
                if len(seen) < window:
                    continue
                mean = sum(seen[-window:]) / window
                for number, wanted in enumerate(LOSSES):
                    if steps[number] is None and mean < wanted:
                        # The mean is that of the middle of the window.
                        steps[number] = trainer.step - window / 2
                        if (batch, rate) == (32, 0.008):
                            noise.append(noise_scale(trainer.model, others))
            runs.append({"batch": batch, "rate": rate, "steps": steps})
        if progress:
            print(f"  batches of {batch} done", flush=True)
    return {
        "losses": list(LOSSES), "runs": runs, "noise": noise,
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def _trainer(
    preset: str, vocab_size: int, rows: list[Row], batch: int, rate: float
) -> Trainer:
    chosen = get_preset(preset)
    shape = narrower(chosen.model, WIDTH).replace(vocab_size=vocab_size)
    config = chosen.pretrain.replace(
        steps=max(STORIES // batch, STEPS), batch_size=batch,
        micro_batch_size=None, packed=False, optimizer="adamw", lr=rate,
        schedule="constant", warmup_ratio=0.0, dtype="float32",
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = Trainer(MiniMind(shape), rows, config, progress=False)
    trainer.model.train()
    return trainer


def noise_scale(model: nn.Module, rows: list[Row]) -> float:
    """Estimate the noise scale of the gradient, in rows.

    It is the batch for which the noise of the gradient is as large as the
    gradient: the trace of the covariance of one row's gradient, divided by
    the squared norm of the mean. Both are estimated without bias from groups
    of rows, as in appendix A of McCandlish et al. (arXiv:1812.06162).

    Parameters
    ----------
    model : nn.Module
    rows : list of Row
        A multiple of `GROUP` rows, at least two groups.
    """
    groups = [rows[at : at + GROUP] for at in range(0, len(rows), GROUP)]
    total: Tensor | None = None
    small = 0.0
    for group in groups:
        model.zero_grad()
        items = count_labels(group)
        model(**collate(group, 0), num_items_in_batch=items).loss.backward()
        gradient = torch.cat([
            p.grad.flatten() for p in model.parameters() if p.grad is not None
        ])  # fmt: skip
        small += float(gradient.square().sum()) / len(groups)
        total = gradient if total is None else total + gradient
    model.zero_grad()
    assert total is not None
    large = float((total / len(groups)).square().sum())
    big = GROUP * len(groups)
    signal = (big * large - GROUP * small) / (big - GROUP)
    spread = (small - large) / (1 / GROUP - 1 / big)
    return spread / signal


def fit_trade(
    batch: list[int], steps: list[float]
) -> tuple[float, float]:  # fmt: skip
    """Fit ``steps = fewest + least / batch`` by least squares.

    This is the relation of McCandlish et al., solved for the steps, with
    ``stories = steps * batch``. The relative errors are minimized, because
    the steps span a large range.

    Parameters
    ----------
    batch, steps
        Of two runs or more that reached the same loss.

    Returns
    -------
    fewest, least : float
        Steps with a very large batch, and stories with a very small one.
        Their ratio is the critical batch size.
    """
    x = torch.tensor(batch, dtype=torch.float64)
    y = torch.tensor(steps, dtype=torch.float64)
    columns = torch.stack([1 / y, 1 / (x * y)], 1)
    found = torch.linalg.lstsq(columns, torch.ones_like(y)[:, None]).solution
    return float(found[0]), float(found[1])


STUDIES = {"batches": batches}
