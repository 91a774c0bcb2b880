"""How drawn stories are judged."""

import pytest

from minimind_core.book.studies.sampling import SETTINGS, judge
from minimind_core.microworld import write_story


def test_judging_by_hand():
    first, second = write_story(0, 1), write_story(0, 2)
    wrong = first.text.replace(".", "!", 1)
    found = judge([first.text, first.text, second.text, wrong])
    assert found["valid"] == 0.75
    assert found["distinct"] == 0.75
    expected = -(2 * first.logprob + second.logprob) / 3
    assert found["nats"] == pytest.approx(expected)


def test_nothing_valid_has_no_surprise():
    assert judge(["nonsense…"]) == {"valid": 0, "distinct": 1, "nats": 0}


def test_each_setting_is_tried_once():
    assert len({tuple(s.items()) for s in SETTINGS}) == len(SETTINGS)
