"""The stages as functions: open to code, repeatable, honest about data."""

import json
import os
import shutil

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from minimind_core import recipes
from minimind_core.callbacks import Callback
from minimind_core.checkpoint import RUN_FORMAT, save_model
from minimind_core.cli import main
from minimind_core.config import ModelConfig, TrainConfig, get_preset
from minimind_core.data import InMemory, parse_data, tokenizer_texts
from minimind_core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    OutputError,
)
from minimind_core.evaluation import evaluate
from minimind_core.export import export_hf, import_checkpoint
from minimind_core.files import read_json
from minimind_core.microworld import conversation, write_story
from minimind_core.model import MiniMind
from minimind_core.recipes import pretrain, sft, train_lora
from minimind_core.run import read_log, read_metadata
from minimind_core.settings import read_settings
from minimind_core.tokenizer import load_tokenizer

SHAPE = ModelConfig(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=256,
)  # fmt: skip


def nothing(model):
    return {}


QUICK = {
    "batch_size": 4, "steps": 2, "device": "cpu", "progress": False,
    "seq_len": 64, "validate": nothing,
}  # fmt: skip
TALKING = QUICK | {"seq_len": 250}
TEXTS = [{"text": write_story(0, i).text} for i in range(30)]
TALKS = [{"conversations": conversation(0, i).messages} for i in range(30)]


@pytest.fixture(scope="module")
def tokenizer(small_runs):
    return small_runs / "tokenizer"


@pytest.fixture(scope="module")
def foreign(small_runs, tokenizer, tmp_path_factory):
    """A model's folder from elsewhere: no minimind.json in it."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("foreign")
    tok = load_tokenizer(tokenizer)
    save_model(MiniMind(SHAPE.replace(vocab_size=len(tok))), tok, folder)
    return folder


def new_model(tokenizer, out, **changes):
    settings = {"model": {**SHAPE.as_given(), "vocab_size": 500},
                "tokenizer": tokenizer, **QUICK}  # fmt: skip
    return pretrain(out, **{**settings, **changes})


def same_bits(one, other, name="model.safetensors"):
    return (one / name).read_bytes() == (other / name).read_bytes()


def lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


# --- a run can be repeated from its own record ---


def test_pretraining_is_repeated_from_its_record(
    tmp_path, tokenizer, monkeypatch
):
    text = lines(tmp_path / "t.jsonl", TEXTS)
    first, again = tmp_path / "first", tmp_path / "deep" / "again"
    monkeypatch.chdir(tmp_path)
    tok = os.path.relpath(tokenizer)
    assert main([
        "pretrain", "--out", "first", "--data", text.name, "--tokenizer",
        tok, "--steps", "3", "--batch-size", "4", "--micro-batch-size", "2",
        "--device", "cpu", "--seed", "5", "--set", "model.head_dim=16",
        "--set", "beta2=0.9", "--set", "schedule=constant", "--set",
        "threads=1", "--pth",
    ]) == 0  # fmt: skip
    monkeypatch.chdir(ROOT)
    record = str(first / "minimind.json")
    assert main(["pretrain", "--config", record, "--out", str(again)]) == 0
    assert same_bits(first, again)
    assert (again / "minimind.pth").exists()
    one, two = read_metadata(first), read_metadata(again)
    for name in ("model", "data", "tokenizer", "preset", "seed", "stage"):
        assert one[name] == two[name], name
    resolved = {"dtype": one["precision"], "threads": 1}
    assert two["train"] == one["train"] | resolved
    # One change, and it is another run.
    other = tmp_path / "other"
    assert main(["pretrain", "--config", record, "--out", str(other),
                 "--seed", "6"]) == 0  # fmt: skip
    assert not same_bits(first, other)


def test_without_a_tokenizer_one_is_trained_again(tmp_path):
    text = lines(tmp_path / "t.jsonl", TEXTS)
    first, again = tmp_path / "first", tmp_path / "again"
    pretrain(first, data=text, model={"vocab_size": 400}, **QUICK)
    settings = read_settings(first / "minimind.json", "pretrain")
    pretrain(again, **settings, progress=False, validate=nothing)
    assert same_bits(first, again)
    assert same_bits(first, again, "tokenizer.json")


@pytest.mark.parametrize("stage", ["sft", "lora"])
def test_tuning_is_repeated_from_its_record(
    tmp_path, small_runs, stage
):
    base = small_runs / {"sft": "pretrain", "lora": "hf"}[stage]
    weights = {"sft": "model.safetensors",
               "lora": "adapter_model.safetensors"}[stage]  # fmt: skip
    talks = lines(tmp_path / "c.jsonl", TALKS)
    options = [] if stage == "sft" else [
        "--rank", "2", "--targets", "q_proj,v_proj", "--use-rslora",
        "--dropout", "0.1",
    ]  # fmt: skip
    first, again = tmp_path / "first", tmp_path / "again"
    assert main([
        stage, str(base), "--data", str(talks), "--out", str(first),
        "--steps", "2", "--batch-size", "2", "--device", "cpu",
        "--set", "lr=2e-3", *options,
    ]) == 0  # fmt: skip
    record = str(first / "minimind.json")
    assert main([stage, "--config", record, "--out", str(again)]) == 0
    assert same_bits(first, again, weights)
    assert read_metadata(first)["train"]["lr"] == 2e-3


def test_the_record_is_there_from_the_start(
    tmp_path, tokenizer, monkeypatch
):
    class Stop(Callback):
        def on_step_end(self, trainer, record):
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        new_model(tokenizer, out, beta2=0.9, callbacks=[Stop()])
    found = read_metadata(out)
    assert found["finished"] is False
    assert found["train"]["beta2"] == 0.9
    # It is continued with the settings it began with.
    assert main(["pretrain", "--out", str(out), "--resume"]) == 0
    found = read_metadata(out)
    assert found["finished"] is True
    assert (found["train"]["beta2"], found["train"]["batch_size"]) == (0.9, 4)
    assert found["model"]["hidden_size"] == 32


def test_threads_are_chosen_and_given_back(tmp_path, tokenizer, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    counts = []
    monkeypatch.setattr(
        recipes, "choose_threads",
        lambda shape: type("Choice", (), {"number": before + 1}),
    )  # fmt: skip

    class Look(Callback):
        def on_step_end(self, trainer, record):
            counts.append(torch.get_num_threads())

    look = [Look()]
    run = new_model(tokenizer, tmp_path / "a", callbacks=look)
    assert read_metadata(run.path)["runtime"]["threads"] == before + 1
    new_model(tokenizer, tmp_path / "b", callbacks=look, threads=before)
    assert counts == [before + 1] * 2 + [before] * 2
    # A resumed run has those it began with.
    monkeypatch.undo()
    new_model(tokenizer, run.path, steps=3, resume=True, callbacks=look)
    assert counts[-1] == before + 1
    assert torch.get_num_threads() == before


def test_the_format_is_measured_for_this_training(
    tmp_path, small_runs, monkeypatch
):
    asked = []
    real = recipes.choose_precision

    def choose(device, dtype, **what):
        asked.append((device, dtype, what))
        return real("cpu", "float32", **what)

    monkeypatch.setattr(recipes, "choose_precision", choose)
    sft(small_runs / "pretrain", tmp_path / "a", **TALKING,
        micro_batch_size=2)  # fmt: skip
    ((device, dtype, what),) = asked
    assert (device, dtype) == ("cpu", "auto")
    assert what.pop("model").num_hidden_layers == 2
    assert what == {"seq_len": 250, "batch_size": 2, "optimizer": "muon"}


def test_what_a_record_says(small_runs):
    found = json.loads((small_runs / "sft/minimind.json").read_text())
    assert found["format"] == RUN_FORMAT
    assert found["stage"] == "sft"
    assert found["base"] == "../pretrain"
    assert found["data"] == ["microworld"]
    assert set(found["train"]) == set(TrainConfig().to_dict())
    assert set(found["model"]) == set(ModelConfig().to_dict())
    assert found["runtime"]["dtype"] == found["precision"]
    assert found["runtime"]["threads"] >= 1
    assert {"minimind_core", "torch", "seed", "preset"} <= set(found)


@pytest.mark.parametrize("number", [None, 0, RUN_FORMAT + 1])
def test_a_folder_of_another_version(small_runs, tmp_path, capsys, number):
    run = tmp_path / "run"
    shutil.copytree(small_runs / "pretrain", run)
    values = json.loads((run / "minimind.json").read_text())
    values["format"] = number
    if number is None:
        del values["format"]
    (run / "minimind.json").write_text(json.dumps(values))
    age = "newer" if number == RUN_FORMAT + 1 else "older"
    with pytest.raises(CheckpointError, match=f"{age} version"):
        sft(run, tmp_path / "out", **TALKING)
    assert not (tmp_path / "out").exists()
    assert main(["pretrain", "--out", str(run), "--resume"]) == 2
    assert f"{age} version" in capsys.readouterr().err


# --- more steps ---


def test_a_finished_run_gets_more_steps(tmp_path, tokenizer, capsys):
    out = tmp_path / "out"
    new_model(tokenizer, out, schedule="constant", warmup_ratio=0.0)
    words = ["pretrain", "--out", str(out), "--resume"]
    for steps in ([], ["--steps", "2"], ["--steps", "1"]):
        assert main([*words, *steps]) == 0
        said = capsys.readouterr().out
        assert "is finished, after 2 steps" in said
        assert "wrote" not in said
    assert main([*words, "--steps", "5"]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    assert read_log(out)[-1]["step"] == 5
    assert read_metadata(out)["train"]["steps"] == 5
    # With a rate that doesn't depend on the end, it is the longer run.
    whole = tmp_path / "whole"
    new_model(tokenizer, whole, steps=5, schedule="constant",
              warmup_ratio=0.0)  # fmt: skip
    assert same_bits(out, whole)


def test_more_steps_need_a_checkpoint(tmp_path, tokenizer):
    out = tmp_path / "out"
    new_model(tokenizer, out)
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(OutputError, match=f"--from {out}"):
        new_model(tokenizer, out, steps=3, resume=True)


# --- continued pretraining ---


def test_pretraining_continues_on_new_data(tmp_path, small_runs, capsys):
    base, out = small_runs / "pretrain", tmp_path / "out"
    text = lines(tmp_path / "t.jsonl", TEXTS)
    assert main([
        "pretrain", "--from", str(base), "--data", str(text), "--out",
        str(out), "--steps", "2", "--batch-size", "4", "--lr", "1e-12",
        "--device", "cpu",
    ]) == 0  # fmt: skip
    assert "next: minimind sft" in capsys.readouterr().out
    ours, theirs = (load_file(f / "model.safetensors") for f in (out, base))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=0)
    assert same_bits(out, base, "tokenizer.json")
    found = read_metadata(out)
    assert found["base"] == str(base.resolve())
    assert found["preset"] == "tiny"
    assert found["data"] == [str(text.resolve())]
    # A second time from the same record.
    again = tmp_path / "again"
    assert main(["pretrain", "--config", str(out / "minimind.json"),
                 "--out", str(again)]) == 0  # fmt: skip
    assert same_bits(out, again)
    for name in ("model", "tokenizer"):
        with pytest.raises(ConfigError, match=f"{name} cannot be given"):
            pretrain(tmp_path / "x", base=base, **{name: SHAPE})


def test_continued_pretraining_does_not_read_the_same_again(
    tmp_path, small_runs, monkeypatch
):
    seen = []
    real = recipes.Rows._refill

    def refill(self):
        seen.append(self.drawn)
        real(self)

    monkeypatch.setattr(recipes.Rows, "_refill", refill)
    pretrain(tmp_path / "x", base=small_runs / "pretrain", **QUICK)
    assert min(seen) >= recipes.BEHIND


# --- code and records of the caller's own ---


def test_a_shape_of_your_own(tmp_path, tokenizer):
    run = pretrain(
        tmp_path / "a", model=SHAPE.replace(vocab_size=700),
        tokenizer=tokenizer, config=TrainConfig(steps=1, batch_size=2,
                                                beta2=0.5),
        progress=False, validate=nothing,
    )  # fmt: skip
    # Rows that were asked for stay, also where no token has them.
    assert run.model.config == SHAPE.replace(vocab_size=700)
    found = read_metadata(run.path)
    assert (found["preset"], found["train"]["beta2"]) == ("tiny", 0.5)
    assert found["model"]["intermediate_size"] is None
    with pytest.raises(ConfigError, match="vocab_size 400 is less than"):
        pretrain(tmp_path / "b", model=SHAPE.replace(vocab_size=400),
                 tokenizer=tokenizer)  # fmt: skip
    assert not (tmp_path / "b").exists()


def test_a_shape_alone_gets_the_settings_of_its_size(monkeypatch, tmp_path):
    plans = []

    def stop(model, stream, config, **rest):
        plans.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "Trainer", stop)
    for name in ("tiny", "small"):
        with pytest.raises(KeyboardInterrupt):
            shape = get_preset(name).model
            pretrain(tmp_path / "x", data=TEXTS, model=shape)
        expected = get_preset(name).pretrain
        assert plans.pop().replace(packed=expected.packed) == expected


def test_a_preset_of_your_own(tmp_path, tokenizer):
    tiny = get_preset("tiny")
    own = type(tiny)(
        name="own", summary="", model=SHAPE, vocab_size=500,
        pretrain=TrainConfig(steps=1, batch_size=2, momentum=0.5),
        sft=TrainConfig(steps=1, batch_size=2, seq_len=200, replay=0.0),
        lora=tiny.lora,
    )  # fmt: skip
    base, out = tmp_path / "base", tmp_path / "out"
    rest = {"progress": False, "validate": nothing, "device": "cpu"}
    pretrain(base, preset=own, tokenizer=tokenizer, **rest)
    sft(base, out, preset=own, **rest)
    assert read_metadata(base)["train"]["momentum"] == 0.5
    assert read_metadata(out)["train"]["seq_len"] == 200
    # Known by its name only, it is repeated from what it came to.
    again = tmp_path / "again"
    pretrain(again, **read_settings(base / "minimind.json", "pretrain"),
             progress=False, validate=nothing)  # fmt: skip
    assert same_bits(base, again)


class Counted:
    """A source of one's own, with or without an end."""

    def __init__(self, size):
        self.size = size

    def records(self, indices):
        return [f"Story {i} is about the number {i}." for i in indices]


@pytest.mark.parametrize("data", [
    TEXTS, iter(TEXTS), tuple(TEXTS), InMemory([t["text"] for t in TEXTS]),
    Counted(40), Counted(None),
], ids=[
    "list", "iterator", "tuple", "InMemory", "source", "endless",
])  # fmt: skip
def test_records_in_memory(tmp_path, tokenizer, data):
    endless = getattr(data, "size", 1) is None
    run = new_model(tokenizer, tmp_path / "out", data=data, validate=None)
    assert [r["step"] for r in run.history] == [1, 2]
    # Some of what has an end is held out.
    assert ("validation_loss" in run.history[-1]) is not endless
    (name,) = read_metadata(run.path)["data"]
    assert name.startswith("memory:")
    with pytest.raises(DataError, match="in the memory of another program"):
        evaluate(run.path)


def test_conversations_in_memory(tmp_path, small_runs):
    run = sft(small_runs / "pretrain", tmp_path / "a", data=TALKS, **TALKING)
    other = sft(
        small_runs / "pretrain", tmp_path / "b",
        data=InMemory([t["conversations"] for t in TALKS], "conversations"),
        **TALKING,
    )  # fmt: skip
    assert same_bits(run.path, other.path)
    train_lora(small_runs / "hf", tmp_path / "c", data=TALKS, **TALKING)
    assert (tmp_path / "c" / "adapter_model.safetensors").exists()


def test_what_takes_long_says_so_before_it_starts(
    tmp_path, small_runs, monkeypatch, capsys
):
    from minimind_core.precision import DeviceFacts

    asked = []

    def foresee(*given):
        asked.append(given)
        return "an estimated 9 hours"

    t4 = DeviceFacts("cuda", "Tesla T4", False, (7, 5))
    monkeypatch.setattr(recipes, "foresee", foresee)
    monkeypatch.setattr(recipes, "detect_device", lambda device: t4)
    shown = {**TALKING, "progress": True}
    run = sft(small_runs / "pretrain", tmp_path / "a", data=TALKS, **shown)
    said = capsys.readouterr().out
    assert said.index("an estimated 9 hours") < said.index("loss")
    ((shape, config, kind, name),) = asked
    assert shape == run.model.config
    assert config.steps == TALKING["steps"]
    assert (kind, name) == ("cuda", "Tesla T4")


def test_resumed_with_other_records(tmp_path, tokenizer):
    out = tmp_path / "out"
    new_model(tokenizer, out, data=TEXTS)
    with pytest.raises(CheckpointError, match="data was"):
        new_model(tokenizer, out, data=TEXTS[:20], steps=4, resume=True)
    with pytest.raises(DataError, match="give the data again"):
        pretrain(out, steps=4, resume=True)
    run = new_model(tokenizer, out, data=TEXTS, steps=4, resume=True)
    assert run.history[-1]["step"] == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (5, "data cannot be a int"),
        ({"text": "x"}, "data cannot be a dict"),
        (b"x", "data cannot be a bytes"),
        ([5], "record 0: expected a record"),
        ([{"text": "x"}, "y"], "record 1: expected a record"),
        ([{"txt": "x"}], "record 0: expected a record with 'text'"),
        ([], "no data"),
        (["One day Mia met Tom."], "no such file"),
    ],
)
def test_data_of_no_use(tmp_path, tokenizer, data, message):
    with pytest.raises(DataError, match=message) as caught:
        new_model(tokenizer, tmp_path / "x", data=data)
    assert len(str(caught.value)) < 200
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"preset": 5}, "unknown preset 5"),
        ({"model": "small"}, "model must be a ModelConfig"),
        ({"config": "adamw"}, "config must be a TrainConfig"),
        ({"config": {"stps": 5}}, "did you mean 'steps'"),
        ({"bta2": 0.9}, "did you mean 'beta2'"),
        ({"lr": "fast"}, "lr must be a valid number, not 'fast'"),
        ({"optimizer": 5}, "optimizer must be 'muon' or 'adamw', not 5"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1)])},
         "pass a function that takes the model"),
    ],
)  # fmt: skip
def test_arguments_of_no_use(tmp_path, tokenizer, wrong, message):
    with pytest.raises(ConfigError, match=message) as caught:
        new_model(tokenizer, tmp_path / "x", **wrong)
    assert len(str(caught.value)) < 300
    assert not (tmp_path / "x").exists()


class Watch(Callback):
    def __init__(self):
        self.rates = []

    def on_step_end(self, trainer, record):
        self.rates.append(record["lr"])
        if trainer.step == 3:
            trainer.stop("enough")


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.5)


def halving(step):
    return 0.5**step


@pytest.mark.parametrize("stage", ["pretrain", "sft", "lora"])
def test_code_of_your_own(tmp_path, small_runs, tokenizer, stage):
    watch = Watch()
    own = {
        "optimizer": sgd, "schedule": halving, "callbacks": [watch],
        "validate": lambda model: {"size": 7}, "steps": 5,
    }  # fmt: skip
    out = tmp_path / "out"
    if stage == "pretrain":
        run = new_model(tokenizer, out, **own)
    elif stage == "sft":
        run = sft(small_runs / "pretrain", out, **TALKING | own)
    else:
        run = train_lora(small_runs / "hf", out, **TALKING | own)
    assert watch.rates == [0.5, 0.25, 0.125]
    assert run.history[-1]["size"] == 7
    found = read_metadata(out)
    assert (found["stopped"], found["steps"]) == ("enough", 3)
    # It can't be repeated without the code, and says so.
    with pytest.raises(ConfigError, match=r"program \(optimizer, schedule\)"):
        read_settings(out / "minimind.json", stage)


# --- learning rates ---


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_rate_reaches_every_parameter(tmp_path, tokenizer, optimizer):
    torch.manual_seed(0)
    runs = {
        lr: new_model(tokenizer, tmp_path / str(lr), steps=8, lr=lr,
                      optimizer=optimizer, seed=0).model.state_dict()
        for lr in (1e-9, 1e-12, 1e-2)
    }  # fmt: skip
    name = "model.layers.0.self_attn.q_proj.weight"
    moved = {
        lr: float((runs[lr][name] - runs[1e-12][name]).norm()
                  / runs[1e-12][name].norm())
        for lr in (1e-9, 1e-2)
    }  # fmt: skip
    assert moved[1e-9] < 1e-5
    assert moved[1e-2] > 1e-2


def test_lora_obeys_its_options(tmp_path, small_runs):
    out = tmp_path / "out"
    assert main([
        "lora", str(small_runs / "hf"), "--out", str(out), "--optimizer",
        "muon", "--micro-batch-size", "1", "--steps", "1", "--batch-size",
        "2", "--device", "cpu",
    ]) == 0  # fmt: skip
    found = read_metadata(out)["train"]
    assert (found["optimizer"], found["micro_batch_size"]) == ("muon", 1)
    assert "lr_matrices" in read_log(out)[-1]


# --- a model from elsewhere ---


@pytest.mark.parametrize("stage", ["pretrain", "sft", "lora"])
def test_an_imported_model_gets_its_own_settings(
    tmp_path, foreign, capsys, stage
):
    base, out = tmp_path / "base", tmp_path / "out"
    import_checkpoint(foreign, base)
    if stage == "lora":
        export_hf(base, tmp_path / "hf")
        base = tmp_path / "hf"
    words = {"pretrain": ["pretrain", "--from"]}.get(stage, [stage])
    assert main([*words, str(base), "--out", str(out), "--steps", "2",
                 "--batch-size", "4", "--device", "cpu"]) == 0  # fmt: skip
    said = capsys.readouterr().out
    (line,) = [ln for ln in said.splitlines() if "imported model" in ln]
    # It comes before anything is trained, and says what is done.
    assert said.index(line) < said.index("2/2")
    found = read_metadata(out)
    config = found["train"]
    assert config["optimizer"] == "adamw"
    assert config["lr"] <= 5e-4
    assert config["replay"] == 0
    assert config["seq_len"] == 256  # its positions
    assert found["preset"] is None
    for part in ("adamw", f"lr {config['lr']:g}", "256 tokens", "no replay",
                 "training 2 steps of 4 rows"):  # fmt: skip
        assert part in line


def test_a_folder_without_a_record_is_no_preset_either(
    tmp_path, foreign, capsys
):
    run = sft(foreign, tmp_path / "out", **TALKING | {"progress": True})
    assert run.history[-1]["lr"] < 1e-3
    assert "imported model" in capsys.readouterr().out
    # A preset that is asked for is taken, without a word.
    sft(foreign, tmp_path / "b", preset="tiny", replay=0.0,
        **TALKING | {"progress": True})  # fmt: skip
    assert "imported" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match="does not say what it was pretrai"):
        sft(foreign, tmp_path / "c", replay=0.5, **TALKING)


def test_an_import_does_not_claim_the_microworld(tmp_path, foreign):
    import_checkpoint(foreign, tmp_path / "base")
    assert "data" not in read_metadata(tmp_path / "base")


def test_too_few_positions_are_noticed_early(tmp_path, foreign):
    with pytest.raises(ConfigError, match="seq_len 257 is longer"):
        sft(foreign, tmp_path / "x", **QUICK | {"seq_len": 257})
    assert not (tmp_path / "x").exists()


# --- data that a run remembers ---


def test_the_replayed_file_is_found_from_anywhere(
    tmp_path, tokenizer, monkeypatch
):
    home = tmp_path / "home"
    home.mkdir()
    lines(home / "t.jsonl", TEXTS)
    talks = lines(tmp_path / "c.jsonl", TALKS)
    monkeypatch.chdir(home)
    new_model(os.path.relpath(tokenizer), "runs/base", data="t.jsonl")
    written = json.loads((home / "runs/base/minimind.json").read_text())
    assert written["data"] == ["../../t.jsonl"]
    monkeypatch.chdir(tmp_path)
    sft("home/runs/base", "a", data="c.jsonl", replay=0.5, **TALKING)
    # Moved together, they are still a pair.
    shutil.move(home, tmp_path / "moved")
    sft("moved/runs/base", "b", data="c.jsonl", replay=0.5, **TALKING)
    assert same_bits(tmp_path / "a", tmp_path / "b")
    found = evaluate("moved/runs/base", device="cpu")
    assert found["loss_per_token"] > 0
    # Moved apart, the error says what is missed and what to do.
    (tmp_path / "moved/t.jsonl").unlink()
    with pytest.raises(DataError, match="--replay 0") as caught:
        sft("moved/runs/base", "d", data=talks, replay=0.5, **TALKING)
    assert "t.jsonl: no such file" in str(caught.value)
    assert not (tmp_path / "d").exists()


def test_a_run_is_resumed_from_another_folder(
    tmp_path, tokenizer, monkeypatch
):
    lines(tmp_path / "t.jsonl", TEXTS)
    monkeypatch.chdir(tmp_path)
    new_model(os.path.relpath(tokenizer), "out", data="t.jsonl")
    monkeypatch.chdir(ROOT)
    assert main(["pretrain", "--out", str(tmp_path / "out"), "--resume",
                 "--steps", "3"]) == 0  # fmt: skip
    assert read_log(tmp_path / "out")[-1]["step"] == 3


def test_exports_and_merges_carry_data_and_preset(small_runs):
    for stage in ("pretrain", "sft", "hf", "lora", "merged"):
        found = read_metadata(small_runs / stage)
        assert found["data"] == ["microworld"]
        assert found["preset"] == "tiny", stage


# --- files that are not read ---


@pytest.mark.parametrize(
    ("name", "start", "message"),
    [
        ("a.jsonl.xz", b"\xfd7zXZ", "compressed; unpack it first: unxz "),
        ("a.jsonl", b"PK\x03\x04", "compressed; unpack it first: unzip "),
        ("a.csv", b"text\nOne day\n", "corpora {path} --out {stem}.jsonl"),
        ("a.CSV", b"text\nOne day\n", "a table (.csv), which is not read"),
        ("a.tsv", b"text\tmore\n", "one {{\"text\": ...}} a line"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_said_to_be_none(
    tmp_path, capsys, name, start, message
):
    path = tmp_path / name
    path.write_bytes(start)
    expected = message.format(path=path, stem=path.with_suffix(""))
    with pytest.raises(DataError) as caught:
        parse_data(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)
    assert main(["pretrain", "--data", str(path), "--out",
                 str(tmp_path / "x")]) == 2  # fmt: skip
    assert expected in capsys.readouterr().err
    if not path.name.endswith((".jsonl", ".txt")):
        with pytest.raises(DataError, match="a folder without data files"):
            parse_data(tmp_path)


def test_a_byte_order_mark_is_no_text(tmp_path):
    mark = b"\xef\xbb\xbf"
    for name, raw in (("a.jsonl", b'{"text": "One day."}\n'),
                      ("a.txt", b"One day.\n")):  # fmt: skip
        path = tmp_path / name
        path.write_bytes(mark + raw)
        assert list(tokenizer_texts(path)) == ["One day."]


def test_what_was_left_out_is_said(tmp_path, small_runs, capsys):
    long = [dict(role="user", content="Why? " * 400),
            dict(role="assistant", content="So.")]  # fmt: skip
    data = [{"conversations": long}] * 9 + TALKS[:3]
    loud = TALKING | {"progress": True}
    run = sft(small_runs / "pretrain", tmp_path / "a", data=data, **loud)
    said = capsys.readouterr().out
    skipped = run.history[-1]["skipped_records"]
    assert skipped > 20
    assert f"left out {skipped} of " in said
    assert "(--seq-len)" in said
    sft(small_runs / "pretrain", tmp_path / "b", data=TALKS, **loud,
        replay=0.0)  # fmt: skip
    assert "left out" not in capsys.readouterr().out


# --- the journey ---


def test_a_journey_says_what_it_does(tmp_path, capsys, monkeypatch):
    made = []
    for name in ("pretrain", "sft", "train_lora", "export_hf", "merge_lora",
                 "train_tokenizer"):  # fmt: skip
        monkeypatch.setattr(
            recipes, name, lambda *a, _n=name, **k: made.append((_n, k))
        )
    recipes.run_journey(tmp_path / "J", steps=5)
    said = capsys.readouterr().out
    for number, stage in enumerate(
        ("tokenizer", "pretrain", "sft", "hf", "lora", "merged"), 1
    ):
        assert f"{number}/6 {stage}: " in said
        assert f"in {tmp_path / 'J' / stage}" in said
    assert said.count("5 steps on microworld") == 3
    tiny = get_preset("tiny")
    assert "at most 1024 tokens" in said
    assert [n for n, _ in made].count("pretrain") == 1
    assert all(k["preset"] is tiny for n, k in made
               if n in ("pretrain", "sft", "train_lora"))  # fmt: skip


def test_summaries_claim_nothing_unmeasured():
    for name in ("tiny", "small", "base"):
        preset = get_preset(name)
        size = f"{preset.model.num_parameters() / 1e6:.1f}M parameters"
        assert preset.summary.startswith(size)
        assert "evening" not in preset.summary




def test_special_tokens_may_have_other_ids(tmp_path):
    """The model, its padding and its end are the tokenizer's."""
    from minimind_core.tokenizer import save_tokenizer, train_tokenizer

    tok = train_tokenizer(["One day Mia met Tom."], 300)
    tok.add_special_tokens({"eos_token": "<end>", "pad_token": "<pad>"})
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    save_tokenizer(tok, folder)
    run = pretrain(
        tmp_path / "run", tokenizer=folder, steps=1, batch_size=2,
        progress=False,
    )  # fmt: skip
    config = run.model.config
    assert config.eos_token_id == tok.convert_tokens_to_ids("<end>") > 2
    assert config.pad_token_id == tok.convert_tokens_to_ids("<pad>") > 2
    written = read_json(run.path / "generation_config.json")
    # A turn of the chat template ends with another token than a text.
    assert written["eos_token_id"] == [config.eos_token_id, 2]


# --- settings that would do nothing ---


def own_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def steady(step):
    return 1.0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"optimizer": own_optimizer, "lr": 1e-3, "beta2": 0.9},
         "beta2, lr would have no effect, because your own optimizer"),
        ({"optimizer": own_optimizer, "config": {"weight_decay": 0.2}},
         "weight_decay would have no effect"),
        ({"schedule": steady, "warmup_ratio": 0.1},
         "warmup_ratio would have no effect, because your own schedule"),
        ({"optimizer": "adamw", "momentum": 0.9}, "only Muon has"),
        ({"optimizer": "adamw", "config": {"muon_lr_ratio": 0.2}},
         "only Muon has"),
    ],
)  # fmt: skip
def test_a_setting_that_nothing_reads_is_refused(
    tmp_path, tokenizer, wrong, said
):
    options = {**QUICK, "data": TEXTS, "tokenizer": tokenizer,
               "model": {"hidden_size": 32}}  # fmt: skip
    with pytest.raises(ConfigError, match=said):
        pretrain(tmp_path / "run", **options, **wrong)
    assert not (tmp_path / "run").exists()


def test_settings_that_came_with_a_whole_config_are_not_examined(
    tmp_path, tokenizer
):
    options = {**QUICK, "data": TEXTS, "tokenizer": tokenizer,
               "model": {"hidden_size": 32}}  # fmt: skip
    del options["device"]
    whole = TrainConfig(device="cpu", optimizer="adamw")
    pretrain(tmp_path / "one", config=whole, **options)
    again = read_settings(tmp_path / "one" / "minimind.json", "pretrain")
    del again["tokenizer"], again["data"]
    for name in ("batch_size", "steps", "seq_len"):
        options.pop(name)
    options.pop("model")
    pretrain(tmp_path / "two", **again, **options)
    one, two = (read_log(tmp_path / name) for name in ("one", "two"))
    assert [r["loss"] for r in one] == [r["loss"] for r in two]
