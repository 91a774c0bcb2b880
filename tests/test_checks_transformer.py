"""The check of attention accepts what is right and names what is wrong."""

from __future__ import annotations

import math

import pytest
import torch

from minimind_core.book.checks.transformer import check_attention


def attention(
    q, k, v, *, copies=torch.Tensor.repeat_interleave, scale=None, diagonal=0,
    dim=-1, late=False, masked=True,
):  # fmt: skip
    """Causal attention, in which each step can be done wrongly."""
    group = q.size(1) // k.size(1)
    if copies is torch.Tensor.repeat_interleave:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    elif copies is not None:
        k, v = k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1)
    scores = q @ k.transpose(2, 3) / (scale or math.sqrt(q.size(-1)))
    seen = torch.ones(q.size(2), q.size(2), dtype=torch.bool).tril(diagonal)
    if masked and not late:
        scores = scores.masked_fill(~seen, -1e9)
    weights = scores.softmax(dim)
    return (weights * seen if late else weights) @ v


def test_what_is_right_passes(capsys):
    check_attention(attention)
    assert capsys.readouterr().out == "correct\n"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"masked": False}, "looking ahead"),
        ({"scale": 1.0}, "not divided by the root"),
        ({"scale": 8.0}, "divided by head_dim, not by its root"),
        ({"copies": "tiled"}, "paired wrongly"),
        ({"copies": None}, "a copy of its keys"),
        ({"late": True}, "add up to one"),
        ({"diagonal": -1}, "look at itself"),
        ({"dim": -2}, "over the queries"),
        ({"scale": 3.0}, "differs from PyTorch's"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_wrong_is_named(fault, said):
    with pytest.raises(AssertionError, match=said):
        check_attention(lambda q, k, v: attention(q, k, v, **fault))


def test_shapes_are_checked():
    with pytest.raises(AssertionError, match="returns nothing"):
        check_attention(lambda q, k, v: None)
    with pytest.raises(AssertionError, match="has the shape"):
        check_attention(lambda q, k, v: v[:, :1])
