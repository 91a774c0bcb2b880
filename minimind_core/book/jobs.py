"""Run jobs that depend on one another, a few processes at a time.

    run_jobs({
        "tokenizer": Job(partial(get_stage, "tokenizer")),
        "pretrain": Job(partial(get_stage, "pretrain"), after="tokenizer"),
        "binding": Job(partial(get_study, "binding"), after="tokenizer"),
    }, workers=2)

The models of the book are so small that a second thread helps little. Running
two jobs in two processes, with one thread each, helps more, and then the bits
of a result do not depend on what ran beside it.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any, NamedTuple

import torch


class Job(NamedTuple):
    """A call, and the job that must be finished before it.

    Attributes
    ----------
    function : callable
        Takes no arguments. It is sent to another process, so it must be
        defined in a module, or a partial of what is. What it returns is not
        kept: it leaves its result in the cache.
    after : str or None
        Name of a job.
    """

    function: Callable[[], Any]
    after: str | None = None


def run_jobs(
    jobs: Mapping[str, Job], workers: int, *, progress: bool = True
) -> None:
    """Run each job in another process, as soon as it can begin.

    Parameters
    ----------
    jobs : mapping of str to Job
        Of the jobs that can begin, the first ones do. So put first what
        others wait for, or what takes longest.
    workers : int
        How many run at a time.
    progress : bool
        Print a line as each job ends. What the jobs print is passed on in
        any case, each line with the name of its job.

    Raises
    ------
    ValueError
        If a job comes after one that is not there.
    Exception
        What a job raised. Running jobs are finished first, and no other is
        started.
    """
    for name, job in jobs.items():
        if job.after is not None and job.after not in jobs:
            raise ValueError(f"{name}: there is no job {job.after!r}")
    waiting, done = dict(jobs), set[str]()
    with ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    ) as pool:
        running: dict[Any, str] = {}
        while waiting or running:
            ready = [
                name
                for name, job in waiting.items()
                if job.after is None or job.after in done
            ]
            if not ready and not running:
                raise ValueError(f"in a circle: {', '.join(waiting)}")
            for name in ready[: workers - len(running)]:
                running[pool.submit(_timed, name, waiting.pop(name))] = name
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                name = running.pop(future)
                try:
                    seconds = future.result()
                except Exception:
                    pool.shutdown(cancel_futures=True)
                    raise
                done.add(name)
                if progress:
                    print(
                        f"{len(done)}/{len(jobs)} {name}: {seconds:.0f} s",
                        flush=True,
                    )


def _timed(name: str, job: Job) -> float:
    """Run one job and return its time in seconds."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(_Lines(name)):
        job.function()
    return time.perf_counter() - start


class _Lines(io.TextIOBase):
    """Prefixes each line with the job's name, since several may write."""

    def __init__(self, name: str) -> None:
        self.name, self.out, self.begun = name, sys.stdout, ""

    def write(self, text: str) -> int:
        """Pass on complete lines, without the updates of progress bars."""
        *lines, self.begun = (self.begun + text).split("\n")
        for line in lines:
            said = line.rstrip("\r").rpartition("\r")[2].strip()
            if said:
                print(f"  {self.name}: {said}", file=self.out, flush=True)
        return len(text)
