"""What each process sends and holds, and a launcher that is killed."""

import os
import subprocess
import sys
import time

import psutil
import pytest
import torch

from minimind_core.book.ranks import (
    Collectives,
    kill_all,
    run_ranks,
    sharded_bytes,
    tokens_to_hide,
)
from minimind_core.errors import TrainingError
from minimind_core.loading import load_model

pytestmark = pytest.mark.skipif(
    os.name == "nt", reason="torchrun needs libuv, which Windows lacks"
)
SETTINGS = {
    "steps": 5, "batch_size": 4, "seq_len": 16, "device": "cpu",
    "dtype": "float32", "optimizer": "adamw",
}  # fmt: skip


def test_two_processes_tell_what_they_send_and_hold(tmp_path, small_runs):
    runs = {"ddp": {"delays": {"1": 0.02}}, "fsdp": {"shard": True}}
    found = run_ranks(
        2, tmp_path, runs, uneven=True,
        tokenizer=small_runs / "tokenizer", **SETTINGS,
    )  # fmt: skip
    model, _ = load_model(tmp_path / "fsdp")
    count = sum(p.numel() for p in model.parameters())
    layers = model.config.num_hidden_layers
    for one in found["ddp"]:
        assert one["held"] == {
            "weights": 4 * count, "gradients": 4 * count,
            "optimizer": 8 * count,
        }  # fmt: skip
        sums = one["sent"]["all_reduce"]
        # All gradients, the loss, and whether somebody wants to stop.
        assert sums["numbers"] == count + 2
        # In a ring of two, each sends as much as there is.
        assert sums["bytes"] == 4 * sums["numbers"]
        assert one["step_seconds"] > 0.01
    for one in found["fsdp"]:
        assert 8 * count <= sum(one["held"].values()) < 8.2 * count
        assert one["sent"]["all_gather"]["count"] == 2 * layers + 1
        assert one["sent"]["reduce_scatter"]["count"] == layers + 1
        assert one["sent"]["all_reduce"]["numbers"] < 100
    failed, left = found["uneven"]
    assert failed and left == ""


def test_what_a_process_prints_is_in_the_error(tmp_path, monkeypatch):
    def run(command, **options):
        assert command[-1] == str(tmp_path / "new")
        return subprocess.CompletedProcess(command, 1, "said ", "the reason")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(TrainingError, match="new: said the reason"):
        run_ranks(2, tmp_path / "new", {}, tokenizer="tok", **SETTINGS)


def test_a_launcher_is_killed_with_its_processes():
    child = "import time; print('up', flush=True); time.sleep(600)"
    # In a session of its own, as torchrun starts them.
    code = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', "
        f"{child!r}], start_new_session=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "up\n"
    (below,) = psutil.Process(process.pid).children(recursive=True)
    kill_all(process)
    until = time.monotonic() + 60
    while below.is_running() and below.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert process.returncode != 0


def test_other_operators_are_not_counted():
    with Collectives(2) as counter:
        torch.ones(3) @ torch.ones(3)
    assert counter.counts == {}


def test_bytes_and_tokens_on_paper():
    # Two gathers of 2 bytes and a sum of 4, of which a half stays.
    assert sharded_bytes(100, 2) == 400
    assert sharded_bytes(100, 2, gathered=4) == 600
    # 6 operations a token and parameter at 12 a second; 8 bytes at 2.
    assert tokens_to_hide(12.0, 2.0) == 8
    seconds = 6 * 100 * tokens_to_hide(1e3, 7.0) / 1e3
    assert seconds >= 8 * 100 / 7.0
