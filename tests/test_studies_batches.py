"""The study of batch sizes: its estimates on cases with a known answer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minimind_core.book.studies import batches as study
from minimind_core.book.studies.batches import fit_trade, noise_scale
from minimind_core.data import Row
from minimind_core.model import CausalLMOutput


class Straight(nn.Module):
    """A loss whose gradient for a row is a vector that the row holds."""

    def __init__(self, gradients):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(gradients.size(1)))
        self.gradients = gradients

    def forward(self, input_ids, labels, num_items_in_batch):
        chosen = self.gradients[input_ids[:, 0]]
        loss = (chosen @ self.weight).sum() / len(input_ids)
        return CausalLMOutput(loss, None)


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_the_noise_scale_of_known_gradients(spread):
    generator = torch.Generator().manual_seed(0)
    count, size = 4096, 8
    noise = torch.randn(count, size, generator=generator) * spread
    mean = torch.tensor([2.0] + [0.0] * (size - 1))
    rows = [Row([i, i], [i, i], [0, 0]) for i in range(count)]
    found = noise_scale(Straight(mean + noise), rows)
    assert found == pytest.approx(size * spread**2 / 4, rel=0.1)


def test_the_trade_is_fitted_exactly():
    sizes = [1, 2, 4, 8, 64]
    fewest, least = fit_trade(sizes, [30 + 180 / b for b in sizes])
    assert fewest == pytest.approx(30)
    assert least == pytest.approx(180)


def test_a_large_batch_needs_fewer_steps_and_more_stories(monkeypatch):
    monkeypatch.setattr(study, "BATCHES", (4, 32))
    monkeypatch.setattr(study, "RATES", (0.008,))
    monkeypatch.setattr(study, "LOSSES", (4.0, 3.0))
    monkeypatch.setattr(study, "STORIES", 400)
    monkeypatch.setattr(study, "STEPS", 30)
    found = study.batches("tiny", False)
    small, large = (run["steps"] for run in found["runs"])
    for few, many in zip(large, small, strict=True):
        assert few < many
        assert 32 * few > 4 * many
    assert small[0] < small[1] and large[0] < large[1]
    assert len(found["noise"]) == 2
    assert all(0.1 < one < 1000 for one in found["noise"])
