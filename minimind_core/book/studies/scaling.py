"""Loss against compute: models of several sizes on the same stories.

    from minimind_core.book.studies import get_study
    get_study("scaling")[0]["points"]     # steps, FLOPs, loss over the floor
"""

from __future__ import annotations

import time
from typing import Any

import torch

from minimind_core.book.stages import get_stage
from minimind_core.config import ModelConfig, get_preset
from minimind_core.cost import flops_per_token
from minimind_core.data import (
    Rows,
    document_encoder,
    open_source,
    parse_data,
)
from minimind_core.evaluation import held_out_documents
from minimind_core.model import MiniMind
from minimind_core.tokenizer import load_tokenizer
from minimind_core.train import Trainer

WIDTHS = (0.25, 0.375, 0.5, 0.75)
"""Of the models, as shares of the preset's."""
STEPS = 400
BATCH = 16
AT = (12, 25, 50, 75, 100, 140, 200, 280, 400)
"""The steps after which the loss on held-out stories is taken."""
HELD_OUT = 100


def narrower(shape: ModelConfig, share: float) -> ModelConfig:
    """The same model with a smaller width; depth and heads stay.

    Parameters
    ----------
    shape : ModelConfig
    share : float
        Of the width and the inner width that is kept.
    """
    heads = shape.num_attention_heads
    head = 2 * max(1, round(shape.head_width * share / 2))
    return shape.replace(
        hidden_size=heads * head, head_dim=head,
        intermediate_size=max(8, round(shape.ffn_width * share)),
    )  # fmt: skip


def scaling(preset: str, progress: bool) -> list[dict[str, Any]]:
    """Train each size at a constant rate, and look at it on the way.

    A constant rate, because then every point of a run is a run of its own:
    none of them has a schedule that was made for a longer one.

    Returns
    -------
    list of dict
        For each model ``width``, ``parameters``, ``flops_per_token``, the
        ``floor`` (nats a token), the ``seconds`` it took and ``points``:
        ``step``, ``tokens``, ``flops`` and the held-out ``loss`` there.
    """
    tokenizer = load_tokenizer(get_stage("tokenizer", preset=preset))
    chosen = get_preset(preset)
    spec = parse_data("microworld")
    check = held_out_documents(tokenizer, spec, seed=0, count=HELD_OUT)
    found = []
    for share in WIDTHS:
        started = time.perf_counter()
        shape = narrower(chosen.model, share)
        shape = shape.replace(vocab_size=len(tokenizer))
        config = chosen.pretrain.replace(
            steps=STEPS, batch_size=BATCH, micro_batch_size=None,
            packed=False, schedule="constant", warmup_ratio=0.03,
        )  # fmt: skip
        stream = Rows(
            open_source(spec, "text", seed=0), document_encoder(tokenizer),
            seq_len=config.seq_len, seed=0,
        )  # fmt: skip
        torch.manual_seed(0)
        trainer = Trainer(MiniMind(shape), stream, config, progress=False)
        points, floor = [], 0.0
        while trainer.step < STEPS:
            trainer.model.train()
            trainer.train_step(trainer.model)
            if trainer.step not in AT:
                continue
            seen = check(trainer.model)
            floor = seen["floor"]
            tokens = trainer.supervised_tokens
            mean = tokens / trainer.step / BATCH
            points.append({
                "step": trainer.step,
                "tokens": tokens,
                "flops": tokens * flops_per_token(shape, round(mean)),
                "loss": seen["validation_loss"],
            })  # fmt: skip
        if progress:
            over = points[-1]["loss"] / floor
            print(f"  width {shape.hidden_size}: {over:.2f} x the floor",
                  flush=True)  # fmt: skip
        found.append({
            "width": shape.hidden_size,
            "parameters": shape.num_parameters(),
            "flops_per_token": flops_per_token(shape, round(mean)),
            "floor": floor,
            "seconds": round(time.perf_counter() - started, 1),
            "points": points,
        })  # fmt: skip
    return found


STUDIES = {"scaling": scaling}
