"""Train every stage and compute every study that the pages show.

Nothing is fetched from the published book: the pages say that their models
were trained where they were built.

    python -m minimind_core.book             # what `make stages` does
    python -m minimind_core.book --clear     # remove the cache
"""

from __future__ import annotations

import argparse
import os
import shutil
from functools import partial

from minimind_core.book.jobs import Job, run_jobs
from minimind_core.book.published import VARIABLE
from minimind_core.book.stages import STAGES, get_stage
from minimind_core.book.studies import (
    get_studies,
    get_study,
    stage_for,
    studies,
)
from minimind_core.cache import cache_folder


def everything() -> dict[str, Job]:
    """Every stage and every study, as jobs of which some wait for others.

    The stages come first, because each waits for the one before it. Beside
    them run the studies that need none but the tokenizer.
    """
    jobs: dict[str, Job] = {}
    before = None
    for stage in STAGES:
        jobs[stage] = Job(partial(get_stage, stage), after=before)
        before = stage
    for study in studies():
        jobs[study] = Job(partial(get_study, study), after=stage_for(study))
    return jobs


def main(arguments: list[str] | None = None) -> None:
    """Make every stage and every study of the book, or clear the cache."""
    parser = argparse.ArgumentParser(
        prog="python -m minimind_core.book", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--clear", action="store_true", help="remove the cache"
    )
    parser.add_argument(
        "--jobs", type=int, default=min(2, os.cpu_count() or 1),
        help="how many processes work at a time (%(default)s)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.clear:
        shutil.rmtree(cache_folder(), ignore_errors=True)
        print(f"removed {cache_folder()}")
        return
    os.environ[VARIABLE] = "off"  # in the processes that are started, too
    print(f"results are cached in {cache_folder()}", flush=True)
    if options.jobs > 1:
        run_jobs(everything(), options.jobs)
    else:
        get_stage(STAGES[-1])
        get_studies(*studies(), jobs=1)
    print("ready")


if __name__ == "__main__":
    main()
