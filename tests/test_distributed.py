"""Two processes under torchrun against one, at the same global batch."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(
    os.name == "nt", reason="torchrun needs libuv, which Windows lacks"
)

WORKER = '''
import json, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[3])
from test_train import BASE, fresh, stream
from minimind_core.data import Rows
from minimind_core.train import Trainer

optimizer, out = sys.argv[1:3]
config = BASE.replace(steps=50, optimizer=optimizer, micro_batch_size=3,
                      lr=1e-3)
first = Trainer(fresh(), stream(), config, progress=False)
first.train_step(first._distributed())
grads = {n: p.grad for n, p in first.model.named_parameters()}
run = Trainer(fresh(), stream(), config, progress=False)
losses = [r["loss"] for r in run.fit()]
if run.processes.is_main:
    torch.save({"grads": grads, "losses": losses,
                "world": run.processes.world}, out)
'''


def launch(tmp_path, optimizer, processes):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    out = tmp_path / f"{optimizer}-{processes}.pt"
    command = [sys.executable, str(script)]
    if processes > 1:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(processes), str(script),
        ]  # fmt: skip
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [*command, optimizer, str(out), here],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize(
    ("optimizer", "close"),
    # Muon orthogonalises in bfloat16, which rounds a difference in the last
    # bit of a gradient up to one of a thousandth in its update.
    [("adamw", 1e-5), ("muon", 1e-3)],
)
def test_two_processes_equal_one(tmp_path, optimizer, close):
    one, two = (launch(tmp_path, optimizer, n) for n in (1, 2))
    assert (one["world"], two["world"]) == (1, 2)
    top = max(float(g.abs().max()) for g in one["grads"].values())
    for name, gradient in one["grads"].items():
        difference = float((gradient - two["grads"][name]).abs().max())
        assert difference / top < 1e-6, name
    assert two["losses"] == pytest.approx(one["losses"], rel=close)
    assert one["losses"][-1] < one["losses"][0] - 0.15


def test_torchrun_pretrains_through_the_command_line(tmp_path):
    assert shutil.which("torchrun") or sys.executable
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", "2", "-m", "minimind_core", "pretrain",
        "--steps", "3", "--batch-size", "4", "--seq-len", "48",
        "--save-every", "2", "--device", "cpu", "--out", str(out),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (out / "log.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(set(steps))  # one process writes, not two
    assert steps[-1] == 3
    assert (out / "model.safetensors").exists()
