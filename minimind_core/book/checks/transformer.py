"""Checks of the exercises in the chapter on the transformer.

    from minimind_core.book.checks.transformer import check_attention
    check_attention(my_function)  # prints "correct", or says what isn't
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def check_attention(
    attention: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    """Check a reader's causal attention with grouped queries.

    Parameters
    ----------
    attention : callable
        Takes queries of shape (batch, heads, time, head_dim), and keys and
        values of shape (batch, kv_heads, time, head_dim); returns a tensor
        of the shape of the queries.

    Raises
    ------
    AssertionError
        If a result is wrong, with the likely reason.
    """
    generator = torch.Generator().manual_seed(0)
    for heads, kv_heads in ((2, 2), (4, 2)):
        q = torch.randn(2, heads, 6, 8, generator=generator)
        k, v = torch.randn(2, 2, kv_heads, 6, 8, generator=generator)
        case = f"with {heads} heads of queries and {kv_heads} of keys"
        try:
            got = attention(q.clone(), k.clone(), v.clone())
        except RuntimeError as error:
            raise AssertionError(
                f"{case}, PyTorch complains: {error}. Give each query head "
                "a copy of its keys and values first"
            ) from error
        _compare(got, q, k, v, case)
    print("correct")


def _compare(
    got: Tensor | None, q: Tensor, k: Tensor, v: Tensor, case: str
) -> None:
    assert got is not None, "the function returns nothing"
    assert got.shape == q.shape, (
        f"{case}, the result has the shape {tuple(got.shape)}, not that of "
        f"the queries, {tuple(q.shape)}"
    )
    group = q.size(1) // k.size(1)
    keys, values = (x.repeat_interleave(group, dim=1) for x in (k, v))
    right = scaled_dot_product_attention(q, keys, values, is_causal=True)

    def is_like(wrong: Tensor) -> bool:
        return torch.allclose(got, wrong, atol=1e-4)

    if is_like(right):
        return
    wide = math.sqrt(q.size(-1))
    keys2, values2 = (x.repeat(1, group, 1, 1) for x in (k, v))
    scores = q @ keys.transpose(2, 3) / wide
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    masked = scores.masked_fill(~seen, -math.inf)
    strict = scores.masked_fill(~seen.tril(-1), -1e9)
    after = scores.softmax(-1) * seen
    reasons = {
        "nothing keeps a position from looking ahead: mask the scores":
            scaled_dot_product_attention(q, keys, values),
        "the scores are not divided by the root of head_dim":
            (masked * wide).softmax(-1) @ values,
        "the scores are divided by head_dim, not by its root":
            (masked / wide).softmax(-1) @ values,
        "the heads are paired wrongly: query heads 0 and 1 share key head "
        "0, so use repeat_interleave and not repeat":
            scaled_dot_product_attention(q, keys2, values2, is_causal=True),
        "the mask comes after the softmax, so the weights of a row no "
        "longer add up to one": after @ values,
        "a position may look at itself too: the diagonal is masked":
            strict.softmax(-1) @ values,
        "the softmax runs over the queries; it has to run over the keys, "
        "the last dimension": masked.softmax(-2).nan_to_num() @ values,
    }  # fmt: skip
    why = next((text for text, one in reasons.items() if is_like(one)), None)
    assert why is None, f"{case}: {why}"
    off = (got - right).abs().max().item()
    raise AssertionError(
        f"{case}, the result differs from PyTorch's by up to {off:.2g}"
    )
