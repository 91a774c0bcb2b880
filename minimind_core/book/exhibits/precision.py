"""Number formats gone wrong: the ignored dtype flag and related bugs.

    from minimind_core.book.exhibits.precision import HISTORY, trial
    for version in HISTORY:
        print(version.date, trial(version, "bfloat16", "cpu"))

Upstream's lines are represented by two small functions for what they decide:
whether the scaler is enabled, and which dtype is passed to autocast. On a CPU
upstream did not use autocast at all. Here it gets the same dtype as on a GPU,
so that each case can be reproduced on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minimind_core.book.exhibits.bench import new_model, random_ids
from minimind_core.book.exhibits.catalogue import (
    Exhibit,
    Kind,
    Measured,
    Notice,
)
from minimind_core.precision import DeviceFacts, Precision, resolve

FLAGS = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, kw_only=True)
class Version:
    """What two lines of a training script decide, from the dtype.

    In the first version the dtype is a variable of the script; 51dcf51 made
    it a flag.

    Parameters
    ----------
    date, commit : str
        When upstream's script adopted these lines.
    scaler_line, autocast_line : str
        The condition and the context as they were written.
    scaler_on : callable
        Flag -> whether the gradient scaler is enabled.
    autocast_dtype : callable
        Flag -> dtype passed to autocast; None means no dtype, that is,
        CUDA's default.
    """

    date: str
    commit: str
    scaler_line: str
    autocast_line: str
    scaler_on: Callable[[str], bool]
    autocast_dtype: Callable[[str], torch.dtype | None]


def _never_asked(flag: str) -> None:
    return None


def _two_ways(flag: str) -> torch.dtype:
    return torch.bfloat16 if flag == "bfloat16" else torch.float16


FIRST = Version(
    date="2024-08-28",
    commit="8be4269",
    scaler_line="dtype == dtype",
    autocast_line="autocast()",
    scaler_on=lambda flag: flag == flag,
    autocast_dtype=_never_asked,
)
CONDITION_FIX = Version(
    date="2024-09-25",
    commit="89d2601",
    scaler_line="args.dtype in ['float16', 'bfloat16']",
    autocast_line="autocast()",
    scaler_on=lambda flag: flag in ("float16", "bfloat16"),
    autocast_dtype=_never_asked,
)
REPAIR = Version(
    date="2025-10-26",
    commit="e848487",
    scaler_line="args.dtype == 'float16'",
    autocast_line="autocast(dtype=bfloat16 if ... else float16)",
    scaler_on=lambda flag: flag == "float16",
    autocast_dtype=_two_ways,
)
HISTORY = (FIRST, CONDITION_FIX, REPAIR)
"""Of the pretraining script."""

LORA_FIRST = Version(
    date="2024-08-28",
    commit="8be4269",
    scaler_line="dtype == 'float16'",
    autocast_line="autocast()",
    scaler_on=lambda flag: flag == "float16",
    autocast_dtype=_never_asked,
)
"""The LoRA script began with the condition that is right today."""


@dataclass(frozen=True)
class Trial:
    """The outcome of running a version with a flag.

    Attributes
    ----------
    ran : str
        The dtype of the result of a matrix product.
    scaler : bool
        Whether a scaler was on.
    needed : bool
        Whether what ran needs one.
    verdict : str
    """

    ran: str
    scaler: bool
    needed: bool
    verdict: str


def trial(version: Version, flag: str, device: str = "cpu") -> Trial:
    """Run a matrix product as a version would have, and judge the result.

    Parameters
    ----------
    version : Version
    flag : {"float16", "bfloat16", "float32"}
        What the user asked for with ``--dtype``.
    device : {"cpu", "cuda"}
        Where to try it.
    """
    given = version.autocast_dtype(flag)
    default = torch.get_autocast_dtype("cuda")
    weight = torch.ones(2, 2, device=device)
    with torch.autocast(device, given or default):
        ran = str((weight @ weight).dtype).removeprefix("torch.")
    on, needed = version.scaler_on(flag), ran == "float16"
    if needed and not on:
        verdict = "unsound: float16 without a scaler"
    elif ran != flag:
        verdict = "sound, but not what was asked"
    elif on and not needed:
        verdict = "right, with a scaler too many"
    else:
        verdict = "right"
    return Trial(ran, on, needed, verdict)


def vanished_share(
    before: nn.Module,
    after: nn.Module,
    *,
    scales: bool,
    dtype: torch.dtype = torch.float16,
) -> float:
    """Return the share of updates that is lost when weights are saved.

    Parameters
    ----------
    before, after : nn.Module
        The same model before and after some steps.
    scales : bool
        Compare the norms' weights, which are near 1, instead of the
        matrices.
    dtype : torch.dtype
        The dtype in which they are saved.

    Returns
    -------
    float
        Of the weights that changed, the share that is saved as the same
        number as before.
    """
    changed = lost = 0
    olds = dict(before.named_parameters())
    for name, new in after.named_parameters():
        if (new.ndim == 1) != scales:
            continue
        moved = new != olds[name]
        same = new.to(dtype) == olds[name].to(dtype)
        changed += int(moved.sum())
        lost += int((moved & same).sum())
    return lost / max(changed, 1)


def additive_mask_attention(
    scores: Tensor, attention_mask: Tensor
) -> Tensor:
    """Mask padding by adding -1e9, whatever the scores' dtype.

    Parameters
    ----------
    scores : Tensor, shape (batch, time, time)
        Before the softmax, without the causal mask.
    attention_mask : Tensor of int, shape (batch, time)
        0 on padding.

    Returns
    -------
    Tensor, shape (batch, time, time)
        Attention weights. In float16 -1e9 is -inf, so that a row that can
        attend only to padding is a softmax over nothing, which is NaN.
    """
    time = scores.size(-1)
    ahead = torch.full((time, time), -math.inf).triu(1)
    scores = scores.clone()
    scores += ahead.to(scores.dtype)
    scores += (1.0 - attention_mask[:, None]) * -1e9
    return scores.float().softmax(-1)


def in_place_residual(block: nn.Module, x: Tensor, *args: Tensor) -> Tensor:
    """Run a block that adds the residual stream in place.

    Parameters
    ----------
    block : Block
    x : Tensor, shape (batch, time, hidden)
    *args : Tensor
        As `Block.forward` takes them.

    Returns
    -------
    Tensor, shape (batch, time, hidden)
        Under autocast attention's output is in half precision, and an
        in-place addition keeps the dtype of its left operand, so that the
        residual stream becomes half precision, too.
    """
    hidden: Tensor = block.self_attn(  # type: ignore[operator]
        block.input_layernorm(x), *args  # type: ignore[operator]
    )
    hidden += x
    normed = block.post_attention_layernorm(hidden)  # type: ignore[operator]
    written: Tensor = block.mlp(normed)  # type: ignore[operator]
    return hidden + written


# --- measured -----------------------------------------------------------


def measure_flag() -> Measured:
    """The dtype of a matrix product for a user who asked for bfloat16."""
    ran = trial(FIRST, "bfloat16").ran
    ours = _ours("bfloat16")
    with ours.autocast():
        right = torch.ones(2, 2) @ torch.ones(2, 2)
    return Measured(
        "The dtype of a matrix product if the user asks for bfloat16.",
        ran, str(right.dtype).removeprefix("torch."),
        ran == "float16" and right.dtype == torch.bfloat16,
    )  # fmt: skip


def measure_condition() -> Measured:
    """How many flags ran float16 unscaled, before and after the fix."""
    unsound = [
        sum("unsound" in trial(version, flag).verdict for flag in FLAGS)
        for version in (FIRST, CONDITION_FIX)
    ]
    return Measured(
        "Of the three values of the dtype flag, how many ran in float16 "
        "without a scaler.",
        f"{unsound[0]}",
        f"{unsound[1]}, namely float32",
        unsound == [0, 1],
        labels=("before the fix", "after the fix"),
    )  # fmt: skip


def measure_float32() -> Measured:
    """The error of a gradient that was requested in float32."""
    from minimind_core.book.gradients import compare, take_gradient

    model = new_model(vocab_size=6400, intermediate_size=None)
    ids = random_ids(4, 32, vocab_size=6400)
    batch = {"input_ids": ids, "labels": ids}
    exact, wrong, right = (
        take_gradient(model, batch, dtype=dtype, items=32 * 340 * 8)
        for dtype in ("float64", trial(REPAIR, "float32").ran, "float32")
    )
    bug, fix = (compare(one, exact).relative_error for one in (wrong, right))
    return Measured(
        "Relative error of the gradient in a batch of 87,040 tokens.",
        f"{bug:.0%}", f"{fix:.0e}", bug > 0.1 > 1e-4 > fix,
    )  # fmt: skip


def measure_saving() -> Measured:
    """How much of a late step survives saving."""
    before, after = new_model(), new_model()
    optimizer = torch.optim.AdamW(after.parameters(), 1e-5, weight_decay=0)
    ids = random_ids(4, 32)
    after(ids, labels=ids).loss.backward()
    optimizer.step()
    bug = vanished_share(before, after, scales=True)
    fix = vanished_share(before, after, scales=True, dtype=torch.float32)
    return Measured(
        "Share of the updates of norm weights that saving loses, at a "
        "learning rate of 1e-5.",
        f"{bug:.0%}", f"{fix:.0%}", bug > 0.9 and fix == 0,
    )  # fmt: skip


@torch.no_grad()
def measure_stream() -> Measured:
    """The residual stream's error after sixteen layers in bfloat16."""
    model = new_model(num_hidden_layers=16).model
    start = torch.randn(1, 32, 32, generator=torch.manual_seed(1))
    rope = model.rotary_emb(torch.arange(32)[None])
    exact = theirs = ours = start
    for block in model.layers:
        exact = block(exact, rope)
        with torch.autocast("cpu", torch.bfloat16):
            theirs = in_place_residual(block, theirs, rope)
            ours = block(ours, rope)
    bug, fix = (
        float((one - exact).norm() / exact.norm()) for one in (theirs, ours)
    )
    return Measured(
        "Relative error of the residual stream after 16 untrained layers "
        "in bfloat16.",
        f"{bug:.1e}", f"{fix:.1e}", bug > 2 * fix,
    )  # fmt: skip


@torch.no_grad()
def measure_mask() -> Measured:
    """Positions that are NaN in a batch padded on the left."""
    mask = torch.tensor([[0, 0, 1, 1]])
    theirs = additive_mask_attention(torch.zeros(1, 4, 4).half(), mask)
    bug = int(theirs.isnan().any(-1).sum())
    logits = new_model().half()(random_ids(1, 4), attention_mask=mask).logits
    fix = int(logits.isnan().any(-1).sum())
    return Measured(
        "Of four positions in float16, two of them padding, how many are "
        "NaN.",
        f"{bug}", f"{fix}", bug == 2 and fix == 0,
    )  # fmt: skip


def _ours(flag: str) -> Precision:
    """The package's choice for a flag on a CPU that supports all dtypes."""
    return resolve(dtype=flag, facts=DeviceFacts("cpu", "a CPU", True))


EXHIBITS = (
    Exhibit(
        key="dtype-flag",
        title="The dtype that autocast never read",
        commit="8be4269",
        date="2024-08-28",
        place="1-pretrain.py:147-149",
        quote="else torch.cuda.amp.autocast()",
        came="2024-08-28 8be4269",
        gone="2025-10-26 e848487",
        kind=Kind.WRONG,
        noticed=Notice.NOTHING,
        cost="On a GPU, pretraining and fine-tuning ran in float16, whatever "
        "the user asked for.",
        fix="Pass the dtype to autocast explicitly.",
        measure=measure_flag,
        test="tests/test_exhibits_precision.py::"
        "test_ours_runs_what_was_asked_and_scales_only_float16",
        page="04_precision",
    ),
    Exhibit(
        key="dtype-equals-itself",
        title="The condition that is always true",
        commit="8be4269",
        date="2024-08-28",
        place="1-pretrain.py:176",
        quote="scaler = torch.cuda.amp.GradScaler(enabled=(dtype == "
        "dtype))",
        came="2024-08-28 8be4269",
        gone="2024-09-25 89d2601",
        kind=Kind.LUCK,
        noticed=Notice.NOTHING,
        cost="By itself it did no harm: autocast always ran in float16, "
        "which needs a scaler, and this condition always switched one on. "
        "The next one, `args.dtype in ['float16', 'bfloat16']`, left it off "
        "for float32, which still ran in float16.",
        fix="Enable the scaler for float16 alone.",
        measure=measure_condition,
        test="tests/test_exhibits_precision.py::"
        "test_ours_runs_what_was_asked_and_scales_only_float16",
        page="04_precision",
    ),
    Exhibit(
        key="float32-is-half",
        title="Asking for float32 and getting float16 without a scaler",
        commit="d65ef2c",
        date="2026-08-21",
        place="trainer/train_pretrain.py:121-137",
        quote='dtype = torch.bfloat16 if args.dtype == "bfloat16" else '
        "torch.float16\n"
        "...\n"
        "scaler = torch.cuda.amp.GradScaler(enabled=(args.dtype "
        "== 'float16'))",
        came="2024-09-25 89d2601",
        kind=Kind.TRAINING,
        noticed=Notice.ODD,
        cost="Without a scaler, small gradients become zero in float16, and "
        "more of them do the larger the batch is. Until October 2025 the "
        "condition named bfloat16 as well, which then ran in float16, too; "
        "float32 was left out from the beginning.",
        fix="Switch autocast off if the user asks for float32.",
        measure=measure_float32,
        test="tests/test_exhibits_precision.py::"
        "test_float32_is_not_autocast",
        page="04_precision",
    ),
    Exhibit(
        key="half-checkpoints",
        title="Checkpoints in half precision forget small updates",
        commit="d65ef2c",
        date="2026-08-21",
        place="trainer/trainer_utils.py:73",
        quote="state_dict = {k: v.half().cpu() for k, v in "
        "state_dict.items()}",
        came="2025-12-01 5e1447b",
        kind=Kind.TRAINING,
        noticed=Notice.NOTHING,
        cost="A resumed run begins with weights that were rounded to "
        "float16 when they were saved. A weight that has changed by less "
        "than half a step of float16 since the last rounding falls back to "
        "its old value.",
        fix="Keep trainable weights in float32 on disk as well.",
        measure=measure_saving,
        test="tests/test_exhibits_precision.py::"
        "test_a_small_step_survives_our_checkpoint",
        page="04_precision",
    ),
    Exhibit(
        key="in-place-residual",
        title="An addition in place that rounds the residual stream",
        commit="d65ef2c",
        date="2026-08-21",
        place="model/model_minimind.py:192",
        quote="hidden_states += residual",
        came="2025-04-26 a62faf3",
        kind=Kind.WRONG,
        noticed=Notice.NOTHING,
        cost="The sum takes the dtype of the layer's output, bfloat16, so "
        "rounding errors pile up from layer to layer. And a hook that keeps "
        "the output of attention later finds the sum in its place.",
        fix="Write x = x + y, not y += x.",
        measure=measure_stream,
        test="tests/test_model.py::"
        "test_residual_stream_stays_float32_under_autocast",
        page="04_precision",
    ),
    Exhibit(
        key="finite-minus-infinity",
        title="A mask of -1e9 that float16 cannot hold",
        commit="d65ef2c",
        date="2026-08-21",
        place="model/model_minimind.py:130",
        quote="if attention_mask is not None: scores += (1.0 - "
        "attention_mask.unsqueeze(1).unsqueeze(2)) * -1e9",
        came="2025-04-26 a62faf3",
        kind=Kind.STOP,
        noticed=Notice.ODD,
        cost="In float16, -1e9 becomes minus infinity. With padding on the "
        "left, the first rows may attend only to padding, so all their "
        "scores are minus infinity and their softmax is NaN.",
        fix="Use boolean masks, and let every row attend to something.",
        measure=measure_mask,
        test="tests/test_model.py::"
        "test_padding_mask_is_finite_in_half_precision",
        page="04_precision",
    ),
)
