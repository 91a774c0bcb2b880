"""What continuous integration does can be done here: it calls make."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml
from conftest import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text("utf8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))

# What is not a target: the way into a machine, not what is done there.
SET_UP = re.compile(r"sudo rm -rf( /\S+)+")
# Actions that check out, set up, keep and publish.
ACTIONS = {
    "actions/cache", "actions/cache/restore", "actions/checkout",
    "actions/deploy-pages", "actions/setup-python",
    "actions/upload-artifact", "actions/upload-pages-artifact",
}  # fmt: skip


def jobs(path):
    """The jobs of a workflow; YAML reads its key `on` as true."""
    return yaml.safe_load(path.read_text("utf8"))["jobs"].values()


def steps(path):
    return [step for job in jobs(path) for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_targets_that_exist(path):
    text = yaml.safe_load(path.read_text("utf8"))
    assert text[True] and text["permissions"]["contents"] == "read"
    called = set()
    for step in steps(path):
        if "uses" in step:
            name, version = step["uses"].split("@")
            assert name in ACTIONS and re.fullmatch(r"v\d+", version)
            continue
        line = step["run"].strip()
        if SET_UP.fullmatch(line):
            continue
        if line == ".ci/run":
            script = (ROOT / line).read_text("utf8")
            called |= set(re.findall(r"^make ([a-z-]+)", script, re.M))
            continue
        inside = r"docker run .*--entrypoint make \"\$IMAGE\" ([a-z-]+)"
        found = re.fullmatch(rf"(?:CI=false )?make ([a-z-]+)|{inside}", line)
        assert found, f"no target of make: {line}"
        called.add(found[1] or found[2])
    assert called and called <= TARGETS


def test_what_there_is_a_workflow_for():
    lines = {
        path.stem: " ".join(step.get("run", "") for step in steps(path))
        for path in WORKFLOWS
    }
    assert set(lines) == {"book", "colab", "links", "test"}
    text = {path.stem: path.read_text("utf8") for path in WORKFLOWS}
    assert "schedule" in text["links"] and "schedule" in text["colab"]
    assert "deploy-pages" in text["book"] and "make book" in lines["book"]
    assert "us-docker.pkg.dev/colab-images/public/runtime" in text["colab"]
    versions = set(re.findall(r"\b3\.1\d\b", text["test"]))
    assert versions == {"3.11", "3.12", "3.13"}


def test_the_build_is_strict():
    """Warnings are errors, and references that lead nowhere are warnings."""
    dry = subprocess.run(
        ["make", "--dry-run", "--always-make", "book"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert re.search(r"jupyter-book build \. -W --keep-going -n$", dry, re.M)


def test_each_target_is_told_of():
    """All but the two that others are made of."""
    told = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in TARGETS - {"help", "env", "colab-image"}:
        assert re.search(rf"^make {target}\b", told, re.MULTILINE), target
    phony = MAKEFILE.replace("\\\n", " ")
    phony = re.search(r"^\.PHONY:(.*)$", phony, re.MULTILINE)[1].split()
    assert set(phony) == TARGETS
