"""Checks of the exercises in the bug museum.

    from minimind_core.book.checks.museum import check_sees_future
    check_sees_future(my_function)  # prints "correct", or says what isn't
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Model = Callable[[Tensor], Tensor]
VOCABULARY, TIME = 11, 8


def _model(leak: Callable[[Tensor], Tensor]) -> Model:
    """A causal model of random numbers, to which a leak is added."""
    table = torch.randn(
        VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0)
    )

    def model(ids: Tensor) -> Tensor:
        logits = table[ids].cumsum(1)
        return logits + leak(ids)[..., None]

    return model


def _nothing(ids: Tensor) -> Tensor:
    return torch.zeros(ids.shape)


def _next_token(ids: Tensor) -> Tensor:
    return torch.cat((ids[:, 1:], ids[:, -1:]), 1).float()


def _at_one_place(ids: Tensor) -> Tensor:
    found = torch.zeros(ids.shape)
    found[:, 2] = ids[:, 3]
    return found


def _faintly(ids: Tensor) -> Tensor:
    return 1e-4 * _next_token(ids)


MODELS = {
    "the model has no leak": (_nothing, False),
    "every position sees the next token": (_next_token, True),
    "position 2 alone sees the token after it; changing the last token is "
    "not enough": (_at_one_place, True),
    "the leak is small; compare exactly": (_faintly, True),
}


def check_sees_future(
    sees_future: Callable[[Model, Tensor], bool],
) -> None:
    """Check a reader's test for leaks on four models.

    Parameters
    ----------
    sees_future : callable
        Takes a model, which maps ids to logits, and ids of shape (1, time).

    Raises
    ------
    AssertionError
        If a verdict is wrong, with the kind of the model.
    """
    ids = torch.arange(TIME)[None] % VOCABULARY
    for about, (leak, truth) in MODELS.items():
        found = sees_future(_model(leak), ids.clone())
        assert found is not None, "the function returns nothing"
        assert bool(found) is truth, f"{about}, and you say {bool(found)}"
    print("correct")
