"""Thousands of damaged inputs: no traceback, no hang, nothing half written.

What is tried is in `benchmarks/faults.py`, which tries many more; here a
fixed part of it, and records that Hypothesis makes.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minimind_core.data import Files, left_out
from minimind_core.errors import DataError

spec = importlib.util.spec_from_file_location(
    "faults", ROOT / "benchmarks" / "faults.py"
)
faults = importlib.util.module_from_spec(spec)
sys.modules["faults"] = faults  # where dataclasses look their types up
spec.loader.exec_module(faults)

pytestmark = pytest.mark.skipif(
    os.name != "posix", reason="signals as POSIX has them"
)

COUNT, PART = 2000, 250


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return faults.prepare(tmp_path_factory.mktemp("base").resolve())


@pytest.mark.parametrize("first", range(0, COUNT, PART))
def test_damaged_input_in_one_process(base, tmp_path, first):
    seeds = range(first, first + PART)
    found = dict(faults.attempts(seeds, base, tmp_path.resolve()))
    wrong = [pair for pair in found.items() if pair[1].result == "WRONG"]
    assert not wrong
    assert len(found) == PART
    # Or it would be no test: each kind of input, and each kind of result.
    assert {one.kind for one in found.values()} == set(faults.KINDS)
    assert {one.result for one in found.values()} == {
        "worked", "left out", "error"
    }  # fmt: skip


def test_the_judge_sees_what_is_wrong(tmp_path, monkeypatch):
    """A traceback, a hang, something left behind, another status."""

    def breaks(words):
        raise TypeError("oops")

    def hangs(words):
        while True:
            pass

    def leaves(words):
        (tmp_path / "half").touch()
        return 2

    def hides(words):
        (tmp_path / ".out.1234").touch()
        return 0

    monkeypatch.setattr(faults, "LIMIT", 0.2)
    for command, said in ((breaks, "TypeError: oops"), (hangs, "still busy"),
                          (leaves, "left behind ['half']"),
                          (hides, "left behind ['.out.1234']"),
                          (lambda words: 1, "status 1")):  # fmt: skip
        monkeypatch.setattr(faults.cli, "main", command)
        result, told = faults.judge(["chat"], tmp_path)
        assert result == "WRONG"
        assert said in told
        for path in tmp_path.iterdir():
            path.unlink()


# --- real processes ---

FORK = """
import gc, json, os, sys, traceback
import torch, transformers, tokenizers, safetensors.torch
from minimind_core import cli
torch.set_num_threads(1)
gc.freeze()
for number, (folder, words) in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if not child:
        os.chdir(folder)
        for stream, name in ((1, "printed"), (2, "errors")):
            file = os.open(f"../{number}.{name}", os.O_WRONLY | os.O_CREAT)
            os.dup2(file, stream)
        code = 1
        try:
            code = cli.main(words)
        except SystemExit as ended:  # argparse's own way out
            code = ended.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
PROCESSES = 40


def test_damaged_input_in_processes(base, tmp_path):
    """Each command in a process of its own, started from a warm one."""
    commands, before = [], []
    for seed in range(COUNT, COUNT + 1000):
        folder = tmp_path / str(len(commands))
        folder.mkdir()
        draw = faults.Random(seed)
        kind = draw.choice(("records", "conversations", "prompts",
                            "packages", "tokenizers", "runs"))  # fmt: skip
        cwd = os.getcwd()
        os.chdir(folder)
        words = faults.KINDS[kind][1](base, draw)
        os.chdir(cwd)
        if words[0] in ("pretrain", "sft", "lora"):
            shutil.rmtree(folder)  # which would train
            continue
        commands.append((str(folder), words))
        before.append(faults.tree(folder))
        if len(commands) == PROCESSES:
            break
    done = subprocess.run(
        [sys.executable, "-c", FORK],
        input=json.dumps(commands), capture_output=True, text=True,
        timeout=600, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT),
             "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    codes = [int(line) for line in done.stdout.split()]
    assert len(codes) == PROCESSES
    assert set(codes) == {0, 2}
    for number, (code, (_, words)) in enumerate(
        zip(codes, commands, strict=True)
    ):
        said = (tmp_path / f"{number}.errors").read_text(errors="replace")
        assert "Traceback" not in said, (words, said)
        if code == 2:
            assert said.strip(), words
            assert faults.tree(tmp_path / str(number)) == before[number]


# --- records that Hypothesis makes ---

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats()
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from((
            "role", "content", "tool_calls", "tools", "name", "function",
            "reasoning_content", "arguments", "user", "assistant",
        )) | st.text(max_size=3),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(("system", "user", "assistant", "tool")),
         "content": st.text(st.characters(exclude_categories=())) | VALUES},
        optional={"tool_calls": VALUES, "tools": VALUES,
                  "reasoning_content": VALUES},
    ),
    min_size=1, max_size=4,
)  # fmt: skip
RECORDS = st.one_of(
    st.fixed_dictionaries({"text": st.text() | VALUES}),
    st.fixed_dictionaries({"conversations": MESSAGES}),
    st.fixed_dictionaries({"messages": MESSAGES | VALUES}),
    VALUES,
)
LINES = st.lists(
    RECORDS.map(lambda one: json.dumps(one).encode()) | st.binary(),
    min_size=1, max_size=5,
)  # fmt: skip
HYPOTHESIS = settings(
    max_examples=200, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@HYPOTHESIS
@given(LINES, st.sampled_from(("text", "conversations")))
def test_any_lines_are_read_or_named(tmp_path_factory, lines, kind):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(b"\n".join(lines))
    full = [one for one in path.read_bytes().split(b"\n") if one.strip()]
    try:
        stopped = Files([path], kind)
    except DataError as error:
        assert str(error).startswith(f"{path}")
        stopped = None
    try:
        skipped = Files([path], kind, skip=True)
    except DataError:
        assert stopped is None
        return
    assert skipped.size + left_out(skipped).count == len(full)
    assert (stopped is None) == (left_out(skipped).count > 0)
    places = range(skipped.size)
    if stopped is not None:
        assert stopped.records(places) == skipped.records(places)
    # A sound record stays one: it can be encoded as text.
    for one in skipped.records(places):
        json.dumps(one, ensure_ascii=False).encode()


@HYPOTHESIS
@given(MESSAGES, st.booleans())
def test_any_talk_through_the_command(tmp_path_factory, messages, skip):
    folder = tmp_path_factory.getbasetemp() / "talk"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "a.txt").write_text("One day.\n")
    record = json.dumps({"conversations": messages})
    (folder / "a.jsonl").write_text(record + "\n")
    cwd = os.getcwd()
    os.chdir(folder)
    try:
        result, said = faults.judge(
            ["tokenizer", "--vocab-size", "270", "--data", "a.txt", "--chat",
             "a.jsonl", "--out", "out",
             *(["--on-bad-record", "skip"] if skip else [])],
            folder,
        )  # fmt: skip
    finally:
        os.chdir(cwd)
    assert result in ("worked", "error"), said
