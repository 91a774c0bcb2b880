"""The `minimind` command: one subcommand a stage, the package's functions.

    minimind journey --out runs/first
    minimind chat runs/first/merged --prompt "Who are you?"

Each subcommand calls one public function and ends by saying what it wrote
and what to type next. An input that cannot be used is one message on
standard error and exit status 2.
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

from minimind_core.config import OPTIMIZERS, PRESETS
from minimind_core.errors import MiniMindError
from minimind_core.threads import set_wait_policy

Namespace = argparse.Namespace
DTYPES = ("auto", "float32", "bfloat16", "float16")

# Nothing heavy is imported above: --help answers at once. Each command
# imports what it runs.


def say(*lines: str) -> None:
    """Print, but from one process only where torchrun started several."""
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
            "device", "dtype", "seed", "resume",
        ),
    )  # fmt: skip
    say(
        f"\nwrote {options.out}/tokenizer, pretrain, sft, hf, lora, merged",
        f"next: minimind chat {options.out}/merged",
    )


def tokenizer(options: Namespace) -> None:
    """Train a tokenizer."""
    from minimind_core.config import get_preset
    from minimind_core.data import tokenizer_texts
    from minimind_core.tokenizer import train_tokenizer

    size = options.vocab_size or get_preset(options.preset).vocab_size
    texts = tokenizer_texts(options.data, options.chat)
    found = train_tokenizer(texts, size, out=options.out)
    say(
        f"wrote {options.out}: {len(found)} tokens",
        f"next: minimind pretrain --tokenizer {options.out} --out runs/base",
    )


_TRAINING = (
    "data", "steps", "batch_size", "micro_batch_size", "seq_len",
    "optimizer", "lr", "save_every", "device", "dtype", "seed",
    "resume", "pth",
)  # fmt: skip


def pretrain(options: Namespace) -> None:
    """Train a new model to continue text."""
    from minimind_core.recipes import pretrain as run

    done = run(
        options.out, preset=options.preset, tokenizer=options.tokenizer,
        **_given(options, *_TRAINING),
    )  # fmt: skip
    _finished(done, f"minimind sft {options.out} --out runs/chat")


def sft(options: Namespace) -> None:
    """Teach a pretrained model to answer."""
    from minimind_core.recipes import sft as run

    done = run(
        options.base, options.out, preset=options.preset,
        replay=options.replay, **_given(options, *_TRAINING),
    )  # fmt: skip
    _finished(done, f"minimind chat {options.out}")


def export(options: Namespace) -> None:
    """Write a model as a Hugging Face package."""
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

    names = [n for n in _TRAINING if n in (
        "data", "steps", "batch_size", "seq_len", "lr",
        "save_every", "device", "dtype", "seed", "resume",
    )]  # fmt: skip
    targets = options.targets.split(",")
    done = train_lora(
        options.base, options.out, rank=options.rank, alpha=options.alpha,
        targets=targets[0] if targets == ["all-linear"] else targets,
        replay=options.replay, preset=options.preset,
        **_given(options, *names),
    )  # fmt: skip
    _finished(done, f"minimind merge {options.out} --out runs/merged")


def merge(options: Namespace) -> None:
    """Add an adapter to its base."""
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
    """Measure a model on data it was not trained on."""
    from minimind_core.evaluation import evaluate as run

    found = run(
        options.run,
        **_given(
            options, "data", "documents", "samples", "questions", "seed",
            "device",
        ),
    )  # fmt: skip
    if options.json:
        say(json.dumps(found))
        return
    for name, value in found.items():
        if isinstance(value, dict):
            say(f"{name}:")
            for kind, share in value.items():
                say(f"  {kind:<18} {share:.3f}")
        else:
            say(f"{name:<20} {value:.4f}")
    say(f"next: minimind chat {options.run}")


def import_(options: Namespace) -> None:
    """Make a run folder of a model from elsewhere."""
    from minimind_core.export import import_checkpoint

    import_checkpoint(
        options.source, options.out, tokenizer=options.tokenizer
    )
    say(f"wrote {options.out}", f"next: minimind chat {options.out}")


def doctor(options: Namespace) -> None:
    """Say what this machine can do."""
    from minimind_core.system import doctor as run

    say(run(options.device, options.dtype).text)
    say("\nnext: minimind journey --out runs/first")


def _finished(run: Any, following: str) -> None:
    last = run.history[-1] if run.history else {}
    shown = [
        f"{name.replace('_', ' ')} {last[name]:.4f}"
        for name in ("loss", "validation_loss", "loss_over_floor")
        if name in last
    ]
    say(f"wrote {run.path}: {', '.join(shown)}", f"next: {following}")


# --- the options -----------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """The whole command line.

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
    _data(sub)
    sub.add_argument("--text", nargs="+", metavar="FILE",
                     help="your own documents: .txt or .jsonl")  # fmt: skip
    sub.add_argument("--chat", nargs="+", metavar="FILE",
                     help="your own conversations: .jsonl")  # fmt: skip
    sub.add_argument(
        "--lora-chat", nargs="+", metavar="FILE",
        help="conversations for LoRA; a held-out tenth of --chat if not "
        "given",
    )  # fmt: skip
    _out(sub)
    _preset(sub, "tiny")
    sub.add_argument("--steps", type=int, help="of each training")
    _device(sub)
    _seed(sub)
    _resume(sub)

    sub = command("tokenizer", tokenizer, "--out runs/tokenizer")
    _data(sub)
    sub.add_argument("--chat", nargs="+", metavar="FILE",
                     help="conversations to learn from too")  # fmt: skip
    sub.add_argument("--vocab-size", type=int, metavar="N",
                     help="most tokens (the preset's)")  # fmt: skip
    _preset(sub, "tiny")
    _out(sub)

    sub = command("pretrain", pretrain, "--steps 300 --out runs/base")
    _training(sub, "tiny")
    sub.add_argument(
        "--tokenizer", metavar="DIR",
        help="a tokenizer's folder; without, one is trained first",
    )  # fmt: skip
    _pth(sub)

    sub = command("sft", sft, "runs/base --out runs/chat")
    sub.add_argument("base", help="the pretrained run's folder")
    _training(sub, None)
    _replay(sub, "documents the base was trained on")
    _pth(sub)

    sub = command("export", export, "runs/chat --out runs/hf")
    sub.add_argument("run", help="a run folder")
    _out(sub)
    sub.add_argument("--format", default="safetensors",
                     choices=("safetensors", "bin"),
                     help="bin is the older pytorch_model.bin")  # fmt: skip
    sub.add_argument("--weights-dtype", default="float32",
                     choices=DTYPES[1:], help="what is stored")  # fmt: skip

    sub = command("lora", lora, "runs/hf --out runs/lora")
    sub.add_argument("base", help="an exported folder")
    _training(sub, None)
    sub.add_argument("--rank", type=int, default=8, metavar="N")
    sub.add_argument("--alpha", type=float, default=16, metavar="X")
    sub.add_argument("--targets", default="all-linear", metavar="NAMES",
                     help="layers, with commas: q_proj,v_proj")  # fmt: skip
    _replay(sub, "ordinary conversations")

    sub = command("merge", merge, "runs/lora --out runs/merged")
    sub.add_argument("adapter", help="the adapter's folder")
    sub.add_argument("--base", metavar="DIR",
                     help="its base, if that was moved")  # fmt: skip
    _out(sub)

    sub = command("chat", chat, 'runs/merged --prompt "Who are you?"')
    sub.add_argument("run", help="a run, a package or an adapter")
    sub.add_argument("--prompt", metavar="TEXT", help="answer this and end")
    sub.add_argument("--temperature", type=float, default=0.0, metavar="X",
                     help="0 takes the likeliest token")  # fmt: skip
    sub.add_argument("--top-k", type=int, default=0, metavar="N",
                     help="draw from the N likeliest; 0: all")  # fmt: skip
    sub.add_argument("--top-p", type=float, default=1.0, metavar="X",
                     help="draw from the likeliest up to X")  # fmt: skip
    sub.add_argument("--min-p", type=float, default=0.0, metavar="X",
                     help="drop what is less likely than X times the "
                     "likeliest")  # fmt: skip
    sub.add_argument("--max-new-tokens", type=_count, default=256,
                     metavar="N")  # fmt: skip
    _seed(sub)
    _device(sub, dtype=False)

    sub = command("eval", evaluate, "runs/chat --json")
    sub.add_argument("run", help="a run, a package or an adapter")
    sub.add_argument("--data", nargs="+", metavar="DATA",
                     help="what to measure on; the run's own")  # fmt: skip
    sub.add_argument("--documents", type=_count, default=500, metavar="N")
    sub.add_argument("--samples", type=_count, default=200, metavar="N")
    sub.add_argument("--questions", type=_count, default=100, metavar="N",
                     help="of each kind")  # fmt: skip
    sub.add_argument("--json", action="store_true",
                     help="one JSON object as the last line")  # fmt: skip
    _seed(sub)
    _device(sub, dtype=False)

    sub = command("import", import_, "full_sft_768.pth --tokenizer "
                  "minimind/model --out runs/upstream")  # fmt: skip
    sub.add_argument("source", help="a .pth of MiniMind's, or a package")
    sub.add_argument("--tokenizer", metavar="DIR")
    _out(sub)

    sub = command("doctor", doctor, "--device cpu")
    _device(sub)
    return parser


Parser = argparse.ArgumentParser


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def _seed_number(text: str) -> int:
    # More bits than these torch does not take.
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no whole number from 0 to 2^63 - 1"
        )
    return int(text)


def _training(parser: Parser, preset: str | None) -> None:
    _data(parser)
    _out(parser)
    _preset(parser, preset)
    add = parser.add_argument
    add("--steps", type=int, metavar="N", help="optimizer steps")
    add("--batch-size", type=int, metavar="N",
        help="rows per optimizer step, over all processes")  # fmt: skip
    add("--micro-batch-size", type=int, metavar="N",
        help="rows per forward pass")  # fmt: skip
    add("--seq-len", type=int, metavar="N", help="longest row, in tokens")
    add("--optimizer", choices=OPTIMIZERS)
    add("--lr", type=float, metavar="X")
    add("--save-every", type=int, metavar="N",
        help="steps between checkpoints; 0: only the result")  # fmt: skip
    _device(parser)
    _seed(parser)
    _resume(parser)


def _data(parser: Parser) -> None:
    parser.add_argument(
        "--data", nargs="+", default=["microworld"], metavar="DATA",
        help="microworld (default), microworld:zh, or paths",
    )  # fmt: skip


def _out(parser: Parser) -> None:
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="the new folder"
    )


def _preset(parser: Parser, default: str | None) -> None:
    # Not argparse's choices: the package's own message says more.
    parser.add_argument(
        "--preset", default=default, metavar="NAME",
        help=f"{', '.join(PRESETS)} ({default or 'as the base'})",
    )  # fmt: skip


def _device(parser: Parser, *, dtype: bool = True) -> None:
    parser.add_argument("--device", default="auto",
                        help="auto, cpu, cuda, cuda:N, mps")  # fmt: skip
    if dtype:
        parser.add_argument("--dtype", default="auto",
                            help=", ".join(DTYPES))  # fmt: skip


def _seed(parser: Parser) -> None:
    parser.add_argument("--seed", type=_seed_number, default=0, metavar="N")


def _resume(parser: Parser) -> None:
    parser.add_argument(
        "--resume", action="store_true",
        help="go on from the last checkpoint in --out",
    )  # fmt: skip


def _replay(parser: Parser, what: str) -> None:
    parser.add_argument("--replay", type=float, metavar="X",
                        help=f"share of rows from {what}")  # fmt: skip


def _pth(parser: Parser) -> None:
    parser.add_argument("--pth", action="store_true",
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
        0 if all went well, 2 for an input that cannot be used, 130 when
        interrupted.
    """
    set_wait_policy()  # works only as long as torch is not imported
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    for stream in (sys.stdout, sys.stderr):
        # A console without Chinese shows a question mark, and goes on.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    with warnings.catch_warnings():
        # Those are for whoever writes libraries.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.showwarning = _show_warning
        return _run(options)


def _run(options: Namespace) -> int:
    def failed(message: object) -> int:
        print(f"minimind {options.command}: {message}", file=sys.stderr)
        return 2

    try:
        options.run_command(options)
        sys.stdout.flush()
    except MiniMindError as error:
        return failed(error)
    except KeyboardInterrupt:
        out = getattr(options, "out", None)
        resumable = out is not None and hasattr(options, "resume")
        hint = "; --resume goes on from the last checkpoint"
        print(f"\ninterrupted{hint * resumable}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, `head` for one, has seen enough. Python's own last
        # flush must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return failed(error)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        return failed(
            "the device is out of memory; lower --micro-batch-size or "
            f"--seq-len, or see `minimind doctor` ({error})"
        )
    return 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line, without the place in the code it came from."""
    print(f"warning: {message}", file=file or sys.stderr)
