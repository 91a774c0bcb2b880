"""The LoRA studies, very small: who learns what, and what is kept."""

import dataclasses

import pytest
import torch

from minimind_core.book import stages
from minimind_core.book.studies import adapters
from minimind_core.config import PRESETS, ModelConfig, TrainConfig
from minimind_core.data import tokenizer_texts
from minimind_core.lora import ALL_LINEAR, apply_lora
from minimind_core.model import MiniMind

SHAPE = ModelConfig(
    vocab_size=300, hidden_size=32, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, intermediate_size=64,
    max_position_embeddings=512,
)  # fmt: skip


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path))
    preset = PRESETS["tiny"]
    short = {"steps": 2, "batch_size": 2, "validate_every": 0,
             "sample_every": 0, "device": "cpu",
             "dtype": "float32"}  # fmt: skip
    monkeypatch.setitem(
        PRESETS,
        "tiny",
        dataclasses.replace(
            preset, model=SHAPE, vocab_size=300,
            pretrain=preset.pretrain.replace(**short),
            sft=preset.sft.replace(**short, seq_len=400),
            lora=preset.lora.replace(**short, seq_len=400),
        ),
    )  # fmt: skip
    monkeypatch.setattr(
        stages, "tokenizer_texts", lambda data: tokenizer_texts(data, count=9)
    )
    for name, value in {
        "STEPS": 2, "ROWS": 2, "REPLAY_STEPS": 2, "REPLAY_ROWS": 2,
        "ALONE_STEPS": 2, "EACH": 1, "RANK": 2, "ALPHA": 4,
        "SETTINGS": (("rank", 2, 4.0, ALL_LINEAR),
                     ("targets", 3, 6.0, ("q_proj", "o_proj"))),
        "VARIANTS": {"LoRA": {}, "LoRA+": {}},
    }.items():  # fmt: skip
        monkeypatch.setattr(adapters, name, value)


def test_all_studies_at_once(small):
    first, second = adapters.lora_settings("tiny", False)
    assert second["parameters"] == 3 * 2 * (32 + 32)
    assert len(first["losses"]) == 2 and first["loss"] > 0

    slow, fast, *_ = found = adapters.lora_variants("tiny", False)
    assert [v["name"] for v in found] == ["LoRA", "LoRA+"] * 2
    assert found[2]["rate"] == 2 * slow["rate"]
    # The same start, so the same first loss; then B moves further.
    assert slow["losses"][0] == fast["losses"][0]
    assert slow["losses"][1] != fast["losses"][1]

    result = adapters.lora_forgetting("tiny", False)
    runs = {run["name"]: run for run in result["runs"]}
    assert list(runs) == [
        "before", "LoRA", "LoRA, rank 1", "LoRA, rank 8", "full",
        "LoRA, replay", "full, replay",
    ]  # fmt: skip
    assert runs["LoRA"]["parameters"] == runs["LoRA, replay"]["parameters"]
    assert runs["full"]["parameters"] == SHAPE.replace(
        vocab_size=300
    ).num_parameters()
    assert len(result["singular"]) == len(ALL_LINEAR)
    values = result["singular"]["model.layers.0.self_attn.q_proj"]
    assert len(values) == 32 and values[0] > 0

    # The adapter was made on the way, and is kept.
    folder = adapters.greeting_adapter("tiny", progress=False)
    weights = folder / "adapter_model.safetensors"
    made = weights.stat().st_mtime_ns
    assert adapters.greeting_adapter("tiny", progress=False) == folder
    assert weights.stat().st_mtime_ns == made


def test_lora_plus_lets_b_learn_faster():
    torch.manual_seed(0)
    model = MiniMind(SHAPE)
    apply_lora(model, rank=2)
    config = TrainConfig(lr=1e-3, optimizer="adamw")
    slow, fast = adapters.faster_b(model, config, 4.0).param_groups
    assert (slow["initial_lr"], fast["initial_lr"]) == (1e-3, 4e-3)
    assert all(p.abs().max() > 0 for p in slow["params"])
    assert all(p.abs().max() == 0 for p in fast["params"])
    assert len(slow["params"]) == len(fast["params"]) == len(ALL_LINEAR)
