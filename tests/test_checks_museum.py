"""The check of a leak test accepts a good one and rejects weak ones."""

from __future__ import annotations

import pytest
import torch

from minimind_core.book.checks.museum import check_sees_future


def changes(model, ids, place, *, exact=True):
    other = ids.clone()
    other[:, place:] = (other[:, place:] + 1) % 11
    before, after = model(ids)[:, :place], model(other)[:, :place]
    if exact:
        return not torch.equal(before, after)
    return not torch.allclose(before, after, atol=1e-2)


def test_a_good_test_passes(capsys):
    check_sees_future(
        lambda model, ids: any(changes(model, ids, t) for t in range(1, 8))
    )
    assert capsys.readouterr().out == "correct\n"


@pytest.mark.parametrize(
    ("weak", "said"),
    [
        (lambda model, ids: True, "has no leak"),
        (lambda model, ids: False, "every position"),
        (lambda model, ids: changes(model, ids, 7), "changing the last"),
        (
            lambda model, ids: any(
                changes(model, ids, t, exact=False) for t in range(1, 8)
            ),
            "compare exactly",
        ),
        (lambda model, ids: None, "returns nothing"),
    ],
)
def test_a_weak_test_is_told_what_it_misses(weak, said):
    with pytest.raises(AssertionError, match=said):
        check_sees_future(weak)
