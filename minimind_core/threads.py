"""How many threads a training uses, and how they wait for one another.

    from minimind_core.threads import set_wait_policy
    set_wait_policy()          # before torch is imported
    import torch

    from minimind_core.threads import choose_threads, using_threads
    choice = choose_threads(model)
    with using_threads(choice.number):
        trainer.fit()

A step of a small model consists of hundreds of parallel regions, and at the
end of each the threads wait for the slowest. OpenMP lets them *spin* while
they wait, that is, ask again and again whether the others are done. If every
thread has a core to itself this is the quickest way. If another program needs
a core as well, the spinning threads keep busy the very core that the slowest
thread is waiting for: on two cores beside one busy program, the training of
`tiny` kept 18% of its speed, and 73% with threads that sleep instead. When
nothing else was running, sleeping cost about 4%.

So the command line and the notebooks ask for sleeping threads, and a run
uses as many threads as there are idle cores when it starts. To see both
effects on your machine, run ``python benchmarks/threads.py``.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WAIT_POLICY = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Environment variables that let waiting threads sleep.

The first is OpenMP's own. GNU's library, which PyTorch uses on Linux, takes
it to mean a ``GOMP_SPINCOUNT`` of 0, so this one need not be set as well.
LLVM's and Intel's library, which PyTorch uses on a Mac and on Windows, have a
time in milliseconds of their own, after which a waiting thread sleeps.
"""

# Variables by which users say how many threads they want.
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# A second thread made the half million parameters of `tiny` 1.5 times faster
# on one machine, and not at all on another. Smaller models are not worth one.
# That larger models profit from more threads in proportion is an assumption:
# we have only measured machines with two cores.
PARAMETERS_PER_THREAD = 250_000
# Long enough to see a busy process, which the system counts in hundredths of
# a second, and short enough for nobody to wait.
SAMPLE_SECONDS = 0.2


@dataclass(frozen=True)
class ThreadChoice:
    """A number of threads and the reason for it.

    Attributes
    ----------
    number : int
    reason : str
        A part of a sentence, without a full stop.
    """

    number: int
    reason: str


def set_wait_policy(
    environment: MutableMapping[str, str] | None = None,
) -> bool:
    """Let threads sleep while they wait, unless the user has chosen.

    OpenMP reads its variables when it is loaded, so this must happen before
    torch is imported. It is not done by importing this package, because the
    environment belongs to the program and not to a library in it.

    Parameters
    ----------
    environment : mapping, optional
        ``os.environ`` if not given.

    Returns
    -------
    bool
        Whether the policy was set. False if ``OMP_WAIT_POLICY`` is set
        already, or if torch has been imported, when it would be too late.
    """
    if environment is None:
        environment = os.environ
    if "torch" in sys.modules or "OMP_WAIT_POLICY" in environment:
        return False
    for name, value in WAIT_POLICY.items():
        environment.setdefault(name, value)
    return True


def choose_threads(
    model: Any,
    *,
    limit: int | None = None,
    cores: int | None = None,
    busy: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> ThreadChoice:
    """Choose how many threads a training should use, once, at its start.

    Results depend on the number of threads in their last bits, so it must
    not change during a run: record it, and reuse it when the run is resumed.

    Parameters
    ----------
    model : int, ModelConfig or nn.Module
        The number of parameters, or what can tell it.
    limit : int, optional
        More threads than this are never chosen. torch's current number if
        not given, so that ``torch.set_num_threads`` is respected.
    cores : int, optional
        See `available_cores`, which is asked if not given.
    busy : float, optional
        How many cores are in use by other programs; see `busy_cores`, which
        looks for a fifth of a second if not given.
    environment : mapping, optional
        ``os.environ`` if not given. A user's ``OMP_NUM_THREADS`` or
        ``MKL_NUM_THREADS`` is always followed.

    Returns
    -------
    ThreadChoice
    """
    if environment is None:
        environment = os.environ
    if limit is None:
        import torch

        limit = torch.get_num_threads()
    for name in COUNTS:
        if environment.get(name):
            return ThreadChoice(
                limit, f"{name} is set to {environment[name]}"
            )
    if limit == 1:
        return ThreadChoice(1, "torch is set to use one")
    parameters = _parameters(model)
    useful = max(1, math.ceil(parameters / PARAMETERS_PER_THREAD))
    cores = available_cores(environment) if cores is None else cores
    most = min(limit, cores, useful)
    if most == 1:
        if cores == 1:
            return ThreadChoice(1, "there is one core")
        return ThreadChoice(
            1, f"a model of {parameters:,} parameters is too small for more"
        )
    busy = busy_cores() if busy is None else busy
    # A core that is in use for less than half of the time counts as idle.
    idle = max(1, cores - math.floor(busy + 0.5))
    if idle < most:
        return ThreadChoice(
            idle,
            f"other programs keep {busy:.1f} of {cores} cores busy, and "
            "threads that share a core wait for one another",
        )
    if useful < min(limit, cores):
        return ThreadChoice(
            most,
            f"more would not help a model of {parameters:,} parameters",
        )
    if limit < cores:
        return ThreadChoice(
            most, f"torch is set to use {limit} of {cores} cores"
        )
    return ThreadChoice(most, f"{cores} cores are available")


@contextlib.contextmanager
def using_threads(number: int) -> Iterator[None]:
    """Let torch use a number of threads, and the old number afterwards.

    Parameters
    ----------
    number : int
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def available_cores(environment: Mapping[str, str] | None = None) -> int:
    """How many cores this process may use.

    Fewer than the machine has, if the process is bound to some of them, if
    its container is allowed only so much processor time, or if torchrun has
    started several processes that share the machine.

    Returns
    -------
    int
        At least 1.
    """
    if environment is None:
        environment = os.environ
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # a Mac, or Windows
        cores = os.cpu_count() or 1
    cores = min(cores, _quota() or cores)
    processes = environment.get("LOCAL_WORLD_SIZE", "")
    sharing = int(processes) if processes.isdigit() else 1
    return max(1, cores // max(1, sharing))


def busy_cores(seconds: float = SAMPLE_SECONDS) -> float:
    """How many of the cores that we may use are busy at the moment.

    This process waits meanwhile, so what is measured are the others. The
    system's load average is no substitute, because it looks back a minute:
    it still counts the stage that we have just finished, and hardly counts
    a program that was started five seconds ago.

    Parameters
    ----------
    seconds : float
        For how long to look.

    Returns
    -------
    float
        Cores; 0.0 where the system does not tell.
    """
    import psutil

    try:
        shares = psutil.cpu_percent(seconds, percpu=True)
    except (OSError, RuntimeError):
        return 0.0
    if hasattr(os, "sched_getaffinity"):
        ours = os.sched_getaffinity(0)
        shares = [s for number, s in enumerate(shares) if number in ours]
    return sum(shares) / 100


def _parameters(model: Any) -> int:
    if isinstance(model, int):
        return model
    if callable(getattr(model, "num_parameters", None)):
        return int(model.num_parameters())
    return sum(parameter.numel() for parameter in model.parameters())


def _quota(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """How many cores' time a Linux container may use, if it is limited."""
    for quota_file, period_file in (
        ("cpu.max", None),  # cgroup 2: both numbers in one line
        ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),  # cgroup 1
    ):
        try:
            words = (root / quota_file).read_text().split()
            if period_file is not None:
                words += (root / period_file).read_text().split()
            quota, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):
            continue  # not there, or "max", which means no limit
        if quota > 0 and period > 0:
            return max(1, quota // period)
    return None
