"""The study of number formats: equal where nothing is lost."""

import pytest
import torch

from minimind_core.book.studies import dtypes


@pytest.fixture
def small(monkeypatch, small_tiny):
    monkeypatch.setattr(dtypes, "STEPS", 3)
    monkeypatch.setattr(dtypes, "MEASURED", 2)
    monkeypatch.setattr(dtypes, "ROWS", 2)


def test_copies_alone_change_nothing_and_float16_needs_the_scaler(small):
    runs = {
        (scaled, copies): dtypes._train("tiny", dtype, scaled, copies)
        for dtype, scaled, copies in (
            ("float32", False, 1), ("float32", False, 1024),
        )
    }  # fmt: skip
    one, many = runs.values()
    assert one["losses"] == many["losses"]  # powers of two: no bit differs
    assert many["tokens"] == 1024 * one["tokens"]
    lost = dtypes._train("tiny", "float16", False, 2**20)
    kept = dtypes._train("tiny", "float16", True, 2**20)
    assert lost["zero_share"] > 0.5 > 0.05 > kept["zero_share"]
    assert kept["cosine"] > 0.999 > lost["cosine"]
    assert torch.tensor(kept["losses"]).isfinite().all()
