"""The `minimind` command, each subcommand to its end."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from functools import partial
from importlib.metadata import version

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from minimind_core import __version__, cli, evaluation, recipes, system, talk
from minimind_core.cli import build_parser, main
from minimind_core.config import OPTIMIZERS, PRESETS
from minimind_core.loading import load_model
from minimind_core.microworld import conversation, write_story
from minimind_core.run import read_log, read_metadata

COMMANDS = (
    "journey", "clean", "tokenizer", "pretrain", "sft", "export", "lora",
    "merge", "chat", "eval", "import", "doctor",
)  # fmt: skip
SMALL = ["--batch-size", "4", "--steps", "2", "--device", "cpu"]


def subparsers():
    parser = build_parser()
    action = next(a for a in parser._actions if a.dest == "command")
    return action.choices


def run(*arguments):
    """Run a command; its words may be paths."""
    return main([str(word) for word in arguments])


def child(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "minimind_core", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, **options,
    )  # fmt: skip


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


# --- its face ---


def test_the_commands():
    assert tuple(subparsers()) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_parses(command):
    said = " ".join(subparsers()[command].format_help().split())
    example = said.partition("example: ")[2]
    words = shlex.split(example)
    assert words[:2] == ["minimind", command]
    options = build_parser().parse_args(words[1:])
    assert callable(options.run_command)


def test_help_names_what_there_is():
    assert tuple(PRESETS) == cli.PRESET_NAMES
    assert cli.OPTIMIZER_NAMES == OPTIMIZERS


FIXED = {
    "journey": "text chat lora-chat out data preset device dtype seed resume",
    "clean": "out min-words max-words language repetition exact-duplicates "
    "near-duplicates held-out report",
    "tokenizer": "out data",
    "pretrain": "steps save-every batch-size micro-batch-size seq-len lr "
    "optimizer tokenizer pth preset out data device dtype seed resume from "
    "config set",
    "sft": "steps save-every batch-size micro-batch-size seq-len lr "
    "optimizer pth out data device dtype seed resume preset replay config "
    "set",
    "export": "out",
    "lora": "steps save-every batch-size micro-batch-size seq-len lr "
    "optimizer out data device dtype seed resume preset replay config set "
    "rank alpha targets",
    "merge": "out",
    "chat": "prompt device seed",
    "eval": "json data device seed",
    "import": "out tokenizer",
    "doctor": "device dtype",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_fixed_names(command):
    known = subparsers()[command]._option_string_actions
    for name in FIXED[command].split():
        assert f"--{name}" in known
    for name, action in known.items():
        # What an option means can be read, or seen from its name.
        assert action.help or name in (
            "--top-p", "--max-new-tokens", "--documents", "--samples",
            "--tokenizer",
        ), name  # fmt: skip


def test_help_is_fast_because_nothing_heavy_is_imported():
    found = subprocess.run(
        [sys.executable, "-c",
         "import sys\n"
         "from minimind_core.cli import main\n"
         "try:\n    main(['pretrain', '--help'])\n"
         "except SystemExit as e:\n    assert e.code == 0\n"
         "heavy = {'torch', 'transformers', 'numpy', 'tokenizers', 'peft',\n"
         "         'pydantic', 'yaml', 'huggingface_hub'}\n"
         "assert not heavy & set(sys.modules), heavy & set(sys.modules)"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "example: minimind pretrain" in found.stdout


def test_version_and_no_command(capsys):
    with pytest.raises(SystemExit) as ended:
        run("--version")
    assert ended.value.code == 0
    assert __version__ in capsys.readouterr().out
    assert run() == 2
    assert "journey" in capsys.readouterr().out


def test_as_a_module():
    found = child("--version")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == f"minimind-core {__version__}\n"


# --- each command to its end ---


def ends_with_what_next(out, written):
    """The last lines name what was written and a command that exists."""
    *_, wrote, following = out.rstrip("\n").splitlines()
    assert f"wrote {written}" in wrote
    words = shlex.split(following.removeprefix("next: "))
    assert words[0] == "minimind"
    build_parser().parse_args(words[1:])


def test_tokenizer(tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("\n".join(write_story(0, i).text for i in range(50)))
    out = tmp_path / "tokenizer"
    assert run("tokenizer", "--data", text, "--vocab-size", 400,
               "--out", out) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert f"wrote {out}: 400 tokens" in said
    ends_with_what_next(said, out)
    assert (out / "tokenizer.json").exists()


def test_pretrain_and_sft(tmp_path, small_runs, capsys):
    base, chat = tmp_path / "base", tmp_path / "chat"
    assert run("pretrain", "--tokenizer", small_runs / "tokenizer", "--out",
               base, "--seq-len", 64, "--optimizer", "adamw", "--seed", 3,
               "--save-every", 1, "--dtype", "float32", "--pth",
               *SMALL) == 0  # fmt: skip
    ends_with_what_next(capsys.readouterr().out, base)
    facts = read_metadata(base)
    assert facts["stage"] == "pretrain"
    assert facts["finished"] is True
    assert facts["precision"] == "float32"
    expected = {"seq_len": 64, "optimizer": "adamw", "seed": 3, "steps": 2,
                "save_every": 1, "batch_size": 4}  # fmt: skip
    assert expected.items() <= facts["train"].items()
    names = {p.name for p in base.iterdir()}
    assert names >= {
        "model.safetensors", "config.json", "tokenizer.json", "log.jsonl",
        "checkpoints", "minimind.pth",
    }  # fmt: skip
    assert [r["step"] for r in read_log(base)] == [1, 2]
    # A second time: refused. With --resume: nothing left to do.
    before = files(base)
    again = ("pretrain", "--tokenizer", small_runs / "tokenizer", "--out",
             base, *SMALL)  # fmt: skip
    assert run(*again) == 2
    assert "already exists" in capsys.readouterr().err
    assert run(*again, "--resume") == 0
    said = capsys.readouterr().out
    assert "is finished, after 2 steps" in said
    assert "wrote" not in said
    assert "next: minimind sft" in said
    assert files(base) == before
    assert run("sft", base, "--out", chat, "--seq-len", 128, *SMALL) == 0
    ends_with_what_next(capsys.readouterr().out, chat)
    assert read_metadata(chat)["train"]["seq_len"] == 128

    # What MiniMind's own file holds comes back as the same model.
    back = tmp_path / "back"
    assert run("import", base / "minimind.pth", "--tokenizer", base,
               "--out", back) == 0  # fmt: skip
    ends_with_what_next(capsys.readouterr().out, back)
    ours, theirs = (load_file(f / "model.safetensors") for f in (base, back))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_export_lora_merge(tmp_path, small_runs, capsys):
    hf, lora, merged = (tmp_path / n for n in ("hf", "lora", "merged"))
    assert run("export", small_runs / "sft", "--out", hf,
               "--format", "bin") == 0  # fmt: skip
    said = capsys.readouterr().out
    assert f"wrote {hf}" in said
    assert f"minimind lora {hf}" in said
    assert (hf / "pytorch_model.bin").exists()
    assert run("lora", hf, "--out", lora, "--rank", 2, "--alpha", 4,
               "--targets", "q_proj,down_proj", *SMALL) == 0  # fmt: skip
    ends_with_what_next(capsys.readouterr().out, lora)
    adapter = json.loads((lora / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"]) == (2, 4)
    assert set(adapter["target_modules"]) == {"q_proj", "down_proj"}
    assert run("merge", lora, "--out", merged) == 0
    ends_with_what_next(capsys.readouterr().out, merged)
    assert (merged / "model.safetensors").exists()


def test_chat(small_runs, capsys, monkeypatch):
    few = ("--max-new-tokens", 4, "--device", "cpu")
    assert run("chat", small_runs / "merged", "--prompt", "你好", *few) == 0
    once = capsys.readouterr().out
    assert once.endswith("\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n/reset\n/exit\n"))
    assert run("chat", small_runs / "lora", "--temperature", 0.7, "--top-p",
               0.9, "--seed", 5, *few) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert said.startswith("Talking to ")
    assert said.count("> ") == 3


@pytest.mark.parametrize(
    "option", [("--top-k", 4), ("--top-p", 0.9), ("--min-p", 0.1),
               ("--seed", 0)],
)  # fmt: skip
def test_nothing_is_drawn_at_temperature_0(small_runs, capsys, option):
    chat = ("chat", small_runs / "merged", "--prompt", "Hello", "--device",
            "cpu", "--max-new-tokens", 1, *option)  # fmt: skip
    assert run(*chat) == 2
    name = option[0].lstrip("-").replace("-", "_")
    assert f"{name}: no effect at temperature 0" in capsys.readouterr().err
    assert run(*chat, "--temperature", 0.5) == 0


def test_a_vocabulary_has_one_size(tmp_path, capsys):
    out = tmp_path / "tokenizer"
    assert run("tokenizer", "--out", out, "--vocab-size", 300, "--preset",
               "tiny") == 2  # fmt: skip
    assert "--vocab-size takes the place of" in capsys.readouterr().err
    assert not out.exists()


def test_eval(small_runs, capsys):
    few = ("--documents", 8, "--samples", 4, "--questions", 1,
           "--device", "cpu")  # fmt: skip
    assert run("eval", small_runs / "sft", "--json", *few) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"perplexity", "standard_error", "loss_over_floor",
            "valid_fraction", "exact_match"} <= set(found)  # fmt: skip
    assert found == evaluation.evaluate(
        small_runs / "sft", documents=8, samples=4, questions=1,
        device="cpu",
    )  # fmt: skip
    asked = ("eval", small_runs / "pretrain", *few)
    assert run(*asked) == 2
    assert "only been pretrained" in capsys.readouterr().err
    assert run(*(word for word in asked if word not in few[4:6])) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "measured on 8 held-out records of microworld: "
    )
    assert re.search(r"loss_over_floor +\d+\.\d{4}\n", said)
    assert re.search(r"perplexity +\d+\.\d{4}\n", said)
    assert re.search(r"standard_error +0\.\d{4}\n", said)
    assert "exact_match" not in said
    assert "next: minimind chat" in said


def test_eval_of_a_file_says_what_it_measured(tmp_path, small_runs, capsys):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "One day."}\n' * 30)
    words = ("eval", small_runs / "sft", "--data", file, "--device", "cpu")
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"measured on 30 records of {file}: ")
    assert run(*words, "--all", "--documents", 7, "--seq-len", 32) == 0
    assert "measured on 7 records" in capsys.readouterr().out
    assert run("eval", small_runs / "sft", "--all", "--device", "cpu") == 2
    assert "is endless" in capsys.readouterr().err


def test_import_of_a_lone_file(tmp_path, small_runs, capsys):
    model, _ = load_model(small_runs / "sft")
    torch.save(model.state_dict(), tmp_path / "lone.pth")
    words = ("import", tmp_path / "lone.pth", "--tokenizer",
             small_runs / "tokenizer", "--out", tmp_path / "run")
    assert run(*words) == 2
    assert "--rope-theta" in capsys.readouterr().err
    assert run(*words, "--rope-theta", 1e4) == 0
    said = capsys.readouterr()
    assert re.search(r"^warning: .* assumed: rms_norm_eps", said.err, re.M)
    assert "next: minimind chat" in said.out
    assert run("import", tmp_path / "lone.pth", "--tokenizer",
               small_runs / "tokenizer", "--out", tmp_path / "other",
               "--rope-theta", 1e4, "--rms-norm-eps", 1e-6,
               "--max-positions", 512) == 0  # fmt: skip
    assert not capsys.readouterr().err
    same = load_model(tmp_path / "other")[0].config
    assert same == model.config


def test_doctor(capsys, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("MINIMIND_CACHE", str(cache))
    assert run("doctor", "--device", "cpu", "--dtype", "float16") == 0
    said = capsys.readouterr().out
    for line in (
        rf"minimind-core {re.escape(__version__)}",
        rf"torch {re.escape(version('torch'))}",
        r"device     cpu: .+",
        r"dtype      float16, gradient scaler on",
        r"because    float16 as asked .*slowly",
        r"speed      (tiny: float32 \S+ steps/s, bfloat16 \S+ steps/s, "
        r"measured on 8 rows of 128 tokens|this processor has no bfloat16)",
        r"threads    \d+: \w+",
        r"  tiny +0\.6M parameters +0\.\d GiB",
        r"  base +63\.9M parameters",
        r"cost +\(of all three trainings together, estimated\)",
        r"  size .+ T4 .+ H100",
        r"  small .+ 8\.5 to 25 h",
        rf"cache      {re.escape(str(cache))} \(0 MB\)",
    ):
        assert re.search(line, said), line
    # On a processor with bfloat16 the folder exists: it keeps the speeds.
    cache.mkdir(exist_ok=True)
    (cache / "big").write_bytes(b"x" * 3_000_000)
    assert run("doctor", "--device", "cpu") == 0
    assert "(3 MB)" in capsys.readouterr().out


def test_doctor_measures_a_processor_that_has_bfloat16(
    monkeypatch, tmp_path
):
    from minimind_core import calibration
    from minimind_core.precision import DeviceFacts, StepTimings

    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path))
    xeon = DeviceFacts("cpu", "Xeon without AMX", True)
    monkeypatch.setattr(system, "detect_device", lambda device: xeon)
    slower = StepTimings(0.2, 0.25, "8 rows of 128 tokens")
    monkeypatch.setattr(
        calibration, "measure_step", lambda *_, **__: slower
    )
    report = system.doctor("cpu")
    assert report.timings == slower
    assert report.precision.dtype == "float32"
    both = "float32 5 steps/s, bfloat16 4 steps/s, measured on 8 rows"
    assert f"speed      tiny: {both}" in report.text
    assert both in report.precision.reason
    # The speeds are of interest even to those who have chosen.
    assert both in system.doctor("cpu", "bfloat16").text
    haswell = DeviceFacts("cpu", "Haswell", False)
    monkeypatch.setattr(system, "detect_device", lambda device: haswell)
    report = system.doctor("cpu")
    assert report.timings is None
    assert "speed      this processor has no bfloat16" in report.text
    a100 = DeviceFacts("cuda", "A100", True, (8, 0))
    monkeypatch.setattr(system, "detect_device", lambda device: a100)
    assert "speed " not in system.doctor("cuda").text


def test_doctor_knows_colabs_trap(monkeypatch):
    real = system.version
    monkeypatch.setattr(
        system.importlib.util, "find_spec", lambda name: object()
    )
    for number, trap in (("0.10.0", True), ("0.16.0", False)):
        monkeypatch.setattr(
            system,
            "version",
            lambda name, n=number: n if name == "torchao" else real(name),
        )
        report = system.doctor("cpu")
        assert bool(report.warnings) is trap
        assert ("pip uninstall -y torchao" in report.text) is trap


def test_what_fits_depends_on_the_memory(monkeypatch):
    from minimind_core.precision import DeviceFacts

    small = DeviceFacts("cpu", "a small machine", False,
                        memory_bytes=2 * 1024**3)  # fmt: skip
    monkeypatch.setattr(system, "detect_device", lambda device: small)
    report = system.doctor("cpu")
    lines = {line.split()[0]: line for line in report.text.splitlines()
             if "parameters" in line}  # fmt: skip
    assert lines["tiny"].endswith("fits")
    assert lines["base"].endswith("lower micro_batch_size")
    needs = report.training_bytes
    assert needs["tiny"] < needs["small"] < needs["base"]
    # At the very least weights, gradients and two moments in float32.
    assert needs["base"] > 12 * 63.9e6


# --- the whole journey ---


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    home = tmp_path_factory.mktemp("journey")
    text, chat = home / "book.txt", home / "chat.jsonl"
    text.write_text("\n\n".join(write_story(0, i).text for i in range(80)))
    chat.write_text(
        "".join(
            json.dumps({"conversations": conversation(0, i).messages}) + "\n"
            for i in range(60)
        )
    )
    words = ("journey", "--text", text, "--chat", chat, "--steps", 2,
             "--out", home / "J", "--device", "cpu")  # fmt: skip
    assert run(*words) == 0
    return home, words


def test_a_journey_leaves_its_stages(journey, capsys):
    home, words = journey
    stages = ("tokenizer", "pretrain", "sft", "hf", "lora", "merged")
    assert sorted(p.name for p in (home / "J").iterdir()) == sorted(stages)
    # Without --lora-chat, a tenth of --chat is kept for it.
    parts = {"lora": "tenth", "sft": "rest"}
    for stage, part in parts.items():
        data = read_metadata(home / "J" / stage)["data"]
        assert data == [f"{home.resolve()}/chat.jsonl#{part}"]
    before = files(home / "J")
    assert run(*words) == 2
    assert "already exists" in capsys.readouterr().err
    assert run(*words, "--resume") == 0
    assert "next: minimind chat" in capsys.readouterr().out
    assert files(home / "J") == before


def test_a_journey_may_be_moved(journey, tmp_path, capsys):
    home, _ = journey
    moved = tmp_path / "elsewhere" / "K"
    shutil.copytree(home / "J", moved)
    adapter = json.loads((moved / "lora/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "../hf"
    answers = []
    for stage in ("lora", "merged"):
        assert run("chat", moved / stage, "--prompt", "Hello", "--device",
                   "cpu", "--max-new-tokens", 6) == 0  # fmt: skip
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("stage", ["pretrain", "sft", "hf", "lora", "merged"])
def test_a_journey_is_measured_on_its_own_files(journey, capsys, stage):
    home, _ = journey
    assert run("eval", home / "J" / stage, "--json", "--device", "cpu") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert ("exact_match" in found) == (stage != "pretrain")
    # In all stages the metadata still say what the run was trained on.
    assert found["part"] == "held-out"
    assert 0 < found["loss_per_byte"] < found["loss_per_token"] < 10


# --- what can come in between ---


def test_an_interrupted_training_says_how_to_go_on(
    tmp_path, monkeypatch, capsys
):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "pretrain", interrupted)
    assert run("pretrain", "--out", tmp_path / "x") == 130
    assert "--resume continues" in capsys.readouterr().err
    monkeypatch.setattr(talk, "chat_loop", interrupted)
    assert run("chat", tmp_path) == 130
    assert "--resume" not in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_control_c_in_a_conversation(small_runs):
    process = subprocess.Popen(
        [sys.executable, "-m", "minimind_core", "chat",
         str(small_runs / "sft"), "--device", "cpu"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
        # a shell makes what it starts in the background deaf to Ctrl-C
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout.readline().startswith("Talking to")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")
def test_a_reader_that_has_seen_enough(small_runs):
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "minimind_core", "chat",
         str(small_runs / "sft"), "--device", "cpu"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.readline()
    process.stdout.close()
    process.stdin.write("Hello\n")
    process.stdin.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def failing(error):
    def command(*args, **kwargs):
        raise error

    return command


def test_what_is_beyond_us_is_one_line_too(monkeypatch, capsys):
    monkeypatch.setattr(
        system, "doctor", failing(PermissionError(13, "denied", "/x"))
    )
    assert run("doctor") == 2
    errors = capsys.readouterr().err
    assert errors == "minimind doctor: [Errno 13] denied: '/x'\n"
    memory = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(system, "doctor", failing(memory))
    assert run("doctor") == 2
    assert "use --device cpu" in capsys.readouterr().err
    # A defect of ours is not to be hidden.
    for error in (RuntimeError("a defect"), KeyError("a defect")):
        monkeypatch.setattr(system, "doctor", failing(error))
        with pytest.raises(type(error)):
            run("doctor")


@pytest.mark.parametrize("command", COMMANDS)
def test_out_of_memory_names_an_option_that_the_command_has(
    command, monkeypatch, capsys
):
    parser = subparsers()[command]
    example = parser.epilog.removeprefix("example: ")
    options = build_parser().parse_args(shlex.split(example)[1:])
    options.run_command = failing(torch.OutOfMemoryError("no room"))
    assert cli._run(options) == 2
    errors = capsys.readouterr().err
    named = set(re.findall(r"--[a-z-]+", errors))
    assert named <= set(parser._option_string_actions)
    trains = command in ("pretrain", "sft", "lora")
    assert ("--micro-batch-size" in named) is trains


def test_warnings_are_one_line(monkeypatch, capsys):
    def warned(*args, **kwargs):
        warnings.warn("bfloat16 is not there", UserWarning, stacklevel=1)
        warnings.warn("for developers", FutureWarning, stacklevel=1)
        return system.Report(
            None, None, None, None, {}, {}, [], "fine"
        )

    monkeypatch.setattr(system, "doctor", warned)
    shown = warnings.showwarning
    assert run("doctor") == 0
    assert capsys.readouterr().err == "warning: bfloat16 is not there\n"
    assert warnings.showwarning is shown


def test_one_process_of_several_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    cli.say("hello")
    monkeypatch.setenv("RANK", "0")
    cli.say("first")
    assert capsys.readouterr().out == "first\n"
