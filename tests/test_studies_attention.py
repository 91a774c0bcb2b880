"""Where heads look: the places are right, and so is the counting."""

from __future__ import annotations

import pytest
import torch

from minimind_core.book.studies import attention
from minimind_core.config import get_preset
from minimind_core.microworld import write_stories
from minimind_core.model import MiniMind
from minimind_core.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    texts = [story.text for story in write_stories(0, 0, 600)]
    return train_tokenizer(texts, vocab_size=1024)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MiniMind(get_preset("tiny").model)


def test_the_answer_follows_and_the_places_come_before(tokenizer):
    found = attention.find_recalls(tokenizer, "search", "place2", stories=9)
    rows = torch.arange(9)
    assert torch.equal(found.input_ids[rows, found.at + 1], found.answers)
    assert not found.rivals.any()
    for ids, at, answer, places, _ in zip(*found, strict=True):
        assert places.any() and not places[at:].any()
        assert (ids[places] == answer).all()
        assert not (ids[at + 2 :] == answer).any()


def test_what_never_comes_back_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="does not repeat"):
        attention.find_recalls(tokenizer, "trade", "fruit", stories=1)


def test_the_rivals_include_the_nearest_mention(tokenizer):
    found = attention.find_recalls(
        tokenizer, "trade", "color", rival="color2", stories=9
    )
    # "Now Mia has the green hat and Tom has the": the green just before
    # comes later than every mention of the color that is asked for.
    for ids, at, places, rivals in zip(
        found.input_ids, found.at, found.places, found.rivals, strict=True
    ):
        assert rivals.sum() == 3 and not rivals[at:].any()
        assert rivals.nonzero().max() > places.nonzero().max()
        assert len(set(ids[rivals].tolist())) == 1


def test_the_places_after_a_trade_are_told_with_either_name(tokenizer):
    slots = attention.trade_slots(tokenizer, stories=4)
    texts = [tokenizer.decode(slot.input_ids[0][0]) for slot in slots]
    assert [slot.owner for slot in slots] == [0, 1, 1, 0]
    assert len(set(texts)) == 4
    stories = [write_stories(7, i, 1)[0] for i in range(300)]
    first = next(s for s in stories if s.state["plot"] == "trade")
    # As told, they are beginnings of the story; swapped, they are not.
    begins = [text in first.text for text in texts]
    assert begins == [True, False, True, False]
    one, two = (tokenizer.decode([i]) for i in slots[0].candidates[0])
    assert first.text.split("Now ")[1].split("has the")[1].startswith(one)
    assert first.text.split("Now ")[1].split("has the")[2].startswith(two)


def test_who_names_the_second_color_is_counted(tokenizer, model):
    (slot, *_) = attention.trade_slots(tokenizer, stories=3)
    found = attention.slot_choices(model, slot)
    assert found["named"].shape == (3,)
    assert found["attended"].shape == (3, 2, 4)

    (slot, *_) = attention.trade_slots(tokenizer, stories=1)

    class Second(MiniMind):
        def forward(self, input_ids, **kwargs):
            out = super().forward(input_ids, **kwargs)
            out.logits[..., slot.candidates[0][1]] += 100
            return out

    always = Second(model.config)
    assert attention.slot_choices(always, slot)["named"].item() == 1


def test_a_head_that_looks_at_the_place_hits(tokenizer, model, monkeypatch):
    found = attention.find_recalls(tokenizer, "trade", "color", stories=6)
    stories, time = found.input_ids.shape

    def maps(input_ids):
        made = torch.zeros(2, stories, 4, time, time)
        rows = torch.arange(stories)
        made[1, rows, 2, found.at, found.places.int().argmax(1)] = 1.0
        return made

    monkeypatch.setattr(model, "attention_maps", maps)
    hits = attention.head_hits(model, found)
    assert hits[1, 2] == 1 and hits.sum() == 1


def test_taking_a_head_out_takes_out_that_head(tokenizer, model):
    found = attention.find_recalls(tokenizer, "gift", "color", stories=2)
    less = attention.without_head(model, 1, 3)
    whole = model.model.layers[1].self_attn.o_proj.weight
    cut = less.model.layers[1].self_attn.o_proj.weight
    assert torch.equal(cut[:, :96], whole[:, :96])
    assert not cut[:, 96:].any() and whole[:, 96:].any()
    assert 0 <= attention.right_recalls(less, found) <= 1


def test_the_stream_is_measured_at_each_addition(model):
    ids = torch.randint(3, 1024, (2, 9))
    sizes = attention.stream_sizes(model, ids)
    assert len(sizes) == 2 * model.config.num_hidden_layers + 1
    first = model.model.embed_tokens(ids).square().mean().sqrt()
    assert sizes[0] == pytest.approx(first.item())
    assert not model.model.norm._forward_pre_hooks
