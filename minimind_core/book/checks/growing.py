"""Checks of the exercises in the chapter on growing.

    from minimind_core.book.checks.growing import check_flops
    check_flops(my_function)  # prints "correct", or says what isn't
"""

from __future__ import annotations

from collections.abc import Callable

from minimind_core.config import ModelConfig, get_preset
from minimind_core.cost import training_flops


def check_flops(step_flops: Callable[[ModelConfig, int, int], int]) -> None:
    """Check a reader's count of the operations of a training step.

    It is compared with `cost.training_flops`, which equals PyTorch's
    counter.

    Parameters
    ----------
    step_flops : callable
        Takes the shape of a model, rows and their length; returns the
        operations.

    Raises
    ------
    AssertionError
        If a count is wrong, with the likely reason.
    """
    for name, rows, length in (("tiny", 4, 32), ("base", 2, 512)):
        shape = get_preset(name).model
        found = step_flops(shape, rows, length)
        assert found is not None, "the function returns nothing"
        right = training_flops(shape, rows, length)
        if found == right:
            continue
        tokens = rows * length
        parts = shape.parameters_by_part()
        head = shape.vocab_size * shape.hidden_size
        channels = shape.num_attention_heads * shape.head_width
        attention = (
            12 * shape.num_hidden_layers * channels * length * tokens
        )
        reasons = {
            "this is per token; multiply by rows and length":
                right // tokens,
            "the output head is missing":
                right - 6 * head * (tokens - rows),
            "the last position of a row predicts nothing, so the head "
            "computes one position less than the rest":
                right + 6 * head * rows,
            "the embedding's rows are only looked up; count the table once, "
            "as the head": right + 6 * head * tokens,
            "the norms are no matrix products":
                right + 6 * parts["norms"] * tokens,
            "attention's own products are missing": right - attention,
            "this is the forward pass alone": right // 3,
            "scores and values are two products": right - attention // 2,
        }  # fmt: skip
        why = next(
            (text for text, wrong in reasons.items() if wrong == found), None
        )
        case = f"{name}, {rows} rows of {length}"
        assert why is None, f"{case}: {why}"
        raise AssertionError(
            f"{case}: {found:,} operations, and it should be {right:,}"
        )
    print("correct")
