"""Run notebooks and keep the outputs that are compared, and no others.

    python tools/refresh.py                        # all of the book
    python tools/refresh.py book/02_tokens.ipynb   # one, or several

Outputs are committed only in cells tagged `nbval-check-output`, which print
what is the same on every machine. When it changes because the package has,
this writes it anew; read the difference before you commit it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CHECKED = "nbval-check-output"


def run(path: Path, timeout: int = 900) -> Any:
    """A notebook after it was run; one that fails raises, with its cell."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(book, timeout=timeout, resources=where).execute()
    return book


def keep_checked(cells: list[dict], done: list[dict]) -> int:
    """Put what was printed into the checked cells; how many have changed."""
    changed = 0
    for cell, result in zip(cells, done, strict=True):
        if cell["cell_type"] != "code":
            continue
        before = json.dumps(cell["outputs"], sort_keys=True)
        if CHECKED in cell["metadata"].get("tags", []):
            cell["execution_count"] = result["execution_count"]
            cell["outputs"] = as_stored(result["outputs"])
        else:
            cell["execution_count"], cell["outputs"] = None, []
        after = json.dumps(cell["outputs"], sort_keys=True)
        changed += after != before
    return changed


def as_stored(outputs: list[dict]) -> list[dict]:
    """Outputs as a notebook's file has them: texts as lists of lines.

    What was printed in pieces is one output again, and warnings are none:
    they name the machine's folders.
    """
    kept: list[dict] = []
    for output in json.loads(json.dumps(outputs)):
        printed = output["output_type"] == "stream"
        if printed and output["name"] == "stderr":
            continue
        if printed and kept and kept[-1]["output_type"] == "stream":
            kept[-1]["text"] += output["text"]
        else:
            kept.append(dict(sorted(output.items())))
    for output in kept:
        texts = output if "text" in output else output.get("data", {})
        for kind in ("text", "text/plain", "text/html", "text/markdown"):
            if isinstance(texts.get(kind), str):
                texts[kind] = texts[kind].splitlines(keepends=True)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("notebooks", nargs="*", type=Path)
    chosen = parser.parse_args().notebooks
    for path in chosen or sorted((ROOT / "book").glob("*.ipynb")):
        book = json.loads(path.read_text("utf8"))
        changed = keep_checked(book["cells"], run(path)["cells"])
        text = json.dumps(book, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, "utf8")
        print(f"{path.name}: {changed} outputs have changed", flush=True)


if __name__ == "__main__":
    main()
