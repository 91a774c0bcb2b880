"""The check of Adam accepts what is right and names what is wrong."""

from __future__ import annotations

import pytest

from minimind_core.book.checks.pretraining import WRONG, _adam, check_adam


def test_what_is_right_passes(capsys):
    check_adam(_adam)
    assert capsys.readouterr().out == "correct\n"


@pytest.mark.parametrize("why", WRONG)
def test_what_is_wrong_is_named(why):
    with pytest.raises(AssertionError) as caught:
        check_adam(lambda *given: _adam(*given, **WRONG[why]))
    assert str(caught.value) == why


def test_other_mistakes_are_measured():
    def lazy(weight, gradient, m, v, step, rate):
        return _adam(weight, gradient, m, v, step, rate / 2)

    with pytest.raises(AssertionError, match=r"in step 1 .* differs"):
        check_adam(lazy)
    with pytest.raises(AssertionError, match="returns nothing"):
        check_adam(lambda *_: None)
    with pytest.raises(AssertionError, match="three things"):
        check_adam(lambda weight, *_: weight)


def test_averages_that_are_not_returned_are_noticed():
    def forgetful(weight, gradient, m, v, step, rate):
        return (_adam(weight, gradient, m, v, step, rate)[0], m, v)

    with pytest.raises(AssertionError, match="in step 2"):
        check_adam(forgetful)
