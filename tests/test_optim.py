"""Who is moved by which optimizer, schedules, the hybrid as one object."""

import copy

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from minimind_core.config import ModelConfig, TrainConfig
from minimind_core.model import MiniMind
from minimind_core.optim import (
    build_optimizer,
    gradient_norm,
    learning_rate_scale,
    parameter_groups,
    set_learning_rate,
)

SHAPE = ModelConfig(
    vocab_size=61, hidden_size=16, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, intermediate_size=32,
)  # fmt: skip


def make(seed=0):
    torch.manual_seed(seed)
    return MiniMind(SHAPE)


def one_step(model, optimizer, seed=1):
    ids = torch.randint(0, 61, (4, 12), generator=torch.manual_seed(seed))
    optimizer.zero_grad()
    model(ids, labels=ids).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("tied", [True, False])
def test_groups_hold_each_parameter_once(tied):
    torch.manual_seed(0)
    model = MiniMind(SHAPE.replace(tie_word_embeddings=tied))
    groups = parameter_groups(model)
    assert [len(groups[n]) for n in ("matrices", "tables", "scales")] == [
        14, 1 if tied else 2, 9,
    ]  # fmt: skip
    everything = [id(p) for group in groups.values() for p in group]
    assert sorted(everything) == sorted(id(p) for p in model.parameters())


def test_groups_of_a_hugging_face_model_are_the_same():
    twin = Qwen3ForCausalLM(Qwen3Config(**SHAPE.to_hf()))
    sizes = {n: len(g) for n, g in parameter_groups(twin).items()}
    assert sizes == {"matrices": 14, "tables": 1, "scales": 9}


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_only_matrices_decay(name):
    model = make()
    optimizer = build_optimizer(model, TrainConfig(optimizer=name))
    matrices = {id(p) for p in parameter_groups(model)["matrices"]}
    for group in optimizer.param_groups:
        decays = {id(p) in matrices for p in group["params"]}
        assert decays == {group["weight_decay"] > 0}


def test_muon_moves_matrices_and_adamw_the_rest():
    model = make()
    optimizer = build_optimizer(model, TrainConfig())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    one_step(model, optimizer)
    assert all(
        not torch.equal(before[n], p) for n, p in model.named_parameters()
    )
    kinds = [sorted(part.state.values(), key=len)[0].keys()
             for part in optimizer.parts.values()]  # fmt: skip
    assert "momentum_buffer" in kinds[0]
    assert "exp_avg_sq" in kinds[1]


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_state_dict_continues_to_the_bit(name):
    config = TrainConfig(optimizer=name)
    model = make()
    optimizer = build_optimizer(model, config)
    for seed in (1, 2):
        one_step(model, optimizer, seed)
    twin = make(5)
    twin.load_state_dict(model.state_dict())
    resumed = build_optimizer(twin, config)
    # A copy, as from a file: loading alone would share the tensors.
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for optimizer_, model_ in ((optimizer, model), (resumed, twin)):
        set_learning_rate(optimizer_, 7, config)
        one_step(model_, optimizer_, 3)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_overflow_stops_both_halves():
    model = make()
    optimizer = build_optimizer(model, TrainConfig())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    ids = torch.randint(0, 61, (2, 8))
    scaler.scale(model(ids, labels=ids).loss).backward()
    # Only a parameter of AdamW's half overflows.
    model.model.norm.weight.grad[0] = torch.inf
    before = [p.detach().clone() for p in model.parameters()]
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    for a, b in zip(before, model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert scaler.get_scale() == 2.0


def test_schedules():
    def curve(**changes):
        config = TrainConfig(steps=100, warmup_ratio=0.1, **changes)
        return [learning_rate_scale(s, config) for s in range(100)]

    ends = {"linear": 1 / 90, "cosine": 0.1, "constant": 1}
    for schedule, end in ends.items():
        values = curve(schedule=schedule)
        assert 0 < values[0] < 0.1
        assert values[10] == max(values) == 1
        assert values[:11] == sorted(values[:11])
        assert values[10:] == sorted(values[10:], reverse=True)
        assert values[-1] == pytest.approx(end, rel=3e-3)
    assert learning_rate_scale(0, TrainConfig(warmup_ratio=0.0)) == 1


def test_rates_keep_their_ratio():
    config = TrainConfig(steps=100)
    optimizer = build_optimizer(make(), config)
    set_learning_rate(optimizer, 50, config)
    rates = [g["lr"] for g in optimizer.param_groups]
    assert rates[0] / rates[1] == pytest.approx(7e-3 / 3e-3)
    assert rates[0] < 7e-3


def test_clipping_is_over_all_gradients_together():
    model = make()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    total = sum(p.numel() for p in model.parameters()) ** 0.5
    assert float(gradient_norm(model, 0)) == pytest.approx(total)
    assert float(gradient_norm(model, 1.0)) == pytest.approx(total)
    assert float(gradient_norm(model, 0)) == pytest.approx(1.0, abs=1e-4)
