"""The `minimind` command: one subcommand for each stage.

    minimind journey --out runs/first
    minimind chat runs/first/merged --prompt "Who are you?"
    minimind pretrain --set model.num_hidden_layers=4 --out runs/deeper
    minimind pretrain --config runs/deeper/minimind.json --out runs/again

Each subcommand calls one public function, and finally prints what it wrote
and a command to try next. Every setting of a model and of its training can be
changed with ``--set`` or in a file; the common ones also have their own
options. Invalid input leads to one message on standard error and exit status
2.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from minimind_core.errors import ConfigError, MiniMindError
from minimind_core.threads import set_wait_policy

Namespace = argparse.Namespace
DTYPES = ("auto", "float32", "bfloat16", "float16")
# As in `config`, which is not imported just for a help text.
PRESET_NAMES = ("tiny", "t4", "small", "base")
OPTIMIZER_NAMES = ("muon", "adamw")

# Nothing heavy is imported above, so that --help is fast. Each command
# imports what it needs.


def say(*lines: str) -> None:
    """Print, from the main process only."""
    if os.environ.get("RANK", "0") == "0":
        print(*lines, sep="\n")


def _given(options: Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names}


# --- the commands ----------------------------------------------------------


def journey(options: Namespace) -> None:
    """Run every stage, from raw text to a merged chat model."""
    from minimind_core.recipes import run_journey

    run_journey(
        options.out,
        **_given(
            options, "preset", "data", "text", "chat", "lora_chat", "steps",
            "device", "dtype", "seed", "on_bad_record", "resume",
        ),
    )  # fmt: skip
    say(
        f"\nwrote {options.out}/tokenizer, pretrain, sft, hf, lora, merged",
        f"next: minimind chat {options.out}/merged",
    )


def clean(options: Namespace) -> None:
    """Remove duplicates and other unwanted records from data files."""
    from pathlib import Path

    from minimind_core.data import filters
    from minimind_core.data.cleaning import clean_file, read_texts
    from minimind_core.files import write_json

    chosen: list[filters.Filter] = []
    if options.min_words is not None or options.max_words is not None:
        chosen.append(
            filters.Length(options.min_words or 1, options.max_words)
        )
    if options.language is not None:
        chosen.append(filters.Languages(*options.language.split(",")))
    if options.repetition:
        chosen.append(filters.Repetition())
    if options.exact_duplicates:
        chosen.append(filters.ExactDuplicates())
    if options.near_duplicates is not None:
        chosen.append(
            filters.NearDuplicates(
                options.near_duplicates, options.near_words
            )
        )
    if options.held_out is not None:
        chosen.append(
            filters.Contamination(
                read_texts(options.held_out), n=options.held_out_words,
                share=options.held_out_share,
            )
        )  # fmt: skip
    if not chosen:
        raise ConfigError("name a filter, such as --exact-duplicates")
    report = clean_file(
        options.data, options.out, chosen, kind=options.kind,
        on_bad_record=options.on_bad_record, examples=options.examples,
        progress=True,
    )  # fmt: skip
    if options.report is not None:
        write_json(Path(options.report), report.to_dict())
    say(
        str(report),
        f"wrote {options.out}: {report.kept:,} records",
        f"next: minimind pretrain --data {options.out} --out runs/clean",
    )


def tokenizer(options: Namespace) -> None:
    """Train a tokenizer."""
    from minimind_core.config import get_preset
    from minimind_core.data import left_out, open_source, tokenizer_texts
    from minimind_core.tokenizer import train_tokenizer

    if options.vocab_size and options.preset:
        raise ConfigError(
            "--vocab-size takes the place of the preset's size; give only "
            "one of the two"
        )
    size = options.vocab_size or get_preset(
        options.preset or "tiny"
    ).vocab_size
    choice = options.on_bad_record
    texts = tokenizer_texts(options.data, options.chat, on_bad_record=choice)
    found = train_tokenizer(texts, size, out=options.out)
    for data, kind in (
        (options.data, "text"), (options.chat, "conversations"),
    ):  # fmt: skip
        source = data and open_source(data, kind, on_bad_record=choice)
        if (bad := left_out(source)) and bad.count:
            say(bad.describe())
    say(
        f"wrote {options.out}: {len(found)} tokens",
        f"next: minimind pretrain --tokenizer {options.out} --out runs/base",
    )


def _arguments(options: Namespace, stage: str) -> dict[str, Any]:
    """Collect a stage's arguments, from the file and the options."""
    from minimind_core.settings import (
        ARGUMENTS,
        SHAPE_OF_BASE,
        parse_assignments,
        read_settings,
    )

    found = read_settings(options.config, stage) if options.config else {}
    given = {
        name: value
        for name, value in vars(options).items()
        if value is not None and name in (*ARGUMENTS[stage], *_SETTINGS)
    }
    changes = parse_assignments(options.set or ())
    for name, value in changes["train"].items():
        if name in given:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{name} is given twice, by {option} and --set")
        given[name] = value
    found |= given
    if model := changes["model"]:
        if stage != "pretrain" or found.get("base"):
            raise ConfigError(f"model.{next(iter(model))}: {SHAPE_OF_BASE}")
        found["model"] = {**found.get("model", {}), **model}
    return {**found, "out": options.out, "resume": options.resume}


_SETTINGS = (
    "steps", "batch_size", "micro_batch_size", "seq_len", "optimizer", "lr",
    "replay", "save_every", "device", "dtype", "seed", "on_bad_record",
    "shard",
)  # fmt: skip


def _on_a_base(options: Namespace, stage: str) -> dict[str, Any]:
    from minimind_core.run import read_metadata

    found = _arguments(options, stage)
    if options.resume and "base" not in found:
        found |= {
            name: value
            for name, value in read_metadata(options.out).items()
            if name == "base"
        }
    if "base" not in found:
        raise ConfigError(
            f"name the folder to start from: minimind {options.command} "
            "FOLDER --out ..."
        )
    return found


def pretrain(options: Namespace) -> None:
    """Train a model to continue text."""
    from minimind_core.recipes import pretrain as run

    done = run(**_arguments(options, "pretrain"))
    _finished(done, f"minimind sft {options.out} --out runs/chat")


def sft(options: Namespace) -> None:
    """Teach a pretrained model to answer."""
    from minimind_core.recipes import sft as run

    done = run(**_on_a_base(options, "sft"))
    _finished(done, f"minimind chat {options.out}")


def export(options: Namespace) -> None:
    """Export a model in the Hugging Face format."""
    from minimind_core.export import export_hf

    export_hf(
        options.run, options.out, format=options.format,
        dtype=options.weights_dtype,
    )  # fmt: skip
    say(
        f"wrote {options.out}",
        f'next: AutoModelForCausalLM.from_pretrained("{options.out}"), or',
        f"      minimind lora {options.out} --out runs/lora",
    )


def lora(options: Namespace) -> None:
    """Train a LoRA adapter on an exported model."""
    from minimind_core.recipes import train_lora

    if options.targets is not None:
        names = options.targets.split(",")
        options.targets = names if names != ["all-linear"] else names[0]
    done = train_lora(**_on_a_base(options, "lora"))
    _finished(done, f"minimind merge {options.out} --out runs/merged")


def merge(options: Namespace) -> None:
    """Merge an adapter into its base."""
    from minimind_core.adapters import merge_lora

    merge_lora(options.adapter, options.out, base=options.base)
    say(f"wrote {options.out}", f"next: minimind chat {options.out}")


def chat(options: Namespace) -> None:
    """Talk to a model."""
    from minimind_core.talk import chat_loop

    chat_loop(
        options.run,
        **_given(
            options, "prompt", "max_new_tokens", "temperature", "top_k",
            "top_p", "min_p", "seed", "device",
        ),
    )  # fmt: skip


def evaluate(options: Namespace) -> None:
    """Evaluate a model on data it was not trained on."""
    from minimind_core.evaluation import describe
    from minimind_core.evaluation import evaluate as run

    found = run(
        options.run, every_record=options.all,
        **_given(
            options, "data", "documents", "samples", "questions", "seq_len",
            "seed", "device", "on_bad_record",
        ),
    )  # fmt: skip
    if options.json:
        say(json.dumps(found))
        return
    say(describe(found))
    for name, value in found.items():
        if isinstance(value, dict):
            say(f"{name}:")
            for kind, share in value.items():
                say(f"  {kind:<18} {share:.3f}")
        elif isinstance(value, float):
            say(f"{name:<20} {value:.4f}")
    say(f"next: minimind chat {options.run}")


def import_(options: Namespace) -> None:
    """Import a third-party model as a run folder."""
    from minimind_core.export import import_checkpoint

    import_checkpoint(
        options.source, options.out,
        max_position_embeddings=options.max_positions,
        **_given(
            options, "tokenizer", "rope_theta", "rms_norm_eps",
            "spare_rows",
        ),
    )  # fmt: skip
    say(f"wrote {options.out}", f"next: minimind chat {options.out}")


def doctor(options: Namespace) -> None:
    """Report what this machine can do."""
    from minimind_core.system import doctor as run

    say(run(options.device, options.dtype).text)
    say("\nnext: minimind journey --out runs/first")


def _finished(run: Any, following: str) -> None:
    if not run.trained:
        say(f"next: {following}")
        return
    last = run.history[-1] if run.history else {}
    shown = [
        f"{name.replace('_', ' ')} {last[name]:.4f}"
        for name in ("loss", "validation_loss", "loss_over_floor")
        if name in last
    ]
    say(f"wrote {run.path}: {', '.join(shown)}", f"next: {following}")


# --- the options -----------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the whole command line.

    Returns
    -------
    argparse.ArgumentParser
    """
    from minimind_core.version import __version__

    parser = argparse.ArgumentParser(
        prog="minimind",
        description="A small language model, from raw text to a chat model.",
        epilog="example: minimind journey --out runs/first",
    )
    parser.add_argument(
        "--version", action="version", version=f"minimind-core {__version__}"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(
        name: str, run: Callable[[Namespace], None], example: str
    ) -> argparse.ArgumentParser:
        about = (run.__doc__ or "").strip()
        made = commands.add_parser(
            name, help=about, description=about,
            epilog=f"example: minimind {name} {example}",
        )  # fmt: skip
        made.set_defaults(run_command=run)
        return made

    sub = command("journey", journey, "--text book.txt --chat talk.jsonl "
                  "--out runs/mine")  # fmt: skip
    _data(sub, MICROWORLD)
    sub.add_argument("--text", nargs="+", metavar="FILE",
                     help="your own documents, as --data")  # fmt: skip
    sub.add_argument("--chat", nargs="+", metavar="FILE",
                     help="your own conversations, as --data")  # fmt: skip
    sub.add_argument(
        "--lora-chat", nargs="+", metavar="FILE",
        help="conversations for LoRA; a held-out tenth of --chat if not "
        "given",
    )  # fmt: skip
    _out(sub)
    _preset(sub, "tiny")
    sub.add_argument("--steps", type=int, metavar="N",
                     help="optimizer steps of each training")  # fmt: skip
    _device(sub)
    _seed(sub)
    _bad_record(sub)
    _resume(sub)

    sub = command("clean", clean, "in.jsonl --out out.jsonl --language en")
    _cleaning(sub)

    sub = command("tokenizer", tokenizer, "--out runs/tokenizer")
    _data(sub, MICROWORLD)
    sub.add_argument("--chat", nargs="+", metavar="FILE",
                     help="conversations to train on, too")  # fmt: skip
    sub.add_argument(
        "--vocab-size", type=_count, metavar="N",
        help="maximum number of tokens (the preset's)",
    )  # fmt: skip
    _preset(sub, None, "tiny")
    _bad_record(sub)
    _out(sub)

    sub = command("pretrain", pretrain, "--steps 300 --out runs/base")
    _training(sub, "tiny, or what suits --from",
              "beta2=0.98 or model.num_hidden_layers=4")  # fmt: skip
    sub.add_argument(
        "--from", dest="base", metavar="DIR",
        help="continue from the weights, shape and tokenizer of this model",
    )  # fmt: skip
    sub.add_argument(
        "--tokenizer", metavar="DIR",
        help="the folder of a tokenizer; without it one is trained first",
    )  # fmt: skip
    _pth(sub)

    sub = command("sft", sft, "runs/base --out runs/chat")
    sub.add_argument("base", nargs="?", help="the pretrained run's folder")
    _training(sub, "the base's, or what suits it")
    _replay(sub, "documents that the base was trained on")
    _pth(sub)

    sub = command("export", export, "runs/chat --out runs/hf")
    sub.add_argument("run", help="a run folder")
    _out(sub)
    sub.add_argument("--format", default="safetensors",
                     choices=("safetensors", "bin"),
                     help="bin: the older pytorch_model.bin")  # fmt: skip
    sub.add_argument("--weights-dtype", default="float32",
                     choices=DTYPES[1:], help="of the weights")  # fmt: skip

    sub = command("lora", lora, "runs/hf --out runs/lora")
    sub.add_argument("base", nargs="?", help="an exported folder")
    _training(sub, "the base's, or what suits it")
    sub.add_argument("--rank", type=int, metavar="N",
                     help="rank of each update (8)")  # fmt: skip
    sub.add_argument("--alpha", type=float, metavar="X",
                     help="updates are times alpha/rank (16)")  # fmt: skip
    sub.add_argument(
        "--targets", metavar="NAMES",
        help="layers to adapt, such as q_proj,v_proj (all-linear)",
    )  # fmt: skip
    sub.add_argument("--dropout", type=float, metavar="X",
                     help="on the input of each adapter (0)")  # fmt: skip
    sub.add_argument("--use-rslora", action="store_true", default=None,
                     help="scale by alpha / sqrt(rank)")  # fmt: skip
    sub.add_argument("--use-dora", action="store_true", default=None,
                     help="adapt direction and size apart")  # fmt: skip
    _replay(sub, "ordinary conversations of the microworld")

    sub = command("merge", merge, "runs/lora --out runs/merged")
    sub.add_argument("adapter", help="the adapter's folder")
    sub.add_argument("--base", metavar="DIR",
                     help="its base, if it was moved")  # fmt: skip
    _out(sub)

    sub = command("chat", chat, 'runs/merged --prompt "Who are you?"')
    sub.add_argument("run", help="a run, a package or an adapter")
    sub.add_argument("--prompt", metavar="TEXT", help="answer this and exit")
    sub.add_argument("--temperature", type=float, default=0.0, metavar="X",
                     help="0: always the likeliest token")  # fmt: skip
    sub.add_argument("--top-k", type=int, metavar="N",
                     help="draw from the N likeliest (all)")  # fmt: skip
    sub.add_argument("--top-p", type=float, metavar="X",
                     help="draw from the likeliest up to X (1)")  # fmt: skip
    sub.add_argument("--min-p", type=float, metavar="X",
                     help="drop what is less likely than X times the "
                     "likeliest (0)")  # fmt: skip
    sub.add_argument("--max-new-tokens", type=_count, default=256,
                     metavar="N")  # fmt: skip
    _seed(sub, None)
    _device(sub, dtype=False)

    sub = command("eval", evaluate, "runs/chat --json")
    sub.add_argument("run", help="a run, a package or an adapter")
    sub.add_argument("--data", nargs="+", metavar="DATA",
                     help="data to evaluate on (the run's)")  # fmt: skip
    sub.add_argument(
        "--all", action="store_true",
        help="all records of --data, including training data",
    )  # fmt: skip
    sub.add_argument(
        "--documents", type=_count, metavar="N",
        help="at most (500, or all of files it was not trained on)",
    )
    sub.add_argument("--samples", type=_count, metavar="N",
                     help="of the microworld (200)")  # fmt: skip
    sub.add_argument("--questions", type=_count, metavar="N",
                     help="of each kind (100)")  # fmt: skip
    sub.add_argument(
        "--seq-len", type=_count, metavar="N",
        help="longest row of files (as in training)",
    )  # fmt: skip
    sub.add_argument("--json", action="store_true",
                     help="one JSON object as the last line")  # fmt: skip
    _bad_record(sub)
    _seed(sub, None)
    _device(sub, dtype=False)

    sub = command("import", import_, "full_sft_768.pth --tokenizer "
                  "minimind/model --out runs/upstream")  # fmt: skip
    sub.add_argument("source", help="a .pth of MiniMind's, or a package")
    sub.add_argument("--tokenizer", metavar="DIR",
                     help="if it is not beside the weights")  # fmt: skip
    sub.add_argument(
        "--rope-theta", type=float, metavar="X",
        help="rotary base, if no config.json beside the file has it",
    )  # fmt: skip
    sub.add_argument("--rms-norm-eps", type=float, metavar="X",
                     help="epsilon of the norms, likewise")  # fmt: skip
    sub.add_argument("--max-positions", type=_count, metavar="N",
                     help="longest sequence, likewise")  # fmt: skip
    sub.add_argument("--spare-rows", action="store_true",
                     help="allow a much smaller tokenizer")  # fmt: skip
    _out(sub)

    sub = command("doctor", doctor, "--device cpu")
    _device(sub)
    return parser


Parser = argparse.ArgumentParser


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _seed_number(text: str) -> int:
    # torch accepts no larger seed.
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number from 0 to 2^63 - 1"
        )
    return int(text)


def _cleaning(parser: Parser) -> None:
    add = parser.add_argument
    add("data", nargs="+", metavar="FILE", help="the data files")
    add("--out", required=True, metavar="FILE",
        help="the new .jsonl; filters run in the order below")  # fmt: skip
    add("--min-words", type=_count, metavar="N",
        help="remove shorter texts; a Chinese character counts")  # fmt: skip
    add("--max-words", type=_count, metavar="N", help="remove longer texts")
    add("--language", metavar="CODES",
        help="remove texts in other languages than these: en,zh")  # fmt: skip
    add("--repetition", action="store_true",
        help="remove texts that repeat themselves, by the rules of "
        "Gopher")  # fmt: skip
    add("--exact-duplicates", action="store_true",
        help="remove texts that occurred before")  # fmt: skip
    add("--near-duplicates", type=float, nargs="?", const=0.8, metavar="X",
        help="remove texts whose runs of words are shared with an earlier "
        "one to this extent, from 0.1 to 0.95 (0.8)")  # fmt: skip
    add("--near-words", type=_count, default=5, metavar="N",
        help="words in such a run (5)")  # fmt: skip
    add("--held-out", nargs="+", metavar="FILE",
        help="remove records that contain parts of these")  # fmt: skip
    add("--held-out-words", type=_count, default=13, metavar="N",
        help="words in a part (13)")  # fmt: skip
    add("--held-out-share", type=float, default=0.0, metavar="X",
        help="how much of a held-out text may be contained (0)")  # fmt: skip
    add("--kind", choices=("text", "conversations"),
        help="of the records (as the first one)")  # fmt: skip
    add("--examples", type=int, default=3, metavar="N",
        help="removed records to show of each filter (3)")  # fmt: skip
    add("--report", metavar="FILE", help="also write the counts as JSON")
    _bad_record(parser)


def _training(
    parser: Parser, preset: str, example: str = "beta2=0.98"
) -> None:
    _data(parser, None)
    _out(parser)
    _preset(parser, None, preset)
    add = parser.add_argument
    add("--config", metavar="FILE",
        help="settings from a .json, .toml or .yaml file; a run's "
        "minimind.json repeats it")  # fmt: skip
    add("--set", action="append", metavar="NAME=VALUE",
        help=f"any setting, such as {example}; may be repeated")  # fmt: skip
    add("--steps", type=int, metavar="N", help="optimizer steps")
    add("--batch-size", type=int, metavar="N",
        help="rows per optimizer step, over all processes")  # fmt: skip
    add("--micro-batch-size", type=int, metavar="N",
        help="rows per forward pass")  # fmt: skip
    add("--seq-len", type=int, metavar="N", help="longest row, in tokens")
    add("--shard", action="store_true", default=None,
        help="under torchrun, spread weights, gradients and optimizer over "
        "the processes (FSDP)")  # fmt: skip
    add("--optimizer", metavar="NAME", help=" or ".join(OPTIMIZER_NAMES))
    add("--lr", type=float, metavar="X",
        help="peak learning rate; Muon's keeps its ratio to it")  # fmt: skip
    add("--save-every", type=int, metavar="N",
        help="steps between checkpoints; 0: only at the end")  # fmt: skip
    _device(parser, None)
    parser.add_argument(
        "--seed", type=_seed_number, metavar="N",
        help="seed of the initial weights and the order of the data",
    )  # fmt: skip
    _bad_record(parser)
    _resume(parser)


MICROWORLD = ["microworld"]


def _data(parser: Parser, default: list[str] | None) -> None:
    parser.add_argument(
        "--data", nargs="+", default=default, metavar="DATA",
        help="microworld (the default), microworld:zh, or paths: .txt, "
        ".jsonl (also .gz, .zst), .parquet, folders of these, or "
        "hf:owner/name[:split]; to mix them, PATH=WEIGHT each",
    )  # fmt: skip


def _out(parser: Parser) -> None:
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="the new folder"
    )


def _preset(
    parser: Parser, default: str | None, otherwise: str = ""
) -> None:
    # Not argparse's choices: the package's own message says more.
    parser.add_argument(
        "--preset", default=default, metavar="NAME",
        help=f"{', '.join(PRESET_NAMES)} ({otherwise or default}); "
        "`minimind doctor` says what each takes",
    )  # fmt: skip


def _device(
    parser: Parser, default: str | None = "auto", *, dtype: bool = True
) -> None:
    parser.add_argument("--device", default=default,
                        help="auto, cpu, cuda, cuda:N, mps")  # fmt: skip
    if dtype:
        parser.add_argument("--dtype", default=default,
                            help=", ".join(DTYPES))  # fmt: skip


def _seed(parser: Parser, default: int | None = 0) -> None:
    # None tells a seed that was not given from one that is 0.
    parser.add_argument(
        "--seed", type=_seed_number, default=default, metavar="N",
        help="seed of all random choices (0)",
    )  # fmt: skip


def _bad_record(parser: Parser) -> None:
    parser.add_argument(
        "--on-bad-record", metavar="WHAT",
        help="stop (the default) at a record that cannot be read or used, or "
        "skip and count it",
    )  # fmt: skip


def _resume(parser: Parser) -> None:
    parser.add_argument(
        "--resume", action="store_true",
        help="continue from the last checkpoint in --out, with its settings; "
        "with more --steps a finished run is continued, too",
    )  # fmt: skip


def _replay(parser: Parser, what: str) -> None:
    parser.add_argument(
        "--replay", type=float, metavar="X",
        help=f"share of the rows taken from {what}",
    )  # fmt: skip


def _pth(parser: Parser) -> None:
    parser.add_argument("--pth", action="store_true", default=None,
                        help="also write minimind.pth")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        ``sys.argv`` if not given.

    Returns
    -------
    int
        0 on success, 2 for invalid input, 130 when interrupted.
    """
    set_wait_policy()  # works only as long as torch is not imported
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    for stream in (sys.stdout, sys.stderr):
        # A console without Chinese shows question marks instead.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    with warnings.catch_warnings():
        # These warnings are meant for developers of libraries.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.showwarning = _show_warning
        return _run(options)


def _run(options: Namespace) -> int:
    def failed(message: object) -> int:
        print(f"minimind {options.command}: {message}", file=sys.stderr)
        return 2

    try:
        _recorded(options.run_command)(options)
        sys.stdout.flush()
    except MiniMindError as error:
        return failed(error)
    except KeyboardInterrupt:
        out = getattr(options, "out", None)
        resumable = out is not None and hasattr(options, "resume")
        hint = "; --resume continues from the last checkpoint"
        print(f"\ninterrupted{hint * resumable}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reading end, such as `head`, has closed the pipe. Keep
        # Python's final flush from raising an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return failed(error)
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        return failed(
            f"the device is out of memory; {_smaller(options)}, or see "
            f"`minimind doctor` ({error})"
        )
    return 0


def _recorded(command: Callable[..., None]) -> Callable[..., None]:
    """Tell torchrun why this process ends, if torchrun has started it.

    It ends the other processes and shows the reason of the first that failed.
    """
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return command
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(command)


def _out_of_memory(error: Exception) -> bool:
    # The main memory's end is a plain RuntimeError of torch.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
        or "not enough memory" in str(error)
    )


def _smaller(options: Namespace) -> str:
    """Advice on running this command with less memory."""
    if hasattr(options, "micro_batch_size"):
        return "lower --micro-batch-size or --seq-len"
    if hasattr(options, "preset"):
        return "take a smaller --preset"
    if hasattr(options, "max_new_tokens"):
        return "lower --max-new-tokens, or use --device cpu"
    if hasattr(options, "device"):
        return "use --device cpu"
    return "close other programs"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning in one line, without its location in the code."""
    print(f"warning: {message}", file=file or sys.stderr)
