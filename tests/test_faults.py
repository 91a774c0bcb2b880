"""Bad input: one clear message, exit status 2, and nothing half written."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from minimind_core import checkpoint, files, run
from minimind_core.checkpoint import checkpoints, load_checkpoint
from minimind_core.cli import main
from minimind_core.errors import CheckpointError, MiniMindError, OutputError
from minimind_core.loading import load_model
from minimind_core.microworld import conversation, write_story

SMALL = ("--batch-size", "4", "--steps", "2", "--device", "cpu")


def tree(folder):
    """Every file below with its content's length and time."""
    return {
        str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
    }


@pytest.fixture
def refuse(here, capsys):
    """Run a command that must fail, and compare what it says."""

    def check(words, *said):
        before = tree(here)
        folders = {p for p in here.rglob("*") if p.is_dir()}
        try:
            code = main([str(word) for word in words])
        except SystemExit as ended:  # argparse's own way out
            code = ended.code
        errors = capsys.readouterr().err
        assert code == 2, errors
        for part in said:
            assert part in errors
        assert "Traceback" not in errors
        assert "  " not in errors.strip() or "usage" in errors
        # Nothing was written, not even an empty folder.
        assert tree(here) == before
        assert {p for p in here.rglob("*") if p.is_dir()} == folders
        return errors

    return check


def lines(*records):
    return "".join(
        (r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records
    )


def talk(i=0):
    return {"conversations": conversation(0, i).messages}


GOOD = {"text": "One day."}
TURN = {"role": "user", "content": "Hello"}
REPLY = {"role": "assistant", "content": "Good day."}


# --- files of text ---

# Name, bytes, what is said of it.
BAD_TEXT = {
    "empty.txt": (b"", ("empty.txt", "empty, no records")),
    "blank.txt": (b"\n \n\n", ("blank.txt", "empty")),
    "empty.jsonl": (b"", ("empty.jsonl", "empty")),
    "latin.txt": ("fine\nna\u00efve\n".encode("latin-1"),
                  ("latin.txt, line 2", "not UTF-8", "0xef", "iconv")),
    "latin.jsonl": (b'{"text": "fine"}\n{"text": "na\xefve"}\n',
                    ("latin.jsonl, line 2", "not UTF-8", "0xef")),
    "utf16.txt": ("One day.".encode("utf-16"),
                  ("utf16.txt, line 1", "not UTF-8")),
    "malformed.jsonl": (lines(GOOD, '{"text": "cut').encode(),
                        ("malformed.jsonl, line 2", "not valid JSON",
                         "column")),
    "keys.jsonl": (lines(GOOD, GOOD, {"txt": "x"}).encode(),
                   ("keys.jsonl, line 3", "expected a record with 'text'",
                    "['txt']")),
    "number.jsonl": (lines({"text": 5}).encode(),
                     ("number.jsonl, line 1", "non-empty string")),
    "nothing.jsonl": (lines(GOOD, {"text": ""}).encode(),
                      ("nothing.jsonl, line 2", "non-empty string")),
    "list.jsonl": (lines('["a"]').encode(),
                   ("list.jsonl, line 1", "a JSON array", "jq -c")),
    "chat.jsonl": (lines(talk()).encode(),
                   ("chat.jsonl, line 1", "minimind sft")),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TEXT)
def test_bad_text(here, refuse, name):
    raw, said = BAD_TEXT[name]
    (here / name).write_bytes(raw)
    refuse(["pretrain", "--data", name, "--out", "out", *SMALL], *said)
    (here / "good.txt").write_text("One day.\n")
    refuse(["pretrain", "--data", "good.txt", name, "--out", "out", *SMALL],
           *said)  # fmt: skip


@pytest.mark.parametrize("name", ["latin.txt", "keys.jsonl", "empty.txt"])
def test_bad_text_for_a_tokenizer_or_a_journey(here, refuse, name):
    raw, said = BAD_TEXT[name]
    (here / name).write_bytes(raw)
    refuse(["tokenizer", "--data", name, "--out", "out"], *said)
    refuse(["journey", "--text", name, "--out", "out"], *said)


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "--data", "none.txt", "--out", "out"],
        ["journey", "--text", "none.txt", "--out", "out"],
        ["journey", "--chat", "none.jsonl", "--out", "out"],
        ["journey", "--lora-chat", "none.jsonl", "--out", "out"],
        ["tokenizer", "--data", "none.txt", "--out", "out"],
    ],
    ids=" ".join,
)
def test_a_file_that_is_not_there(refuse, words):
    refuse(words, f"{words[2]}: no such file", "--data takes")


def test_a_folder_without_data(refuse, tmp_path):
    (tmp_path / "empty").mkdir()
    refuse(["pretrain", "--data", tmp_path / "empty", "--out", "out"],
           "empty: a folder without data files; they end in .txt"
           )  # fmt: skip


def test_an_unknown_language_of_the_microworld(refuse):
    refuse(["pretrain", "--data", "microworld:fr", "--out", "out"],
           "microworld:fr", "en, zh")  # fmt: skip


# --- files of conversations ---

BAD_CHAT = {
    "text.txt": (b"Hello\n", ("text.txt", "must be .jsonl")),
    "empty.jsonl": (b"\n\n", ("empty.jsonl", "empty")),
    "text.jsonl": (lines(GOOD).encode(),
                   ("text.jsonl, line 1", "minimind pretrain")),
    "malformed.jsonl": (lines(talk(), "{").encode(),
                        ("malformed.jsonl, line 2", "not valid JSON")),
    "latin.jsonl": (b'{"conversations": "\xef"}\n',
                    ("latin.jsonl, line 1", "not UTF-8")),
    "role.jsonl": (
        lines({"conversations": [{"role": "bot", "content": "x"}]}).encode(),
        ("role.jsonl, line 1, message 1", "role must be one of", "'bot'")),
    "content.jsonl": (
        lines(talk(), {"conversations": [TURN, {"role": "assistant"}]}
              ).encode(),
        ("content.jsonl, line 2, message 2", "content must be text")),
    "silent.jsonl": (lines({"conversations": [TURN]}).encode(),
                     ("silent.jsonl, line 1", "no assistant message")),
    "nobody.jsonl": (lines({"conversations": []}).encode(),
                     ("nobody.jsonl, line 1", "non-empty list")),
    "tools.jsonl": (
        lines({"conversations": [TURN, {**REPLY, "tool_calls": "[{"}]}
              ).encode(),
        ("tools.jsonl, line 1, message 2", "tool_calls is not JSON")),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CHAT)
def test_bad_conversations(here, refuse, small_runs, name):
    raw, said = BAD_CHAT[name]
    (here / name).write_bytes(raw)
    refuse(["sft", small_runs / "pretrain", "--data", name, "--out", "out",
            *SMALL], *said)  # fmt: skip
    refuse(["lora", small_runs / "hf", "--data", name, "--out", "out",
            *SMALL], *said)  # fmt: skip
    refuse(["journey", "--chat", name, "--out", "out"], *said)
    refuse(["journey", "--lora-chat", name, "--out", "out"], *said)


@pytest.mark.parametrize("save_every", ["0", "2"])
def test_killed_in_its_last_save(
    here, capsys, small_runs, monkeypatch, save_every
):
    from minimind_core import recipes, run

    words = ["pretrain", "--tokenizer", str(small_runs / "tokenizer"),
             "--out", "run", "--save-every", save_every, *SMALL]  # fmt: skip

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.RunFolder, "finish", killed)
        assert main(words) == 130
    assert (here / "run" / "model.safetensors").exists()
    assert recipes.open_folder("run", resume=True).finished is False
    assert main([*words, "--resume"]) == 0
    load_model(here / "run")
    assert [r["step"] for r in run.read_log("run")] == [1, 2]


def test_answers_that_never_fit(here, capsys, small_runs):
    (here / "long.jsonl").write_text(
        lines({"conversations": [{**TURN, "content": "word " * 200}, REPLY]})
    )
    code = main(["sft", str(small_runs / "pretrain"), "--data", "long.jsonl",
                 "--out", "out", "--seq-len", "16", *SMALL])  # fmt: skip
    assert code == 2
    assert "raise --seq-len" in capsys.readouterr().err
    assert not run.is_finished(here / "out")
    assert not (here / "out" / "model.safetensors").exists()


# --- names and numbers ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--preset", "huge"], ("preset 'huge'", "tiny, t4, small, base")),
        (["--dtype", "float8"], ("dtype must be 'auto'", "not 'float8'")),
        (["--device", "gpu"], ("device 'gpu'", "auto, cpu, cuda")),
        (["--steps", "0"], ("steps must be greater than 0, not 0",)),
        (["--steps", "many"], ("--steps", "invalid int")),
        (["--batch-size", "-1"], ("batch_size must be greater than 0",)),
        (["--micro-batch-size", "0"], ("micro_batch_size",)),
        (["--seq-len", "1"], ("seq_len must be greater than or equal to 2",)),
        (["--seq-len", "100000"], ("seq_len 100000", "512 positions")),
        (["--lr", "nan"], ("lr must be a finite number, not nan",)),
        (["--learning-rate", "1"], ("--learning-rate",)),
        (["--save-every", "-5"], ("save_every must be greater than or",)),
        (["--optimizer", "sgd"], ("optimizer", "'muon' or 'adamw'")),
        (["--seed", "-1"], ("--seed", "2^63")),
        (["--seed", "99999999999999999999"], ("--seed", "2^63")),
        (["--sed", "1"], ("--sed",)),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_options_of_a_training(refuse, small_runs, options, said):
    refuse(["pretrain", "--tokenizer", small_runs / "tokenizer", "--out",
            "out", *options], *said)  # fmt: skip


@pytest.mark.parametrize(
    "option", [("--preset", "huge"), ("--dtype", "int8"),
               ("--device", "cpu:1")]
)  # fmt: skip
def test_bad_names_everywhere(refuse, small_runs, option):
    refuse(["journey", "--out", "out", *option], option[1])
    for command, base in (("sft", "pretrain"), ("lora", "hf")):
        refuse([command, small_runs / base, "--out", "out", *option],
               option[1])  # fmt: skip


@pytest.mark.parametrize("command", ["chat", "eval"])
def test_a_bad_device(refuse, small_runs, command):
    refuse([command, small_runs / "sft", "--device", "tpu"], "'tpu'")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
@pytest.mark.parametrize(
    "words",
    [["pretrain", "--out", "out"], ["journey", "--out", "out"], ["doctor"],
     ["chat", "x"], ["eval", "x"]],
    ids=lambda value: value[0],
)  # fmt: skip
def test_a_gpu_that_is_not_there(refuse, words):
    refuse([*words, "--device", "cuda"], "'cuda'", "--device cpu")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--temperature", "-1"], "temperature must be >= 0"),
        (["--top-p", "0", "--temperature", "1"], "top_p must be in (0, 1]"),
        (["--top-p", "2", "--temperature", "1"], "top_p must be in (0, 1]"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
        (["--prompt", "\udcff"], "not UTF-8"),
        (["--prompt", "word " * 2000], "begin a new conversation"),
    ],
    ids=lambda value: str(value[0])[:20] if isinstance(value, list) else "",
)
def test_bad_options_of_a_chat(refuse, small_runs, options, said):
    prompt = [] if "--prompt" in options else ["--prompt", "Hello"]
    refuse(["chat", small_runs / "sft", "--device", "cpu", *prompt,
            *options], said)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--documents", "0"], "--documents"),
        (["--samples", "none"], "--samples"),
        (["--questions", "-3"], "--questions"),
        (["--data", "none.txt"], "none.txt: no such file"),
    ],
    ids=lambda value: value[0],
)
def test_bad_options_of_an_evaluation(refuse, small_runs, options, said):
    refuse(["eval", small_runs / "sft", "--device", "cpu", *options], said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rank", "0"], "rank must be at least 1"),
        (["--targets", "q_proj,nowhere"], "nowhere"),
        (["--targets", "embed_tokens"], "embed_tokens shares its weights"),
        (["--replay", "1.5"], "replay must be less than 1, not 1.5"),
    ],
    ids=lambda value: value[0] + value[1] if isinstance(value, list) else "",
)
def test_bad_options_of_lora(refuse, small_runs, options, said):
    refuse(["lora", small_runs / "hf", "--out", "out", *options, *SMALL],
           said)  # fmt: skip


def test_other_choices(refuse, small_runs):
    refuse(["export", small_runs / "sft", "--out", "out", "--format", "gguf"],
           "--format")  # fmt: skip
    refuse(["export", small_runs / "sft", "--out", "out",
            "--weights-dtype", "int4"], "--weights-dtype")  # fmt: skip
    refuse(["tokenizer", "--vocab-size", "100", "--out", "out"],
           "vocab_size 100 is too small", "256 bytes")  # fmt: skip
    refuse(["pretrain"], "--out")
    refuse(["nonsense"], "nonsense")


# --- where to write ---


@pytest.fixture
def existing(here):
    (here / "out").mkdir()
    (here / "out" / "mine.txt").write_text("keep me")
    return here / "out"


def writers(small_runs):
    return {
        "journey": ["journey"],
        "tokenizer": ["tokenizer"],
        "pretrain": ["pretrain", *SMALL],
        "sft": ["sft", small_runs / "pretrain", *SMALL],
        "export": ["export", small_runs / "sft"],
        "lora": ["lora", small_runs / "hf", *SMALL],
        "merge": ["merge", small_runs / "lora"],
        "import": ["import", small_runs / "hf"],
    }


WRITERS = ("journey", "tokenizer", "pretrain", "sft", "export", "lora",
           "merge", "import")  # fmt: skip


@pytest.mark.parametrize("command", WRITERS)
def test_an_existing_folder_is_left_alone(
    refuse, existing, small_runs, command
):
    words = writers(small_runs)[command]
    refuse([*words, "--out", "out"], "out: already exists", "another folder")
    # A file of that name as well.
    shutil.rmtree(existing)
    existing.write_text("a file")
    refuse([*words, "--out", "out"], "out: already exists")


@pytest.mark.parametrize("command", ["pretrain", "sft", "lora"])
def test_resume_takes_over_no_strangers_folder(
    refuse, existing, small_runs, command
):
    words = writers(small_runs)[command]
    refuse([*words, "--out", "out", "--resume"], "mine.txt", "out: not an")


@pytest.mark.parametrize("command", ["export", "merge", "import"])
def test_a_path_below_a_file(refuse, here, small_runs, command):
    (here / "file").write_text("x")
    words = writers(small_runs)[command]
    refuse([*words, "--out", "file/out"], "file/out: cannot be written")


# --- models that are not sound ---


@pytest.mark.parametrize(
    "words",
    [
        ["sft", "none", "--out", "out"],
        ["export", "none", "--out", "out"],
        ["lora", "none", "--out", "out"],
        ["merge", "none", "--out", "out"],
        ["import", "none", "--out", "out"],
        ["import", "none.pth", "--tokenizer", "none", "--out", "out"],
        ["chat", "none"],
        ["eval", "none"],
        ["pretrain", "--tokenizer", "none", "--out", "out"],
    ],
    ids=lambda words: words[0],
)
def test_a_model_that_is_not_there(refuse, words):
    assert re.search(r"none\S*: no such f", refuse(words, "none"))


READERS = ("sft", "export", "lora", "import", "chat", "eval")


def read(command, folder):
    words = [command, folder]
    if command not in ("chat", "eval"):
        words += ["--out", "out"]
    return words


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def empty_weights(folder):
    (folder / "model.safetensors").write_bytes(b"")


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def one_missing(folder):
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def changed(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


DAMAGE = {
    "truncated": (truncated, ("model.safetensors", "damaged, cut short")),
    "emptied": (empty_weights, ("model.safetensors", "damaged, cut short")),
    "gone": (no_weights, ("no weights here",)),
    "a tensor missing": (
        one_missing, ("layers.1.mlp.up_proj.weight is missing",)),
    "other layers": (
        lambda f: changed(f, "config.json", num_hidden_layers=4),
        ("do not fit the config", "is missing", "more")),
    "other width": (
        lambda f: changed(f, "config.json", intermediate_size=64),
        ("do not fit the config", "has shape")),
    "other family": (
        lambda f: changed(f, "config.json", model_type="llama"),
        ("config.json", "'llama'", "qwen3")),
    "config malformed": (
        lambda f: (f / "config.json").write_text('{\n"a": 1,\n'),
        ("config.json, line 3", "not valid JSON")),
    "no config": (
        lambda f: (f / "config.json").unlink(), ("no config.json",)),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        ("tokenizer.json: no such file",)),
    "tokenizer damaged": (
        lambda f: (f / "tokenizer.json").write_text('{"version"'),
        ("tokenizer.json", "damaged")),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", READERS)
def test_a_damaged_model(here, refuse, small_runs, damage, command):
    shutil.copytree(small_runs / "hf", here / "model")
    break_it, said = DAMAGE[damage]
    break_it(here / "model")
    refuse(read(command, "model"), *said)


def test_a_tokenizer_of_another_model(here, refuse, small_runs):
    from minimind_core.tokenizer import train_tokenizer

    stories = (write_story(0, i).text for i in range(400))
    train_tokenizer(stories, 560, out=here / "larger")
    shutil.copytree(small_runs / "hf", here / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(here / "larger" / name, here / "model" / name)
    for command in READERS:
        refuse(read(command, "model"), "tokenizer has", "the model only 500")
    refuse(["import", small_runs / "hf", "--tokenizer", "larger", "--out",
            "out"], "larger", "the model only 500")  # fmt: skip


def test_a_tokenizer_without_an_end_token(here, refuse, small_runs):
    shutil.copytree(small_runs / "tokenizer", here / "tok")
    path = here / "tok" / "tokenizer_config.json"
    config = json.loads(path.read_text("utf8"))
    del config["eos_token"]
    path.write_text(json.dumps(config), "utf8")
    refuse(["pretrain", "--tokenizer", "tok", "--out", "out", *SMALL],
           "tok", "eos_token")  # fmt: skip


def test_adapters(here, refuse, small_runs):
    shutil.copytree(small_runs / "lora", here / "lora")
    # Its base is not beside it any more.
    for words in (["merge", "lora", "--out", "out"], ["chat", "lora"],
                  ["eval", "lora"],
                  ["export", "lora", "--out", "out"]):  # fmt: skip
        refuse(words, "its base '../hf' is not there", "--base")
    for words in (["lora", "lora", "--out", "out"],
                  ["sft", "lora", "--out", "out"],
                  ["import", "lora", "--out", "out"]):  # fmt: skip
        refuse(words, "a LoRA adapter, not a whole model", "minimind merge")
    refuse(["merge", small_runs / "hf", "--out", "out"],
           "adapter_config.json: no such file")  # fmt: skip
    shutil.copytree(small_runs / "hf", here / "hf")
    weights = here / "lora" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for words in (["merge", "lora", "--out", "out"], ["chat", "lora"]):
        refuse(words, "lora: ")


def test_files_of_weights(here, refuse, small_runs):
    to = ("--tokenizer", small_runs / "tokenizer", "--out", "out")
    torch.save({"a": torch.zeros(2)}, here / "other.pth")
    refuse(["import", "other.pth", *to], "other.pth", "not a model")
    torch.save([1, 2], here / "list.pth")
    refuse(["import", "list.pth", *to], "not a plain state dict")
    (here / "text.pth").write_text("hello")
    refuse(["import", "text.pth", *to], "text.pth: damaged")
    (here / "empty.pth").write_bytes(b"")
    refuse(["import", "empty.pth", *to], "empty.pth: damaged")
    state = load_file(small_runs / "sft" / "model.safetensors")
    torch.save(state, here / "good.pth")
    refuse(["import", "good.pth", "--out", "out"], "--tokenizer")
    whole = (here / "good.pth").read_bytes()
    (here / "cut.pth").write_bytes(whole[: len(whole) // 2])
    refuse(["import", "cut.pth", *to], "cut.pth: damaged")
    experts = {"model.layers.0.mlp.experts.0.gate.weight": torch.zeros(2)}
    torch.save(experts, here / "moe.pth")
    refuse(["import", "moe.pth", *to], "mixture of experts")


class Evil:
    def __reduce__(self):
        return (os.system, ("touch ran",))


def test_a_pickle_runs_no_code(here, refuse, small_runs):
    torch.save({"a": Evil()}, here / "evil.pth")
    refuse(["import", "evil.pth", "--tokenizer", small_runs / "tokenizer",
            "--out", "out"], "evil.pth")  # fmt: skip
    assert not (here / "ran").exists()


# --- checkpoints ---


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, small_runs):
    """A run that was killed between its last checkpoint and its end."""
    from minimind_core import recipes

    folder = tmp_path_factory.mktemp("stopped") / "run"

    class Killed(BaseException):
        pass

    def kill(*args, **kwargs):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "save_model", kill)
        with pytest.raises(Killed):
            recipes.pretrain(
                folder, tokenizer=small_runs / "tokenizer", steps=5,
                batch_size=4, save_every=2, device="cpu", progress=False,
            )  # fmt: skip
    # The last two of three: the older is kept until the run is finished.
    assert [c.name[-1] for c in checkpoints(folder)] == ["4", "5"]
    return folder


RESUME = ("pretrain", "--out", "run", "--steps", "5", "--batch-size", "4",
          "--save-every", "2", "--device", "cpu")  # fmt: skip


@pytest.mark.parametrize(
    "name", ["model.safetensors", "training.pt", "state.json", "sha256.json"]
)
@pytest.mark.parametrize("how", ["cut short", "emptied", "gone"])
def test_a_truncated_checkpoint(here, refuse, stopped, name, how):
    shutil.copytree(stopped, here / "run")
    file = checkpoints(here / "run")[-1] / name
    if how == "gone":
        file.unlink()
    else:
        size = 0 if how == "emptied" else file.stat().st_size * 2 // 3
        file.write_bytes(file.read_bytes()[:size])
    before = (here / "run" / "log.jsonl").read_text()
    refuse([*RESUME, "--resume"], name, "remove", "the one before")
    assert (here / "run" / "log.jsonl").read_text() == before


def test_the_advice_works(here, capsys, stopped):
    # What the message says to do leads to a finished run.
    shutil.copytree(stopped, here / "run")
    newest = checkpoints(here / "run")[-1]
    (newest / "training.pt").write_bytes(b"")
    assert main([*RESUME, "--resume"]) == 2
    advice = capsys.readouterr().err
    shutil.rmtree(re.search(r"remove (\S+) to continue", advice).group(1))
    assert main([*RESUME, "--resume"]) == 0
    assert "from step_00000004" in capsys.readouterr().out
    load_model(here / "run")


def test_a_flipped_bit_is_seen(stopped, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoints(stopped)[-1], folder)
    load_checkpoint(folder)
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-5] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match="changed since"):
        load_checkpoint(folder)


def test_an_unfinished_run(here, refuse, stopped, small_runs):
    shutil.copytree(stopped, here / "run")
    refuse(RESUME, "an unfinished run is there", "--resume")
    other = (*RESUME, "--resume", "--seed", "7")
    refuse(other, "other settings", "seed was 0, now 7")
    for command in ("sft", "export", "chat", "eval"):
        refuse(read(command, "run"), "has not finished", "--resume")


# --- a full disk ---


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("command", ["export", "merge", "import"])
@pytest.mark.parametrize("where", ["weights", "json"])
def test_a_full_disk(here, refuse, small_runs, monkeypatch, command, where):
    import safetensors.torch

    if where == "weights":
        monkeypatch.setattr(safetensors.torch, "save_file", full)
    else:
        monkeypatch.setattr(files.Path, "write_text", full)
    errors = refuse([*writers(small_runs)[command], "--out", "out"],
                    "cannot be written", "free some space")  # fmt: skip
    assert errors.startswith(f"minimind {command}: out")


def test_a_disk_that_fills_while_training(
    here, capsys, small_runs, monkeypatch
):
    words = ["pretrain", "--tokenizer", str(small_runs / "tokenizer"),
             "--out", "run", "--save-every", "2", "--steps", "5",
             "--batch-size", "4", "--device", "cpu"]  # fmt: skip
    real, calls = torch.save, []

    def second_time(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            full()
        real(*args, **kwargs)

    monkeypatch.setattr(checkpoint.torch, "save", second_time)
    assert main(words) == 2
    assert "free some space" in capsys.readouterr().err
    # The first checkpoint is whole, nothing of the second is left.
    saved = [p.name for p in (here / "run" / "checkpoints").iterdir()]
    assert saved == ["step_00000002"]
    load_checkpoint(checkpoints(here / "run")[0])
    assert not (here / "run" / "model.safetensors").exists()
    # With space again it goes on.
    assert main([*words, "--resume"]) == 0
    assert "resuming run from step_00000002" in capsys.readouterr().out
    load_model(here / "run")


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from minimind_core.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="limits as POSIX has them")
@pytest.mark.parametrize(
    ("words", "limit"),
    [(["export", "sft"], 200_000), (["tokenizer", "--data", "a.txt"], 9_000)],
    ids=["weights", "tokenizer"],
)
def test_a_write_the_system_refuses(here, small_runs, words, limit):
    # Not simulated: the kernel lets no file grow beyond the limit.
    (here / "a.txt").write_text(write_story(0, 0).text)
    (here / "sft").symlink_to(small_runs / "sft")
    before = set(here.iterdir())
    # A measurement of coverage would not be able to write its file either.
    without_coverage = {
        k: v for k, v in os.environ.items() if not k.startswith("COV")
    }
    found = subprocess.run(
        [sys.executable, "-c", LIMITED.format(limit=limit), *words,
         "--out", "out"],
        capture_output=True, text=True, timeout=120,
        env={**without_coverage, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert found.returncode == 2, found.stderr
    assert "out: cannot be written" in found.stderr
    assert "Traceback" not in found.stderr
    assert set(here.iterdir()) == before


# --- in Python the same, as exceptions ---


def test_errors_have_one_root(here, small_runs):
    from minimind_core import export_hf, pretrain, train_lora

    (here / "out").mkdir()
    (here / "out" / "mine").touch()
    with pytest.raises(OutputError):
        export_hf(small_runs / "sft", "out")
    for wrong in ({"preset": "huge"}, {"dtype": "x"}, {"device": "x"},
                  {"data": "none.txt"}, {"optimizer": "sgd"}):  # fmt: skip
        with pytest.raises(MiniMindError):
            pretrain("new", progress=False, **wrong)
    with pytest.raises(MiniMindError):
        train_lora(small_runs / "hf", "new", rank=0)
    assert not (here / "new").exists()
