"""Bugs on the way from logits to text.

    from minimind_core.book.exhibits.generation import divide_always
    divide_always(logits, 0)           # infinities instead of logits
    drop_cache(model, ids, cache)      # ignores all earlier tokens
"""

from __future__ import annotations

import torch
from torch import Tensor

from minimind_core.book.exhibits.bench import SENTENCE, read_model
from minimind_core.book.exhibits.catalogue import (
    Exhibit,
    Kind,
    Measured,
    Notice,
)
from minimind_core.generate import next_token_probs
from minimind_core.model import KVCache, MiniMind
from minimind_core.tokenizer import encode_document


def divide_always(logits: Tensor, temperature: float) -> Tensor:
    """Apply the temperature without checking whether it is zero.

    Parameters
    ----------
    logits : Tensor
    temperature : float

    Returns
    -------
    Tensor
        At temperature zero these are infinite: several tokens then share
        the maximum, and a softmax over them is NaN.
    """
    return logits / temperature


def drop_cache(model: MiniMind, new: Tensor, cache: KVCache) -> Tensor:
    """Run the model on the new tokens and ignore the cache.

    Parameters
    ----------
    model : MiniMind
    new : Tensor of int64, shape (batch, time)
        The tokens that are not in the cache yet.
    cache : KVCache
        Ignored.

    Returns
    -------
    Tensor, shape (batch, time, vocab)
        Logits of a text that begins with the new tokens.
    """
    logits = model(new).logits
    assert logits is not None
    return logits


# --- measured -----------------------------------------------------------


def measure_zero() -> Measured:
    """Temperature 0 on four logits, with and without sampling."""
    logits = torch.tensor([[1.0, 3.0, -2.0, 0.5]])
    broken = divide_always(logits, 0)
    try:
        torch.multinomial(broken.softmax(-1), 1)
        sampled = "a token"
    except RuntimeError as error:
        sampled = type(error).__name__
    bug = int(broken.argmax(-1).item())
    fix = int(next_token_probs(logits, temperature=0).argmax(-1).item())
    return Measured(
        "What temperature 0 chooses from the logits 1, 3, -2 and 0.5.",
        f"{sampled} if sampled, otherwise the token with the logit "
        f"{logits[0, bug]:.0f}",
        f"the token with the logit {logits[0, fix]:.0f}",
        sampled == "RuntimeError" and bug == 0 and fix == 1,
    )  # fmt: skip


@torch.no_grad()
def measure_dropped() -> Measured:
    """The error of the newest token's logits."""
    model, tokenizer = read_model()
    ids = torch.tensor([encode_document(tokenizer, SENTENCE)])
    cache = KVCache(model.config, 1, ids.size(1))
    whole = model(ids).logits[:, -1]
    model(ids[:, :-1], cache=cache)
    bug = (drop_cache(model, ids[:, -1:], cache)[:, -1] - whole).abs().max()
    fix = (model(ids[:, -1:], cache=cache).logits[:, -1] - whole).abs().max()
    return Measured(
        "Largest error of the newest token's logits.",
        f"{bug:.1f}", f"{fix:.0e}", bool(bug > 1) and bool(fix < 1e-3),
    )  # fmt: skip


EXHIBITS = (
    Exhibit(
        key="temperature-zero",
        title="Temperature 0 raises, or takes the wrong token",
        commit="d65ef2c",
        date="2026-08-21",
        place="model/model_minimind.py:267",
        quote="logits = outputs.logits[:, -1, :] / temperature",
        came="2026-03-25 101d7df",
        kind=Kind.WRONG,
        noticed=Notice.ERROR,
        cost="Sampling at temperature 0 ends in an error about "
        "probabilities; with do_sample=False every positive logit is "
        "infinite, and the first of them in the vocabulary is taken without "
        "an error.",
        fix="Treat 0 as greedy decoding: take the most likely token, without "
        "a division.",
        measure=measure_zero,
        test="tests/test_exhibits_generation.py::"
        "test_temperature_zero_is_greedy_everywhere",
        page="06_generation",
    ),
    Exhibit(
        key="dropped-cache",
        title="A Hugging Face cache is dropped without a word",
        commit="d65ef2c",
        date="2026-08-21",
        place="model/model_minimind.py:211",
        quote="if hasattr(past_key_values, 'layers'): past_key_values "
        "= None",
        came="2025-10-17 4e35fb9",
        kind=Kind.WRONG,
        noticed=Notice.NOTHING,
        cost="A caller who passes the newest token and a `DynamicCache`, "
        "the usual cache of transformers, gets the logits of a text that "
        "consists of this token alone, without an error.",
        fix="Use the given cache or raise an error, and test that cached "
        "logits equal uncached ones.",
        measure=measure_dropped,
        test="tests/test_exhibits_generation.py::"
        "test_the_cache_that_is_given_is_used",
        page="06_generation",
    ),
)
