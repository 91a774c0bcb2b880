"""The same training run in several number formats."""

from __future__ import annotations

import time
from typing import Any

import torch

from minimind_core.book.gradients import compare, take_gradient
from minimind_core.book.stages import get_stage
from minimind_core.config import get_preset
from minimind_core.data import (
    Rows,
    collate,
    count_labels,
    document_encoder,
    next_rows,
    open_source,
    parse_data,
)
from minimind_core.model import MiniMind
from minimind_core.precision import Precision, detect_device
from minimind_core.tokenizer import load_tokenizer

STEPS = 50
ROWS = 8
WARMUP = 10
MEASURED = 25
"""The step at which gradients are compared with float64's."""

RUNS = (
    # name, dtype, scaler, copies of the micro-batch in a batch
    ("float32", "float32", False, 128),
    ("bfloat16", "bfloat16", False, 128),
    ("float16, scaler", "float16", True, 128),
    ("float16, no scaler", "float16", False, 128),
    ("float16, no scaler, batch x 8", "float16", False, 1024),
)


def dtypes(preset: str, progress: bool) -> list[dict[str, Any]]:
    """Train in each format from the same start, on the same stories.

    A large batch is simulated by repeating a micro-batch: the loss is divided
    by the number of copies, and the gradient is multiplied by it again, which
    equals the sum of that many equal gradients. Both factors are powers of
    two and exact, so that any loss of precision happens in between, as it
    would in the large batch.

    Returns
    -------
    list of dict
        For each run ``name``, ``tokens`` in a batch, ``losses``,
        ``skipped`` steps, ``zero_share``, ``relative_error`` and ``cosine``
        of the gradient at step `MEASURED`, ``tokens_per_second`` and, on a
        GPU, ``memory_mb``.
    """
    found = []
    for name, dtype, scaled, copies in RUNS:
        if progress:
            print(f"  {name}", flush=True)
        found.append({
            "name": name, "dtype": dtype,
            **_train(preset, dtype, scaled, copies),
        })  # fmt: skip
    return found


def _train(
    preset: str, dtype: str, scaled: bool, copies: int
) -> dict[str, Any]:
    device = detect_device().type
    cuda = device == "cuda"
    precision = Precision(device, dtype, scaled, "a study")
    tokenizer = load_tokenizer(get_stage("tokenizer", preset=preset))
    stream = Rows(
        open_source(parse_data("microworld"), "text", seed=0),
        document_encoder(tokenizer), seq_len=128, packed=False, seed=0,
    )  # fmt: skip
    torch.manual_seed(0)
    shape = get_preset(preset).model.replace(vocab_size=len(tokenizer))
    model = MiniMind(shape).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0
    )
    scaler = precision.scaler()
    losses, tokens, skipped, seconds = [], 0, 0, 0.0
    measured: dict[str, Any] = {}
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / WARMUP)
        rows = next_rows(stream, ROWS)
        items = count_labels(rows)
        batch = collate(rows, 0, device)
        if step == MEASURED:
            exact = take_gradient(model, batch, dtype="float64")
            seen = take_gradient(
                model, batch, dtype=dtype, items=items * copies,
                scale=scaler.get_scale(),
            )  # fmt: skip
            measured = compare(seen * copies, exact)._asdict()
        started = time.perf_counter()
        with precision.autocast():
            loss = model(**batch, num_items_in_batch=items).loss
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss / copies).backward()
        scaler.unscale_(optimizer)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(copies)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
        seconds += time.perf_counter() - started
        skipped += scaler.get_scale() < before
        tokens += items
    result: dict[str, Any] = {
        "tokens": round(tokens / STEPS) * copies,
        "losses": losses,
        "skipped": int(skipped),
        **measured,
        "tokens_per_second": tokens / seconds,
    }
    if cuda:
        result["memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return result


STUDIES = {"dtypes": dtypes}
