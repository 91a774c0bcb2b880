"""Two processes under torchrun: equal to one, and nothing done twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_train import BASE, Dropping, go_on, kill

from minimind_core import distributed
from minimind_core.checkpoint import checkpoints, load_checkpoint
from minimind_core.distributed import (
    Processes,
    in_main_process,
    local_device,
    run_once,
)
from minimind_core.errors import ConfigError

pytestmark = pytest.mark.skipif(
    os.name == "nt", reason="torchrun needs libuv, which Windows lacks"
)
HERE = Path(__file__).parent


def require_torchrun():
    if os.name == "nt":
        pytest.skip("torchrun needs libuv, which Windows lacks")



# What both workers begin with. Whether the group is left is looked at last
# of all: what is registered first at exit is called last.
HEAD = '''
import atexit, json, os, sys
from pathlib import Path
import torch
import torch.distributed as dist
torch.set_num_threads(1)
out, here = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, here)
rank = int(os.environ.get("RANK", "0"))

def look():
    (out / f"left-{rank}").write_text(str(not dist.is_initialized()))

atexit.register(look)
from test_train import *
from minimind_core.distributed import in_main_process, run_once
from minimind_core.errors import ConfigError
'''

# Many cases in one process, because it takes seconds to start.
EQUAL = HEAD + '''
import peft
results = {"world": int(os.environ.get("WORLD_SIZE", "1"))}

def lora():
    torch.manual_seed(0)
    base = Qwen3ForCausalLM(Qwen3Config(**SHAPE.to_hf()))
    return peft.get_peft_model(base, peft.LoraConfig(
        r=4, target_modules="all-linear", task_type="CAUSAL_LM"))

for name, options, changes in [
    ("adamw", {}, {"optimizer": "adamw"}),
    ("muon", {}, {"optimizer": "muon"}),
    ("packed", {"packed": True}, {"optimizer": "adamw"}),
    ("lora", {"model": lora}, {"optimizer": "adamw", "lr": 1e-2}),
    ("bfloat16", {"precision": precision_for("bfloat16")},
     {"optimizer": "adamw"}),
    ("float16", {"precision": precision_for("float16")},
     {"optimizer": "adamw"}),
]:
    make = options.pop("model", fresh)
    config = BASE.replace(
        **{"steps": 20, "micro_batch_size": 3, "lr": 1e-3, **changes})
    first = trainer(make(), config, **options)
    first.train_step(first._distributed())
    run = trainer(make(), config, **options)
    history = run.fit()
    results[name] = {
        "grads": {n: p.grad for n, p in first.model.named_parameters()
                  if p.requires_grad},
        "losses": [r["loss"] for r in history],
        "tokens": run.tokens,
    }
if rank == 0:
    torch.save(results, out / f"equal-{results['world']}.pt")
'''

TOGETHER = HEAD + '''
found = {}
config = BASE.replace(save_every=3)

# --- resuming, with dropout ---
whole = trainer(Dropping(), config)
whole.fit()
killed = trainer(Dropping(), config, out=out / "two", callbacks=[KillAt(4)])
run_once((out / "two").mkdir)
try:
    killed.fit()
except Killed:
    pass
again = trainer(Dropping(9), config, out=out / "two")
states = again.processes.gather(torch.get_rng_state())
again.resume(checkpoints(out / "two")[-1])
again.fit()
found["resumed"] = same_weights(whole, again)
found["dropout differs"] = not torch.equal(*states)

# --- from one process to two ---
import warnings
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    grown = trainer(Dropping(9), config, out=out / "one")
    grown.resume(checkpoints(out / "one")[-1])
grown.fit()
found["grown"] = grown.step
found["told"] = [str(w.message) for w in told if "to the bit" in str(w)]

# --- what only one process sees ---
model = fresh()
if rank == 1:
    Poison(model, 2, loss=math.nan)
try:
    trainer(model).fit()
except TrainingError as error:
    found["not finite"] = str(error)[:60]

class StopInOne(Callback):
    def on_step_end(self, trainer, record):
        if rank == 1 and trainer.step == 2:
            trainer.stop("by the second")

stopped = trainer(callbacks=[StopInOne()])
stopped.fit()
found["stopped at"] = stopped.step

class See(Callback):
    def on_validation_end(self, trainer, record):
        found["validation"] = record["validation_loss"]

checked = []
def validate(model):
    checked.append(1)
    return {"validation_loss": 1.5}
trainer(callbacks=[See()], validate=validate).fit()
found["checked"] = len(checked)

# --- what the main process chose ---
mine = precision_for("float32" if rank == 0 else "float16")
torch.set_num_threads(2 - rank)
chosen = trainer(precision=mine).runtime()
found["chosen"] = [chosen["dtype"], chosen["threads"]]
torch.set_num_threads(1)

# --- once ---
calls = []
def work():
    calls.append(rank)
    return ("result", rank)
found["once"] = run_once(work)
found["calls"] = calls

@in_main_process
def wrong(text, *, kind):
    raise kind(text)
for kind in (ConfigError, ZeroDivisionError):
    try:
        wrong("no such thing", kind=kind)
    except Exception as error:
        found[kind.__name__] = f"{type(error).__name__}: {error}"

(out / f"found-{rank}.json").write_text(json.dumps(found))
'''

RAISING = HEAD + '''
model = fresh()
Poison(model, 2, gradient=math.nan)
trainer(model).fit()
'''


def launch(tmp_path, code, processes):
    """Run a worker; its exit status and what it printed."""
    if processes > 1:
        require_torchrun()
    script = tmp_path / "worker.py"
    script.write_text(code)
    command = [sys.executable, str(script)]
    if processes > 1:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(processes), str(script),
        ]  # fmt: skip
    done = subprocess.run(
        [*command, str(tmp_path), str(HERE)],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def left(tmp_path, processes=2):
    """Whether each process had left the group when it ended."""
    return [(tmp_path / f"left-{r}").read_text() for r in range(processes)]


@pytest.fixture(scope="module")
def equal(tmp_path_factory):
    """The same trainings by one process and by two."""
    out = tmp_path_factory.mktemp("equal")
    for processes in (1, 2):
        code, said = launch(out, EQUAL, processes)
        assert code == 0, said[-3000:]
    return [
        torch.load(out / f"equal-{n}.pt", weights_only=True) for n in (1, 2)
    ]


@pytest.mark.parametrize(
    ("name", "close"),
    # Muon orthogonalises in bfloat16, which rounds a difference in the last
    # bit of a gradient up to one of a thousandth in its update. The halves
    # round each partial sum.
    [("adamw", 1e-5), ("packed", 1e-5), ("lora", 1e-5), ("muon", 1e-3),
     ("bfloat16", 5e-3), ("float16", 1e-3)],
)  # fmt: skip
def test_two_processes_equal_one(equal, name, close):
    assert [found["world"] for found in equal] == [1, 2]
    one, two = (found[name] for found in equal)
    if close == 1e-5:
        top = max(float(g.abs().max()) for g in one["grads"].values())
        for key, gradient in one["grads"].items():
            difference = float((gradient - two["grads"][key]).abs().max())
            assert difference / top < 1e-6, key
    assert two["losses"] == pytest.approx(one["losses"], rel=close)
    assert one["losses"][-1] < one["losses"][0] - 0.02
    assert one["tokens"] == two["tokens"]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes found that work together, and their folder."""
    out = tmp_path_factory.mktemp("together")
    (out / "one").mkdir()
    config = BASE.replace(save_every=3)
    kill(out / "one", config, 4, model=Dropping())
    code, said = launch(out, TOGETHER, 2)
    assert code == 0, said[-3000:]
    found = [
        json.loads((out / f"found-{rank}.json").read_text())
        for rank in range(2)
    ]
    return found, out


def both(together, name):
    return [found[name] for found in together[0]]


def test_dropout_is_resumed_to_the_bit_in_every_process(together):
    assert both(together, "dropout differs") == [True, True]
    assert both(together, "resumed") == [True, True]


def test_one_process_goes_on_as_two_and_says_so(together):
    assert both(together, "grown") == [BASE.steps] * 2
    (told,), nothing = both(together, "told")
    assert "processes was 1, now 2" in told
    assert nothing == []  # said once


def test_two_processes_go_on_as_one_and_say_so(together):
    folder = together[1] / "two"
    _, training, state = load_checkpoint(checkpoints(folder)[-1])
    assert len(training["random"]) == state["runtime"]["processes"] == 2
    longer = BASE.replace(save_every=3, steps=8)
    with pytest.warns(UserWarning, match="processes was 2, now 1"):
        resumed = go_on(folder, longer, Dropping())
    assert resumed.step == 8


def test_what_one_process_sees_ends_both(together):
    message = "step 2: the loss is nan, so the optimizer was not moved."
    assert [m[: len(message)] for m in both(together, "not finite")] == [
        message
    ] * 2
    assert both(together, "stopped at") == [2, 2]


def test_validation_is_done_once_and_known_to_both(together):
    assert both(together, "checked") == [1, 0]
    assert both(together, "validation") == [1.5, 1.5]


def test_all_compute_as_the_main_process_chose(together):
    assert both(together, "chosen") == [["float32", 2]] * 2


def test_what_is_done_once_is_known_to_both(together):
    assert both(together, "once") == [["result", 0]] * 2
    assert both(together, "calls") == [[0], []]
    assert both(together, "ConfigError") == ["ConfigError: no such thing"] * 2
    assert both(together, "ZeroDivisionError") == [
        "ZeroDivisionError: no such thing",
        "RuntimeError: process 0: no such thing",
    ]


def test_the_group_is_left_at_the_end(together):
    assert left(together[1]) == ["True", "True"]


def test_the_group_is_left_when_training_raises(tmp_path):
    code, said = launch(tmp_path, RAISING, 2)
    assert code != 0
    assert "step 2: the gradient norm is nan" in said
    assert left(tmp_path) == ["True", "True"]


def test_torchrun_takes_the_whole_journey(tmp_path):
    # Once every process trained a tokenizer, exported and merged, each into
    # the same folder.
    require_torchrun()
    out = tmp_path / "journey"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", "2", "-m", "minimind_core", "journey",
        "--steps", "2", "--device", "cpu", "--out", str(out),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in ("tokenizer", "pretrain", "sft", "hf", "lora", "merged"):
        assert (out / stage).is_dir()
        told = done.stdout.splitlines()
        assert sum(x.endswith(f"s, in {out / stage}") for x in told) == 1
    for stage in ("pretrain", "sft", "lora"):
        lines = (out / stage / "log.jsonl").read_text().splitlines()
        # One process writes, not two.
        assert [json.loads(line)["step"] for line in lines] == [1, 2]
        metadata = json.loads((out / stage / "minimind.json").read_text())
        assert metadata["runtime"]["processes"] == 2
    assert (out / "merged" / "model.safetensors").exists()


# --- the device of a process, and what needs no torchrun ---


@pytest.fixture
def torchrun(monkeypatch):
    """As if torchrun had started this process, and the machine had GPUs."""

    def pretend(world=2, local=1, gpus=2):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        monkeypatch.setenv("LOCAL_RANK", str(local))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    return pretend


def test_each_process_has_a_gpu_of_its_own(torchrun):
    torchrun()
    assert local_device("cuda") == "cuda:1"
    assert local_device("cpu") == "cpu"


def test_one_process_takes_any_device(torchrun):
    for device in ("cpu", "cuda", "cuda:3", "mps"):
        assert local_device(device) == device
    torchrun(world=1, local=0)
    assert local_device("cuda:1") == "cuda:1"


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        ("cuda:1", 2, "all 2 processes of torchrun on one GPU; use --device"),
        ("mps", 0, "several processes cannot share"),
        ("cuda", 1, "which has 1 GPUs; set --nproc-per-node to at most 1"),
    ],
)
def test_processes_do_not_share_a_gpu(torchrun, device, gpus, message):
    torchrun(gpus=gpus)
    with pytest.raises(ConfigError, match=message):
        local_device(device)


def test_one_process_alone_has_nobody_to_ask():
    one = Processes()
    assert one.is_main
    assert one.gather(5) == [5]
    assert one.broadcast("x") == "x"
    assert (one.any(True), one.any(False)) == (True, False)
    one.barrier()
    assert run_once(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        run_once(lambda: 1 / 0)


def test_a_decorated_function_keeps_its_name_and_signature():
    def write(out: str, *, pth: bool = False) -> str:
        """Write."""
        return out + str(pth)

    once = in_main_process(write)
    assert once("a", pth=True) == "aTrue"
    assert (once.__name__, once.__doc__) == ("write", "Write.")
    distributed.leave_processes()  # there is none to leave


def test_what_runs_once_may_call_what_runs_once(monkeypatch):
    """The journey exports once, and exporting runs once by itself."""
    both = Processes(0, 2)
    said = []
    monkeypatch.setattr(Processes, "barrier", lambda self: said.append("b"))
    monkeypatch.setattr(Processes, "broadcast", lambda self, value: value)
    assert both.once(lambda: both.once(lambda: 7)) == 7
    # The other process takes part in the outer call only.
    assert said == ["b"]
    with pytest.raises(ZeroDivisionError):
        both.once(lambda: both.once(lambda: 1 / 0))
    assert both.once(lambda: 8) == 8 and said == ["b", "b", "b"]
