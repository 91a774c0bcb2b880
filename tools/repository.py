"""Say where the repository lives, everywhere it is said.

    python tools/repository.py https://github.com/me/fork    # set it
    python tools/repository.py                               # stamp again
    python tools/repository.py --check                       # only look

The address has one home, `repository: url:` in `_config.yml`. From there it
goes into the badge and the set-up cell of each notebook, and into the links
of the files named in `FILES`. The set-up cell also names the pages that
GitHub publishes, from which chapters on Colab fetch trained models. Without
an address, the notebooks are stamped with the one that stands: a new notebook
gets its badge and its set-up cell, an edited one gets them back.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = (
    "CITATION.cff", "CONTRIBUTING.md", "README.md", "book/index.md",
    "pyproject.toml",
)  # fmt: skip
UNSET = "OWNER"

URL = re.compile(r"https://github\.com/([\w-]+)/([\w.-]+?)(?:\.git)?/?")
SETTING = re.compile(r"^(repository:\n  url: )(\S+)$", re.MULTILINE)
BRANCH = re.compile(r"^  branch: (\S+)$", re.MULTILINE)
MARK = 'find_spec("minimind_core")'  # of a set-up cell

BADGE = (
    "**[Open this chapter in Colab]"
    "(https://colab.research.google.com/github/{slug}/blob/{branch}/{path})**"
)
SET_UP = """\
# On a machine that has nothing yet, as on Colab, this installs the package.
# It says which GPU there is, and goes on without one.
import importlib.util

if importlib.util.find_spec("minimind_core") is None:
    address = "https://github.com/{slug}"
{unset}    %pip install --quiet "minimind-core @ git+{{address}}"

from minimind_core.book.colab import set_up

set_up({book})"""
# Somebody may own that name: nothing is to be installed from there.
NOBODY = f'''\
    assert "/{UNSET}/" not in address, "make repository URL=... sets it"
'''


class RepositoryError(Exception):
    """An address is not one, or a file is not as it is expected."""


def slug_of(url: str) -> str:
    """The ``owner/name`` of an address on GitHub."""
    match = URL.fullmatch(url)
    if match is None:
        raise RepositoryError(
            f"{url!r} is no repository on GitHub, where Colab, Binder and "
            "the edit links look; write https://github.com/owner/name"
        )
    return f"{match[1]}/{match[2]}"


def address(root: Path) -> tuple[str, str]:
    """The ``owner/name`` and the branch that `_config.yml` names."""
    text = (root / "_config.yml").read_text("utf8")
    setting, branch = SETTING.search(text), BRANCH.search(text)
    if setting is None or branch is None:
        raise RepositoryError("_config.yml has no repository: url:, branch:")
    return slug_of(setting[2]), branch[1]


def pages(slug: str) -> str:
    """Where GitHub publishes the book of a repository."""
    owner, _, name = slug.partition("/")
    return f"https://{owner.lower()}.github.io/{name}"


def set_up_cell(slug: str) -> str:
    """The source of the set-up cell."""
    nobody = slug.startswith(f"{UNSET}/")
    return SET_UP.format(
        slug=slug,
        unset=NOBODY if nobody else "",
        book="" if nobody else f'"{pages(slug)}"',
    )


def stamped_text(text: str, old: str, new: str) -> str:
    """A text with the links to one repository turned to another."""
    before = r"(?:(?<=github\.com/)|(?<=/github/)|(?<=/v2/gh/))"
    return re.sub(rf"{before}{re.escape(old)}(?![\w-])", new, text)


def stamped_notebook(text: str, path: str, slug: str, branch: str) -> str:
    """A notebook with its badge first and its set-up cell where it was.

    Parameters
    ----------
    text : str
        The file.
    path : str
        Its place below the root.
    slug, branch : str
        From `address`.
    """
    book = json.loads(text)
    if json.dumps(book, indent=1, ensure_ascii=False) + "\n" != text:
        raise RepositoryError(f"{path}: save it with an indent of one")
    cells = book["cells"]
    badges = [cell for cell in cells if cell["id"] == "badge"]
    badge = badges[0] if badges else markdown("badge")
    badge["source"] = [BADGE.format(slug=slug, branch=branch, path=path)]
    if not badges:
        cells.insert(0, badge)

    marked = [
        cell
        for cell in cells
        if cell["cell_type"] == "code" and MARK in "".join(cell["source"])
    ]
    if len(marked) > 1:
        raise RepositoryError(f"{path} has {len(marked)} set-up cells")
    cell = marked[0] if marked else code("setup")
    cell["source"] = set_up_cell(slug).splitlines(keepends=True)
    if not marked:  # after the badge and the title
        cells.insert(2, cell)
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


# Neither is in the pages: the theme has a button that launches a chapter,
# and nobody runs a page.
def markdown(name: str) -> dict:
    """A new cell of text that stays out of the pages."""
    return {
        "cell_type": "markdown",
        "id": name,
        "metadata": {"tags": ["remove-cell"]},
        "source": [],
    }


def code(name: str) -> dict:
    """A new cell of code that stays out of the pages."""
    return {
        **markdown(name),
        "cell_type": "code",
        "execution_count": None,
        "outputs": [],
    }


def stamp(
    root: Path, url: str | None = None, *, write: bool = True
) -> list[str]:
    """Bring all files to one address.

    Parameters
    ----------
    root : Path
        Of the repository.
    url : str, optional
        The new address; the one of `_config.yml` if not given.
    write : bool
        Or only look.

    Returns
    -------
    list of str
        The files that say something else, or did before.
    """
    old, branch = address(root)
    new = slug_of(url) if url else old
    changed: dict[Path, str] = {}

    def note(name: str, text: str, after: str) -> None:
        if after != text:
            changed[root / name] = after

    config = (root / "_config.yml").read_text("utf8")
    home = rf"\g<1>https://github.com/{new}"
    note("_config.yml", config, SETTING.sub(home, config))
    for name in FILES:
        text = (root / name).read_text("utf8")
        note(name, text, stamped_text(text, old, new))
    for file in sorted((root / "book").glob("*.ipynb")):
        name = file.relative_to(root).as_posix()
        text = stamped_text(file.read_text("utf8"), old, new)
        after = stamped_notebook(text, name, new, branch)
        note(name, file.read_text("utf8"), after)
    if write:
        for file, text in changed.items():
            file.write_text(text, "utf8", newline="\n")
    return [file.relative_to(root).as_posix() for file in changed]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", nargs="?", help="https://github.com/...")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--root", type=Path, default=ROOT)
    options = parser.parse_args()
    try:
        files = stamp(options.root, options.url, write=not options.check)
    except RepositoryError as error:
        sys.exit(str(error))
    where = options.url or f"https://github.com/{address(options.root)[0]}"
    for name in files:
        print(f"{'differs' if options.check else 'stamped'}: {name}")
    if options.check and files:
        sys.exit("run: python tools/repository.py")
    print(f"all say {where}")
    if where.startswith(f"https://github.com/{UNSET}/"):
        print("which is nobody's: make repository URL=https://github.com/...")


if __name__ == "__main__":
    main()
