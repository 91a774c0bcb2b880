"""The study of fine-tunings: what each one is fed with."""

import pytest

from minimind_core.book.studies import finetuning
from minimind_core.book.studies.finetuning import Recipe
from minimind_core.checkpoint import save_model
from minimind_core.config import PRESETS, ModelConfig
from minimind_core.data import tokenizer_texts
from minimind_core.model import IGNORE_INDEX, MiniMind
from minimind_core.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(tokenizer_texts("microworld", count=100), 400)


@pytest.fixture
def small(monkeypatch, tmp_path, tokenizer):
    shape = ModelConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, intermediate_size=64,
    )  # fmt: skip
    (tmp_path / "base").mkdir()
    save_model(MiniMind(shape), tokenizer, tmp_path / "base")
    monkeypatch.setattr(
        finetuning, "get_stage", lambda name, preset: tmp_path / "base"
    )
    for name, value in (
        ("STEPS", 4), ("ROWS", 2), ("CHECKS", 2), ("STORIES", 3),
        ("TALKS", 3), ("FEW", 3), ("SAMPLES", 2),
    ):
        monkeypatch.setattr(finetuning, name, value)


def rows(tokenizer, recipe, count=40):
    stream = finetuning._stream(tokenizer, recipe, 256)
    return [stream.next_row() for _ in range(count)]


def test_each_recipe_feeds_what_it_says(tokenizer):
    plain = rows(tokenizer, Recipe())
    assert len({tuple(row.input_ids) for row in plain}) == 40
    few = rows(tokenizer, Recipe(few=5))
    assert len({tuple(row.input_ids) for row in few}) == 5
    replayed = rows(tokenizer, Recipe(replay=True))
    whole = [row for row in replayed if IGNORE_INDEX not in row.labels[1:]]
    assert 10 < len(whole) < 30, "half of the rows are stories"
    user = tokenizer("user").input_ids[0]
    assert all(row.input_ids[1] != user for row in whole)


def test_the_masks_differ_as_they_say(tokenizer):
    right, everything, late = (
        rows(tokenizer, Recipe(mask=mask), 8)
        for mask in ("answers", "everything", "late")
    )
    for one, two, three in zip(right, everything, late, strict=True):
        assert one.input_ids == two.input_ids == three.input_ids
        assert two.labels[1:] == two.input_ids[1:]
        known = [label != IGNORE_INDEX for label in one.labels]
        moved = [label != IGNORE_INDEX for label in three.labels]
        assert moved[1:] == known[:-1] and sum(known) > 0


def test_a_study_has_a_number_for_every_check(small):
    found = finetuning.finetunings("tiny", False)
    assert set(found) == {
        "replay", "none", "few", "some", "everything", "late",
    }  # fmt: skip
    for name, run in found.items():
        assert run["steps"] == [0, 2, 4]
        for key in ("stories", "held_out", "trained"):
            assert len(run[key]) == 3, key
        last = run["last"]
        assert last["all"] > last["start"] + last["end"] > last["end"] > 0
        assert ("exact" in run) == (name in ("few", "some"))
        assert 0 <= run["last"]["exact_trained"] <= 1
        assert 0 <= run["valid"] <= 1
    # Nats a story and the loss over the floor are the same thing twice.
    floors = [run["last"]["all"] / run["last"]["stories"]
              for run in found.values()]
    assert max(floors) == pytest.approx(min(floors))
    # All begin with the same model.
    assert len({run["stories"][0] for run in found.values()}) == 1
    assert PRESETS["tiny"].sft.replay == 0.5, "the book says so"
