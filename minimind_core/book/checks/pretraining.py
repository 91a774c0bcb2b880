"""Checks of the exercises in the chapter on pretraining.

    from minimind_core.book.checks.pretraining import check_adam
    check_adam(my_function)  # prints "correct", or says what isn't
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[
    [Tensor, Tensor, Tensor, Tensor, int, float],
    tuple[Tensor, Tensor, Tensor],
]


def _adam(
    weight: Tensor, gradient: Tensor, m: Tensor, v: Tensor, step: int,
    rate: float, *, corrected: bool = True, shift: int = 0,
    root: bool = True, sign: float = 1.0, betas: tuple[float, float] = (
        0.9, 0.999,
    ),
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One step of Adam, in which each part can be done wrongly."""
    one, two = betas
    m = one * m + (1 - one) * gradient
    v = two * v + (1 - two) * gradient.square()
    m_hat, v_hat = m, v
    if corrected:
        m_hat = m / (1 - one ** (step + shift))
        v_hat = v / (1 - two ** (step + shift))
    size = v_hat.sqrt() if root else v_hat
    return weight - sign * rate * m_hat / (size + 1e-8), m, v


WRONG = {
    "the weight moves with the gradient, not against it": {"sign": -1.0},
    "the bias correction is missing: divide m and v by 1 - beta ** step":
        {"corrected": False},
    "the bias correction uses the wrong step: `step` is 1 at the first":
        {"shift": 1},
    "the root of v is missing": {"root": False},
    "the two betas are exchanged": {"betas": (0.999, 0.9)},
}  # fmt: skip


def check_adam(adam_step: Step) -> None:
    """Check a reader's step of Adam against PyTorch's, for five steps.

    Parameters
    ----------
    adam_step : callable
        Takes weight, gradient, m, v, step (from 1) and rate; returns the
        new weight, m and v.

    Raises
    ------
    AssertionError
        If a result is wrong, with the likely reason.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, generator=generator)
    gradients = torch.randn(5, 6, generator=generator)
    theirs = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=0.1)
    weight = start.clone()
    m = v = torch.zeros(6)
    for step, gradient in enumerate(gradients, 1):
        theirs.grad = gradient.clone()
        optimizer.step()
        before = weight.clone(), m.clone(), v.clone()
        given = weight.clone(), gradient.clone(), m.clone(), v.clone()
        found = adam_step(*given, step, 0.1)
        assert found is not None, "the function returns nothing"
        assert isinstance(found, tuple) and len(found) == 3, (
            "return three things: the new weight, m and v"
        )
        weight, m, v = (one.detach().clone() for one in found)
        if torch.allclose(weight, theirs, atol=1e-5):
            continue
        for why, fault in WRONG.items():
            other, _, _ = _adam(
                before[0], gradient, before[1], before[2], step, 0.1,
                **fault,  # type: ignore[arg-type]
            )  # fmt: skip
            assert not torch.allclose(weight, other, atol=1e-6), why
        off = (weight - theirs).abs().max().item()
        raise AssertionError(
            f"in step {step} the weight differs from PyTorch's by up to "
            f"{off:.2g}"
        )
    print("correct")
