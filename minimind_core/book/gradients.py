"""What a number format does to gradients, measured.

    from minimind_core.book.gradients import compare, take_gradient
    exact = take_gradient(model, batch, dtype="float64")
    found = take_gradient(model, batch, dtype="float16", scale=65536)
    compare(found, exact)        # share of zeros, error, angle
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minimind_core.errors import PrecisionError

Batch = dict[str, Tensor]
HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def take_gradient(
    model: nn.Module,
    batch: Batch,
    *,
    dtype: str,
    items: int | None = None,
    scale: float = 1.0,
) -> Tensor:
    """The gradient of all parameters, as a training step would see it.

    Parameters
    ----------
    model : nn.Module
        Not changed; its gradients are cleared.
    batch : dict of Tensor
        From `data.collate`.
    dtype : {"float64", "float32", "bfloat16", "float16"}
        The halves by autocast, as in training; ``float64`` in a copy of the
        model, as what to compare with.
    items : int, optional
        Tokens in the whole batch, of which this may be a part: the summed
        loss is divided by it. The labels of `batch` if not given.
    scale : float
        Multiplies the loss; the gradient is divided by it again.

    Returns
    -------
    Tensor of float64, shape (parameters,)

    Raises
    ------
    PrecisionError
        For another dtype.
    """
    if dtype not in ("float64", "float32", *HALF):
        raise PrecisionError(f"no gradients in {dtype!r}")
    if dtype == "float64":
        # On the CPU, because Metal has no float64.
        model = copy.deepcopy(model).cpu().double()
        batch = {name: tensor.cpu() for name, tensor in batch.items()}
    model.zero_grad(set_to_none=True)
    device = next(model.parameters()).device.type
    half = HALF.get(dtype)
    with torch.autocast(
        device, half or torch.bfloat16, enabled=half is not None
    ):
        loss = model(**batch, num_items_in_batch=items).loss
    (loss * scale).backward()
    parts = [
        p.grad.flatten().cpu().double() / scale
        for p in model.parameters()
        if p.grad is not None
    ]
    model.zero_grad(set_to_none=True)
    return torch.cat(parts)


class Comparison(NamedTuple):
    """How a gradient differs from the exact one.

    Attributes
    ----------
    zero_share : float
        Of the components that should not be zero, how many are.
    relative_error : float
        Length of the difference by length of the exact one.
    cosine : float
        Of the angle between the two.
    """

    zero_share: float
    relative_error: float
    cosine: float


def compare(found: Tensor, exact: Tensor) -> Comparison:
    """Compare a gradient with the exact one.

    Parameters
    ----------
    found, exact : Tensor, shape (parameters,)

    Returns
    -------
    Comparison
        With NaN where `found` is not finite.
    """
    if not found.isfinite().all():
        return Comparison(math.nan, math.nan, math.nan)
    lost = (found == 0) & (exact != 0)
    cosine = torch.nn.functional.cosine_similarity(found, exact, dim=0)
    return Comparison(
        lost.sum().item() / max(int((exact != 0).sum()), 1),
        ((found - exact).norm() / exact.norm()).item(),
        cosine.item(),
    )


@torch.no_grad()
def logit_gradients(
    model: nn.Module, batch: Batch, *, items: int
) -> tuple[Tensor, Tensor]:
    """Sizes of the loss's gradients at the logits, where they are smallest.

    For the logit of a token with probability p the gradient of a mean over
    N labels is p / N, and (p - 1) / N for the one token that was right.

    Parameters
    ----------
    model : nn.Module
    batch : dict of Tensor
        Padded on the right.
    items : int
        N.

    Returns
    -------
    wrong, right : Tensor of float64
        Of all tokens that were wrong, and of those that were right.
    """
    labels = batch["labels"][:, 1:]
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    # First to the CPU, then to double: Metal has no float64.
    logits = model(**inputs).logits[:, :-1].cpu().double()
    labels = labels.cpu()
    kept = labels != -100
    probs = logits[kept].softmax(-1)
    truth = torch.zeros_like(probs, dtype=torch.bool)
    truth.scatter_(1, labels[kept][:, None], True)
    return probs[~truth] / items, (1 - probs[truth]) / items
