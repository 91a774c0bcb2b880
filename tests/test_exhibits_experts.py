"""What a router hears of the loss."""

import pytest
import torch
from torch import nn

from minimind_core.book.exhibits.experts import mix, router_gradient


def test_a_single_weight_divided_by_itself_has_no_gradient():
    assert router_gradient(1, always=True) < 1e-6
    assert router_gradient(2, always=True) > 1e-3


@pytest.mark.parametrize("chosen", [1, 2, 4])
def test_a_router_hears_the_loss_however_many_are_chosen(chosen):
    assert router_gradient(chosen, always=False) > 1e-3


def test_the_mixture_is_the_weighted_sum_of_the_best():
    torch.manual_seed(0)
    router = nn.Linear(8, 4, bias=False)
    experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
    x = torch.randn(5, 8)
    scores = router(x).softmax(-1)
    for row in range(5):
        weights, best = scores[row].topk(2)
        said = torch.stack([experts[int(i)](x[row]) for i in best])
        expected = (weights / weights.sum()) @ said
        found = mix(x, router, experts, 2, always=False)[row]
        torch.testing.assert_close(found, expected)
