"""The accumulation bugs, as they were, and what keeps them out."""

import pytest
import torch

from minimind_core import recipes
from minimind_core.book.exhibits.training import (
    accumulate_means,
    flat_gradient,
    train_and_save,
)
from minimind_core.config import PRESETS, ModelConfig, TrainConfig
from minimind_core.data import Encoded, Rows, collate, next_rows
from minimind_core.loading import load_model
from minimind_core.microworld import write_story
from minimind_core.model import MiniMind
from minimind_core.tokenizer import save_tokenizer, train_tokenizer
from minimind_core.train import Trainer

SHAPE = ModelConfig(
    vocab_size=67, hidden_size=32, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, intermediate_size=48,
    max_position_embeddings=64,
)  # fmt: skip


class Documents:
    """Documents of the given lengths, over and over."""

    size = None

    def __init__(self, *lengths):
        self.lengths = lengths

    def records(self, indices):
        return [
            [(3 + i * 5 + k * k) % 64 + 3 for k in range(
                self.lengths[i % len(self.lengths)])]
            for i in indices
        ]  # fmt: skip


def rows(*lengths):
    return Rows(
        Documents(*lengths), lambda d: [Encoded(x, x) for x in d], seq_len=64
    )


def fresh():
    torch.manual_seed(0)
    return MiniMind(SHAPE)


def batches(stream, count, size=1):
    return [collate(next_rows(stream, size), 0) for _ in range(count)]


def whole_gradient(lengths, count):
    model = fresh()
    model(**collate(next_rows(rows(*lengths), count), 0)).loss.backward()
    return flat_gradient(model)


def our_gradient(lengths, count, micro):
    config = TrainConfig(
        steps=1, batch_size=count, micro_batch_size=micro, seq_len=64,
        max_grad_norm=0.0, dtype="float32", device="cpu",
    )  # fmt: skip
    trainer = Trainer(fresh(), rows(*lengths), config, progress=False)
    trainer.train_step(trainer.model)
    return flat_gradient(trainer.model)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_ours_weighs_every_token_alike():
    # One text with 60 labels, one with 4.
    expected = whole_gradient((61, 5), 2)
    theirs = accumulate_means(fresh(), batches(rows(61, 5), 2), 2)
    cosine = torch.cosine_similarity(theirs, expected, dim=0)
    assert cosine < 0.8 and theirs.norm() > 1.2 * expected.norm()
    assert relative(our_gradient((61, 5), 2, 1), expected) < 1e-5


def test_ours_does_not_shrink_a_batch_with_a_remainder():
    # All texts are alike in length, so only the number of them can matter.
    expected = whole_gradient((20,), 5)
    theirs = accumulate_means(fresh(), batches(rows(20), 5), 8)
    assert relative(theirs, expected * 5 / 8) < 1e-5
    assert relative(our_gradient((20,), 5, 1), expected) < 1e-5
    # Two, two and one.
    assert relative(our_gradient((20,), 5, 2), expected) < 1e-5


def test_theirs_saves_the_initial_weights():
    model = fresh()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    saved = train_and_save(model, optimizer, batches(rows(20), 5), 8)
    for name, weight in fresh().state_dict().items():
        assert torch.equal(saved[name], weight), name
        assert not torch.equal(model.state_dict()[name], weight), name


def test_theirs_is_right_when_nothing_is_left_over():
    model = fresh()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    saved = train_and_save(model, optimizer, batches(rows(20), 4), 2)
    for name, weight in model.state_dict().items():
        assert torch.equal(saved[name], weight), name


@pytest.fixture
def small_world(monkeypatch, tmp_path):
    texts = [write_story(0, i).text for i in range(40)]
    tokenizer = train_tokenizer(texts, 300)
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    save_tokenizer(tokenizer, folder)
    preset = PRESETS["tiny"]
    changed = {"model": SHAPE.replace(
        vocab_size=300, max_position_embeddings=512), "vocab_size": 300}
    monkeypatch.setitem(
        PRESETS, "tiny", type(preset)(**{**vars(preset), **changed})
    )
    for check in ("held_out_documents", "sample_documents"):
        monkeypatch.setattr(recipes, check, lambda *a, **k: lambda m: {})
    return folder


def test_ours_saves_what_it_has_learnt(small_world, tmp_path):
    run = recipes.pretrain(
        tmp_path / "run", tokenizer=small_world, steps=1, batch_size=5,
        micro_batch_size=2, device="cpu", dtype="float32", progress=False,
    )  # fmt: skip
    saved, _ = load_model(tmp_path / "run")
    torch.manual_seed(0)
    initial = MiniMind(saved.config).state_dict()
    for name, weight in run.model.state_dict().items():
        assert torch.equal(saved.state_dict()[name], weight), name
        assert not torch.equal(initial[name], weight), name
