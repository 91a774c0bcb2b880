"""Bugs on the way from logits to text.

    from minimind_core.exhibits.generation import divide_always, drop_cache
    divide_always(logits, 0)           # infinities, and no distribution
    drop_cache(model, ids, cache)      # as if nothing had come before
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minimind_core.exhibits.catalogue import Exhibit

if TYPE_CHECKING:
    from torch import Tensor

    from minimind_core.model import KVCache, MiniMind


def divide_always(logits: Tensor, temperature: float) -> Tensor:
    """Apply the temperature without asking whether it is zero.

    Parameters
    ----------
    logits : Tensor
    temperature : float

    Returns
    -------
    Tensor
        At zero infinite: several tokens are then "the largest", and a
        softmax over them is NaN.
    """
    return logits / temperature


def drop_cache(model: MiniMind, new: Tensor, cache: KVCache) -> Tensor:
    """Take the new tokens, and no notice of the cache that comes with them.

    Parameters
    ----------
    model : MiniMind
    new : Tensor of int64, shape (batch, time)
        Only what is not in the cache yet.
    cache : KVCache
        Not looked at.

    Returns
    -------
    Tensor, shape (batch, time, vocab)
        Logits of a text that begins with the new tokens.
    """
    logits = model(new).logits
    assert logits is not None
    return logits


EXHIBITS = (
    Exhibit(
        key="temperature-zero",
        title="Temperature 0 raises, or takes the wrong token",
        commit="d65ef2c",
        date="2026-08-21",
        place="model/model_minimind.py:267",
        cost="Sampling at temperature 0 ends in an error about "
        "probabilities; with do_sample=False every positive logit is "
        "infinite, and the first in the vocabulary is taken for the best.",
        fix="Treat 0 as what everybody means by it: take the most likely "
        "token, without a division.",
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
        cost="Whoever passes the newest token and a DynamicCache gets the "
        "logits of a text of one token, and no error.",
        fix="Use the cache that was given, or refuse it; and hold by a test "
        "that cached logits equal uncached ones.",
        test="tests/test_exhibits_generation.py::"
        "test_the_cache_that_is_given_is_used",
        page="06_generation",
    ),
)
