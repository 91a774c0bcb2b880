"""Train every stage and compute every study that the pages show.

    python -m minimind_core.book             # what `make stages` does
    python -m minimind_core.book --clear     # remove the cache
"""

from __future__ import annotations

import argparse
import os
import shutil

from minimind_core.book.stages import STAGES, get_stage
from minimind_core.book.studies import get_studies, studies
from minimind_core.cache import cache_folder


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
        help="how many studies are made at a time (%(default)s)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.clear:
        shutil.rmtree(cache_folder(), ignore_errors=True)
        print(f"removed {cache_folder()}")
        return
    print(f"what is made is kept in {cache_folder()}", flush=True)
    get_stage(STAGES[-1])
    get_studies(*studies(), jobs=options.jobs)
    print("ready")


if __name__ == "__main__":
    main()
