"""Loading gone wrong: one loader too strict, another too lenient.

    from minimind_core.book.exhibits.resuming import resume_scaler
    load_leniently(model, weights)     # what does not fit stays random
    resume_scaler(scaler, {})          # RuntimeError
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minimind_core.book.exhibits.bench import new_model
from minimind_core.book.exhibits.catalogue import (
    Exhibit,
    Kind,
    Measured,
    Notice,
)
from minimind_core.checkpoint import load_weights
from minimind_core.errors import CheckpointError


def resume_scaler(
    scaler: torch.amp.GradScaler, state: Mapping[str, Any]
) -> None:
    """Load a saved scaler state, even if it is empty.

    Parameters
    ----------
    scaler : GradScaler
    state : mapping
        Empty if the saved scaler was disabled, as with bfloat16.

    Raises
    ------
    RuntimeError
        If this scaler is enabled and the saved one was not.
    """
    scaler.load_state_dict(dict(state))


def load_leniently(
    model: nn.Module, weights: Mapping[str, Tensor]
) -> list[str]:
    """Load the weights whose names match, and ignore all others.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    weights : mapping of str to Tensor

    Returns
    -------
    list of str
        Weights that were not loaded; upstream does not check this.
    """
    return list(model.load_state_dict(weights, strict=False).missing_keys)


# --- measured -----------------------------------------------------------


def measure_resume() -> Measured:
    """A run without a scaler that is resumed in float16."""
    saved = torch.amp.GradScaler("cpu", enabled=False).state_dict()
    scaler = torch.amp.GradScaler("cpu")
    try:
        resume_scaler(scaler, saved)
        bug = "goes on"
    except RuntimeError as error:
        bug = type(error).__name__
    if saved:
        resume_scaler(scaler, saved)
    fix = "goes on" if scaler.is_enabled() else "goes on unscaled"
    return Measured(
        "What happens if a run in bfloat16 is resumed in float16.",
        bug, f"{fix}, with a new scaler",
        bug == "RuntimeError" and fix == "goes on",
    )  # fmt: skip


def measure_lenient() -> Measured:
    """Load four layers into a model of eight."""
    four = new_model(num_hidden_layers=4).state_dict()
    eight = new_model(1, num_hidden_layers=8)
    bug = len(load_leniently(eight, four))
    try:
        load_weights(eight, four, "the file")
        fix = "accepted"
    except CheckpointError:
        fix = "refused, each missing tensor named"
    return Measured(
        "What happens if a file of 4 layers is loaded into a model of 8.",
        f"{bug} tensors stay random, no error", fix,
        bug == 44 and fix.startswith("refused"),
    )  # fmt: skip


EXHIBITS = (
    Exhibit(
        key="empty-scaler",
        title="A run that cannot be resumed in another format",
        commit="d65ef2c",
        date="2026-08-21",
        place="trainer/train_pretrain.py:145",
        quote="scaler.load_state_dict(ckp_data['scaler'])",
        came="2025-10-26 e848487",
        kind=Kind.STOP,
        noticed=Notice.ERROR,
        cost="A run in bfloat16 cannot be resumed in float16, for example "
        "on a GPU without fast bfloat16: the saved state of a disabled "
        "scaler is empty, and an enabled scaler refuses it.",
        fix="If there is no saved state, start a new scaler.",
        measure=measure_resume,
        test="tests/test_train.py::"
        "test_a_bf16_run_goes_on_as_fp16_and_says_so",
        page="museum",
    ),
    Exhibit(
        key="strict-false",
        title="Half a model is loaded without an error",
        commit="d65ef2c",
        date="2026-08-21",
        place="trainer/trainer_utils.py:127",
        quote="model.load_state_dict(weights, strict=False)",
        came="2024-08-28 8be4269",
        kind=Kind.WRONG,
        noticed=Notice.NOTHING,
        cost="A file of four layers loads into a model of eight; the other "
        "four keep their random initial weights. A weight whose name has "
        "changed is not loaded either.",
        fix="Load strictly, and name what is missing, unknown or of another "
        "shape.",
        measure=measure_lenient,
        test="tests/test_checkpoint.py::"
        "test_fewer_layers_do_not_load_into_more",
        page="museum",
    ),
)
