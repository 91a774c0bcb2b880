"""The examples of the page "Experiments of your own", run as they stand."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

PAGE = (ROOT / "book" / "api_extend.md").read_text("utf8")
EXAMPLES = dict(
    re.findall(r"^## (.+?)$.*?^```python\n(.*?)^```", PAGE, re.M | re.S)
)

# What each example must have shown, beyond that it ran.
SHOWN = {
    "Your own data, in memory": r"Tom\.\n\Z",
    "A callback": r"\(\[1, 2, .*\], \[\d\.\d+, .*\]\)\n\Z",
    "An optimizer and a schedule": r"\(\[1, 2, 3, .*\], \[0\.0, 0\.0",
    "Another model": r"\n?\d\.\d+\n\Z",
    "Frozen layers": r"",
    "An extended tokenizer": r"\[(\d+)\] (\d+)\n\Z",
}


def test_the_page_has_the_examples_it_promises():
    assert list(EXAMPLES) == list(SHOWN)
    for name, code in EXAMPLES.items():
        lines = code.strip().splitlines()
        assert len(lines) <= 16 and max(map(len, lines)) <= 78, name


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_an_example_runs_as_it_stands(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[name]],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(SHOWN[name], done.stdout), done.stdout
