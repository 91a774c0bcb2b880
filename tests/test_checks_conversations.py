"""The check of a loss mask accepts what is right, names what is wrong."""

from __future__ import annotations

import pytest

from minimind_core.book.checks.conversations import check_supervise


def supervise(
    ids, start, end, header, *, late=0, ends=True, heads=False, shift=False,
    everything=False,
):  # fmt: skip
    """Labels found by a search, in which each step can be done wrongly."""
    marks = [False] * len(ids)
    at = 0
    while at < len(ids):
        if ids[at : at + len(header)] == header:
            if heads:
                marks[at : at + len(header)] = [True] * len(header)
            at += len(header)
            while at < len(ids) and ids[at] != end:
                marks[at] = True
                at += 1
            if at < len(ids):
                marks[at] = ends
        at += 1
    if everything:
        marks = [True] * len(ids)
    marks = [False] * late + marks[: len(ids) - late]
    tokens = [*ids[1:], 0] if shift else ids
    return [t if m else -100 for t, m in zip(tokens, marks, strict=True)]


def test_what_is_right_passes(capsys):
    check_supervise(supervise)
    assert capsys.readouterr().out == "correct\n"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"late": 1}, "late by one"),
        ({"ends": False}, "ends an answer"),
        ({"heads": True}, "is the header"),
        ({"shift": True}, "does the shifting"),
        ({"everything": True}, "is the header"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(fault, said):
    with pytest.raises(AssertionError, match=said):
        check_supervise(lambda *given: supervise(*given, **fault))


def test_form_is_checked():
    with pytest.raises(AssertionError, match="returns nothing"):
        check_supervise(lambda *_: None)
    with pytest.raises(AssertionError, match="every token"):
        check_supervise(lambda ids, *_: ids[1:])
    with pytest.raises(AssertionError, match="belongs to an answer"):
        check_supervise(lambda ids, *_: [-100] * len(ids))


def test_a_function_that_fails_is_told_on_which_ids():
    def beyond_the_end(ids, *_):
        # A search for the end token that an answer does not have.
        at = 0
        while ids[at] != 99:
            at += 1

    with pytest.raises(
        AssertionError, match=r"fails with IndexError: .* for the ids \[1, 9"
    ) as caught:
        check_supervise(beyond_the_end)
    assert isinstance(caught.value.__cause__, IndexError)
    with pytest.raises(AssertionError, match="returns int, not a list"):
        check_supervise(lambda *_: 5)
