"""Open chapters as a stranger does: alone, on a machine without a checkout.

    python tools/colab_check.py                      # every chapter
    python tools/colab_check.py book/02_tokens.ipynb
    python tools/colab_check.py --in here --first 2

Each notebook is copied out alone and run from top to bottom. Its set-up cell
installs the package from the repository's address, which git is told to find
in a copy of this checkout (`insteadOf`). Nothing else of the checkout can be
reached. Afterwards the packages are compared with those of before: the set-up
may add this one and remove an old torchao, and leaves all others alone.

`--in fresh`, the default, is a new environment with Colab's versions: some
gigabytes with CUDA. `--in here` is a new environment that borrows what is
installed here and may download nothing; this is what CI runs. `--in place`
uses the Python that runs this, as inside Colab's own image.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import traceback
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "https://github.com/a-stranger/minimind-core"

# Colab's image of August 2026.
COLAB = (
    "torch==2.11.*",
    "transformers==5.15.*",
    "peft==0.20.*",
    "datasets==4.0.*",
    "numpy==2.1.*",
    "matplotlib==3.10.*",
    "ipywidgets==7.7.1",
    "torchao==0.10.0",
    "accelerate",
    "filelock",
    "ipykernel",
    "pillow",
    "setuptools",  # comes with Colab, and IPython of old asks for it
)
MAY_CHANGE = {"minimind-core", "torchao"}


def run(*command: object, **more: object) -> str:
    """Run a command; what it printed, or an end with its complaint."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True, text=True, **more,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def strangers_repository(folder: Path) -> Path:
    """A repository of what is committed here, with an address of its own.

    Not a clone: this checkout may be shallow, as in CI, and pip's partial
    clone of a shallow repository asks for what is missing without end.
    """
    if run("git", "status", "--porcelain", "--", "minimind_core", cwd=ROOT):
        print("note: what is not committed is not in the copy")
    copy = folder / "repository"
    copy.mkdir()
    archive = folder / "repository.tar"
    run("git", "archive", "--output", archive, "HEAD", cwd=ROOT)
    with tarfile.open(archive) as tar:
        tar.extractall(copy, filter="data")
    run(sys.executable, copy / "tools" / "repository.py", ADDRESS)
    author = ("-c", "user.name=check", "-c", "user.email=check@localhost")
    run("git", "init", "--quiet", cwd=copy)
    run("git", "add", "--all", "--force", cwd=copy)
    run("git", *author, "commit", "--quiet", "--message", "All", cwd=copy)
    return copy


def environment(kind: str, folder: Path, base: str) -> Path:
    """The Python of the stranger's machine, made by the Python `base`."""
    if kind == "place":
        return Path(sys.executable)
    home = folder / "environment"
    run(base, "-m", "venv", home)
    python = home / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    if kind == "fresh":
        print("installing", *COLAB, flush=True)
        run(*pip, "install", "--quiet", *COLAB)
        return python
    # Python 3.11 puts a setuptools there that cannot read our pyproject.toml.
    run(*pip, "uninstall", "--quiet", "--yes", "setuptools")
    (packages,) = home.glob("lib/python*/site-packages")
    # A path in a .pth file does not follow the .pth files in it: an editable
    # install of this checkout is not among what is borrowed.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    old = packages / "torchao-0.10.0.dist-info"
    old.mkdir()
    (packages / "torchao.py").write_text("")
    (old / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchao\nVersion: 0.10.0\n"
    )
    (old / "RECORD").write_text(
        "torchao.py,,\n" + "".join(
            f"{old.name}/{name},,\n" for name in ("METADATA", "RECORD")
        )
    )  # fmt: skip
    return python


def settings(kind: str, copy: Path, folder: Path) -> dict[str, str]:
    """The environment variables of the stranger's machine."""
    mine = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    found = {k: v for k, v in os.environ.items() if k not in mine}
    found |= {
        "COLAB_RELEASE_TAG": "release-colab-check",
        "MINIMIND_STAGES": "off",  # nothing is published by a stranger
        "JUPYTER_PATH": str(folder / "jupyter"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{copy.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": ADDRESS,
    }
    if kind == "here":  # the build too uses what is there
        found |= {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
        found.pop("PIP_FIND_LINKS", None)
    return found


def installed(python: Path, variables: dict[str, str]) -> dict[str, str]:
    """Name and version of each package that a Python sees."""
    program = (
        "import json\n"
        "from importlib.metadata import distributions\n"
        "print(json.dumps({d.metadata['Name'].lower(): d.version"
        " for d in reversed(list(distributions()))}))"
    )
    nowhere = tempfile.gettempdir()
    return json.loads(
        run(python, "-c", program, env=variables, cwd=nowhere)
    )


def open_alone(
    path: Path, folder: Path, python: Path, first: int | None
) -> str | None:
    """Run one notebook in a folder of its own; the traceback if it fails."""
    book = nbformat.read(path, as_version=4)
    if first is not None:
        code = [c for c in book.cells if c.cell_type == "code"]
        book.cells = code[:first]
    kernel = folder / "jupyter" / "kernels" / "stranger"
    kernel.mkdir(parents=True, exist_ok=True)
    start = [str(python), "-m", "ipykernel_launcher", "-f"]
    (kernel / "kernel.json").write_text(
        json.dumps({
            "argv": [*start, "{connection_file}"],
            "display_name": "stranger", "language": "python",
        })
    )  # fmt: skip
    alone = folder / "content" / path.stem
    alone.mkdir(parents=True)
    nbformat.write(book, alone / path.name)
    client = NotebookClient(
        book, timeout=1800, kernel_name="stranger",
        resources={"metadata": {"path": str(alone)}},
    )  # fmt: skip
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError):
        return traceback.format_exc()
    for output in book.cells[-1].outputs if first == 1 else ():
        print(output.get("text", ""), end="")
    return None


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument(
        "--in", dest="kind", choices=["fresh", "here", "place"],
        default="fresh", help="which environment",
    )  # fmt: skip
    parser.add_argument(
        "--first", type=int, help="run so many code cells of each only"
    )
    parser.add_argument(
        "--python", default=sys.executable, help="what makes the environment"
    )
    options = parser.parse_args()
    names = options.notebooks or sorted((ROOT / "book").glob("*.ipynb"))
    failed = []
    with tempfile.TemporaryDirectory(prefix="stranger-") as temporary:
        folder = Path(temporary)
        copy = strangers_repository(folder)
        python = environment(options.kind, folder, options.python)
        variables = settings(options.kind, copy, folder)
        os.environ.clear()
        os.environ.update(variables)
        before = installed(python, variables)
        if "minimind-core" in before and options.kind != "here":
            sys.exit(f"the package is already installed in {python}")
        print(python, *(f"{n} {before.get(n)}" for n in ("torch", "peft")))
        for name in names:
            path = copy / name.resolve().relative_to(ROOT)
            start = time.perf_counter()
            wrong = open_alone(path, folder, python, options.first)
            took = time.perf_counter() - start
            print(f"{'FAILED' if wrong else 'ok'} {name.name} {took:.0f} s")
            if wrong:
                failed.append(name.name)
                print(wrong)
            sys.stdout.flush()
        after = installed(python, variables)
        program = "import minimind_core; print(minimind_core.__file__)"
        where = run(python, "-c", program, env=variables, cwd=temporary)
    changed = {
        name: (before.get(name), after.get(name))
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
    }
    print("changed by the set-up:", changed)
    print("the package is in", where.strip())
    if Path(where.strip()).is_relative_to(ROOT):
        failed.append("the set-up, which found this checkout")
    if other := changed.keys() - MAY_CHANGE:
        failed.append(f"the set-up, which changed {', '.join(sorted(other))}")
    if "torchao" in after and before.get("torchao", "").startswith("0.10."):
        failed.append("the set-up, which left the old torchao")
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
