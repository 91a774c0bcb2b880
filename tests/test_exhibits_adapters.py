"""What the LoRA bugs do, and what the package does instead."""

import copy

import pytest
import torch
from torch import nn

from minimind_core.book.exhibits.adapters import (
    UnscaledChange,
    apply_patched,
    half_merge,
    square_layers,
)
from minimind_core.config import ModelConfig
from minimind_core.lora import (
    ALL_LINEAR,
    LoRALinear,
    apply_lora,
    merge_lora_layers,
)
from minimind_core.model import MiniMind

SHAPE = ModelConfig(
    vocab_size=96, hidden_size=32, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, intermediate_size=64,
)  # fmt: skip
IDS = torch.randint(3, 96, (2, 20), generator=torch.manual_seed(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MiniMind(SHAPE)


def kinds(names):
    return {name.rpartition(".")[2] for name in names}


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def learn(model, steps=5, part="lora"):
    parameters = [p for n, p in model.named_parameters() if part in n]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()


# --- L1: square layers only ---


def test_which_layers_are_square_is_chance():
    with torch.device("meta"):
        base = MiniMind(ModelConfig(intermediate_size=2432))
        other = MiniMind(ModelConfig(hidden_size=512, head_dim=128))
    assert kinds(square_layers(base)) == {"q_proj", "o_proj"}
    assert kinds(square_layers(other)) == {"k_proj", "v_proj"}
    assert len(square_layers(base)) == 16


@pytest.mark.parametrize("head_dim", [16, 32])
def test_ours_adapts_by_name_whatever_the_shape(head_dim):
    model = MiniMind(SHAPE.replace(head_dim=head_dim))
    found = apply_lora(model, rank=2)
    assert kinds(found) == set(ALL_LINEAR)
    assert len(found) == 2 * len(ALL_LINEAR)


# --- L2: no alpha ---


def change_of_equal_parts(rank, make):
    """What `rank` equal parts, each a x b, add to the layer's answer."""
    made = make(rank)
    for parameter in made.parameters():
        nn.init.constant_(parameter, 0.1)
    return made(torch.ones(1, 8)).mean().item()


def test_without_alpha_the_change_grows_with_the_rank():
    sizes = [
        change_of_equal_parts(rank, lambda r: UnscaledChange(8, r))
        for rank in (2, 8, 32)
    ]
    assert sizes == pytest.approx([0.16, 0.64, 2.56])


def test_our_change_has_one_size_at_every_rank():
    def make(rank):
        layer = LoRALinear(nn.Linear(8, 8, bias=False), rank, alpha=16)
        layer.base = nn.Linear(8, 8, bias=False)
        layer.base.register_forward_hook(lambda *_: 0.0)
        return layer

    sizes = [change_of_equal_parts(rank, make) for rank in (2, 8, 32)]
    assert sizes == pytest.approx([1.28] * 3)


# --- L3: a patched forward ---


def test_a_copy_of_a_patched_model_uses_the_originals_weights(model):
    apply_patched(model, rank=4)
    learn(model)
    twin = copy.deepcopy(model)
    before = logits(twin)
    assert torch.equal(before, logits(model))
    learn(model)  # the original learns on, and the copy with it
    assert not torch.equal(logits(twin), before)
    square = twin.model.layers[0].self_attn.q_proj
    now = logits(twin)
    nn.init.normal_(square.lora.B.weight)
    assert torch.equal(logits(twin), now), "its own adapter is not used"


def test_a_copy_of_ours_uses_its_own_weights(model):
    apply_lora(model, rank=4, targets=("q_proj", "o_proj"))
    learn(model)
    twin = copy.deepcopy(model)
    before = logits(twin)
    learn(model)
    assert torch.equal(logits(twin), before)
    nn.init.normal_(twin.model.layers[0].self_attn.q_proj.lora_B.weight)
    assert not torch.equal(logits(twin), before)


# --- merged in half ---


def test_a_merge_in_half_loses_small_changes():
    weight = torch.full((4, 4), 0.5)
    change = torch.full((4, 4), 1e-4)
    assert torch.equal(half_merge(weight, change), weight.half())
    assert (weight + change > weight).all()


def test_our_merge_is_as_exact_as_float32(model):
    apply_lora(model, rank=4)
    learn(model, 20)
    adapted = logits(model)
    halved = copy.deepcopy(model)
    for module in list(halved.modules()):
        if isinstance(module, LoRALinear):
            change = module.lora_B.weight @ module.lora_A.weight
            merged = half_merge(module.base.weight, change * module.scale)
            module.base.weight.data = merged.float()
            module.scale = 0.0
    theirs = (logits(halved) - adapted).abs().max()
    merge_lora_layers(model)
    ours = (logits(model) - adapted).abs().max()
    assert ours < 1e-5
    assert theirs > 20 * ours
