"""What was measured on GPUs, as the pages read it; workers and their data."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from torch.utils.data import DataLoader

from minimind_core.book.measured import RESULTS, gpu_results, speed_rows
from minimind_core.book.workers import Numbers


def one_speed(rate):
    return {"rows": 32, "tokens_per_second": rate, "utilization": 0.25,
            "memory": 5.1e9}  # fmt: skip


def test_the_newest_card_comes_first(tmp_path):
    for name, date in (("a", "2026-01-02"), ("b", "2026-11-27")):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"card": name, "date": date})
        )
    (tmp_path / "other.json").write_text("{}")
    assert [one["card"] for one in gpu_results(tmp_path)] == ["b", "a"]


def test_without_results_there_are_none(tmp_path):
    assert gpu_results(tmp_path / "none") == []


def test_a_way_that_was_left_out_has_no_row():
    results = {"speed": {"eager": one_speed(1234.6), "compiled": {}}}
    assert speed_rows(results, ["eager", "compiled", "other"]) == [
        ["eager", "32", "1,235", "25%", "5.1"]
    ]
    assert speed_rows({}, ["eager"]) == []


@pytest.mark.skipif(not RESULTS.exists(), reason="only the package is here")
def test_the_results_of_the_repository_are_whole():
    for results in gpu_results():
        assert results["matmul_peak"] > 1e12
        assert results["tests"].get("failed", 0) == 0
        for one in results["speed"].values():
            assert not one or 0 < one["utilization"] < 1


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_workers_that_share_yield_each_number_once(workers):
    loader = DataLoader(
        Numbers(7, shared=True), batch_size=None, num_workers=workers
    )
    assert sorted(loader) == list(range(7))


def test_workers_that_do_not_share_repeat_everything():
    loader = DataLoader(Numbers(5), batch_size=None, num_workers=2)
    assert Counter(loader) == dict.fromkeys(range(5), 2)
