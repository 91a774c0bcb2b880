"""Checks of the exercises in the chapter on fine-tuning.

    from minimind_core.book.checks.conversations import check_supervise
    check_supervise(my_function)  # prints "correct", or says what isn't
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minimind_core.model import IGNORE_INDEX

START, END, HEADER = 1, 2, [1, 7, 8]
USER = [1, 9, 8]

# Each case: the ids, and which of them are supervised.
CASES = {
    "one question and one answer": (
        [*USER, 30, 31, END, 8, *HEADER, 40, 41, END, 8],
        "0000000" + "000" + "111" + "0",
    ),
    "two answers": (
        [*HEADER, 40, END, 8, *USER, 30, END, 8, *HEADER, 41, 42, END],
        "000" + "11" + "0" + "000000" + "000" + "111",
    ),
    "an answer that was cut off before its end": (
        [*USER, 30, END, 8, *HEADER, 40, 41], "000000" + "000" + "11",
    ),
    "a conversation without an answer": ([*USER, 30, END, 8], "000000"),
    "the words of the header in a question": (
        [*USER, 7, 8, 30, END, 8, *HEADER, 40, END],
        "00000000" + "000" + "11",
    ),
}  # fmt: skip


def check_supervise(
    supervise: Callable[
        [list[int], int, int, list[int]], Sequence[int] | None
    ],
) -> None:
    """Check a reader's labels of conversations.

    Parameters
    ----------
    supervise : callable
        Takes the ids, the ids of the two markers and the header of an
        answer; returns the labels.

    Raises
    ------
    AssertionError
        If a label is wrong or the function fails, with the case and the
        likely reason.
    """
    for case, (ids, marks) in CASES.items():
        try:
            found = supervise(list(ids), START, END, list(HEADER))
        except (IndexError, ValueError, KeyError, TypeError) as error:
            raise AssertionError(
                f"{case}: the function fails with {type(error).__name__}: "
                f"{error}, for the ids {ids}"
            ) from error
        assert found is not None, "the function returns nothing"
        assert isinstance(found, Sequence), (
            f"{case}: the function returns {type(found).__name__}, not a "
            "list of labels"
        )
        labels = list(found)
        assert len(labels) == len(ids), (
            f"{case}: {len(labels)} labels for {len(ids)} ids; every token "
            f"gets one, {IGNORE_INDEX} where there is nothing to learn"
        )
        wanted = [
            token if mark == "1" else IGNORE_INDEX
            for token, mark in zip(ids, marks, strict=True)
        ]
        if labels == wanted:
            continue
        raise AssertionError(f"{case}: {_reason(ids, labels, wanted)}")
    print("correct")


def _reason(ids: list[int], labels: list[int], wanted: list[int]) -> str:
    """Say in words how the labels differ."""
    late = [IGNORE_INDEX, *wanted[:-1]]
    given = [label != IGNORE_INDEX for label in labels]
    if given == [label != IGNORE_INDEX for label in late]:
        return "the mask is late by one token"
    if any(
        one and label != token
        for one, label, token in zip(given, labels, ids, strict=True)
    ):
        return (
            "a label must be the token at the same place; the model's loss "
            "does the shifting"
        )
    at = next(i for i, label in enumerate(labels) if label != wanted[i])
    place = f"at place {at} the token {ids[at]}"
    if labels[at] == IGNORE_INDEX:
        if ids[at] == END:
            return f"{place} ends an answer, and should be supervised"
        return f"{place} belongs to an answer, and should be supervised"
    if ids[at] == END:
        return f"{place} ends a question, and should not be supervised"
    if ids[at] in HEADER:
        return (
            f"{place} is the header or a line break after a message, and "
            "should not be supervised"
        )
    return f"{place} is not part of an answer, and should not be supervised"
