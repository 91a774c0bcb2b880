"""Training loops gone wrong: gradient accumulation and saving.

    from minimind_core.book.exhibits.training import accumulate_means
    accumulate_means(model, [long_batch, short_batch], 2)  # a wrong gradient

Upstream's loop accumulates the gradients of `accumulation_steps`
micro-batches before each optimizer step. These functions reproduce it in our
own code, reduced to the parts that go wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minimind_core.book.exhibits.bench import new_model, random_ids
from minimind_core.book.exhibits.catalogue import (
    Exhibit,
    Kind,
    Measured,
    Notice,
)

Batch = dict[str, Tensor]


def accumulate_means(
    model: nn.Module, micro_batches: Sequence[Batch], accumulation_steps: int
) -> Tensor:
    """Accumulate gradients of mean losses, all with the same divisor.

    Parameters
    ----------
    model : nn.Module
        Its gradients are cleared first, and hold the result afterwards.
    micro_batches : sequence of dict of Tensor
        Each one has equal weight, however many tokens it has. If there are
        fewer than `accumulation_steps` of them, the sum is not a mean.
    accumulation_steps : int

    Returns
    -------
    Tensor of float64, shape (parameters,)
        The gradient.
    """
    model.zero_grad(set_to_none=True)
    for batch in micro_batches:
        (model(**batch).loss / accumulation_steps).backward()
    return flat_gradient(model)


def flat_gradient(model: nn.Module) -> Tensor:
    """Concatenate all gradients of a model, as float64."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([grad.flatten().cpu().double() for grad in grads])


def train_and_save(
    model: nn.Module,
    optimizer: Optimizer,
    micro_batches: Sequence[Batch],
    accumulation_steps: int,
    clip: float = 1.0,
) -> dict[str, Tensor]:
    """Train an epoch, but save the result before the last step.

    Parameters
    ----------
    model : nn.Module
        Trained in place.
    optimizer : Optimizer
    micro_batches : sequence of dict of Tensor
    accumulation_steps : int
    clip : float

    Returns
    -------
    dict of str to Tensor
        The weights that would be saved: those before the remaining
        micro-batches were used.
    """
    saved: dict[str, Tensor] = {}

    def move() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for number, batch in enumerate(micro_batches, 1):
        (model(**batch).loss / accumulation_steps).backward()
        if number % accumulation_steps == 0:
            move()
        if number == len(micro_batches):
            saved = {n: t.clone() for n, t in model.state_dict().items()}
    if len(micro_batches) % accumulation_steps:
        move()
    return saved


# --- measured -----------------------------------------------------------


def _batches(*lengths: int) -> list[Batch]:
    """One text of each length, each in its own micro-batch."""
    rows = [random_ids(1, length, seed=length) for length in lengths]
    return [{"input_ids": ids, "labels": ids} for ids in rows]


def _by_tokens(model: nn.Module, micro_batches: Sequence[Batch]) -> Tensor:
    """Accumulate gradients of sums, divided by the total of tokens."""
    total = sum(batch["labels"].numel() - 1 for batch in micro_batches)
    model.zero_grad(set_to_none=True)
    for batch in micro_batches:
        model(**batch, num_items_in_batch=total).loss.backward()
    return flat_gradient(model)


def measure_means() -> Measured:
    """The direction of a gradient over micro-batches of 60 and 4 labels."""
    model = new_model()
    batches = _batches(61, 5)
    losses = [model(**one).loss * n / 64 for one, n in
              zip(batches, (60, 4), strict=True)]  # fmt: skip
    model.zero_grad(set_to_none=True)
    (losses[0] + losses[1]).backward()
    exact = flat_gradient(model)
    bug, fix = (
        torch.cosine_similarity(one, exact, dim=0).item()
        for one in (accumulate_means(model, batches, 2),
                    _by_tokens(model, batches))
    )  # fmt: skip
    return Measured(
        "Cosine between the gradient and the exact one, for micro-batches "
        "with 60 and 4 labels.",
        f"{bug:.2f}", f"{fix:.2f}", bug < 0.8 and fix > 0.9999,
    )  # fmt: skip


def measure_leftover() -> Measured:
    """The norm of a gradient over five micro-batches of eight."""
    model, batches = new_model(), _batches(20, 20, 20, 20, 20)
    right = accumulate_means(model, batches, 5).norm()
    bug = (accumulate_means(model, batches, 8).norm() / right).item()
    fix = (_by_tokens(model, batches).norm() / right).item()
    return Measured(
        "Length of the gradient of 5 left-over micro-batches, divided by "
        "the right length, if 8 are accumulated.",
        f"{bug:.3f}", f"{fix:.3f}",
        abs(bug - 5 / 8) < 1e-4 and abs(fix - 1) < 1e-4,
    )  # fmt: skip


def measure_saved() -> Measured:
    """How much of a short epoch's training is saved."""
    model, start = new_model(), new_model().state_dict()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    saved = train_and_save(model, optimizer, _batches(20, 20, 20), 8)
    now = model.state_dict()
    bug, fix = (
        sum(torch.equal(some[name], start[name]) for name in start)
        for some in (saved, now)
    )
    return Measured(
        f"Of {len(start)} saved tensors, how many still have their initial "
        "values after an epoch of 3 micro-batches.",
        f"{bug}", f"{fix}", bug == len(start) and fix == 0,
    )  # fmt: skip


EXHIBITS = (
    Exhibit(
        key="mean-of-means",
        title="A small micro-batch counts as much as a large one",
        commit="d65ef2c",
        date="2026-08-21",
        place="model/model_minimind.py:252",
        quote="loss = F.cross_entropy(x.view(-1, x.size(-1)), "
        "y.view(-1), ignore_index=-100)",
        came="2024-09-16 c404941",
        kind=Kind.TRAINING,
        noticed=Notice.NOTHING,
        cost="Each micro-batch's loss is a mean over its own tokens, so with "
        "accumulation a token in a small micro-batch weighs more than one in "
        "a large one: the gradient has another direction and another size.",
        fix="Divide each sum by the number of tokens in the whole batch.",
        measure=measure_means,
        test="tests/test_exhibits_training.py::"
        "test_ours_weighs_every_token_alike",
        page="05_pretraining",
    ),
    Exhibit(
        key="leftover-too-small",
        title="The last gradient of an epoch is too small",
        commit="d65ef2c",
        date="2026-08-21",
        place="trainer/train_pretrain.py:38",
        quote="loss = loss / args.accumulation_steps",
        came="2026-03-25 101d7df",
        kind=Kind.TRAINING,
        noticed=Notice.NOTHING,
        cost="Micro-batches left over at the end are divided by the full "
        "number of accumulation steps: five of eight give five eighths of "
        "the gradient. How much smaller the step becomes depends on the "
        "optimizer.",
        fix="Divide by the actual number, not by the planned one.",
        measure=measure_leftover,
        test="tests/test_exhibits_training.py::"
        "test_ours_does_not_shrink_a_batch_with_a_remainder",
        page="05_pretraining",
    ),
    Exhibit(
        key="saved-before-the-last-step",
        title="The saved model misses the last step",
        commit="d65ef2c",
        date="2026-08-21",
        place="trainer/train_pretrain.py:61-80",
        quote="if (step % args.save_interval == 0 or step == iters) "
        "and is_main_process():\n"
        "    ...\n"
        "if last_step > start_step and last_step % "
        "args.accumulation_steps != 0:\n"
        "    ...",
        came="2026-03-25 101d7df",
        kind=Kind.TRAINING,
        noticed=Notice.NOTHING,
        cost="The final file is written before leftover micro-batches are "
        "used; a single epoch shorter than one accumulation saves its "
        "initial weights.",
        fix="Save after everything has been applied.",
        measure=measure_saved,
        test="tests/test_exhibits_training.py::"
        "test_ours_saves_what_it_has_learnt",
        page="05_pretraining",
    ),
)
