"""The checks of the exercises on tokens name each likely mistake."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cross_entropy

from minimind_core.book.checks.tokens import (
    check_document_loss,
    check_encode_word,
)


def right(logits, labels):
    return cross_entropy(logits[:-1], labels[1:])


def ignored_counts(logits, labels):
    log_p = logits[:-1].log_softmax(-1)
    return -log_p.gather(1, labels[1:, None] % logits.shape[1]).mean()


LOSSES = {
    "not shifted": cross_entropy,
    "the wrong way": lambda z, y: cross_entropy(z[1:], y[:-1]),
    "the sign": lambda z, y: -right(z, y),
    "the sum": lambda z, y: cross_entropy(z[:-1], y[1:], reduction="sum"),
    "in bits": lambda z, y: right(z, y) / math.log(2),
    "all positions": lambda z, y: (
        cross_entropy(z[:-1], y[1:], reduction="sum") / (len(y) - 1)
    ),
    "-100 were counted": ignored_counts,
    "one number": lambda z, y: cross_entropy(z[:-1], y[1:], reduction="none"),
    "returns nothing": lambda z, y: None,
    "the loss is 1.0000": lambda z, y: torch.tensor(1.0),
}


@pytest.mark.parametrize("reason", LOSSES)
def test_a_wrong_loss_is_explained(reason):
    with pytest.raises(AssertionError, match=reason):
        check_document_loss(LOSSES[reason])


def test_a_right_loss_is_accepted(capsys):
    check_document_loss(right)
    check_document_loss(lambda z, y: float(right(z, y)))
    assert capsys.readouterr().out == "correct\ncorrect\n"


def encoder(best_of, steps=99):
    def encode_word(word, rank):
        tokens = list(word)
        for _ in range(steps):
            best = best_of(list(pairwise(tokens)), rank)
            if best not in rank:
                break
            out = []
            for token in tokens:
                if out and (out[-1], token) == best:
                    out[-1] += token
                else:
                    out.append(token)
            tokens = out
        return tokens

    return encode_word


def learned_first(pairs, rank):
    return min(pairs, key=lambda p: rank.get(p, 99), default=None)


WORDS = {
    "one letter": encoder(lambda pairs, rank: min(pairs, key=rank.get)),
    "an unknown pair": encoder(
        lambda pairs, rank: pairs[0] if pairs else None
    ),
    "from the left": encoder(
        lambda pairs, rank: next((p for p in pairs if p in rank), None)
    ),
    "repeat": encoder(learned_first, steps=1),
}


@pytest.mark.parametrize("reason", WORDS)
def test_a_wrong_encoder_is_explained(reason):
    with pytest.raises(AssertionError, match=reason):
        check_encode_word(WORDS[reason])


def test_a_right_encoder_is_accepted(capsys):
    check_encode_word(encoder(learned_first))
    assert capsys.readouterr().out == "correct\n"
