"""The tool that writes the compared outputs of notebooks."""

import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import refresh


def cell(source: str, *tags: str) -> dict:
    return {
        "cell_type": "code", "id": source[:8].replace(" ", "-"),
        "metadata": {"tags": list(tags)}, "source": source,
        "execution_count": None, "outputs": [],
    }  # fmt: skip


@pytest.fixture
def notebook(tmp_path):
    def write(*cells: dict):
        path = tmp_path / "some.ipynb"
        kernel = {"name": "python3", "display_name": "Python 3"}
        book = {
            "cells": list(cells), "metadata": {"kernelspec": kernel},
            "nbformat": 4, "nbformat_minor": 5,
        }  # fmt: skip
        path.write_text(json.dumps(book), "utf8")
        return path

    return write


def test_only_what_is_compared_is_kept(notebook):
    talks = "import sys\nprint('a')\nprint('no', file=sys.stderr)\nprint('b')"
    path = notebook(cell(talks, refresh.CHECKED), cell("print('c')"))
    cells = json.loads(path.read_text("utf8"))["cells"]
    done = refresh.run(path)["cells"]
    assert refresh.keep_checked(cells, done) == 1
    checked, other = cells
    assert checked["execution_count"] == 1
    (printed,) = checked["outputs"]
    assert printed["text"] == ["a\n", "b\n"]
    assert (other["execution_count"], other["outputs"]) == (None, [])
    assert refresh.keep_checked(cells, done) == 0  # nothing is new


def test_a_cell_that_fails_stops_it(notebook):
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError, match="1 / 0"):
        refresh.run(notebook(cell("1 / 0")))
