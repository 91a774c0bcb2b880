"""FSDP2 on two and four processes: the same model, in parts."""

import json
import os
import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
from test_distributed import HEAD, launch
from test_train import BASE, Dropping, fresh, go_on, kill, trainer

from minimind_core import sharding
from minimind_core.checkpoint import (
    begin_shards,
    checkpoints,
    last_sound,
    load_checkpoint,
    save_checkpoint,
)
from minimind_core.errors import CheckpointError, ConfigError
from minimind_core.optim import gradient_norm, orthogonalize
from minimind_core.sharding import (
    gathered,
    is_sharded,
    split_like,
)

pytestmark = pytest.mark.skipif(
    os.name == "nt", reason="torchrun needs libuv, which Windows lacks"
)

CASES = '''
def lora():
    import peft
    torch.manual_seed(0)
    base = Qwen3ForCausalLM(Qwen3Config(**SHAPE.to_hf()))
    return peft.get_peft_model(base, peft.LoraConfig(
        r=3, target_modules="all-linear", task_type="CAUSAL_LM"))

CASES = {
    "adamw": ({"optimizer": "adamw"}, {}),
    "muon": ({"optimizer": "muon"}, {}),
    "bfloat16": ({"optimizer": "adamw"},
                 {"precision": precision_for("bfloat16")}),
    "float16": ({"optimizer": "adamw"},
                {"precision": precision_for("float16")}),
    "recomputed": ({"optimizer": "adamw", "loss_chunk": 7,
                    "activation_checkpointing": True}, {}),
    "lora": ({"optimizer": "adamw", "lr": 1e-2}, {"model": lora}),
}

def case(name, **changes):
    mine, options = CASES[name]
    options = dict(options)
    model = options.pop("model", fresh)()
    config = BASE.replace(**{"steps": 12, "micro_batch_size": 1,
                             "lr": 1e-3, **mine, **changes})
    return trainer(model, config, **options)

def told(run):
    """What a training gave."""
    return {
        "losses": [r["loss"] for r in run.fit()],
        "norms": [r["gradient_norm"] for r in run.history],
        "weights": {n: p.detach() for n, p in run.model.named_parameters()},
    }
'''
ALONE = {}
exec(  # the same cases here, in one process
    "from test_train import *\n" + CASES, ALONE
)

# What both numbers of processes do.
WORKER = HEAD + CASES + '''
import warnings
from minimind_core.errors import OutputError
from minimind_core.optim import build_optimizer
from minimind_core.sharding import (
    Shards, is_sharded, split_like, write_tensors)
world = int(os.environ["WORLD_SIZE"])
results, found = {}, {}

class Sent(TorchDispatchMode):
    """Counts the collectives of a step."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            name = function.name().removeprefix("c10d::").strip("_")
            self.counts[name] = self.counts.get(name, 0) + 1
        return function(*args, **(kwargs or {}))

# --- equal to one process ---
for name in CASES if world == 2 else ("adamw", "muon"):
    for shard in (False, True):
        results[name, shard] = told(case(name, shard=shard))

# --- what is held, and what is sent ---
for shard in (False, True):
    for micro in (1, 8 // world):
        run = case("adamw", shard=shard, micro_batch_size=micro)
        module = run._distributed()
        run.train_step(module)
        with Sent() as sent:
            run.train_step(module)
        found[f"sent {shard} {8 // world // micro}"] = sent.counts
held = list(run._held().values()) + [
    value for values in run.optimizer.state.values()
    for value in values.values() if torch.is_tensor(value) and value.ndim]
found["all sharded"] = all(is_sharded(value) for value in held)
found["held"] = sum(value.to_local().numel() for value in held)
found["empty"] = sum(p.numel() for p in run.model.parameters())
tied = run._shards.module
found["tied"] = tied.lm_head.weight is tied.model.embed_tokens.weight

# --- Muon's update is that of the whole matrix ---
config = BASE.replace(optimizer="muon", lr=1e-2)
full = fresh()
shards = Shards(fresh(), "cpu", "float32")
optimizers = [build_optimizer(m, config, "bfloat16")
              for m in (full, shards.module)]
before = {n: p.detach().clone() for n, p in full.named_parameters()}
torch.manual_seed(3)
for step in range(3):
    for own, part in zip(full.parameters(), shards.module.parameters(),
                         strict=True):
        own.grad = torch.randn_like(own)
        part.grad = split_like(own.grad, part)
    for optimizer in optimizers:
        optimizer.step()
shards.fill()
moved = {n: p.detach() - before[n] for n, p in full.named_parameters()}
found["muon"] = max(
    float((p.detach() - before[n] - moved[n]).norm() / moved[n].norm())
    for n, p in shards.model.named_parameters())

# --- checks get whole weights, everybody gets the result ---
whole = []
def validate(model):
    whole.append(sum(p.numel() for p in model.parameters()))
    with torch.no_grad():
        ids = torch.arange(6)[None]
        return {"validation_loss": float(model(ids, labels=ids).loss)}
checked = case("adamw", shard=True, steps=2)
checked.validate = validate
found["checked"] = checked.fit()[-1]["validation_loss"]
with torch.no_grad():
    ids = torch.arange(6)[None]
    found["after"] = float(checked.model(ids, labels=ids).loss)
found["whole"] = whole

# --- what one process sees ends all ---
model = fresh()
if rank == 1:
    Poison(model, 2, loss=math.nan)
try:
    trainer(model, BASE.replace(shard=True)).fit()
except TrainingError as error:
    found["not finite"] = str(error)[:60]
spoilt = case("adamw", shard=True)
if rank == 1:
    with torch.no_grad():
        next(iter(spoilt._held().values())).to_local().fill_(math.nan)
try:
    spoilt.out = out
    spoilt.save()
except TrainingError as error:
    found["spoilt"] = str(error)[:60]
(out / f"file-{world}").write_text("in the way")
place = out / (f"file-{world}" if rank == 1 else f"free-{world}")
try:
    write_tensors(place / "below", checked._held())
except OutputError as error:
    found["not written"] = str(error)
try:
    trainer(fresh(), BASE.replace(shard=True),
            optimizer=torch.optim.SGD(fresh().parameters(), lr=1))
except ConfigError as error:
    found["refused"] = str(error)
'''

# Four processes go on from one, and leave a checkpoint behind.
FOUR = WORKER + '''
def go_on(folder, model, **changes):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = trainer(model, BASE.replace(save_every=3, **changes),
                      out=out / folder)
        run.resume(checkpoints(out / folder)[-1])
    if rank == 0:
        found[f"said {folder}"] = [
            str(w.message) for w in said if "to the bit" in str(w)]
    return run

run = go_on("one", fresh(9), shard=True)
found["from"] = run.step
run.fit()
results["from one"] = {
    n: p.detach() for n, p in run.model.named_parameters()}

run_once((out / "four").mkdir)
killed = trainer(fresh(), BASE.replace(save_every=3, shard=True),
                 out=out / "four", callbacks=[KillAt(4)])
try:
    killed.fit()
except Killed:
    pass
'''
# Two go on from those four, by FSDP2 and by DDP; and to the bit from two.
TWO = WORKER + FOUR[len(WORKER):].split("run = go_on")[0] + '''
import shutil
run_once(lambda: shutil.copytree(out / "four", out / "ddp") and None)
run_once(lambda: shutil.copytree(out / "four", out / "alone") and None)
for folder, shard in (("four", True), ("ddp", False)):
    run = go_on(folder, fresh(9), shard=shard)
    run.fit()
    results[f"from {folder}"] = {
        n: p.detach() for n, p in run.model.named_parameters()}

config = BASE.replace(save_every=3, shard=True, optimizer="muon")
whole = trainer(Dropping(), config)
whole.fit()
run_once((out / "two").mkdir)
killed = trainer(Dropping(), config, out=out / "two", callbacks=[KillAt(5)])
try:
    killed.fit()
except Killed:
    pass
# Killed while it was saving: what is left must not be taken for a
# checkpoint, nor stand in the way of the next.
if rank == 0:
    left = out / "two" / "checkpoints" / ".shards_00000006"
    left.mkdir()
    (left / "half.safetensors").write_bytes(b"half")
again = go_on("two", Dropping(9), shard=True, optimizer="muon")
again.fit()
found["to the bit"] = same_weights(whole, again)
found["left"] = sorted(
    p.name for p in (out / "two" / "checkpoints").iterdir())
'''
END = '''
(out / f"found-{world}-{rank}.json").write_text(json.dumps(found))
if rank == 0:
    torch.save(results, out / f"results-{world}.pt")
'''


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """What four and two processes found, and their folder."""
    out = tmp_path_factory.mktemp("sharded")
    kill(out / "one", BASE.replace(save_every=3), 4)
    given = {}
    for world, code in ((4, FOUR), (2, TWO)):
        status, said = launch(out, code + END, world)
        assert status == 0, said[-3000:]
        found = [
            json.loads((out / f"found-{world}-{rank}.json").read_text())
            for rank in range(world)
        ]
        given[world] = found, torch.load(
            out / f"results-{world}.pt", weights_only=True
        )
    return given, out


@pytest.fixture(scope="module")
def alone():
    """The same trainings, by one process."""
    return {name: ALONE["told"](ALONE["case"](name)) for name in
            ALONE["CASES"]}  # fmt: skip


def distance(one, two):
    return max(float((one[n] - two[n]).abs().max()) for n in one)


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize(
    ("world", "name", "close"),
    # In half precision each part is rounded before it is added up. Four
    # processes run the first two only, to spare the processor.
    [(2, "adamw", 1e-5), (2, "muon", 1e-5), (2, "recomputed", 1e-5),
     (2, "lora", 1e-5), (2, "bfloat16", 1e-3), (2, "float16", 1e-3),
     (4, "adamw", 1e-5), (4, "muon", 1e-5)],
)  # fmt: skip
def test_parts_train_as_the_whole(
    sharded, alone, world, name, close, shard
):
    one, many = alone[name], sharded[0][world][1][name, shard]
    assert many["losses"] == pytest.approx(one["losses"], rel=close)
    assert many["norms"] == pytest.approx(one["norms"], rel=10 * close)
    assert one["losses"][-1] < one["losses"][0] - 0.01
    assert set(many["weights"]) == set(one["weights"])
    assert distance(many["weights"], one["weights"]) < 10 * close


@pytest.mark.parametrize("world", [2, 4])
def test_each_process_holds_its_part_only(sharded, world):
    found = sharded[0][world][0]
    numbers = 3 * sum(p.numel() for p in fresh().parameters())
    assert all(f["all sharded"] and f["tied"] for f in found)
    assert sum(f["held"] for f in found) == numbers
    # Rows are dealt whole: 67 of the embedding, by four, are 17 and 16.
    assert max(f["held"] for f in found) < 1.1 * numbers / world
    assert all(f["empty"] == 0 for f in found)


@pytest.mark.parametrize("world", [2, 4])
def test_gradients_are_sent_once_a_step(sharded, world):
    found = sharded[0][world][0][0]
    passes = 8 // world
    for times in (1, passes):
        ddp, fsdp = found[f"sent False {times}"], found[f"sent True {times}"]
        # The gradients in one bucket, and the loss.
        assert ddp["allreduce"] == 2
        # Two blocks and the root.
        assert fsdp["reduce_scatter_base"] == 3
        # Each pass gathers the blocks twice, and the root once.
        assert fsdp["allgather_base"] == 5 * times
        assert fsdp["allreduce"] == 1


@pytest.mark.parametrize("world", [2, 4])
def test_muon_takes_the_whole_matrix(sharded, world):
    # bfloat16 rounds by 2**-9. A part orthogonalised alone is far away.
    for found in sharded[0][world][0]:
        assert found["muon"] < 2**-9
    torch.manual_seed(0)
    options = (3.4445, -4.775, 2.0315), 5
    matrix = torch.randn(32, 48)
    whole = orthogonalize(matrix, *options)
    parts = torch.cat([orthogonalize(m, *options) for m in matrix.chunk(2)])
    assert float((parts - whole).norm() / whole.norm()) > 0.1


@pytest.mark.parametrize("world", [2, 4])
def test_checks_see_whole_weights_once(sharded, world):
    found = sharded[0][world][0]
    numbers = sum(p.numel() for p in fresh().parameters())
    assert [f["whole"] for f in found] == [[numbers]] + [[]] * (world - 1)
    values = {f["checked"] for f in found} | {f["after"] for f in found}
    assert len(values) == 1  # and every process has the model at the end


@pytest.mark.parametrize("world", [2, 4])
def test_what_one_process_sees_ends_all(sharded, world):
    for found in sharded[0][world][0]:
        assert found["not finite"].startswith("step 2: the loss is nan")
        assert found["spoilt"].startswith("step 0: its update has made")
        assert "must be given as a function" in found["refused"]
        assert "process 1 could not write" in found["not written"]
        assert "Not a directory" in found["not written"]
    assert not list((sharded[1] / "checkpoints").glob("step_*"))


def test_four_go_on_from_one_and_two_from_four(sharded):
    given, out = sharded
    whole = trainer(fresh())
    whole.fit()
    whole = whole.learned()
    assert given[4][0][0]["from"] == 3
    assert distance(given[4][1]["from one"], whole) < 1e-4
    for name in ("four", "ddp"):
        assert distance(given[2][1][f"from {name}"], whole) < 1e-4
    said = given[4][0][0]["said one"][0]
    assert "processes was 1, now 4" in said and "shard was False" in said
    assert "processes was 4, now 2" in given[2][0][0]["said four"][0]
    # And one from four.
    with pytest.warns(UserWarning, match="processes was 4, now 1"):
        resumed = go_on(out / "alone", BASE.replace(save_every=3))
    assert distance(resumed.learned(), whole) < 1e-4


def test_two_go_on_from_two_to_the_bit(sharded):
    for found in sharded[0][2][0]:
        assert found["to the bit"]
        assert found["left"] == ["step_00000003", "step_00000006"]


def test_a_sharded_checkpoint_is_verified(sharded, tmp_path):
    source = checkpoints(sharded[1] / "two")[-1]
    folder = tmp_path / "run" / "checkpoints" / source.name
    shutil.copytree(source, folder)
    weights, training, state = load_checkpoint(folder)
    assert state["runtime"]["shard"] is True
    assert {n: t.shape for n, t in weights.items()} == {
        n: p.shape for n, p in Dropping().named_parameters()
    }
    averages = [
        values
        for values in training["optimizer"]["state"].values()
        if "momentum_buffer" in values or "exp_avg" in values
    ]
    assert len(averages) == len(weights)
    assert last_sound(tmp_path / "run") == folder
    shards = sorted((folder / "shards").iterdir())
    assert len(shards) == 2  # one file for each process
    content = bytearray(shards[1].read_bytes())
    content[-1] ^= 1
    shards[1].write_bytes(content)
    with pytest.raises(CheckpointError, match=shards[1].name):
        load_checkpoint(folder)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match="missing, cut short"):
        load_checkpoint(folder)


def test_a_checkpoint_without_weights_is_refused(tmp_path):
    saved = save_checkpoint(tmp_path, 1, {"w": torch.ones(1)}, {}, {})
    sums = json.loads((saved / "sha256.json").read_text())
    del sums["model.safetensors"]
    (saved / "sha256.json").write_text(json.dumps(sums))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: miss"):
        load_checkpoint(saved)


def test_what_a_killed_save_leaves_is_cleared(tmp_path):
    first = begin_shards(tmp_path, 1)
    (first / "half").write_text("half")
    assert checkpoints(tmp_path) == []
    second = begin_shards(tmp_path, 2)
    assert not first.exists() and list(second.iterdir()) == []


RAISING = HEAD + '''
from minimind_core import cli, recipes
if rank == 1:
    def fail(*args, **kwargs):
        raise OSError("the disk of this machine is gone")
    Trainer.train_step = fail
sys.exit(cli.main(["pretrain", "--steps", "2", "--batch-size", "4",
    "--seq-len", "16", "--device", "cpu", "--dtype", "float32", "--shard",
    "--out", str(out / "run"), "--tokenizer", TOKENIZER]))
'''


def test_a_process_that_fails_ends_the_job_with_its_reason(
    tmp_path, small_runs
):
    # The other process waits for it within a collective, and is ended.
    tokenizer = repr(str(small_runs / "tokenizer"))
    code = RAISING.replace("TOKENIZER", tokenizer)
    status, said = launch(tmp_path, code, 2)
    assert status != 0
    report = said[said.index("Root Cause") :]
    assert "rank      : 1" in report
    assert "OSError: the disk of this machine is gone" in report


# --- without other processes ---


def test_one_process_has_nothing_to_spread(tmp_path):
    config = BASE.replace(steps=3)
    one, two = trainer(None, config), trainer(
        None, config.replace(shard=True), out=tmp_path
    )
    assert [r["loss"] for r in one.fit()] == [r["loss"] for r in two.fit()]
    saved = checkpoints(tmp_path)[-1]
    assert (saved / "model.safetensors").exists()
    assert load_checkpoint(saved)[2]["runtime"]["shard"] is False
    # Checkpoints from before there was the setting say nothing of it.
    state = json.loads((saved / "state.json").read_text())
    del state["runtime"]["shard"], state["config"]["shard"]
    again = trainer(None, config.replace(steps=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again._adopt(state["runtime"])


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ConfigError, match="Linear has no list of blocks"):
        sharding._layers(torch.nn.Linear(2, 2))
    assert len(sharding._layers(ALONE["lora"]())) == 2


def test_parts_for_another_dtype_are_refused():
    # The blocks' parameters are sent in the dtype that was chosen here.
    run = trainer(None, BASE.replace(dtype="auto"))
    run._shards = SimpleNamespace(dtype="float32")
    with pytest.raises(CheckpointError, match="resume with --dtype float16"):
        run._adopt({**run.runtime(), "dtype": "float16"})


def test_a_whole_tensor_is_its_own_part():
    tensor = torch.ones(2)
    assert not is_sharded(tensor) and not is_sharded(3)
    assert gathered(tensor) is tensor
    assert split_like(tensor, torch.zeros(2)) is tensor
    model = fresh()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    count = sum(p.numel() for p in model.parameters())
    norm = gradient_norm(model, 1.0)
    assert float(norm) == pytest.approx(0.5 * count**0.5)
    assert float(gradient_norm(model, 0.0)) == pytest.approx(1.0)


# --- on a GPU ---

# NCCL refuses two processes on one card, so this is a group of one whose
# trainer is told that there are others. Everything but the sending is real:
# the fused optimizer, the scaler and clipping meet sharded tensors.
ONE_CARD = HEAD + CASES + '''
import minimind_core.train as train_module
from minimind_core.distributed import Processes

class Several(int):
    """One, which claims to be more than one."""
    def __gt__(self, other):
        return True

os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29517",
                  RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
dist.init_process_group("cpu:gloo,cuda:nccl", rank=0, world_size=1)
torch.cuda.set_device(0)
results = {}
for dtype in ("float32", "bfloat16", "float16"):
    for optimizer in ("adamw", "muon"):
        for shard in (False, True):
            world = Several(1) if shard else 1
            train_module.join_processes = lambda *_: Processes(0, world)
            folder = out / f"{dtype}-{optimizer}-{shard}"
            folder.mkdir()
            config = BASE.replace(
                steps=12, lr=1e-3, shard=shard, device="cuda", dtype=dtype,
                micro_batch_size=4, optimizer=optimizer)
            run = trainer(fresh(), config, out=folder)
            losses = [r["loss"] for r in run.fit()]
            results[f"{dtype} {optimizer} {shard}"] = {
                "losses": losses, "sharded": run._shards is not None,
                "norms": [r["gradient_norm"] for r in run.history]}
(out / "results.json").write_text(json.dumps(results))
dist.destroy_process_group()
'''


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_card_trains_its_shards_as_the_whole(tmp_path):
    code, said = launch(tmp_path, ONE_CARD, 1)
    assert code == 0, said[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    for dtype in ("float32", "bfloat16", "float16"):
        for optimizer in ("adamw", "muon"):
            whole, parts = (
                results[f"{dtype} {optimizer} {shard}"]
                for shard in (False, True)
            )
            assert parts["sharded"] and not whole["sharded"]
            # In half precision the gains of the norms are rounded as well.
            close = 1e-4 if dtype == "float32" else 1e-2
            if optimizer == "muon":
                close = max(close, 5e-3)
            assert parts["losses"] == pytest.approx(
                whole["losses"], rel=close
            )
