"""Checks of the exercises in the chapter on tokens.

    from minimind_core.book.checks.tokens import check_document_loss
    check_document_loss(my_function)  # prints "correct", or says what isn't
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from minimind_core.model import IGNORE_INDEX


def check_document_loss(
    document_loss: Callable[[Tensor, Tensor], Tensor | float],
) -> None:
    """Check a reader's loss of one document, in nats per supervised token.

    Parameters
    ----------
    document_loss : callable
        Takes logits of shape (time, vocabulary) and labels of shape (time,)
        that are not shifted yet, and returns the loss.

    Raises
    ------
    AssertionError
        If a result is wrong, with the likely reason.
    """
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(8, 11, generator=generator)
    labels = torch.randint(0, 11, (8,), generator=generator)
    _compare_loss(document_loss, logits, labels, "with all labels")
    labels[:4] = IGNORE_INDEX
    _compare_loss(document_loss, logits, labels, "with four labels of -100")
    print("correct")


def _compare_loss(
    document_loss: Callable[[Tensor, Tensor], Tensor | float],
    logits: Tensor,
    labels: Tensor,
    case: str,
) -> None:
    value = document_loss(logits.clone(), labels.clone())
    assert value is not None, "the function returns nothing"
    if isinstance(value, Tensor):
        assert value.numel() == 1, (
            f"{case}, the result has shape {tuple(value.shape)}; it should "
            "be one number, the mean over the supervised positions"
        )
    got = float(value)

    def is_like(wrong: float) -> bool:
        return math.isclose(got, wrong, rel_tol=1e-4, abs_tol=1e-6)

    summed = cross_entropy(logits[:-1], labels[1:], reduction="sum").item()
    count = int((labels[1:] != IGNORE_INDEX).sum())
    right = summed / count
    if is_like(right):
        return
    log_p = logits.log_softmax(-1)
    everywhere = -log_p[:-1].gather(1, labels[1:, None] % 11).mean().item()
    reasons = {
        "the sign is wrong: the loss is minus the logarithm": -right,
        "this is the sum over the positions, not their mean": summed,
        "this is in bits; take the natural logarithm": right / math.log(2),
        "it is divided by all positions, and not only by those whose label "
        "counts": summed / (len(labels) - 1),
        "positions with the label -100 were counted: as an index, -100 can "
        "even pick some token without an error": everywhere,
        "the labels are not shifted: the logits at position t predict "
        "labels[t + 1]": cross_entropy(logits, labels).item(),
        "the labels are shifted the wrong way: the logits at position t "
        "predict labels[t + 1], not labels[t - 1]": cross_entropy(
            logits[1:], labels[:-1]
        ).item(),
    }
    why = next((text for text, one in reasons.items() if is_like(one)), None)
    assert why is None, f"{case}: {why}"
    raise AssertionError(f"{case}, the loss is {got:.4f}, not {right:.4f}")


Pair = tuple[str, str]


def check_encode_word(
    encode_word: Callable[[str, Mapping[Pair, int]], list[str]],
) -> None:
    """Check a reader's BPE encoder of one word.

    Parameters
    ----------
    encode_word : callable
        Takes a word and the rank of each pair, and returns the tokens.

    Raises
    ------
    AssertionError
        If a result is wrong, with the word and the likely reason.
    """
    rank = {("b", "c"): 0, ("a", "b"): 1, ("bc", "d"): 2, ("x", "y"): 3}
    cases = [
        ("q", ["q"], "a word of one letter has no pairs"),
        ("zq", ["z", "q"], "no pair of this word is known, so it stays"),
        ("zxy", ["z", "xy"], "an unknown pair must not hide a known one"),
        ("abc", ["a", "bc"], "take the pair that was learned first, which "
         "is b and c, and not the first pair from the left"),
        ("abcd", ["a", "bcd"], "repeat: a merged token can be part of the "
         "next pair"),
        ("abzab", ["ab", "z", "ab"], "merge the pair wherever it occurs"),
    ]  # fmt: skip
    for word, wanted, hint in cases:
        try:
            got = encode_word(word, dict(rank))
        except (ValueError, KeyError) as error:
            raise AssertionError(
                f"{word!r} raises {type(error).__name__} ({error}): {hint}"
            ) from error
        assert list(got or ()) == wanted, (
            f"{word!r} gives {got}, not {wanted}: {hint}"
        )
    print("correct")
