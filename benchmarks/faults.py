"""Give the commands damaged input, and count what becomes of it.

    python benchmarks/faults.py                    # 20,000 inputs
    python benchmarks/faults.py --count 500 --seed 7

Each input is a number: it chooses a kind of file, a sound example of it, how
that is damaged, and the command that reads it. Records and conversations,
settings, packages from elsewhere, tokenizers and the files of runs are
damaged: bits are flipped, files cut and spliced, and values in JSON replaced
by others of any type, among them lone surrogates, numbers of thousands of
digits and lists nested without end. The commands run in one process, through
`cli.main`, and training ends where it would begin.

Where the damage is not told, a model must answer as it did before.

A command may work, or leave records out where it was asked to, or end with
status 2 and a message of ours. It must not raise anything else, take longer
than `LIMIT` seconds, or leave a file behind when it fails.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import io
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind_core import cli, recipes

LIMIT = 20
"""Seconds of the processor after which a command counts as hanging."""

Random = random.Random
Words = list[str]


class Reached(Exception):
    """Thrown where training would begin."""


class Hung(BaseException):
    """Thrown by the alarm."""


# --- sound examples ---------------------------------------------------------


def prepare(folder: Path) -> Path:
    """Make one of each stage, as small as they come."""
    from minimind_core import (
        export_hf,
        merge_lora,
        pretrain,
        sft,
        train_lora,
        train_tokenizer,
    )
    from minimind_core.data import tokenizer_texts

    small: dict[str, Any] = {
        "batch_size": 2, "seq_len": 32, "device": "cpu", "progress": False,
        "dtype": "float32", "threads": 1, "validate": lambda model: {},
    }  # fmt: skip
    texts = tokenizer_texts("microworld", count=60)
    train_tokenizer(texts, 300, out=folder / "tokenizer")
    pretrain(
        folder / "pretrain", tokenizer=folder / "tokenizer", steps=2,
        model={"hidden_size": 16, "num_hidden_layers": 1,
               "num_attention_heads": 2, "num_key_value_heads": 1,
               "max_position_embeddings": 256}, **small,
    )  # fmt: skip
    more = {**small, "seq_len": 200, "replay": 0.0}
    sft(folder / "pretrain", folder / "sft", steps=1, **more)
    export_hf(folder / "sft", folder / "hf")
    train_lora(folder / "hf", folder / "lora", rank=2, steps=1, **more)
    merge_lora(folder / "lora", folder / "merged")
    shutil.copytree(folder / "hf", folder / "shards")
    weights = folder / "shards" / "model.safetensors"
    names = ["model-00001-of-00001.safetensors"]
    weights.rename(folder / "shards" / names[0])
    from safetensors.torch import load_file

    state = load_file(folder / "shards" / names[0])
    (folder / "shards" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(state, names[0])})
    )
    return folder


# --- damage -----------------------------------------------------------------

DEEP = "[" * 3000 + "]" * 3000
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 10**12, 10**30, -0.0, 1e-300, 1e308,
    float("nan"), float("inf"), "", " ", "a", "none", "1e999", "\ud83d",
    "\0", "..", "../..", "/etc/passwd", "a/../../b", "\ufeff", "\u2028",
    "<|im_end|>", "<|im_start|>assistant\n", "{{ 7*7 }}", "{% raw %}",
    "{{ ''.__class__.__mro__ }}", "\U0001f600", "x" * 3000, [], {}, [[]],
    [None], {"": None}, [1, "a", {}], {"role": "user"}, {"a": {"b": [1]}},
]  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


def any_value(draw: Random) -> Any:
    if draw.random() < 0.05:
        return nested(draw.choice((50, 150, 600)))
    return draw.choice(VALUES)


def damage_value(value: Any, draw: Random) -> Any:
    """Replace, remove, repeat or rename something in parsed JSON."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        name = draw.choice(list(value))
        how = draw.random()
        if how < 0.1:
            return {k: v for k, v in value.items() if k != name}
        if how < 0.15:
            return {**value, str(any_value(draw))[:50]: value[name]}
        return {**value, name: damage_value(value[name], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        place = draw.randrange(len(value))
        how = draw.random()
        if how < 0.1:
            return value[:place] + value[place + 1 :]
        if how < 0.2:
            return value[: place + 1] + value[place:]
        inner = damage_value(value[place], draw)
        return [*value[:place], inner, *value[place + 1 :]]
    if isinstance(value, str) and value and draw.random() < 0.3:
        place = draw.randrange(len(value))
        return value[:place] + str(any_value(draw)) + value[place:]
    return any_value(draw)


def damage_bytes(raw: bytes, draw: Random) -> bytes:
    """Flip bits, cut, splice, or put something else in a file."""
    how = draw.random()
    place = draw.randrange(len(raw) + 1)
    if how < 0.45 and raw:
        changed = bytearray(raw)
        for _ in range(draw.choice((1, 1, 1, 2, 8))):
            changed[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if how < 0.65:
        return raw[:place]
    if how < 0.75:
        return raw[:place] + raw[draw.randrange(len(raw) + 1) :]
    if how < 0.95:
        odd = draw.choice((
            b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r\n",
            b"\n\n\n", b'"', b"}", b"[", DEEP.encode(), b"9" * 5000, b",",
            bytes(draw.randrange(256) for _ in range(9)), b"\\ud83d",
        ))  # fmt: skip
        return raw[:place] + odd + raw[place:]
    return draw.choice((b"", b"\n", b"null", b"{}", b"[]", b"\xef\xbb\xbf"))


def damage_text(raw: bytes, draw: Random) -> bytes:
    """Damage a JSON file, as JSON or as bytes."""
    if draw.random() < 0.5:
        return damage_bytes(raw, draw)
    return dump(damage_value(json.loads(raw), draw))


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


# --- kinds of input ---------------------------------------------------------


def records(base: Path, draw: Random) -> Words:
    """A file of documents, for a tokenizer's training."""
    good = [{"text": f"One day Mia met Tom, {n} times."} for n in range(4)]
    name = draw.choice(("data.jsonl", "data.jsonl", "data.txt"))
    lines = [dump(one) for one in good]
    if draw.random() < 0.6:
        place = draw.randrange(len(lines))
        lines[place] = dump(damage_value(good[place], draw))
    raw = b"\n".join(lines) + b"\n"
    if draw.random() < 0.6:
        raw = damage_bytes(raw, draw)
    Path(name).write_bytes(raw)
    return ["tokenizer", "--vocab-size", "270", "--data", name,
            "--out", "out", *skip(draw)]  # fmt: skip


def skip(draw: Random) -> Words:
    return draw.choice(([], ["--on-bad-record", "skip"]))


TALKS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi"},
     {"role": "assistant", "content": "Good day."}],
    [{"role": "system", "content": "Be brief.", "tools": [
        {"type": "function", "function": {"name": "sum", "parameters": {}}}]},
     {"role": "user", "content": "1 + 1?"},
     {"role": "assistant", "content": None, "tool_calls": [
         {"function": {"name": "sum", "arguments": {"of": [1, 1]}}}]},
     {"role": "tool", "content": "2"},
     {"role": "assistant", "content": "2", "reasoning_content": "easy"}],
    [{"role": "system", "content": "", "tools": '[{"name": "f"}]'},
     {"role": "user", "content": "Now"},
     {"role": "assistant", "content": "",
      "tool_calls": '[{"name": "f", "arguments": "{}"}]'}],
]  # fmt: skip


def talks(base: Path, draw: Random) -> Words:
    """A file of conversations, for fine-tuning, evaluation or a tokenizer."""
    good = [{"conversations": draw.choice(TALKS)} for _ in range(3)]
    place = draw.randrange(3)
    lines = [dump(one) for one in good]
    lines[place] = dump(damage_value(good[place], draw))
    raw = b"\n".join(lines) + b"\n"
    if draw.random() < 0.2:
        raw = damage_bytes(raw, draw)
    Path("talk.jsonl").write_bytes(raw)
    how = draw.random()
    if how < 0.5:
        Path("data.txt").write_text("One day Mia met Tom.\n")
        return ["tokenizer", "--vocab-size", "270", "--data", "data.txt",
                "--chat", "talk.jsonl", "--out", "out",
                *skip(draw)]  # fmt: skip
    if how < 0.75:
        return ["sft", str(base / "pretrain"), "--data", "talk.jsonl",
                "--replay", "0", "--seq-len", "200", "--out", "out",
                *CPU, *skip(draw)]  # fmt: skip
    return ["eval", str(base / "hf"), "--data", "talk.jsonl", "--questions",
            "1", "--device", "cpu", *skip(draw)]  # fmt: skip


CPU = ("--device", "cpu", "--dtype", "float32", "--set", "threads=1")


def prompts(base: Path, draw: Random) -> Words:
    """A prompt and options of a conversation."""
    said = str(any_value(draw))[:400].replace("\0", "")
    words = ["chat", str(base / "hf"), "--prompt", said, "--device", "cpu",
             "--max-new-tokens", draw.choice(("1", "3"))]  # fmt: skip
    for name in ("--temperature", "--top-k", "--top-p", "--min-p", "--seed"):
        if draw.random() < 0.25:
            words.append(f"{name}={number(draw)}")
    return words


def number(draw: Random) -> str:
    return draw.choice((
        "0", "1", "0.5", "-1", "1e-9", "1e300", "nan", "inf", "-inf",
        "9" * 30, "9" * 400, "", "x", "1_0", "\u0663", "0x10", " 3", "2",
        "7", "true", "none", "\ud83d",
    ))  # fmt: skip


SETTINGS = (
    "steps", "lr", "batch_size", "micro_batch_size", "seq_len", "optimizer",
    "schedule", "beta1", "beta2", "seed", "dtype", "replay", "packed",
    "threads", "save_every", "on_bad_record", "warmup_ratio", "device",
    "model.hidden_size", "model.num_hidden_layers", "model.head_dim",
    "model.num_attention_heads", "model.num_key_value_heads",
    "model.vocab_size", "model.rope_theta", "model.intermediate_size",
    "model.max_position_embeddings", "model.rms_norm_eps", "nothing", "",
    "model.eos_token_id", "model.tie_word_embeddings", "train.lr", "a.b",
)  # fmt: skip


def settings(base: Path, draw: Random) -> Words:
    """Settings of pretraining, on the command line and in a file."""
    words = ["pretrain", "--out", "out", *CPU]
    if draw.random() < 0.98:  # it takes a second to train one
        words += ["--tokenizer", str(base / "tokenizer")]
    for _ in range(draw.choice((0, 1, 2))):
        value = draw.choice((number(draw), str(any_value(draw))[:60]))
        words.append(f"--set={draw.choice(SETTINGS)}={value}")
    if draw.random() < 0.6:
        sound = {
            "preset": "tiny", "data": "microworld", "lr": 3e-4, "train":
            {"steps": 3, "seed": 1}, "model": {"num_hidden_layers": 1},
        }  # fmt: skip
        kind = draw.choice(("json", "toml", "yaml", "run"))
        if kind == "run":
            raw = (base / "pretrain" / "minimind.json").read_bytes()
            raw, kind = damage_text(raw, draw), "json"
        elif kind == "toml":
            raw = damage_bytes(
                b'preset = "tiny"\nlr = 3e-4\n[model]\n'
                b"num_hidden_layers = 1\n", draw,
            )  # fmt: skip
        else:
            raw = damage_text(dump(sound), draw)
        Path(f"config.{kind}").write_bytes(raw)
        words += ["--config", f"config.{kind}"]
    return words


def copy(source: Path, name: str) -> Path:
    shutil.copytree(source, name, ignore=shutil.ignore_patterns("README.md"))
    return Path(name)


def package(base: Path, draw: Random) -> Words:
    """A package from elsewhere, to be imported."""
    folder = copy(base / draw.choice(("hf", "shards")), "their")
    (folder / "minimind.json").unlink()  # as others write it
    names = [p.name for p in folder.iterdir() if "token" not in p.name]
    name = draw.choice(sorted(names))
    spoil = damage_text if name.endswith("json") else damage_bytes
    path = folder / name
    path.write_bytes(spoil(path.read_bytes(), draw))
    return ["import", "their", "--out", "out"]


def tokenizers(base: Path, draw: Random) -> Words:
    """A tokenizer from elsewhere, with its chat template."""
    name = draw.choice(
        ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    )
    which = draw.choice(("tokenizer", "hf"))
    path = copy(base / which, "their") / name
    if name.endswith("jinja") and draw.random() < 0.5:
        path.write_bytes(draw.choice(TEMPLATES).encode())
    else:
        spoil = damage_bytes if name.endswith("jinja") else damage_text
        path.write_bytes(spoil(path.read_bytes(), draw))
    if which == "tokenizer":
        return ["pretrain", "--tokenizer", "their", "--out", "out", *CPU]
    return ["chat", "their", "--prompt", "Hi", "--max-new-tokens", "1",
            "--device", "cpu"]  # fmt: skip


TEMPLATES = (
    "", "{{ messages }}", "{% for m in messages %}{{ m }}", "{{ 1/0 }}",
    "{{ messages[0].__class__.__mro__[1].__subclasses__() }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "{% set x = namespace() %}{{ x.y.z }}", "{{ 'a' * 10**12 }}",
    "{% include '/etc/passwd' %}", "{{ raise_exception('no') }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}",
)


def chat(stage: str) -> Words:
    return ["chat", stage, "--prompt", "Hi", "--max-new-tokens", "3",
            "--device", "cpu"]  # fmt: skip


def runs(base: Path, draw: Random) -> Words:
    """A file of a run, and a command that reads the run."""
    stage = draw.choice(("pretrain", "sft", "hf", "lora", "merged"))
    folder = copy(base / stage, stage)
    if stage == "lora":
        copy(base / "hf", "hf")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    path = draw.choice(files)
    text = path.suffix == ".json" and draw.random() < 0.4
    spoil = damage_text if text else damage_bytes
    path.write_bytes(spoil(path.read_bytes(), draw))
    reads = [chat(stage), chat(stage)]
    if stage == "lora":
        reads += [["merge", stage, "--out", "out"]]
        reads += [["lora", "--out", stage, "--resume", "--steps", "3",
                   "--device", "cpu"]]  # fmt: skip
    else:
        reads += [
            ["export", stage, "--out", "out"],
            ["import", stage, "--out", "out"],
            ["sft", stage, "--out", "out", "--replay", "0", *CPU],
            ["lora", stage, "--out", "out", "--replay", "0", *CPU],
            ["eval", stage, "--samples", "1", "--documents", "1",
             "--questions", "1", "--device", "cpu"],
        ]  # fmt: skip
    if stage == "pretrain":
        reads += [["pretrain", "--out", stage, "--resume", "--steps", "4",
                   "--device", "cpu"]] * 2  # fmt: skip
    return draw.choice(reads)


KINDS: dict[str, tuple[int, Callable[[Path, Random], Words]]] = {
    "records": (30, records),
    "conversations": (20, talks),
    "prompts": (6, prompts),
    "settings": (14, settings),
    "packages": (10, package),
    "tokenizers": (8, tokenizers),
    "runs": (12, runs),
}
"""Of each kind its share of the inputs, in percent, and what makes one."""


# --- attempts ---------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    words : list of str
        The command.
    result : {"worked", "left out", "error", "WRONG"}
    said : str
        What was printed, or what is wrong.
    """

    kind: str
    words: Words
    result: str
    said: str


@contextlib.contextmanager
def no_training() -> Iterator[None]:
    """End every training where it would begin."""

    def reach(self: Any) -> None:
        raise Reached

    fit = recipes.Trainer.fit
    recipes.Trainer.fit = reach  # type: ignore
    try:
        yield
    finally:
        recipes.Trainer.fit = fit  # type: ignore


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def attempt(seed: int, base: Path, folder: Path) -> Outcome:
    """Make the input of this number in an empty folder, and try it."""
    draw = Random(seed)
    names = list(KINDS)
    kind = draw.choices(names, [KINDS[name][0] for name in names])[0]
    with contextlib.chdir(folder):
        words = KINDS[kind][1](base, draw)
        result, said = judge(words, folder)
    trusted = result == "worked" and "changed since" not in said
    if kind == "runs" and words[0] == "chat" and trusted:
        sound = sound_answer(words[1], base)
        if said != sound:
            result, said = "WRONG", f"said {said!r}, when sound {sound!r}"
    return Outcome(kind, words, result, said)


@functools.lru_cache
def sound_answer(stage: str, base: Path) -> str:
    """What a stage answers while its files are as they were written."""
    with contextlib.chdir(base):
        return judge(chat(stage), base)[1]


def judge(words: Words, folder: Path) -> tuple[str, str]:
    """Run a command in this folder; what became of it, and what it said."""
    before = tree(folder)
    out, errors = io.StringIO(), io.StringIO()
    code: Any = 0
    wrong = ""
    signal.signal(signal.SIGPROF, alarm)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(errors),
        ):
            code = cli.main(words)
    except Reached:
        return "worked", "training would begin"
    except SystemExit as ended:  # argparse's own way out
        code = ended.code
    except Hung:
        wrong = f"still busy after {LIMIT} s"
    except BaseException:
        wrong = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    said = out.getvalue() + errors.getvalue()
    if not wrong and code not in (0, 2):
        wrong = f"status {code}: {said}"
    if not wrong and "Traceback" in said:
        wrong = said
    new = sorted(tree(folder) - before)
    resumed = "--resume" in words
    if not wrong and code == 2 and new and not resumed:
        wrong = f"left behind {new}: {said}"
    partial = [name for name in new if Path(name).name.startswith(".")]
    if not wrong and partial:
        wrong = f"left behind {partial}"
    if wrong:
        return "WRONG", wrong
    if code == 2:
        return "error", said
    return ("left out" if "left out" in said else "worked"), said


def alarm(*args: object) -> None:
    raise Hung


def attempts(
    seeds: range, base: Path, work: Path
) -> Iterator[tuple[int, Outcome]]:
    """Try the inputs of these numbers, each in a folder of its own."""
    with no_training():
        for seed in seeds:
            folder = work / "case"
            folder.mkdir()
            yield seed, attempt(seed, base, folder)
            shutil.rmtree(folder)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="the first input")
    options = parser.parse_args()
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(
        collections.Counter
    )
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "base").mkdir()
        base = prepare(folder / "base")
        seeds = range(options.seed, options.seed + options.count)
        ended: list[int] = []  # early, by Ctrl-C
        signal.signal(signal.SIGINT, lambda number, _: ended.append(number))
        for seed, found in attempts(seeds, base, folder):
            counts[found.kind][found.result] += 1
            if found.result == "WRONG":
                print(f"input {seed}: {found.words}\n{found.said}\n")
            if seed % 1000 == 999:
                print(f"{seed + 1 - options.seed:,} tried", flush=True)
            if ended:
                break
    results = ("worked", "left out", "error", "WRONG")
    print(f"{'':<14}" + "".join(f"{name:>10}" for name in results))
    for kind in [*KINDS, "all"]:
        row = counts[kind]
        print(f"{kind:<14}" + "".join(f"{row[r]:>10,}" for r in results))
        if kind != "all":
            counts["all"].update(row)
    seconds = time.perf_counter() - begun
    print(f"{counts['all'].total():,} inputs in {seconds:.0f} s")
    if counts["all"]["WRONG"]:
        sys.exit("some inputs ended wrongly")


if __name__ == "__main__":
    main()
