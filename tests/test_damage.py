"""Damaged files, disks and folders: our error, or the same result."""

import ctypes
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from minimind_core import cli, recipes
from minimind_core.checkpoint import checkpoints, load_checkpoint
from minimind_core.config import ModelConfig
from minimind_core.data import Files, parse_record, tokenizer_texts
from minimind_core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    OutputError,
)
from minimind_core.files import read_json
from minimind_core.loading import load_model
from minimind_core.run import is_finished, read_log, read_metadata
from minimind_core.tokenizer import LONGEST_WORD, _Counted
from minimind_core.train import Trainer

SMALL = ("--batch-size", "2", "--seq-len", "128", "--device", "cpu",
         "--dtype", "float32", "--steps", "2")  # fmt: skip


def run(*words):
    return cli.main([str(word) for word in words])


@pytest.fixture
def refused(here, capsys):
    """Run a command that must fail, and leave nothing behind."""

    def check(*words):
        before = sorted(here.rglob("*"))
        assert run(*words) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert sorted(here.rglob("*")) == before
        return said

    return check


# --- records that once gave a traceback, or no end ---

DEEP = "[" * 100_000 + "]" * 100_000
HALF = "\\ud83d"


def talk(system):
    return (
        '{"conversations": [' + system + ', {"role": "user", "content": "a"},'
        '{"role": "assistant", "content": "b"}]}'
    )


TEXTS = {
    "half a character": (f'{{"text": "a {HALF}"}}', "lone surrogate"),
    "depth": (f'{{"text": {DEEP}}}', "nested too deeply"),
    "length": ('{"text": "' + "a" * 10_000_000 + '"}', "longer than"),
    "digits": ('{"text": ' + "9" * 5000 + "}", "not readable JSON"),
}
TALKS = {
    "half a character": (
        talk(f'{{"role": "system", "content": "{HALF}"}}'), "lone surrogate"),
    "half a character in tools": (
        talk('{"role": "system", "content": "", "tools": '
             f'"[{{\\"name\\": \\"\\{HALF}\\"}}]"}}'), "lone surrogate"),
    "depth": (
        talk(f'{{"role": "system", "content": {DEEP}}}'),
        "nested too deeply"),
    "depth of tools": (
        talk('{"role": "system", "content": "", "tools": '
             + "[" * 500 + "]" * 500 + "}"), "nested more than 100"),
    "depth of tools in a string": (
        talk(f'{{"role": "system", "content": "", "tools": "{DEEP}"}}'),
        "tools is not readable JSON"),
    "a name that is none": (
        talk('{"role": "assistant", "content": "", "tool_calls": '
             '[{"name": 5}]}'), "name of a tool call must be text"),
    "length": (
        talk('{"role": "user", "content": "' + "a" * 10_000_000 + '"}'),
        "longer than 1,048,576 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_texts_through_the_commands(here, refused, small_runs, name):
    line, said = TEXTS[name]
    (here / "a.jsonl").write_text('{"text": "One day."}\n' + line + "\n")
    for words in (
        ["tokenizer", "--out", "out"],
        ["pretrain", "--tokenizer", small_runs / "tokenizer", "--out", "out",
         *SMALL],
        ["eval", small_runs / "pretrain", "--device", "cpu"],
    ):  # fmt: skip
        found = refused(*words, "--data", "a.jsonl")
        assert "a.jsonl, line 2: " in found
        assert said in found
        assert len(found) < 400


@pytest.mark.parametrize("name", TALKS)
def test_talks_through_the_commands(here, refused, small_runs, name):
    line, said = TALKS[name]
    (here / "a.txt").write_text("One day.\n")
    good = talk('{"role": "system", "content": ""}')
    (here / "a.jsonl").write_text(f"{good}\n{line}\n")
    for words in (
        ["tokenizer", "--data", "a.txt", "--out", "out", "--chat"],
        ["sft", small_runs / "pretrain", "--out", "out", *SMALL, "--data"],
        ["lora", small_runs / "hf", "--out", "out", *SMALL, "--data"],
        ["eval", small_runs / "sft", "--device", "cpu", "--data"],
    ):
        found = refused(*words, "a.jsonl")
        assert "a.jsonl, line 2" in found
        assert said in found
        assert len(found) < 400


def test_a_text_without_line_breaks(here, refused):
    (here / "a.txt").write_text("word " * 2_000_000)
    said = refused("tokenizer", "--data", "a.txt", "--out", "out")
    assert "a.txt, line 1: longer than 1,048,576 bytes" in said
    assert "fold -s" in said


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_byte_order_mark(here, name):
    text = '{"text": "One day."}\n' if name == "a.jsonl" else "One day.\n"
    (here / name).write_text(text, encoding="utf-8-sig")
    assert run("tokenizer", "--vocab-size", 270, "--data", name, "--out",
               "out") == 0  # fmt: skip
    assert Files([here / name], "text").records([0]) == ["One day."]


def test_a_word_without_end_is_cut_for_the_merges():
    # The time for one grows with the square of its length.
    for text in ("a" * 10_500, "ab " + "x" * 2500 + " " * 1200 + "cd",
                 "One day Mia met Tom. " * 200, "short", ""):  # fmt: skip
        pieces = list(_Counted([text]))
        assert "".join(pieces) == text
        words = [word for piece in pieces for word in piece.split(" ")]
        assert max(map(len, words)) <= LONGEST_WORD
    whole = "One day Mia met Tom. " * 200
    assert list(_Counted([whole])) == [whole]


def test_long_values_are_told_short():
    for value in ([["a" * 10_000]], "b" * 10_000, {"c": ["d"] * 10_000}):
        record = {"conversations": [{"role": value, "content": value}]}
        with pytest.raises(DataError) as caught:
            parse_record(json.dumps(record).encode(), "conversations", "x")
        assert len(str(caught.value)) < 300


def test_a_call_without_content_is_no_word_for_a_tokenizer(here):
    call = {"role": "assistant", "tool_calls": [{"name": "sum"}]}
    talks = [{"conversations": [call]}]
    found = list(tokenizer_texts([{"text": "a"}], talks))
    assert found == ["a", "assistant\n"]


def test_a_template_that_renders_nothing(here, refused, small_runs):
    shutil.copytree(small_runs / "hf", "hf")
    (here / "hf" / "chat_template.jinja").write_text("{% if 0 %}{% endif %}")
    said = refused("chat", "hf", "--prompt", "Hi", "--device", "cpu")
    assert "the chat template renders nothing" in said


# --- settings ---


def test_a_model_that_no_memory_holds(here, refused, small_runs):
    for name in ("vocab_size", "hidden_size", "num_hidden_layers"):
        said = refused(
            "pretrain", "--tokenizer", small_runs / "tokenizer", "--out",
            "out", "--set", f"model.{name}=4{'0' * 20}",
        )  # fmt: skip
        assert "choose a smaller one" in said


@pytest.mark.parametrize("error", [
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried"),
])  # fmt: skip
def test_the_end_of_the_main_memory(monkeypatch, capsys, error):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(recipes, "pretrain", full)
    assert run("pretrain", "--out", "out") == 2
    assert "lower --micro-batch-size" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.json", "a.toml", "a.yaml"])
def test_settings_nested_without_end(here, refused, name):
    start = "a = " if name == "a.toml" else '{"a": '
    (here / name).write_text(start + DEEP + "}" * (name != "a.toml"))
    said = refused("pretrain", "--config", name, "--out", "out")
    assert f"{name}: " in said
    assert "deep" in said


@pytest.mark.parametrize("values", [
    {"data": 5}, {"data": [5]}, {"data": ["a\0b"]}, {"base": []},
    {"tokenizer": 5}, {"trained_on": [5]}, {"trained_on": "ab"},
    {"train": [1]}, {"runtime": 5}, {"preset": {}}, {"stage": []},
    {"own_code": 5},
], ids=str)  # fmt: skip
def test_metadata_of_other_types(here, refused, small_runs, values):
    shutil.copytree(small_runs / "hf", "hf")
    path = here / "hf" / "minimind.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(CheckpointError, match=next(iter(values))):
        read_metadata("hf")
    said = refused("eval", "hf", "--device", "cpu")
    assert f"minimind.json: {next(iter(values))} must be" in said
    said = refused("pretrain", "--config", path, "--out", "out")
    assert f"minimind.json: {next(iter(values))} must be" in said


def test_json_that_is_a_folder_or_a_number(here):
    (here / "a").mkdir()
    (here / "b").write_text("9" * 5000)
    for name in ("a", "b"):
        with pytest.raises(ConfigError, match=f"{name}: cannot be read"):
            read_json(here / name)


# --- weights and configs ---


@pytest.fixture
def package(here, small_runs):
    shutil.copytree(small_runs / "hf", "hf")
    return here / "hf"


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


READ = (
    ("chat", "hf", "--prompt", "Hi", "--device", "cpu"),
    ("eval", "hf", "--device", "cpu"),
    ("export", "hf", "--out", "out"),
    ("import", "hf", "--out", "out"),
    ("sft", "hf", "--out", "out", *SMALL),
    ("lora", "hf", "--out", "out", *SMALL),
)


def flip(path, place=-50):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 4
    path.write_bytes(raw)


@pytest.mark.parametrize("words", READ, ids=lambda words: words[0])
def test_one_bit_of_the_weights(refused, package, words):
    flip(package / "model.safetensors")
    said = refused(*words)
    assert "model.safetensors: changed since it was written" in said
    assert 'remove "files"' in said


def test_what_was_changed_on_purpose_is_read(package):
    path = package / "model.safetensors"
    state = load_file(path)
    save_file({n: t * 2 for n, t in state.items()}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="changed since"):
        load_model(package)
    told = json.loads((package / "minimind.json").read_text())
    (package / "minimind.json").write_text(
        json.dumps({k: v for k, v in told.items() if k != "files"})
    )
    model, _ = load_model(package)
    assert torch.equal(
        model.state_dict()["model.embed_tokens.weight"],
        state["model.embed_tokens.weight"] * 2,
    )


def test_a_config_that_was_changed_is_told(package):
    change(package / "config.json", rms_norm_eps=1e-3)
    with pytest.warns(UserWarning, match=r"config\.json changed since"):
        load_model(package)


@pytest.mark.parametrize("words", [
    ("merge", "lora", "--out", "out"),
    ("chat", "lora", "--prompt", "Hi", "--device", "cpu"),
], ids=lambda words: words[0])  # fmt: skip
def test_one_bit_of_an_adapter(here, refused, package, small_runs, words):
    shutil.copytree(small_runs / "lora", "lora")
    assert not is_finished(here)
    flip(here / "lora" / "adapter_model.safetensors")
    said = refused(*words)
    assert "adapter_model.safetensors: changed since" in said


def test_a_config_of_another_size(refused, package):
    for values in ({"num_hidden_layers": 10**12}, {"vocab_size": 10**15}):
        change(package / "config.json", **values)
        for words in READ:
            assert "do not fit the config" in refused(*words)


@pytest.mark.parametrize("values", [
    {"rope_parameters": 5}, {"rope_parameters": {"rope_theta": "a"}},
    {"rope_parameters": {"rope_theta": None}}, {"eos_token_id": []},
    {"rope_parameters": {"rope_theta": 10**400}}, {"vocab_size": True},
    {"head_dim": -2}, {"hidden_size": [128]},
], ids=str)  # fmt: skip
def test_configs_of_other_types(here, refused, package, values):
    about = ModelConfig().to_hf() | values
    with pytest.raises(ConfigError, match="here: "):
        ModelConfig.from_hf(about, "here")
    change(package / "config.json", **values)
    assert "config.json: " in refused("import", "hf", "--out", "out")


@pytest.mark.parametrize("where", [
    "../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 5,
    "C:secret", "..\\secret",
], ids=str)  # fmt: skip
def test_an_index_names_no_file_elsewhere(here, refused, package, where):
    state = load_file(package / "model.safetensors")
    (package / "model.safetensors").rename(here / "secret.safetensors")
    index = package / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, where)}))
    said = refused("import", "hf", "--out", "out")
    assert "index.json: " in said
    assert ("not in its folder" in said) == isinstance(where, str)


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"weight_map": []}'])
def test_an_index_that_is_none(here, refused, package, content):
    (package / "model.safetensors").unlink()
    (package / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refused(*READ[0])


def test_a_checkpoint_without_digests(small_runs, here):
    shutil.copytree(checkpoints(small_runs / "sft")[-1], "saved")
    load_checkpoint("saved")
    (here / "saved" / "sha256.json").write_text("{}")
    with pytest.raises(CheckpointError, match="changed since"):
        load_checkpoint("saved")


def test_lines_of_a_log_that_are_none(here):
    (here / "log.jsonl").write_bytes(
        b'{"step": 1}\n5\n{"step": "2"}\n\xff\n{"a": 1}\n[\n'
        + DEEP.encode() + b'\n{"step": 3, "loss": 1.5}\n{"step'
    )  # fmt: skip
    assert [r["step"] for r in read_log(here)] == [1, 3]


# --- a run that fails before its first checkpoint ---


def test_no_folder_where_none_could_be_begun(here, refused, small_runs,
                                             monkeypatch):  # fmt: skip
    def full(*args):
        raise OutputError("out: cannot be written; free some space")

    monkeypatch.setattr(recipes, "save_tokenizer", full)
    for command, base in (("pretrain", []), ("sft", ["pretrain"]),
                          ("lora", ["hf"])):  # fmt: skip
        bases = [small_runs / one for one in base]
        refused(command, *bases, "--out", "out", *SMALL)


def test_a_folder_that_resume_understands(here, small_runs, monkeypatch):
    words = ["pretrain", "--tokenizer", small_runs / "tokenizer", "--out",
             "out", *SMALL]  # fmt: skip

    def fails(*args):
        raise DataError("the data is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", fails)
        assert run(*words) == 2
    assert checkpoints("out") == []
    assert run(*words, "--resume") == 0
    assert is_finished("out")
    load_model("out")


def test_a_folder_that_disappears(here, small_runs, monkeypatch, capsys):
    words = ["pretrain", "--tokenizer", small_runs / "tokenizer", "--out",
             "out", *SMALL, "--save-every", 1]  # fmt: skip
    step = Trainer.train_step

    def gone(self, module):
        shutil.rmtree("out", ignore_errors=True)
        return step(self, module)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", gone)
        assert run(*words) == 2
    said = capsys.readouterr().err
    assert "out/log.jsonl: cannot be written" in said
    assert "make the folder that is missing" in said
    assert not (here / "out").exists()
    assert run(*words, "--resume") == 0


# --- disks ---


def mount(folder, size):
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
        capture_output=True, check=False,
    ).returncode == 0  # fmt: skip


@pytest.fixture
def disk(here):
    """A disk of half a megabyte."""
    if not (shutil.which("mount") and mount(here / "disk", "512k")):
        pytest.skip("only root may mount a disk")
    yield here / "disk"
    subprocess.run(["umount", "-l", here / "disk"], check=True)


@pytest.mark.parametrize(("command", "base"), [
    ("export", "sft"), ("merge", "lora"), ("import", "hf"),
    ("sft", "pretrain"), ("lora", "hf"),
])  # fmt: skip
def test_a_disk_that_is_full(disk, capsys, small_runs, command, base):
    more = [*SMALL, "--save-every", 1] if command in ("sft", "lora") else []
    words = [command, small_runs / base, "--out", disk / "out", *more]
    (disk / "fill").write_bytes(b"x" * 400_000)
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert "cannot be written" in said
    assert "free some space" in said
    left = [str(path) for path in disk.rglob("*")]
    assert not [name for name in left if "safetensors" in name]
    if not more:
        assert left == [str(disk / "fill")]
        return
    # With more space it goes on.
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    assert run(*words, "--resume") == 0
    assert is_finished(disk / "out")


# As root a process may write anywhere, until it gives that right up. It can
# do so only for the next program, so this one starts another.
UNPRIVILEGED = """
import ctypes, os, sys
if os.getuid() == 0:
    for right in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        assert ctypes.CDLL(None).prctl(24, right, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
COMMANDS = """
import json, sys
from minimind_core.cli import main
for words in json.load(sys.stdin):
    print("----", flush=True)
    print(main(words), file=sys.stderr, flush=True)
    print("----", file=sys.stderr, flush=True)
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "prctl"), reason="needs Linux's prctl"
)
def test_folders_that_are_read_only(here, small_runs):
    locked = here / "locked"
    locked.mkdir()
    shutil.copytree(small_runs / "pretrain", locked / "run")
    for path in (locked / "run", locked):
        path.chmod(0o555)
    commands = [
        ["tokenizer", "--vocab-size", "300", "--out", "locked/out"],
        ["pretrain", "--tokenizer", small_runs / "tokenizer", "--out",
         "locked/out", *SMALL],
        ["sft", small_runs / "pretrain", "--out", "locked/out", *SMALL],
        ["export", small_runs / "sft", "--out", "locked/out"],
        ["merge", small_runs / "lora", "--out", "locked/out"],
        ["import", small_runs / "hf", "--out", "locked/out"],
        ["pretrain", "--out", "locked/run", "--resume", "--steps", "5"],
    ]  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, "-c", COMMANDS],
            input=json.dumps([[str(w) for w in c] for c in commands]),
            capture_output=True, text=True, timeout=300, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    finally:
        for path in (locked, locked / "run"):
            path.chmod(0o755)
    said = done.stderr.split("----\n")[:-1]
    assert len(said) == len(commands), done.stderr
    for words, one in zip(commands, said, strict=True):
        assert "Traceback" not in one
        assert "cannot be written" in one, (words, one)
        assert one.endswith("\n2\n"), (words, one)
    assert [p.name for p in locked.iterdir()] == ["run"]
    load_model(locked / "run")

