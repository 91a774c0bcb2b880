"""Report what this machine can do: device, dtype, speed and memory.

    from minimind_core.system import doctor
    print(doctor().text)
"""

from __future__ import annotations

import contextlib
import importlib.util
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from minimind_core.cache import cache_folder
from minimind_core.calibration import step_timings
from minimind_core.config import PRESETS
from minimind_core.cost import (
    compare_costs,
    passing_memory,
    training_memory,
)
from minimind_core.precision import (
    DeviceFacts,
    Precision,
    StepTimings,
    detect_device,
    resolve,
)
from minimind_core.threads import ThreadChoice, choose_threads, using_threads
from minimind_core.version import __version__

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors")
GIB = 1024**3


@dataclass(frozen=True)
class Report:
    """The report of `doctor`.

    Attributes
    ----------
    facts : DeviceFacts
    precision : Precision
    timings : StepTimings or None
        Times of a training step of the smallest preset, on a CPU with
        bfloat16.
    threads : ThreadChoice
        Number of threads for training the smallest preset now.
    versions : dict of str to str
    training_bytes : dict of str to int
        Estimated memory for training each preset at its own settings.
    warnings : list of str
    text : str
        The whole report, for printing.
    """

    facts: DeviceFacts
    precision: Precision
    timings: StepTimings | None
    threads: ThreadChoice
    versions: dict[str, str]
    training_bytes: dict[str, int]
    warnings: list[str]
    text: str


def doctor(device: str = "auto", dtype: str = "auto") -> Report:
    """Find out what this machine can do and what to expect of it.

    On a CPU that has bfloat16, a training step of the smallest preset is
    timed in both formats, unless this was done before.

    Parameters
    ----------
    device, dtype : str
        As in `precision.resolve`.

    Returns
    -------
    Report

    Raises
    ------
    PrecisionError
        If this machine has no such device.
    """
    facts = detect_device(device)
    tiny = PRESETS["tiny"]
    threads = choose_threads(tiny.model)
    timings = None
    if facts.type == "cpu" and facts.bf16:
        with using_threads(threads.number):
            timings = step_timings(
                tiny.model, tiny.pretrain.batch_size, tiny.pretrain.seq_len,
                optimizer=tiny.pretrain.optimizer, facts=facts,
            )  # fmt: skip
    precision = resolve(device, dtype, facts=facts, timings=timings)
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    needs = {
        name: sum(training_memory(preset.model, preset.pretrain).values())
        + passing_memory(preset.model, preset.pretrain)
        for name, preset in PRESETS.items()
    }
    warnings = _warnings()
    lines = [
        f"minimind-core {__version__}",
        "  ".join(f"{name} {number}" for name, number in versions.items()),
        "",
        f"device     {precision.device}: {facts.name}{_memory(facts)}",
        f"dtype      {precision.dtype}, gradient scaler "
        f"{'on' if precision.needs_scaler else 'off'}",
        f"because    {precision.reason}",
        *_speeds(facts, timings),
        f"threads    {threads.number}: {threads.reason}",
        "",
        "training   (estimated memory)",
    ]
    for name, preset in PRESETS.items():
        fits = ""
        if facts.memory_bytes:
            enough = needs[name] < 0.9 * facts.memory_bytes
            fits = "fits" if enough else "too large: lower micro_batch_size"
        lines.append(
            f"  {name:<6} {preset.model.num_parameters() / 1e6:5.1f}M "
            f"parameters  {needs[name] / GIB:5.1f} GiB  {fits}"
        )
    lines += ["", "cost       (of all three trainings together, estimated)"]
    lines += [f"  {line}" for line in compare_costs().splitlines()]
    folder = cache_folder()
    size = _folder_bytes(folder)
    lines += ["", f"cache      {folder} ({size / 1e6:.0f} MB)"]
    lines += [f"warning    {warning}" for warning in warnings]
    return Report(
        facts, precision, timings, threads, versions, needs, warnings,
        "\n".join(lines),
    )  # fmt: skip


def _speeds(facts: DeviceFacts, timings: StepTimings | None) -> list[str]:
    """How fast a CPU trains in each format."""
    if facts.type != "cpu":
        return []
    if timings is None:
        return ["speed      this processor has no bfloat16 to compare with"]
    return [f"speed      tiny: {timings}"]


def _folder_bytes(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        # Another process may be replacing the file right now.
        with contextlib.suppress(FileNotFoundError):
            if file.is_file():
                total += file.stat().st_size
    return total


def _memory(facts: DeviceFacts) -> str:
    if not facts.memory_bytes:
        return ""
    return f", {facts.memory_bytes / GIB:.0f} GiB"


def _warnings() -> list[str]:
    """Warnings about known problems of the installed packages."""
    found: list[str] = []
    if importlib.util.find_spec("torchao") is not None:
        try:
            numbers = version("torchao").split(".")
        except PackageNotFoundError:
            return found
        if tuple(map(int, numbers[:2])) < (0, 16):
            found.append(
                "torchao is too old for peft, which then refuses LoRA: "
                "pip uninstall -y torchao"
            )
    return found
