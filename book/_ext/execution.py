"""Execute the notebooks that need it, two at a time.

Executed notebooks are kept by jupyter-cache, which compares their cells but
knows nothing of the package that the cells import. So each version of the
package has a cache of its own, in a folder that is named by a digest of the
package's files. A change of prose executes nothing, a change in a cell
executes that notebook, and a change in the package executes all of them.
The digest takes the files as they are, comments and docstrings included,
because the pages print them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "minimind_core"
CACHES = ROOT / "_build" / ".jupyter_cache"
KEEP = 3

# Libraries whose version changes what a notebook prints or draws.
EXECUTED_WITH = (
    "ipywidgets", "matplotlib", "numpy", "peft", "tokenizers", "torch",
    "transformers",
)  # fmt: skip


def digest() -> str:
    """A short name for the package as it is, and the libraries below it."""
    found = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*")):
        if file.suffix in {".py", ".json", ".txt"}:
            name = file.relative_to(PACKAGE).as_posix()
            found.update(f"{name}\n".encode() + file.read_bytes())
    for name in EXECUTED_WITH:
        found.update(f"{name}=={metadata.version(name)}\n".encode())
    return found.hexdigest()[:16]


def use_cache(app: Sphinx, config: Any) -> None:
    """Point MyST-NB to the cache of this version, and remove old ones.

    Sphinx reads every page again when this setting has changed.
    """
    folder = CACHES / digest()
    config.nb_execution_cache_path = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    folder.touch()  # it is the newest
    there = sorted(CACHES.iterdir(), key=lambda one: one.stat().st_mtime)
    for old in there[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def failed(
    app: Sphinx, env: Any, added: set, changed: set, removed: set
) -> list[str]:
    """Have notebooks read again that failed in the build before."""
    return sorted(getattr(env, "minimind_failed", set()) & env.found_docs)


def join_streams(book: Any) -> None:
    """Join what a cell has printed in pieces, each where it belongs.

    MyST-NB joins pieces too, and ends a line after each: a line that reached
    us in two pieces would be broken on the page. (nbclient's
    `coalesce_streams` would move what is printed after a picture before it.)
    """
    for cell in book.cells:
        joined: list[Any] = []
        for output in cell.get("outputs", []):
            # Streams have a name, and no other output has.
            if joined and output.get("name", "") == joined[-1].get("name"):
                joined[-1]["text"] += output["text"]
            else:
                joined.append(output)
        if joined:
            cell["outputs"] = joined


def execute(app: Sphinx, env: Any, names: list[str]) -> None:
    """Execute what is not in the cache, before MyST-NB looks there.

    A notebook that fails is not kept. MyST-NB executes it once more when it
    comes to it, and warns with the cell and the traceback, which fails a
    strict build. jupyter-cache's own executor `local-parallel` will not do:
    it starts a kernel for every core, and each of them loads PyTorch.
    """
    if app.config.nb_execution_mode != "cache":
        return
    store = get_cache(app.config.nb_execution_cache_path)
    to_do: dict[str, Any] = {}
    for name in names:
        path = env.doc2path(name)
        if path.endswith(".ipynb"):
            book = nbformat.read(path, as_version=4)
            try:
                store.match_cache_notebook(book)
            except KeyError:
                to_do[name] = book
    env.minimind_failed = set()
    if not to_do:
        return

    jobs = int(os.environ.get("WORKERS") or min(2, os.cpu_count() or 1))
    # Processes that each take all cores wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logger.info("executing %d notebooks, %d at a time", len(to_do), jobs)
    with ThreadPoolExecutor(jobs) as pool:
        running = {
            pool.submit(
                single_nb_execution,
                book,
                cwd=str(Path(env.doc2path(name)).parent),
                timeout=app.config.nb_execution_timeout,
                allow_errors=False,
            ): name
            for name, book in to_do.items()
        }
        for done in as_completed(running):
            name, result = running[done], done.result()
            if result.err is not None:
                env.minimind_failed.add(name)
                continue
            logger.info("executed %s in %.0f s", name, result.time)
            join_streams(result.nb)
            kept = CacheBundleIn(result.nb, env.doc2path(name), data={
                "execution_seconds": result.time,
            })  # fmt: skip
            store.cache_notebook_bundle(
                kept, check_validity=False, overwrite=True
            )


def setup(app: Sphinx) -> None:
    """Connect to the build; `minimind_book` calls this."""
    app.connect("config-inited", use_cache)
    app.connect("env-get-outdated", failed)
    app.connect("env-before-read-docs", execute)
