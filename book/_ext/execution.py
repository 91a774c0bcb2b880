"""Which notebooks have to be executed, and executing them two at a time.

A notebook is executed again when one of its cells changes, or a library, or
a module of `minimind_core` that it can reach through imports; not when a
module changes that it cannot reach, and not when its prose does. Results lie
in `_build/.jupyter_cache`, each with a digest of what it depends on.

Imports are read from the source, and nothing is run for it. What the reading
assumes, a test holds: modules are imported by name only in the places that
`Imports` knows of.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
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
PACKAGE = "minimind_core"
ASKING = ("get_study", "get_studies")

# Libraries whose version changes what a notebook prints or draws.
EXECUTED_WITH = (
    "ipywidgets",
    "matplotlib",
    "numpy",
    "peft",
    "tokenizers",
    "torch",
    "transformers",
)


# --- what depends on what ---------------------------------------------------


class Imports:
    """Which modules of the package a piece of code can reach.

    Parameters
    ----------
    folder : Path
        The package.
    """

    def __init__(self, folder: Path) -> None:
        self.trees: dict[str, ast.Module] = {}
        self.files: dict[str, Path] = {}
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder.parent).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            self.files[name] = file
            self.trees[name] = ast.parse(file.read_text("utf8"))
        # Public name of the package -> module, as its __getattr__ has it.
        self.home: dict[str, str] = {}
        # Name of a study -> module, by which get_study imports it.
        self.studies: dict[str, str] = {}
        for name, tree in self.trees.items():
            for node in tree.body:
                if isinstance(node, ast.Assign | ast.AnnAssign):
                    self._note_table(name, node)

    def _note_table(self, module: str, node: Any) -> None:
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        named = {getattr(getattr(t, "target", t), "id", "") for t in targets}
        if not isinstance(node.value, ast.Dict):
            return
        keys = [k.value for k in node.value.keys if hasattr(k, "value")]
        if "_HOME" in named and module == PACKAGE:
            homes = [value.value for value in node.value.values]
            for key, home in zip(keys, homes, strict=True):
                self.home[key] = f"{PACKAGE}.{home}"
        if "STUDIES" in named:
            self.studies |= dict.fromkeys(keys, module)

    def reach(self, code: str) -> set[str]:
        """Every module that a notebook's code can reach.

        All of them if it does something whose reach cannot be seen: to
        import the package as a whole, to name it in a text (as a command
        line would), or to ask for a study by a name that is not written out.
        """
        tree = ast.parse(code)
        found: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and _names_it(node.value):
                return set(self.files)
            if isinstance(node, ast.Import):
                if any(one.name == PACKAGE for one in node.names):
                    return set(self.files)
            if isinstance(node, ast.Call) and _called(node) in ASKING:
                asked = [getattr(one, "value", None) for one in node.args]
                if not asked or not self.studies.keys() >= set(asked):
                    return set(self.files)
                found |= self._closure({self.studies[n] for n in asked})
        return found | self._closure(self._direct(tree, ""))

    def _closure(self, start: set[str]) -> set[str]:
        found: set[str] = set()
        to_do = {part for name in start for part in self._with_parents(name)}
        while to_do:
            name = to_do.pop()
            found.add(name)
            to_do |= self._of_module(name) - found
        return found

    def _with_parents(self, name: str) -> Iterator[str]:
        """A module, and the packages that are imported with it."""
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            if (part := ".".join(parts[:length])) in self.files:
                yield part

    @cache  # noqa: B019
    def _of_module(self, name: str) -> frozenset[str]:
        direct = self._direct(self.trees[name], name)
        return frozenset(p for d in direct for p in self._with_parents(d))

    def _direct(self, tree: ast.AST, module: str) -> set[str]:
        found: set[str] = set()
        for node in _followed(tree):
            if isinstance(node, ast.Import):
                found |= {one.name for one in node.names}
                if any(one.name == "pkgutil" for one in node.names):
                    found |= self._siblings(module)
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node, module)
                found.add(base)
                for one in node.names:
                    found.add(f"{base}.{one.name}")
                    if base == PACKAGE and one.name in self.home:
                        found.add(self.home[one.name])
        return {name for name in found if name in self.files}

    def _siblings(self, module: str) -> set[str]:
        """What a module reaches that goes through its package by name."""
        package = self._package(module)
        # Studies are named by those who ask for them: see `reach`.
        if package == f"{PACKAGE}.studies":
            return set()
        return {n for n in self.files if n.startswith(f"{package}.")}

    def _package(self, module: str) -> str:
        inside = self.files[module].name == "__init__.py"
        return module if inside else module.rpartition(".")[0]

    def _absolute(self, node: ast.ImportFrom, module: str) -> str:
        if not node.level:
            return node.module or ""
        parts = self._package(module).split(".")
        parts = parts[: len(parts) - node.level + 1]
        return ".".join([*parts, *filter(None, [node.module])])

    def digest(self, code: str) -> str:
        """A short name for all that a notebook's code depends on."""
        found = hashlib.sha256()
        for name in sorted(self.reach(code)):
            found.update(name.encode() + self.files[name].read_bytes())
        data = self.files[PACKAGE].parent
        for file in sorted(data.rglob("*")):
            if file.suffix in {".json", ".txt"}:
                found.update(file.name.encode() + file.read_bytes())
        for name in EXECUTED_WITH:
            found.update(f"{name}=={metadata.version(name)}".encode())
        return found.hexdigest()[:16]


def _followed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but what only a type checker or a command line runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If):
            if getattr(node.test, "id", "") == "TYPE_CHECKING":
                continue
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            continue
        yield node
        yield from _followed(node)


def _names_it(value: object) -> bool:
    """Whether a text could be a command or a program that uses it."""
    pattern = rf"\b{PACKAGE}\b|(?:^|[\s!])minimind(?:\s|$)"
    return isinstance(value, str) and re.search(pattern, value) is not None


def _called(node: ast.Call) -> str:
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


def code_of(path: Path) -> str:
    """The code of a notebook without its set-up cell; magics as texts."""
    book = nbformat.read(path, as_version=4)
    texts = [
        cell.source
        for cell in book.cells
        if cell.cell_type == "code"
        and f'find_spec("{PACKAGE}")' not in cell.source
    ]
    return re.sub(
        r"^(\s*)([%!].*)$",
        lambda match: match[1] + repr(match[2]),
        "\n".join(texts),
        flags=re.MULTILINE,
    )


# --- executing --------------------------------------------------------------


def cache_folder() -> Path:
    """Where executed notebooks are kept."""
    return ROOT / "_build" / ".jupyter_cache"


def digests(app: Sphinx) -> dict[str, str]:
    """What each notebook of the book depends on, by document."""
    imports = Imports(ROOT / PACKAGE)
    found: dict[str, str] = {}
    for name in app.env.found_docs:
        path = Path(app.env.doc2path(name))
        if path.suffix == ".ipynb":
            found[name] = imports.digest(code_of(path))
    return found


def outdated(
    app: Sphinx, env: Any, added: set, changed: set, removed: set
) -> list[str]:
    """Have notebooks read again when what they depend on has changed."""
    known = getattr(env, "minimind_digests", {})
    env.minimind_digests = digests(app)
    return [
        name
        for name, digest in env.minimind_digests.items()
        if known.get(name) != digest
    ]


def join_streams(book: Any) -> None:
    """Join what a cell has printed in pieces, each where it belongs.

    MyST-NB joins pieces too, and ends a line after each: a line that reached
    us in two pieces would be broken on the page.
    """
    for cell in book.cells:
        joined: list[Any] = []
        for output in cell.get("outputs", []):
            last = joined[-1] if joined else {}
            if (
                output["output_type"] == "stream"
                and last.get("output_type") == "stream"
                and last["name"] == output["name"]
            ):
                last["text"] += output["text"]
            else:
                joined.append(output)
        if joined:
            cell["outputs"] = joined


def execute(app: Sphinx, env: Any, names: list[str]) -> None:
    """Execute what is not in the cache, before MyST-NB looks there.

    A notebook that fails is a warning with its traceback, which fails a
    strict build; what it did until then is in the page.
    """
    if app.config.nb_execution_mode != "cache":
        return
    store = get_cache(str(cache_folder()))
    to_do: list[tuple[str, Path, Any]] = []
    for name in names:
        path = Path(env.doc2path(name))
        if path.suffix != ".ipynb":
            continue
        book = nbformat.read(path, as_version=4)
        try:
            record = store.match_cache_notebook(book)
        except KeyError:
            to_do.append((name, path, book))
            continue
        if record.data.get("digest") != env.minimind_digests[name]:
            store.remove_cache(record.pk)
            to_do.append((name, path, book))
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
                cwd=str(path.parent),
                timeout=app.config.nb_execution_timeout,
                allow_errors=False,
            ): (name, path)
            for name, path, book in to_do
        }
        for done in as_completed(running):
            name, path = running[done]
            result = done.result()
            join_streams(result.nb)
            digest: str | None = env.minimind_digests[name]
            if result.err is None:
                logger.info("executed %s in %.0f s", name, result.time)
            else:
                digest = env.minimind_digests.pop(name) and None
                logger.warning(
                    "executing it failed\n%s",
                    result.exc_string,
                    location=name,
                    type="execution",
                )
            store.cache_notebook_bundle(
                CacheBundleIn(
                    result.nb,
                    str(path),
                    data={
                        "execution_seconds": result.time,
                        "digest": digest,
                    },
                ),
                check_validity=False,
                overwrite=True,
            )


def setup(app: Sphinx) -> None:
    """Connect to the build; `minimind_book` calls this."""
    app.connect(
        "config-inited",
        lambda app, config: setattr(
            config, "nb_execution_cache_path", str(cache_folder())
        ),
    )
    app.connect("env-get-outdated", outdated)
    app.connect("env-before-read-docs", execute)
