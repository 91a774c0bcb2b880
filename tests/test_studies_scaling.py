"""The study of scale: what it records is what was trained."""

import pytest

from minimind_core.book.studies import scaling
from minimind_core.config import get_preset
from minimind_core.cost import flops_per_token


@pytest.fixture
def small(monkeypatch, small_tiny):
    for name, value in (
        ("WIDTHS", (0.5, 1.0)), ("STEPS", 12), ("AT", (2, 12)),
        ("BATCH", 4), ("HELD_OUT", 5),
    ):  # fmt: skip
        monkeypatch.setattr(scaling, name, value)


def test_each_width_is_trained_on_the_same_stories(small, capsys):
    narrow, wide = scaling.scaling("tiny", True)
    assert (narrow["width"], wide["width"]) == (16, 32)
    assert narrow["parameters"] < wide["parameters"]
    assert narrow["floor"] == wide["floor"] > 0
    for run in (narrow, wide):
        first, last = run["points"]
        assert (first["step"], last["step"]) == (2, 12)
        assert first["loss"] - 0.2 > last["loss"] > run["floor"]
        assert last["flops"] == pytest.approx(
            last["tokens"] * run["flops_per_token"]
        )
    pairs = zip(narrow["points"], wide["points"], strict=True)
    assert all(a["tokens"] == b["tokens"] for a, b in pairs)
    assert capsys.readouterr().out.count("x the floor") == 2


def test_the_last_point_is_the_last_step():
    assert scaling.AT[-1] == scaling.STEPS
    assert sorted(set(scaling.AT)) == list(scaling.AT)


@pytest.mark.parametrize("share", [0.25, 0.375, 0.5, 0.75, 1, 2, 4])
def test_a_narrower_model_keeps_depth_and_heads(share):
    shape = get_preset("tiny").model
    found = scaling.narrower(shape, share)
    assert found.hidden_size == share * shape.hidden_size
    assert found.ffn_width == share * shape.ffn_width
    same = ("num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "vocab_size")  # fmt: skip
    assert all(getattr(found, n) == getattr(shape, n) for n in same)
    if share == 1:
        assert found == shape
    else:
        bigger = flops_per_token(found, 64) > flops_per_token(shape, 64)
        assert bigger == (share > 1)
