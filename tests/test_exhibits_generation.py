"""What the exhibits of generation do, and the package does not."""

import pytest
import torch

from minimind_core.book.exhibits.generation import divide_always, drop_cache
from minimind_core.config import ModelConfig
from minimind_core.generate import (
    generate_tokens,
    next_token_probs,
    pad_left,
    stream_tokens,
)
from minimind_core.model import KVCache, MiniMind


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
        initializer_range=0.3,
    )  # fmt: skip
    return MiniMind(config).eval()


def test_dividing_by_zero_leaves_no_distribution():
    logits = torch.tensor([[1.0, 3.0, -2.0, 0.5]])
    broken = divide_always(logits, 0)
    assert broken.softmax(-1).isnan().any()
    with pytest.raises(RuntimeError, match="inf"):
        torch.multinomial(broken.softmax(-1), 1)
    # Without sampling there is no error, only another answer.
    assert broken.argmax(-1).item() == 0 != logits.argmax(-1).item()


def test_temperature_zero_is_greedy_everywhere(model):
    """Fails if a temperature of 0 is divided by."""
    logits = torch.tensor([[1.0, 3.0, -2.0, 0.5]])
    assert next_token_probs(logits, temperature=0).tolist() == [[0, 1, 0, 0]]
    ids = torch.tensor([[1, 20, 30]])
    expected = ids
    with torch.no_grad():
        for _ in range(8):
            best = model(expected).logits[:, -1].argmax(-1, keepdim=True)
            expected = torch.cat((expected, best), 1)
    settings = {"max_new_tokens": 8, "temperature": 0, "eos_token_id": None}
    assert torch.equal(generate_tokens(model, ids, **settings), expected)
    streamed = list(stream_tokens(model, ids, **settings))
    assert streamed == expected[0, 3:].tolist()


def test_the_cache_that_is_given_is_used(model):
    """Fails if the model leaves a cache aside, or its positions."""
    ids = torch.randint(9, 300, (2, 12), generator=torch.manual_seed(1))
    cache = KVCache(model.config, 2, 12)
    with torch.no_grad():
        whole = model(ids).logits[:, -1]
        model(ids[:, :11], cache=cache)
        dropped = drop_cache(model, ids[:, 11:], cache)[:, -1]
        cached = model(ids[:, 11:], cache=cache).logits[:, -1]
    assert (cached - whole).abs().max() < 1e-4
    assert (dropped - whole).abs().max() > 0.1
    assert cache.length == 12


def test_padding_is_not_looked_at(model):
    """Fails if padding on the left is attended to, or counted."""
    rows = [[1, 20, 30, 40, 50, 60], [1, 70]]
    ids, mask = pad_left(rows, 0)
    with torch.no_grad():
        masked = model(ids, attention_mask=mask).logits[1, -1]
        unmasked = model(ids).logits[1, -1]
        alone = model(torch.tensor([rows[1]])).logits[0, -1]
    assert (masked - alone).abs().max() < 1e-4
    assert (unmasked - alone).abs().max() > 1e-2
