"""What is left out of the model is out of it, and nothing else."""

from __future__ import annotations

import pytest
import torch

from minimind_core.book.studies import parts
from minimind_core.config import get_preset
from minimind_core.model import MiniMind


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MiniMind(get_preset("tiny").model).eval()


def last(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


def test_without_attention_a_position_knows_its_token_only(model):
    assert not torch.equal(last(model, [5, 6, 7]), last(model, [8, 9, 7]))
    parts.without_attention(model)
    assert torch.equal(last(model, [5, 6, 7]), last(model, [8, 9, 7]))


def test_without_mlp_or_additions_the_result_is_another(model):
    ids = torch.tensor([[5, 6, 7]])
    x = model.model.embed_tokens(ids)
    rope = model.model.rotary_emb(torch.arange(3)[None])
    block = model.model.layers[0]
    attended = block.self_attn(block.input_layernorm(x), rope)
    parts.without_residuals(model)
    expected = block.mlp(block.post_attention_layernorm(attended))
    assert torch.equal(block(x, rope), expected)
    other = MiniMind(model.config)
    parts.without_mlp(other)
    block = other.model.layers[0]
    expected = x + block.self_attn(block.input_layernorm(x), rope)
    assert torch.equal(block(x, rope), expected)


def test_each_variant_is_trained_and_measured(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path))
    monkeypatch.setattr(parts, "STEPS", 4)
    found = {run["name"]: run for run in parts.parts("tiny", False)}
    assert set(found) == set(parts.VARIANTS)
    whole = found["whole"]
    assert whole["parameters"] == found["no residuals"]["parameters"]
    assert whole["parameters"] > found["no MLP"]["parameters"]
    assert all(len(run["losses"]) == 4 for run in found.values())
    assert all(run["held_out"] > run["floor"] for run in found.values())
