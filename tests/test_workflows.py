"""What continuous integration does can be done here: it calls make."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text("utf8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))

# What needs a shell as POSIX has it; on Windows there is none for make.
makes = pytest.mark.skipif(
    shutil.which("make") is None or os.name != "posix",
    reason="there is no make, or no shell for it",
)

# What is not a target: the way into a machine, not what is done there.
SET_UP = re.compile(r"sudo rm -rf( /\S+)+")
# What stands for `make test` where there is no make.
INSTALL = (
    'python -m pip install -c constraints.txt -e ".[book,test,data,qlora]"'
)
UNIT_TESTS = 'python -m pytest -n 2 --dist loadscope -m "not packaging" tests'
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
        if SET_UP.fullmatch(line) or line in (INSTALL, UNIT_TESTS):
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


def test_macos_and_windows_are_tested_without_make():
    path = ROOT / ".github" / "workflows" / "test.yml"
    (job,) = (job for job in jobs(path) if "os" in matrix(job))
    assert job["runs-on"] == "${{ matrix.os }}"
    assert set(matrix(job)["os"]) == {"macos-latest", "windows-latest"}
    versions = matrix(job)["python-version"]
    assert {"3.11", "3.13"} <= set(versions)  # as texts: 3.10 is no 3.1
    run = [step["run"] for step in job["steps"] if "run" in step]
    assert run == [INSTALL, UNIT_TESTS]
    assert job["env"]["CI"] == "false"  # what is skipped there is no error
    extras = set(re.search(r"\[(.*)\]", INSTALL)[1].split(","))
    found = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))
    assert extras <= set(found["project"]["optional-dependencies"])
    made = MAKEFILE[MAKEFILE.index("pip install") :].partition("@touch")[0]
    assert INSTALL.split('"')[1] in made  # the same as make installs


def matrix(job):
    return job.get("strategy", {}).get("matrix", {})


def test_what_linux_alone_has_is_pinned_for_linux_alone():
    """Else pip could not install with these versions on the others."""
    for line in (ROOT / "constraints.txt").read_text("utf8").splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        assert len(pin.specifier) == 1, line
        if re.match(r"nvidia-|cuda-|triton|uvloop", pin.name):
            for system in ("darwin", "win32"):
                on = {"sys_platform": system, "platform_machine": "x86_64"}
                assert not pin.marker.evaluate(on), line


@makes
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


@makes
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


@makes
def test_ci_does_not_measure_coverage_in_notebooks():
    # nbval would measure a second time in kernels that inherit pytest-cov's
    # measurement; none of them answers then, and every cell fails.
    said = subprocess.run(
        ["make", "-n", "test"], cwd=ROOT, env={**os.environ, "CI": "true"},
        capture_output=True, text=True, check=True,
    ).stdout.replace("\\\n", "")  # fmt: skip
    runs = [line for line in said.splitlines() if "pytest" in line]
    assert any("--cov" in line for line in runs)
    assert any("--nbval-lax" in line for line in runs)
    for line in runs:
        assert not ("--cov" in line and "nbval" in line), line
