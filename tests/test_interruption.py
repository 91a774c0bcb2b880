"""A killed run goes on to the same weights, wherever it was killed."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from safetensors.torch import load_file

from minimind_core.checkpoint import checkpoints
from minimind_core.data import tokenizer_texts
from minimind_core.recipes import pretrain
from minimind_core.run import is_finished
from minimind_core.tokenizer import train_tokenizer

pytestmark = pytest.mark.skipif(
    os.name != "posix", reason="signals as POSIX has them"
)

SETTINGS = {"steps": 24, "batch_size": 4, "seq_len": 48, "save_every": 6}

# Pretrains in a process of its own; the second argument is code to run
# first, which is how it is killed at an exact place.
CHILD = """
import os, signal, sys
import torch
torch.set_num_threads(1)
exec(sys.argv[1])
from minimind_core.recipes import pretrain
pretrain(sys.argv[2], tokenizer=sys.argv[3], resume=bool(sys.argv[4]),
         **{settings})
"""

IN_A_SAVE = """
from minimind_core import files
flush, calls = files.flush, []
def killing(folder):
    calls.append(folder)
    if len(calls) == 2:
        (folder / "training.pt").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    flush(folder)
files.flush = killing
"""

IN_A_STEP = """
from minimind_core.train import Trainer
step = Trainer.train_step
def killing(self, module):
    if self.step == 15:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, module)
Trainer.train_step = killing
"""

IN_THE_RESULT = """
from minimind_core import recipes
save = recipes.save_model
def killing(model, tokenizer, folder, **options):
    save(model, tokenizer, folder, **options)
    os.kill(os.getpid(), signal.SIGKILL)
recipes.save_model = killing
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer(tokenizer_texts("microworld", count=200), 500, out=out)
    return out


def start(out, tokenizer, *, first="", resume=False):
    code = textwrap.dedent(CHILD).format(settings=SETTINGS)
    command = [sys.executable, "-c", code, first, str(out), str(tokenizer)]
    return subprocess.Popen(
        [*command, "yes" if resume else ""],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def run_to_end(out, tokenizer, **options):
    process = start(out, tokenizer, **options)
    printed, errors = process.communicate(timeout=120)
    return process.returncode, printed, errors


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all((a[n] == b[n]).all() for n in a)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tokenizer):
    out = tmp_path_factory.mktemp("whole") / "run"
    code, _, errors = run_to_end(out, tokenizer)
    assert code == 0, errors
    return weights(out)


@pytest.mark.parametrize(
    ("where", "resumes_at"),
    [(IN_A_SAVE, 6), (IN_A_STEP, 12), (IN_THE_RESULT, 24)],
    ids=["in a save", "in a step", "in the result"],
)
def test_killed_and_resumed_to_the_bit(
    tmp_path, tokenizer, uninterrupted, where, resumes_at
):
    out = tmp_path / "run"
    code, _, _ = run_to_end(out, tokenizer, first=where)
    assert code == -signal.SIGKILL
    assert not is_finished(out)
    assert checkpoints(out)[-1].name == f"step_{resumes_at:08d}"
    code, printed, errors = run_to_end(out, tokenizer, resume=True)
    assert code == 0, errors
    assert f"from step_{resumes_at:08d}" in printed
    assert same(weights(out), uninterrupted)
    # What the killed save left behind is not in the way, and goes.
    left = [p.name for p in (out / "checkpoints").iterdir()]
    assert left == ["step_00000024"]


def test_killed_from_outside_at_no_chosen_place(
    tmp_path, tokenizer, uninterrupted
):
    out = tmp_path / "run"
    process = start(out, tokenizer)
    deadline = time.monotonic() + 60
    while not checkpoints(out) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    code, _, errors = run_to_end(out, tokenizer, resume=True)
    assert code == 0, errors
    assert same(weights(out), uninterrupted)


def test_resume_without_a_checkpoint_says_so(tmp_path, tokenizer, capsys):
    out = tmp_path / "run"
    settings = {**SETTINGS, "steps": 2, "save_every": 0}
    pretrain(out, tokenizer=tokenizer, resume=True, **settings)
    assert "no checkpoint, starting afresh" in capsys.readouterr().out
    before = weights(out)
    times = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    run = pretrain(out, tokenizer=tokenizer, resume=True, **settings)
    assert "is finished" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == times
    assert [r["step"] for r in run.history] == [1, 2]
    assert same(weights(out), before)
