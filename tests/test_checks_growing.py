"""The check of operations accepts what is right, names what is wrong."""

from __future__ import annotations

import pytest

from minimind_core.book.checks.growing import check_flops


def count(
    shape, rows, length, *, weight=6, head=1, lookup=0, norms=0, own=12,
    last=0, batch=True,
):  # fmt: skip
    parts = shape.parameters_by_part()
    weights = parts["attention"] + parts["mlp"] + norms * parts["norms"]
    table = shape.vocab_size * shape.hidden_size
    channels = shape.num_attention_heads * shape.head_width
    each = weight * (weights + lookup * table) * length
    each += weight * head * table * (length - 1 + last)
    each += own * shape.num_hidden_layers * channels * length**2
    return each * rows if batch else each // length


def test_what_is_right_passes(capsys):
    check_flops(count)
    assert capsys.readouterr().out == "correct\n"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"batch": False}, "per token"),
        ({"head": 0}, "output head is missing"),
        ({"lookup": 1}, "only looked up"),
        ({"last": 1}, "last position"),
        ({"norms": 1}, "no matrix products"),
        ({"own": 0}, "own products are missing"),
        ({"own": 6}, "two products"),
        ({"weight": 2, "own": 4}, "forward pass alone"),
        ({"weight": 5}, "it should be"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(fault, said):
    with pytest.raises(AssertionError, match=said):
        check_flops(lambda *given: count(*given, **fault))


def test_nothing_is_noticed():
    with pytest.raises(AssertionError, match="returns nothing"):
        check_flops(lambda *_: None)
