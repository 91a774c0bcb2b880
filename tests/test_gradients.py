"""Measuring what a format does to gradients."""

import math

import pytest
import torch

from minimind_core.book.gradients import (
    compare,
    logit_gradients,
    take_gradient,
)
from minimind_core.config import ModelConfig
from minimind_core.errors import PrecisionError
from minimind_core.model import MiniMind

SHAPE = ModelConfig(
    vocab_size=96, hidden_size=32, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, intermediate_size=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MiniMind(SHAPE)


@pytest.fixture(scope="module")
def batch():
    ids = torch.randint(3, 96, (4, 24), generator=torch.manual_seed(1))
    return {"input_ids": ids, "labels": ids}


def test_the_exact_gradient_is_float32s_up_to_rounding(model, batch):
    exact = take_gradient(model, batch, dtype="float64")
    found = compare(take_gradient(model, batch, dtype="float32"), exact)
    assert exact.shape == (model.config.num_parameters(),)
    assert found.zero_share == 0
    assert found.relative_error < 2e-6  # measured 5e-7
    assert all(p.grad is None for p in model.parameters())


def test_nothing_is_float64_on_an_apple_gpu(model, batch, metal):
    exact = take_gradient(model, batch, dtype="float64")
    probabilities = logit_gradients(model, batch, items=10)
    with metal:
        with pytest.raises(TypeError):
            torch.zeros(1).double()
        assert torch.equal(
            take_gradient(model, batch, dtype="float64"), exact
        )
        found = take_gradient(model, batch, dtype="float32")
        again = logit_gradients(model, batch, items=10)
    assert found.dtype == torch.float64
    for one, two in zip(probabilities, again, strict=True):
        assert torch.equal(one, two)


def test_float16_loses_gradients_in_a_large_batch_and_a_scaler_saves_them(
    model, batch
):
    exact = take_gradient(model, batch, dtype="float64", items=10_000_000)
    lost = compare(
        take_gradient(model, batch, dtype="float16", items=10_000_000), exact
    )
    scaled = compare(
        take_gradient(
            model, batch, dtype="float16", items=10_000_000, scale=2.0**16
        ),
        exact,
    )
    assert lost.zero_share > 0.3 and lost.cosine < 0.9
    # Half of the last of ten bits; measured 0.0008.
    assert scaled.zero_share < 0.01 and scaled.relative_error < 0.0015


def test_bfloat16_needs_no_scale_and_a_power_of_two_changes_no_bit(
    model, batch
):
    settings = {"dtype": "bfloat16", "items": 10_000_000}
    plain = take_gradient(model, batch, **settings)
    scaled = take_gradient(model, batch, **settings, scale=2.0**16)
    assert torch.equal(plain, scaled)


def test_an_infinite_gradient_compares_as_nothing(model, batch):
    found = take_gradient(model, batch, dtype="float16", scale=2.0**40)
    exact = take_gradient(model, batch, dtype="float64")
    assert math.isnan(compare(found, exact).cosine)


def test_an_unknown_dtype_is_named(model, batch):
    with pytest.raises(PrecisionError, match="no gradients in 'int8'"):
        take_gradient(model, batch, dtype="int8")


def test_gradients_at_the_logits_follow_the_formula(model, batch):
    logits = model(batch["input_ids"]).logits.double().detach()
    logits.requires_grad_()
    labels = batch["labels"][:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels, reduction="sum"
    )
    (loss / 1000).backward()
    wrong, right = logit_gradients(model, batch, items=1000)
    found = torch.cat((wrong, right)).sort().values
    true = logits.grad[:, :-1].abs().flatten().sort().values
    torch.testing.assert_close(found, true, rtol=1e-9, atol=1e-15)
    assert len(right) == labels.numel()
