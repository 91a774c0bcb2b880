"""A mixture-of-experts router that gets no gradient from the loss.

    from minimind_core.book.exhibits.experts import mix, router_gradient
    router_gradient(1, always=True)    # about 1e-9

In a mixture of experts, a router sends each token to a few of several
networks and weights their outputs. This package has no such model; this
module contains only the few lines that go wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minimind_core.book.exhibits.bench import seeded
from minimind_core.book.exhibits.catalogue import (
    Exhibit,
    Kind,
    Measured,
    Notice,
)


def mix(
    x: Tensor,
    router: nn.Linear,
    experts: nn.ModuleList,
    chosen: int,
    *,
    always: bool,
) -> Tensor:
    """Sum the weighted outputs of the experts that are best for each token.

    All experts run on all tokens here, which is simple but not fast.

    Parameters
    ----------
    x : Tensor, shape (tokens, hidden)
    router : nn.Linear
        From hidden to a score for each expert.
    experts : nn.ModuleList
    chosen : int
        Experts per token.
    always : bool
        Normalize the weights of the chosen experts even if there is only
        one, whose weight is then divided by itself.

    Returns
    -------
    Tensor, shape (tokens, hidden)
    """
    weights, places = router(x).softmax(-1).topk(chosen, -1)
    if always or chosen > 1:
        weights = weights / weights.sum(-1, keepdim=True)
    outputs = torch.stack([expert(x) for expert in experts], 1)
    index = places[..., None].expand(-1, -1, x.size(-1))
    return (weights[..., None] * outputs.gather(1, index)).sum(1)


def router_gradient(chosen: int, *, always: bool) -> float:
    """Return the norm of the gradient that the router gets from a loss.

    Parameters
    ----------
    chosen, always
        As in `mix`.
    """
    with seeded():
        router = nn.Linear(32, 4, bias=False)
        experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        x, wanted = torch.randn(2, 64, 32)
    found = mix(x, router, experts, chosen, always=always)
    (found - wanted).square().mean().backward()
    assert router.weight.grad is not None
    return router.weight.grad.norm().item()


# --- measured -----------------------------------------------------------


def measure_router() -> Measured:
    """The router's gradient with one expert per token."""
    bug = router_gradient(1, always=True)
    fix = router_gradient(1, always=False)
    return Measured(
        "Length of the gradient that the loss sends to the router, with one "
        "expert per token.",
        f"{bug:.0e}", f"{fix:.0e}", bug < 1e-6 < 1e-3 < fix,
    )  # fmt: skip


EXHIBITS = (
    Exhibit(
        key="deaf-router",
        title="A router that the language loss cannot reach",
        commit="d65ef2c",
        date="2026-08-21",
        place="model/model_minimind.py:161",
        quote="if self.config.norm_topk_prob: topk_weight = topk_weight / "
        "(topk_weight.sum(dim=-1, keepdim=True) + 1e-20)",
        came="2026-03-25 101d7df",
        gone="2026-09-17 #859",
        kind=Kind.TRAINING,
        noticed=Notice.NOTHING,
        cost="With one expert per token the weight is divided by itself, so "
        "it is always 1. Only the penalty that keeps all experts equally "
        "busy still reaches the router, and it does not say which expert "
        "suits a token.",
        fix="Normalize the weights only if there are several.",
        measure=measure_router,
        test="tests/test_exhibits_experts.py::"
        "test_a_router_hears_the_loss_however_many_are_chosen",
        page="museum",
    ),
)
