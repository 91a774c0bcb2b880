"""Which number format a device should compute in, and why.

    from minimind_core.precision import resolve
    precision = resolve("cuda", "auto")
    print(precision.reason)
    with precision.autocast():
        loss = model(input_ids, labels=labels).loss
    precision.scaler().scale(loss).backward()

Three questions that are easily mixed up are answered separately here. Which
dtype runs? The one that autocast is told, always by name. Do its gradients
need scaling? Those of float16 do, because it has no number below 6e-8;
bfloat16 has the exponents of float32, so its gradients don't. And was the
request granted? If the device cannot do what was asked, there is a warning
that says what runs instead, or an error.

`resolve` is a pure rule: it reads no clock and remembers nothing. On a CPU
the right answer depends on the processor's speed in each format, which no
flag tells, so the rule takes measured times as an argument.
`calibration.choose_precision` measures them.
"""

from __future__ import annotations

import os
import platform
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from minimind_core.errors import PrecisionError

DTYPES = ("float32", "bfloat16", "float16")
SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16",
         "half": "float16"}  # fmt: skip


@dataclass(frozen=True)
class DeviceFacts:
    """What the rules of this package need to know about a device.

    They are passed as an argument wherever something depends on the device,
    so that the choice for a T4 can be tested on a machine without a GPU.

    Attributes
    ----------
    type : {"cpu", "cuda", "mps"}
    name : str
        The model, such as ``Tesla T4``, for messages.
    bf16 : bool
        Whether the hardware computes in bfloat16. An emulation does not
        count: ``torch.cuda.is_bf16_supported()`` says True on a T4, which
        has none. For a CPU it does not follow that bfloat16 is faster; see
        `StepTimings`.
    capability : tuple of int, optional
        CUDA's compute capability.
    memory_bytes : int, optional
    """

    type: str
    name: str
    bf16: bool
    capability: tuple[int, int] | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class StepTimings:
    """How long one training step takes in each format, on one CPU.

    A processor's flags don't tell which format is faster. An Intel Xeon with
    ``avx512_bf16`` but without AMX reached between 0.64 and 0.93 of
    float32's training speed in bfloat16; AMD's Zen 4, which has the same
    flag, reached about 1.6. Nor does the time of a matrix product: one that
    ran 2.2 times faster made the training step only 1.2 times faster,
    because the rest of the step (norms, softmax, the optimizer and the
    conversions between the formats) does not get faster with it. Therefore
    a whole step is timed: see `calibration.measure_step`.

    Attributes
    ----------
    float32, bfloat16 : float
        Seconds a step: forward, backward and optimizer.
    batch : str
        What a step was taken on, such as ``8 rows of 128 tokens``.
    """

    float32: float
    bfloat16: float
    batch: str = ""

    @property
    def speedup(self) -> float:
        """How many times faster bfloat16 is; below 1, it is slower."""
        return self.float32 / self.bfloat16

    @property
    def fastest(self) -> str:
        """The dtype to prefer: float32, unless bfloat16 is faster.

        A lead of less than 2% is within the error of the measurement, and
        then float32, which is more exact, is preferred.
        """
        return "bfloat16" if self.speedup > 1.02 else "float32"

    def __str__(self) -> str:
        """Both figures in words."""
        both = (
            f"float32 {_rate(self.float32)}, bfloat16 {_rate(self.bfloat16)}"
        )
        return both + (f", measured on {self.batch}" if self.batch else "")


def _rate(seconds: float) -> str:
    rate = 1 / seconds
    return f"{rate:.3g} steps/s" if rate < 999.5 else f"{rate:,.0f} steps/s"


@dataclass(frozen=True)
class Precision:
    """The answer: what to run, whether to scale, and the reason in words.

    Attributes
    ----------
    device : str
        As torch takes it.
    dtype : {"float32", "bfloat16", "float16"}
        What matrix products run in.
    needs_scaler : bool
    reason : str
        One sentence.
    """

    device: str
    dtype: str
    needs_scaler: bool
    reason: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's object."""
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found

    @property
    def device_type(self) -> str:
        """The device without its number."""
        return self.device.split(":")[0]

    def autocast(self) -> torch.autocast:
        """A context in which matrix products run in `dtype`.

        The dtype is always named. Left out, it would be float16 on a GPU
        whatever the user asked for: MiniMind's bug of 2024.
        """
        if self.dtype == "float32":
            # Autocast is off, so it never uses the dtype named here.
            return torch.autocast(
                self.device_type, torch.bfloat16, enabled=False
            )
        return torch.autocast(self.device_type, self.torch_dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """A gradient scaler that is on exactly where it is needed."""
        return torch.amp.GradScaler(
            self.device_type, enabled=self.needs_scaler
        )


# --- what the device is ----------------------------------------------------


def detect_device(device: str = "auto") -> DeviceFacts:
    """Ask torch and the system what a device is.

    Parameters
    ----------
    device : str
        ``auto`` (the GPU if there is one), ``cpu``, ``cuda``, ``cuda:N`` or
        ``mps``.

    Raises
    ------
    PrecisionError
        If there is no such device here.
    """
    kind, _, number = device.partition(":")
    if device == "auto":
        kind = "cpu"
        if torch.cuda.is_available():
            kind = "cuda"
        elif torch.backends.mps.is_available():
            kind = "mps"
    if kind == "cuda":
        return _cuda(device, number)
    if kind == "mps" and not number:
        if not torch.backends.mps.is_available():
            raise PrecisionError(
                "device 'mps': this is no Mac with Metal, or torch was built "
                "without it; use --device cpu"
            )
        # Metal computes in bfloat16 from macOS 14 on.
        version = platform.mac_ver()[0].split(".")[0]
        return DeviceFacts("mps", "Apple GPU", int(version or 0) >= 14)
    if kind == "cpu" and not number:
        return DeviceFacts(
            "cpu", _cpu_name(), _cpu_has_bf16(), memory_bytes=_cpu_memory()
        )
    raise PrecisionError(
        f"unknown device {device!r}; there is auto, cpu, cuda, cuda:N, mps"
    )


def _cuda(device: str, number: str) -> DeviceFacts:
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = "no GPU is visible" if built else "this torch is a CPU build"
        raise PrecisionError(
            f"device {device!r}: {why}; use --device cpu, or see "
            "https://pytorch.org/get-started/locally/"
        )
    count = torch.cuda.device_count()
    if number and (not number.isdigit() or int(number) >= count):
        raise PrecisionError(
            f"device {device!r}: there are {count} GPUs, numbered from 0"
        )
    index = int(number or 0)
    properties = torch.cuda.get_device_properties(index)
    capability = torch.cuda.get_device_capability(index)
    # AMD's matrix units have bfloat16 throughout; the numbers are NVIDIA's.
    native = capability >= (8, 0) or torch.version.hip is not None
    return DeviceFacts(
        "cuda", properties.name, native, capability, properties.total_memory
    )


def _cpu_has_bf16() -> bool:
    """Whether the processor has instructions that multiply bfloat16.

    On x86 these are avx512_bf16 or AMX, on Arm the bf16 extension. Without
    them, torch converts every operand to float32 and back, which can only
    be slower than float32. With them, bfloat16 may be faster or not.
    """
    flags = _cpu_flags()
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def _cpu_flags() -> set[str]:
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        return {name for name, has in capabilities().items() if has is True}
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return set()
    for line in info.read_text(errors="replace").splitlines():
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(values.split())
    return set()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


# --- the rule --------------------------------------------------------------


def resolve(
    device: str = "auto",
    dtype: str = "auto",
    *,
    facts: DeviceFacts | None = None,
    timings: StepTimings | None = None,
    origin: str = "as asked",
) -> Precision:
    """Choose the number format for a device, or check the one asked for.

    Parameters
    ----------
    device : str
        See `detect_device`.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        ``fp32``, ``bf16`` and ``fp16`` are understood as well.
    facts : DeviceFacts, optional
        Those of a device that may not be here; detected if not given.
    timings : StepTimings, optional
        What decides ``auto`` on a CPU that has bfloat16. Without it, the
        answer is float32 there.
    origin : str
        Where a dtype other than ``auto`` comes from; it becomes part of the
        reason. A run that is resumed, or another process of the same run,
        gives its recorded dtype and ``as recorded by the run``: results
        depend on the dtype to the bit, so it is not chosen again.

    Returns
    -------
    Precision

    Raises
    ------
    PrecisionError
        For an unknown dtype or device, or if `device` and `facts` don't
        belong together.

    Warns
    -----
    UserWarning
        If the device cannot do what was asked, and another format that
        serves as well is taken instead.

    Notes
    -----
    =====================  ==================  ========
    device                 ``auto``            scaler
    =====================  ==================  ========
    GPU, Ampere or newer   bfloat16            off
    older GPU (T4, V100)   float16             on
    Apple GPU              float32             off
    CPU with bfloat16      the faster of both  off
    CPU without            float32             off
    =====================  ==================  ========
    """
    wanted = SHORT.get(dtype, dtype)
    if wanted != "auto" and wanted not in DTYPES:
        raise PrecisionError(
            f"unknown dtype {dtype!r}; there is auto, {', '.join(DTYPES)}"
        )
    facts = facts or detect_device(device)
    if device != "auto" and device.partition(":")[0] != facts.type:
        raise PrecisionError(
            f"device {device!r} was asked for, but {facts.name} is of type "
            f"{facts.type!r}"
        )
    where = device if device.startswith(facts.type) else facts.type
    name = facts.name
    if wanted == "auto":
        return _automatic(where, facts, timings)
    if wanted == "float32":
        return Precision(
            where, "float32", False,
            f"float32 {origin} on {name}: autocast is off, and nothing needs "
            "scaling",
        )  # fmt: skip
    if wanted == "float16":
        slow = ", though slowly" if facts.type == "cpu" else ""
        return Precision(
            where, "float16", True,
            f"float16 {origin} on {name}{slow}: its smallest number is 6e-8, "
            "so the loss is scaled to keep small gradients from becoming "
            "zero",
        )  # fmt: skip
    if facts.bf16:
        return Precision(
            where, "bfloat16", False,
            f"bfloat16 {origin} on {name}: it has float32's range, so "
            "nothing needs scaling",
        )  # fmt: skip
    if facts.type == "cuda":
        return _with_warning(
            where, "float16", True,
            f"{name} has no bfloat16 (only an emulation, slower than "
            "float32), so float16 with a scaler runs instead",
        )  # fmt: skip
    return _with_warning(
        where, "float32", False,
        f"{name} does not compute in bfloat16, so float32 runs instead",
    )  # fmt: skip


def _automatic(
    where: str, facts: DeviceFacts, timings: StepTimings | None
) -> Precision:
    name = facts.name
    if facts.type == "cuda" and not facts.bf16:
        return Precision(
            where, "float16", True,
            f"{name} has float16 but no bfloat16; float16's range is small, "
            "so the loss is scaled",
        )  # fmt: skip
    if facts.type == "mps":
        return Precision(
            where, "float32", False,
            f"{name}: float32, because we have not measured whether another "
            "dtype is faster there; ask for bfloat16 to try it",
        )  # fmt: skip
    if facts.type == "cuda":
        return Precision(
            where, "bfloat16", False,
            f"{name} computes in bfloat16, which is faster than float32 and "
            "has its range, so nothing needs scaling",
        )  # fmt: skip
    if not facts.bf16:
        return Precision(
            where, "float32", False,
            f"{name} has no instructions for bfloat16, so float32 is faster "
            "there",
        )  # fmt: skip
    if timings is None:
        return Precision(
            where, "float32", False,
            f"{name} has instructions for bfloat16, but no measurement was "
            "made of whether they are faster, so float32 runs",
        )  # fmt: skip
    if timings.fastest == "bfloat16":
        why = f"bfloat16 trains {timings.speedup:.2f} times faster"
    elif timings.speedup > 1:
        why = "bfloat16 is hardly faster, so the more exact float32 runs"
    else:
        why = (
            "float32 trains faster, although the processor has instructions "
            "for bfloat16"
        )
    reason = f"{name}: {why} ({timings})"
    return Precision(where, timings.fastest, False, reason)


def _with_warning(
    where: str, dtype: str, needs_scaler: bool, reason: str
) -> Precision:
    warnings.warn(reason, UserWarning, stacklevel=3)
    return Precision(where, dtype, needs_scaler, reason)
