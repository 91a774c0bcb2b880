"""Small models, batches and a tokenizer on which bugs are measured.

    from minimind_core.book.exhibits.bench import new_model, read_model
    new_model()                        # two layers, randomly initialised
    model, tokenizer = read_model()    # trained on one sentence

This module contains no bugs. Everything in it takes a second or two, so that
a bug can be measured without a trained model from the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minimind_core.config import ModelConfig
from minimind_core.model import MiniMind
from minimind_core.tokenizer import encode_document, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SENTENCE = "one small story about a small model"
INDENTED = "def f(x):\n    y = x\n    return y\n"
SHAPE = ModelConfig(
    vocab_size=300, hidden_size=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
    rope_theta=1e4, max_position_embeddings=128,
)  # fmt: skip


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Seed torch's generator, and restore its state afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def new_model(seed: int = 0, **changes: object) -> MiniMind:
    """Return a randomly initialised model of two small layers.

    Parameters
    ----------
    seed : int
        The same one gives the same weights.
    **changes
        Changed fields of its `ModelConfig`.
    """
    with seeded(seed):
        return MiniMind(SHAPE.replace(**changes))


def random_ids(*shape: int, vocab_size: int = 300, seed: int = 1) -> Tensor:
    """Return random ids of ordinary tokens, from a fixed seed."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(9, vocab_size, shape, generator=draw)


@torch.enable_grad()
def learn(
    model: torch.nn.Module, ids: Tensor, steps: int, part: str = ""
) -> None:
    """Train a model for some steps of AdamW on one batch.

    Parameters
    ----------
    model : nn.Module
        Trained in place.
    ids : Tensor of int64, shape (batch, time)
    steps : int
    part : str
        Only parameters with this in their name are trained.
    """
    some = [p for name, p in model.named_parameters() if part in name]
    optimizer = torch.optim.AdamW(some, lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()


@lru_cache(maxsize=1)
def small_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 300 tokens, trained on two short texts."""
    return train_tokenizer([SENTENCE, INDENTED] * 50, 300)


@lru_cache(maxsize=1)
def read_model() -> tuple[MiniMind, PreTrainedTokenizerFast]:
    """Return a model that was overfitted to one sentence and its end.

    Returns
    -------
    MiniMind
        Not to be changed.
    PreTrainedTokenizerFast
    """
    tokenizer = small_tokenizer()
    model = new_model(vocab_size=len(tokenizer))
    learn(model, torch.tensor([encode_document(tokenizer, SENTENCE)]), 60)
    return model.eval(), tokenizer
