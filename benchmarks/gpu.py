"""Check and measure everything that needs an NVIDIA GPU, in ten minutes.

    make gpu-check PY=python3
    make gpu-check PY=python3 GPU="--only attention speed"
    make gpu-check PY=python3 GPU="--upstream ../minimind"

It runs with the Python it is given, installs nothing, and says what it had to
leave out. The results are written to benchmarks/results/<card>.json, which
chapter 10 prints. The parts, in the order they run:

tests       the tests that are marked `gpu`
attention   which kernel is chosen for each situation, its error, its speed
formats     the same training in float32, TF32, float16 and bfloat16
speed       a training step, eager and compiled, beside transformers' Qwen3
            and, if a path to its clone is given, upstream MiniMind
memory      the measured peak beside the formula of `minimind_core.cost`
whole       the trainer with its data, and the share of time the GPU is busy
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minimind_core.acceleration import accelerate
from minimind_core.attention import (
    attend,
    attention_weights,
    build_mask,
    expand,
    fit_attention,
    kernel_for,
)
from minimind_core.config import ModelConfig, TrainConfig, get_preset
from minimind_core.cost import flops_per_token, training_memory
from minimind_core.data import Row
from minimind_core.model import MiniMind
from minimind_core.optim import build_optimizer, gradient_norm
from minimind_core.precision import detect_device, resolve
from minimind_core.train import Trainer

ROOT = Path(__file__).resolve().parents[1]
Results = dict[str, Any]
BASE = get_preset("base").model
LENGTH = 512
SKIPPED: list[str] = []


def skip(what: str, why: object) -> None:
    """Note, and say, that something was left out."""
    SKIPPED.append(f"{what}: {why}")
    print(f"  left out: {what}: {why}", flush=True)


# --- measuring -------------------------------------------------------------


def timed(work: Callable[[], Any], repeat: int = 10, warm: int = 3) -> float:
    """Median seconds of a piece of work, by the GPU's own clock."""
    for _ in range(warm):
        work()
    pairs = []
    for _ in range(repeat):
        start, end = (
            torch.cuda.Event(enable_timing=True) for _ in range(2)
        )
        start.record()
        work()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in pairs) / 1e3


def free() -> None:
    """Give back what an earlier measurement held."""
    gc.collect()
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def matmul_peak(dtype: torch.dtype, size: int = 8192) -> float:
    """FLOPs per second of a large matrix product of random numbers."""
    a, b = (
        torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2)
    )
    return 2 * size**3 / timed(lambda: a @ b)


def has_bf16() -> bool:
    """Whether the card computes in bfloat16."""
    return detect_device("cuda").bf16


def half() -> torch.dtype:
    """The half-precision format that training uses on this card."""
    return torch.bfloat16 if has_bf16() else torch.float16


# --- tests -----------------------------------------------------------------


def run_tests() -> Results:
    """Run the tests marked `gpu` in a process of their own."""
    if importlib.util.find_spec("pytest") is None:
        skip("tests", "pytest is not installed")
        return {}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--no-header",
         "-p", "no:cacheprovider", "tests/test_attention.py",
         "tests/test_train.py", "tests/test_acceleration.py"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout[-6000:], done.stderr[-1000:])
    counts = {
        word: int(number)
        for number, word in re.findall(
            r"(\d+) (passed|failed|skipped|errors?)", done.stdout
        )
    }
    return {"exit_status": done.returncode, **counts}


# --- attention -------------------------------------------------------------


def by_definition(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    """Attention as a softmax over the whole table of scores."""
    weights = attention_weights(q, k, mask)
    return weights.to(v.dtype) @ expand(v, q)


def compare_attention() -> Results:
    """Each path: the kernel chosen, its error and its time, both ways."""
    heads, shared, width = 8, 4, BASE.head_width
    rows = 16
    found: Results = {}
    documents = document_ids(rows, LENGTH, 128)
    for dtype, situation in itertools.product(
        (torch.float32, torch.float16, torch.bfloat16),
        ("causal", "packed", "padded"),
    ):
        if dtype == torch.bfloat16 and not has_bf16():
            continue
        torch.manual_seed(0)

        def draw(count: int, dtype: torch.dtype = dtype) -> Tensor:
            x = torch.randn(rows, count, LENGTH, width, device="cuda")
            return x.to(dtype).requires_grad_()

        q, k, v = draw(heads), draw(shared), draw(shared)
        x = torch.zeros(rows, LENGTH, 8, device="cuda", dtype=dtype)
        options: dict[str, Any] = {}
        if situation == "packed":
            options["document_ids"] = documents
        if situation == "padded":
            padding = torch.ones(rows, LENGTH, device="cuda")
            padding[: rows // 2, :64] = 0
            options["attention_mask"] = padding
        mask = build_mask(x, width, **options)
        table = build_mask(x, width, table=True, **options)
        kernel = kernel_for(
            q, width, masked=situation == "padded",
            packed=situation == "packed",
        )  # fmt: skip
        seed = torch.randn_like(q)

        def both_ways(
            run: Callable[..., Tensor], with_mask: Any,
            q: Tensor = q, k: Tensor = k, v: Tensor = v, seed: Tensor = seed,
        ) -> tuple[Tensor, ...]:  # fmt: skip
            out = run(q, k, v, with_mask)
            return (out, *torch.autograd.grad(out, (q, k, v), seed))

        exact = both_ways(
            by_definition, table, q.double(), k.double(), v.double(),
            seed.double(),
        )  # fmt: skip
        ours = both_ways(attend, mask)
        error = max(
            float((one.detach().double() - other.detach()).norm()
                  / other.detach().norm())
            for one, other in zip(ours, exact, strict=True)
        )
        fast = timed(lambda: both_ways(attend, mask))  # noqa: B023
        slow = timed(lambda: both_ways(by_definition, table))  # noqa: B023
        name = f"{str(dtype).removeprefix('torch.')}, {situation}"
        found[name] = {
            "path": kernel.path, "reason": kernel.reason, "error": error,
            "seconds": fast, "times_faster_than_a_table": slow / fast,
        }  # fmt: skip
        print(f"  {name:<20} {kernel.path:<9} error {error:.1e}  "
              f"{fast * 1e3:6.2f} ms, {slow / fast:5.1f} x a table",
              flush=True)  # fmt: skip
        del exact, ours
    return found


# --- batches ---------------------------------------------------------------


def document_ids(rows: int, length: int, mean: int) -> Tensor:
    """Documents of random lengths in packed rows, on the CPU."""
    generator = torch.Generator().manual_seed(1)
    starts = torch.rand(rows, length, generator=generator) < 1 / mean
    starts[:, 0] = False
    return starts.long().cumsum(1)


def make_batch(model: ModelConfig, rows: int, packed: bool) -> Results:
    """A full batch of random tokens, as `collate` would return it."""
    ids = torch.randint(3, model.vocab_size, (rows, LENGTH), device="cuda")
    batch = {"input_ids": ids, "labels": ids}
    if packed:
        documents = document_ids(rows, LENGTH, 128)
        places = torch.arange(LENGTH).expand(rows, -1)
        first = torch.ones_like(documents, dtype=torch.bool)
        first[:, 1:] = documents[:, 1:] != documents[:, :-1]
        begun = torch.where(first, places, 0).cummax(1).values
        batch["document_ids"] = documents
        batch["position_ids"] = (places - begun).cuda()
    return batch


def training_step(
    model: nn.Module, config: TrainConfig, batch: Results, dtype: torch.dtype
) -> Callable[[], None]:
    """Forward, backward, clip and update, without waiting for the GPU."""
    name = str(dtype).removeprefix("torch.")
    optimizer = build_optimizer(model, config, name)
    autocast = torch.autocast("cuda", dtype)
    plain = not isinstance(model, MiniMind)
    options = {"use_cache": False} if plain else {}

    def step() -> None:
        with autocast if dtype != torch.float32 else nullcontext():
            loss = model(**batch, **options).loss
        loss.backward()
        gradient_norm(model, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


# --- formats ---------------------------------------------------------------


def compare_formats(steps: int = 60) -> Results:
    """The same short training in each number format."""
    from minimind_core.microworld import MicroworldStories

    texts = MicroworldStories("en", 0).records(range(6000))
    rows = byte_rows(texts, 256)
    shape = ModelConfig(
        vocab_size=300, hidden_size=512, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=2, intermediate_size=1408,
    )  # fmt: skip
    formats: dict[str, dict[str, Any]] = {
        "float32": {"dtype": "float32"},
        "float32 as TF32": {"dtype": "float32", "tf32": True},
        "float16 with scaler": {"dtype": "float16"},
        "bfloat16": {"dtype": "bfloat16"},
    }
    found: Results = {}
    for name, options in formats.items():
        if name in ("bfloat16", "float32 as TF32") and not has_bf16():
            skip(f"formats: {name}", "this card does not compute in it")
            continue
        free()
        torch.manual_seed(0)
        config = TrainConfig(
            steps=steps, batch_size=64, seq_len=256, lr=3e-3, device="cuda",
            optimizer="adamw", validate_every=0, log_every=1, packed=True,
            **options,
        )  # fmt: skip
        trainer = Trainer(MiniMind(shape), rows, config, progress=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            history = trainer.fit()
        late = history[steps // 2 :]
        seconds = late[-1]["seconds"] - late[0]["seconds"]
        tokens = late[-1]["tokens"] - late[0]["tokens"]
        found[name] = {
            "loss": statistics.fmean(r["loss"] for r in history[-10:]),
            "tokens_per_second": tokens / seconds,
            "memory": torch.cuda.max_memory_allocated(),
            "skipped_steps": trainer.skipped_steps,
        }
        print(f"  {name:<20} loss {found[name]['loss']:.4f}  "
              f"{tokens / seconds:10,.0f} tokens/s  "
              f"{found[name]['memory'] / 1e9:.2f} GB",
              flush=True)  # fmt: skip
    return found


def byte_rows(texts: list[str], length: int) -> list[Row]:
    """Packed rows of bytes, which need no tokenizer."""
    rows, ids, documents = [], [], []  # type: ignore[var-annotated]
    for number, text in enumerate(texts):
        mine = [1, *(b + 3 for b in text.encode()), 2]
        for token in mine:
            ids.append(token)
            documents.append(number)
            if len(ids) == length:
                first = documents[0]
                rows.append(Row(ids, ids, [d - first for d in documents]))
                ids, documents = [], []
    return rows


# --- speed -----------------------------------------------------------------


def upstream_model(path: Path) -> nn.Module:
    """MiniMind's own model, from a clone of its repository."""
    source = path / "model" / "model_minimind.py"
    spec = importlib.util.spec_from_file_location("upstream", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["upstream"] = module
    spec.loader.exec_module(module)
    made: nn.Module = module.MiniMindForCausalLM(module.MiniMindConfig())
    return made


def qwen3() -> nn.Module:
    """The model of the same shape in transformers."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    made: nn.Module = Qwen3ForCausalLM(Qwen3Config(**BASE.to_hf()))
    return made


def measure_speed(upstream: Path | None, peak: float) -> Results:
    """Tokens per second of a training step, with each way to run it."""
    adamw = TrainConfig(optimizer="adamw")
    muon = TrainConfig(optimizer="muon")
    ours: dict[str, tuple[int, bool, TrainConfig, dict[str, Any]]] = {
        "eager": (32, False, adamw, {}),
        "compiled": (32, False, adamw, {"compile": True}),
        "compiled, 64 rows": (64, False, adamw, {"compile": True}),
        "compiled, 128 rows": (128, False, adamw, {"compile": True}),
        "compiled, 128 rows, loss in chunks": (
            128, False, adamw, {"compile": True, "loss_chunk": 8192},
        ),
        "compiled, recomputing": (
            128, False, adamw,
            {"compile": True, "activation_checkpointing": True},
        ),
        "compiled, packed": (128, True, adamw, {"compile": True}),
        "compiled, packed, Muon": (128, True, muon, {"compile": True}),
    }  # fmt: skip
    found: Results = {}
    for name, (rows, packed, config, options) in ours.items():
        free()
        torch.manual_seed(0)
        model = MiniMind(BASE).cuda()
        accelerate(model, **options)
        found[name] = one_speed(
            name, model, config, rows, peak, packed=packed
        )
        del model
    others: dict[str, tuple[Callable[[], nn.Module], int, bool]] = {
        "compiled as a whole, 128 rows": (lambda: MiniMind(BASE), 128, True),
        "transformers": (qwen3, 32, False),
        "transformers, compiled": (qwen3, 32, True),
    }
    if upstream is None:
        skip("speed: upstream", "no --upstream PATH to a clone of MiniMind")
    else:
        make = lambda: upstream_model(upstream)  # noqa: E731
        others["upstream"] = (make, 32, False)
        others["upstream, compiled"] = (make, 32, True)
        others["upstream, compiled, 128 rows"] = (make, 128, True)
    for name, (build, rows, compiled) in others.items():
        free()
        torch.manual_seed(0)
        model = build().cuda()
        fit_attention(model)
        if compiled:
            model.compile()
        found[name] = one_speed(name, model, adamw, rows, peak)
        del model
    return found


def one_speed(
    name: str, model: nn.Module, config: TrainConfig, rows: int, peak: float,
    *, packed: bool = False,
) -> Results:  # fmt: skip
    """Time one way; an error is reported and does not end the others."""
    batch = make_batch(BASE, rows, packed)
    if not packed and not isinstance(model, MiniMind):
        batch = {k: batch[k] for k in ("input_ids", "labels")}
    step = training_step(model, config, batch, half())
    started = time.perf_counter()
    try:
        step()
        torch.cuda.synchronize()
        first = time.perf_counter() - started
        seconds = timed(step, repeat=8, warm=3)
    except Exception as error:  # whatever a compiler may raise
        skip(f"speed: {name}", f"{type(error).__name__}: {error}"[:500])
        return {}
    rate = rows * LENGTH / seconds
    found = {
        "rows": rows,
        "seconds": seconds,
        "tokens_per_second": rate,
        "utilization": rate * flops_per_token(BASE, LENGTH) / peak,
        "memory": torch.cuda.max_memory_allocated(),
        "first_step_seconds": first,
    }
    print(f"  {name:<34} {rate:10,.0f} tokens/s  "
          f"{found['utilization']:5.1%} of the peak  "
          f"{found['memory'] / 1e9:5.1f} GB  first step {first:.0f} s",
          flush=True)  # fmt: skip
    return found


# --- memory ----------------------------------------------------------------


def measure_memory() -> Results:
    """The peak of a step beside the formula, with AdamW."""
    found: Results = {}
    cases = itertools.product(
        (torch.float32, half()), (8, 32), (False, True)
    )
    for dtype, rows, compiled in cases:
        if compiled and dtype == torch.float32:
            continue
        free()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model = MiniMind(BASE).cuda()
        accelerate(model, compile=compiled)
        config = TrainConfig(
            optimizer="adamw", batch_size=rows, seq_len=LENGTH
        )
        batch = make_batch(BASE, rows, False)
        step = training_step(model, config, batch, dtype)
        for _ in range(2):
            step()
        torch.cuda.synchronize()
        measured = torch.cuda.max_memory_allocated() - before
        formula = sum(training_memory(BASE, config).values())
        name = (
            f"{str(dtype).removeprefix('torch.')}, {rows} rows"
            f"{', compiled' if compiled else ''}"
        )
        found[name] = {"measured": measured, "formula": formula}
        print(f"  {name:<28} measured {measured / 1e9:6.2f} GB, "
              f"formula {formula / 1e9:6.2f} GB", flush=True)  # fmt: skip
        del model, step, batch
    return found


# --- the whole trainer -----------------------------------------------------


class RandomRows:
    """An endless stream of packed rows that costs nothing to draw."""

    skipped = 0

    def __init__(self, model: ModelConfig, count: int = 512) -> None:
        # Arrays, as `data.shards` returns them.
        documents = document_ids(count, LENGTH, 128).int().numpy()
        ids = torch.randint(3, model.vocab_size, (count, LENGTH)).int()
        ids = ids.numpy()
        self.rows = [
            Row(i, i, d) for i, d in zip(ids, documents, strict=True)
        ]
        self.endless: Iterator[Row] = itertools.cycle(self.rows)

    def next_row(self) -> Row:
        """The next row."""
        return next(self.endless)

    def state_dict(self) -> Results:
        """No position."""
        return {}

    def load_state_dict(self, state: Results) -> None:
        """Nothing to go back to."""


def measure_trainer(peak: float, steps: int = 12) -> Results:
    """The preset `base` as a user would train it, a few steps of it."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    free()
    config = get_preset("base").pretrain.replace(
        steps=steps + 8, device="cuda", compile=True, micro_batch_size=128,
        validate_every=0, sample_every=0, save_every=0, log_every=1,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = Trainer(
        MiniMind(BASE), RandomRows(BASE), config, progress=False
    )
    trainer.model.train()
    for _ in range(4):
        trainer.train_step(trainer.model)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        trainer.train_step(trainer.model)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / steps
    with profile(
        activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]
    ) as profiled:
        started = time.perf_counter()
        for _ in range(3):
            trainer.train_step(trainer.model)
        torch.cuda.synchronize()
        wall = time.perf_counter() - started
    events = profiled.key_averages()
    # Operators carry the time of the kernels they start; count it once.
    kernels = [e for e in events if e.device_type == DeviceType.CUDA
               and not getattr(e, "is_user_annotation", False)]  # fmt: skip
    busy = sum(event.self_device_time_total for event in kernels) / 1e6
    slowest = sorted(kernels, key=lambda e: -e.self_device_time_total)[:12]
    rate = config.batch_size * LENGTH / seconds
    found = {
        "tokens_per_second": rate,
        "utilization": rate * flops_per_token(BASE, LENGTH) / peak,
        "seconds_per_step": seconds,
        "waited_for_data": trainer.waited / (trainer.step * seconds),
        "busy": busy / wall,
        "synchronizations": sum(
            event.count for event in events
            if event.key in ("cudaStreamSynchronize", "cudaDeviceSynchronize")
        ) / 3,
        "kernels": {
            event.key[:80]: event.self_device_time_total / 1e6 / 3
            for event in slowest
        },
    }  # fmt: skip
    print(f"  {rate:,.0f} tokens/s, {found['utilization']:.1%} of the peak")
    print(f"  the GPU is busy {found['busy']:.0%} of the time, with "
          f"{found['synchronizations']:.1f} waits a step")  # fmt: skip
    for key, own in found["kernels"].items():
        print(f"    {own * 1e3:7.2f} ms  {key}")
    return found


# --- all of it -------------------------------------------------------------

PARTS = ("tests", "attention", "formats", "speed", "memory", "whole")


def main() -> None:
    """Run the parts that were asked for, and write what they found."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--upstream", type=Path, metavar="CLONE")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            "gpu-check: this Python's torch sees no NVIDIA GPU. Give it one "
            "that does: make gpu-check PY=/path/to/python"
        )
    card = torch.cuda.get_device_name()
    name = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    out = options.out or ROOT / "benchmarks" / "results" / f"{name}.json"
    peak = matmul_peak(half())
    results: Results = {
        "card": card,
        "device_memory": detect_device("cuda").memory_bytes,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "half": str(half()).removeprefix("torch."),
        "matmul_peak": peak,
        "precision": resolve("cuda").reason,
    }
    print(f"{card}, torch {torch.__version__}: {results['half']} products "
          f"reach {peak / 1e12:.0f} TFLOP/s", flush=True)  # fmt: skip
    work: dict[str, Callable[[], Results]] = {
        "tests": run_tests,
        "attention": compare_attention,
        "formats": compare_formats,
        "speed": lambda: measure_speed(options.upstream, peak),
        "memory": measure_memory,
        "whole": lambda: measure_trainer(peak),
    }
    for part in PARTS:
        if part not in options.only:
            continue
        started = time.perf_counter()
        print(f"{part}:", flush=True)
        try:
            results[part] = work[part]()
        except Exception as error:  # one part must not hide the others
            skip(part, f"{type(error).__name__}: {error}"[:2000])
        print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)
        results["skipped"] = SKIPPED
        out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results, indent=1, allow_nan=False, default=str)
        out.write_text(text + "\n", encoding="utf-8")
    print(f"written to {out}")
    if results.get("tests", {}).get("exit_status"):
        sys.exit(1)


if __name__ == "__main__":
    main()
