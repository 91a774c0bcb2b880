"""The studies of decay and batch size measure what they say."""

from __future__ import annotations

import torch

from minimind_core.book.studies import settings
from minimind_core.config import get_preset
from minimind_core.model import MiniMind


def test_the_size_is_that_of_the_matrices_alone():
    torch.manual_seed(0)
    model = MiniMind(get_preset("tiny").model)
    before = settings.matrix_size(model)
    assert before > 0
    model.model.embed_tokens.weight.data.mul_(100)
    model.model.norm.weight.data.mul_(100)
    assert settings.matrix_size(model) == before
    for block in model.model.layers:
        for weight in block.parameters():
            if weight.dim() == 2:
                weight.data.mul_(2)
    assert settings.matrix_size(model) == torch.tensor(2 * before).item()


def test_a_strong_decay_shrinks_and_the_batches_share_their_stories(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path))
    monkeypatch.setattr(settings, "DECAYS", (0.0, 30.0))
    monkeypatch.setattr(settings, "DECAY_STEPS", 6)
    none, strong = settings.decays("tiny", False)
    assert strong["size"] < 0.9 * none["size"]
    assert none["held_out"] > none["floor"] > 0
    monkeypatch.setattr(settings, "STORIES", 16)
    monkeypatch.setattr(settings, "RATES", (1e-3,))
    few, many = settings.batch_sizes("tiny", False)
    assert few["steps"] * few["batch_size"] == 16
    assert many["steps"] * many["batch_size"] == 16
