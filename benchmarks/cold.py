"""How long a chapter takes on a machine that has trained nothing yet.

    python benchmarks/cold.py 07_sft             # fetches from _build/html
    python benchmarks/cold.py 07_sft --train     # trains everything itself

The built book is served on this machine, so the times are without the
network. The chapter runs in a cache of its own, which is empty. "First" is
the first cell after the set-up that has an output.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that says nothing."""

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def serve(folder: Path) -> str:
    """Serve a folder in the background, and return its address."""
    handler = functools.partial(Quiet, directory=str(folder))
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{web.server_port}"


def run(path: Path) -> dict[str, float]:
    """Run a notebook; seconds to its models, first output and end."""
    book = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    found: dict[str, float] = {}

    def note(cell: Any, cell_index: int, **more: Any) -> None:
        now = time.perf_counter() - start
        if cell.cell_type != "code":
            return
        if 'find_spec("minimind_core")' in cell.source:
            found["set up"] = now
        elif "get_stage(" in cell.source:
            found.setdefault("models", now)
        shown = any(o.output_type != "stream" for o in cell.outputs)
        if "models" in found and shown:
            found.setdefault("first", now)

    NotebookClient(
        book, timeout=3600, kernel_name="python3",
        on_cell_executed=note, resources={"metadata": {"path": path.parent}},
    ).execute()  # fmt: skip
    return found | {"all": time.perf_counter() - start}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("chapter", nargs="?", default="07_sft")
    parser.add_argument("--train", action="store_true")
    options = parser.parse_args()
    html = ROOT / "_build" / "html"
    os.environ["MINIMIND_STAGES"] = "off" if options.train else serve(html)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["MINIMIND_CACHE"] = cache
        found = run(ROOT / "book" / f"{options.chapter}.ipynb")
        size = sum(
            file.stat().st_size
            for file in Path(cache, "published").rglob("*")
            if file.is_file()
        )
    said = ", ".join(f"{name} {took:.0f} s" for name, took in found.items())
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{options.chapter}: {said}; {size / 1e6:.1f} MB; load {load}")


if __name__ == "__main__":
    main()
