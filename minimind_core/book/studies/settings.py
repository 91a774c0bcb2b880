"""What weight decay does, and how the best rate changes with the batch.

    from minimind_core.book.studies import get_study
    get_study("decays")         # loss and size of the weights, by decay
    get_study("batch_sizes")    # loss by batch size and rate, equal data
"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from minimind_core.book.stages import get_stage
from minimind_core.book.studies.pretraining import short_run
from minimind_core.evaluation import held_out_documents
from minimind_core.optim import parameter_groups
from minimind_core.run import Record, column
from minimind_core.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from minimind_core.book.studies import Study

DECAYS = (0.0, 0.1, 1.0, 10.0)
DECAY_STEPS, DECAY_RATE = 150, 3e-3

STORIES = 640
SIZES = (4, 16)
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)


def matrix_size(model: nn.Module) -> float:
    """Return the root mean square of all entries of the matrices."""
    entries = torch.cat([
        weight.detach().flatten()
        for weight in parameter_groups(model)["matrices"]
    ])
    return entries.square().mean().sqrt().item()


def decays(preset: str, progress: bool) -> list[dict[str, Any]]:
    """Train with AdamW and four weight decays, from the same weights.

    Returns
    -------
    list of dict
        ``decay``, ``size`` of the entries of the matrices at the end (root
        mean square), ``held_out`` loss and ``floor`` in nats a token.
    """
    tokenizer = load_tokenizer(get_stage("tokenizer", preset=preset))
    check = held_out_documents(tokenizer, "microworld", seed=0, count=100)
    found = []
    for decay in DECAYS:
        if progress:
            print(f"  weight decay {decay:g}", flush=True)
        sizes: list[float] = []

        def measure(model: nn.Module, sizes: list[float] = sizes) -> Record:
            sizes.append(matrix_size(model))
            return check(model)

        log = short_run(
            preset, steps=DECAY_STEPS, lr=DECAY_RATE, weight_decay=decay,
            validate=measure,
        )  # fmt: skip
        found.append({
            "decay": decay, "size": sizes[-1],
            "held_out": log[-1]["validation_loss"],
            "floor": log[-1]["floor"],
        })  # fmt: skip
    return found


def batch_sizes(preset: str, progress: bool) -> list[dict[str, Any]]:
    """Train on the same number of stories in batches of two sizes.

    Returns
    -------
    list of dict
        ``batch_size``, ``rate``, ``steps`` and ``last``, the mean loss of
        the last tenth of the stories.
    """
    found = []
    for size in SIZES:
        for rate in RATES:
            if progress:
                print(f"  batches of {size}, rate {rate:g}", flush=True)
            steps = STORIES // size
            log = short_run(
                preset, steps=steps, batch_size=size, lr=rate,
                warmup_ratio=0.2,
            )  # fmt: skip
            losses = column(log, "loss")[1]
            found.append({
                "batch_size": size, "rate": rate, "steps": steps,
                "last": fmean(losses[-max(1, steps // 10):]),
            })  # fmt: skip
    return found


STUDIES: dict[str, Study] = {"decays": decays, "batch_sizes": batch_sizes}
