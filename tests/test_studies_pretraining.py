"""What a token is and must cost; short runs that differ in one thing."""

import pytest
import torch

from minimind_core.book.studies import pretraining
from minimind_core.book.studies.pretraining import (
    CHOICE,
    KINDS,
    PERSONAL,
    WHAT,
    WHO,
    nats_by_kind,
    short_run,
    token_kinds,
    token_losses,
    who_has_what,
)
from minimind_core.config import PRESETS, ModelConfig
from minimind_core.microworld import write_story
from minimind_core.microworld.stories import language_module
from minimind_core.microworld.tape import split_template
from minimind_core.model import MiniMind
from minimind_core.run import column
from minimind_core.tokenizer import train_tokenizer

SHAPE = ModelConfig(
    vocab_size=600, hidden_size=32, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, intermediate_size=64,
    max_position_embeddings=512,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    texts = [write_story(0, i).text for i in range(200)]
    return train_tokenizer(texts, 600)


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path))
    preset = PRESETS["tiny"]
    changed = {"model": SHAPE, "vocab_size": 600}
    monkeypatch.setitem(
        PRESETS, "tiny", type(preset)(**{**vars(preset), **changed})
    )


def test_the_floors_of_the_tokens_add_up_to_the_story(tokenizer):
    for index in range(40):
        story = write_story(9, index)
        told = token_kinds(tokenizer, story.text)
        assert sum(told.floors) == pytest.approx(-story.logprob, abs=1e-9)
        assert len(told.kinds) == len(told.floors) == len(told.ids) - 1
        assert set(told.kinds) <= set(KINDS)


def test_kinds_are_what_they_say(tokenizer):
    story = next(
        s for s in (write_story(9, i) for i in range(99))
        if s.state["plot"] == "trade"
    )
    told = token_kinds(tokenizer, story.text)
    color = story.state["color"]
    pairs = [
        (tokenizer.decode([token]).strip(), kind)
        for token, kind in zip(told.ids[1:], told.kinds, strict=True)
    ]
    # Chosen once, remembered once.
    assert [k for word, k in pairs if word == color] == [CHOICE, WHAT]
    name = language_module("en").WORDS["person"][story.state["hero"]]
    kinds = [k for word, k in pairs if word == name]
    assert kinds[0] == CHOICE and set(kinds[1:]) == {WHO}
    # Nothing is open but at the choices.
    assert all(
        (floor > 0) == (kind == CHOICE)
        for floor, kind in zip(told.floors, told.kinds, strict=True)
    )


def test_no_word_is_both_a_person_s_and_a_thing():
    words = language_module("en").WORDS
    who = {t for n in PERSONAL for t in words[n].values()}
    what = {t for n in words if n not in PERSONAL for t in words[n].values()}
    assert not who & what
    literals = {
        literal
        for sentence in language_module("en").LANGUAGE.sentences.values()
        for literal, _, _ in split_template(sentence)
    }
    assert not literals & (who | what)


def test_losses_by_kind_add_up_to_the_loss(tokenizer):
    torch.manual_seed(0)
    model = MiniMind(SHAPE.replace(vocab_size=len(tokenizer))).eval()
    texts = [write_story(9, i).text for i in range(4)]
    rows = [token_kinds(tokenizer, text).ids for text in texts]
    losses = token_losses(model, rows)
    for ids, row in zip(rows, losses, strict=True):
        one = torch.tensor([ids])
        with torch.no_grad():
            loss = model(one, labels=one, num_items_in_batch=1).loss
        assert sum(row) == pytest.approx(float(loss), rel=1e-5)
    found = nats_by_kind(model, tokenizer, texts)
    total = sum(map(sum, losses)) / 4
    kinds = sum(one["loss"] for one in found.values())
    assert kinds == pytest.approx(total, rel=1e-6)


def test_who_has_what_asks_before_the_right_colour(tokenizer):
    asked = {}

    class Knows(torch.nn.Module):
        """Answers with the colour that the story's text goes on with."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, ids):
            logits = torch.full((*ids.shape, len(tokenizer)), -50.0)
            for row, line in enumerate(ids.tolist()):
                text = tokenizer.decode([i for i in line if i > 2])
                asked[row] = text
                begin = next(s.text for s in stories
                             if s.text.startswith(text))
                after = begin[len(text):].split()[0]
                color = tokenizer.encode(" " + after)[0]
                logits[row, :, color] = 50.0
            return type("Out", (), {"logits": logits})

    stories = pretraining._trades(5)
    found = who_has_what(tokenizer, 5)(Knows())
    assert found["right"] > 0.99 > 0.01 > found["other"]
    assert found["any"] > 0.99
    assert len(asked) == 10
    assert all(text.endswith(" has the") for text in asked.values())


def test_short_runs_start_alike_and_repeat(small):
    one, two = (short_run("tiny", steps=2, batch_size=2) for _ in range(2))
    assert column(one, "loss") == column(two, "loss")
    other = short_run("tiny", steps=2, batch_size=2, lr=1e-5)
    losses = [column(log, "loss")[1] for log in (one, other)]
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]


def test_seeing_the_answer_is_easier(small, monkeypatch):
    monkeypatch.setattr(pretraining, "FAULT_STEPS", 25)
    kept = list(pretraining.FAULTS.items())
    monkeypatch.setattr(pretraining, "FAULTS", dict([kept[0], kept[2]]))
    honest, leak = pretraining.faults("tiny", False)
    assert pretraining._see_the_answer([1, 5, 7]) == [1, 1, 5]
    assert leak["held_out"][-1] < honest["held_out"][-1] - 0.3
    assert 0.1 < leak["floor"] < 0.5


def test_binding_ends_when_it_is_learnt(small, monkeypatch):
    answers = iter([0.5, 0.95, 0.5, 0.95, 0.95, 0.95, 0.95])

    def asked(model):
        return {"right": next(answers), "other": 0.0, "any": 1.0}

    monkeypatch.setattr(pretraining, "who_has_what", lambda t, n: asked)
    monkeypatch.setattr(pretraining, "BINDING_EVERY", 1)
    monkeypatch.setattr(pretraining, "BINDING_BATCH", 2)
    found = pretraining.binding("tiny", False)
    assert found["steps"] == [1, 2, 3, 4, 5, 6]
    assert found["right"] == [0.5, 0.95, 0.5, 0.95, 0.95, 0.95]
    assert set(KINDS) < set(found)
