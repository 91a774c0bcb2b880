"""How threads wait and how many there are; the machine is injected."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from minimind_core import threads
from minimind_core.config import get_preset
from minimind_core.model import MiniMind
from minimind_core.threads import (
    WAIT_POLICY,
    available_cores,
    busy_cores,
    choose_threads,
    set_wait_policy,
    using_threads,
)

TINY = get_preset("tiny").model
BASE = get_preset("base").model


def choose(model, limit, cores, busy, **environment):
    return choose_threads(
        model, limit=limit, cores=cores, busy=busy, environment=environment
    )


# --- the wait policy ---


@pytest.fixture
def no_torch_yet(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")


@pytest.mark.usefixtures("no_torch_yet")
def test_waiting_threads_sleep():
    environment = {"PATH": "/bin"}
    assert set_wait_policy(environment)
    assert environment == {"PATH": "/bin", **WAIT_POLICY}
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    # Once is enough, and a second call says that there was nothing to do.
    assert not set_wait_policy(environment)


@pytest.mark.usefixtures("no_torch_yet")
@pytest.mark.parametrize("policy", ["ACTIVE", "PASSIVE", ""])
def test_a_users_own_policy_is_respected(policy):
    environment = {"OMP_WAIT_POLICY": policy}
    assert not set_wait_policy(environment)
    assert environment == {"OMP_WAIT_POLICY": policy}


@pytest.mark.usefixtures("no_torch_yet")
def test_a_users_own_spin_times_are_respected():
    mine = {"KMP_BLOCKTIME": "200", "GOMP_SPINCOUNT": "1000"}
    environment = dict(mine)
    set_wait_policy(environment)
    assert environment.items() >= mine.items()


def test_after_torch_it_is_too_late():
    assert "torch" in sys.modules
    environment: dict[str, str] = {}
    assert not set_wait_policy(environment)
    assert environment == {}


def python(code: str, **environment: str) -> str:
    """What a new process prints, without the settings of this one."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in (*WAIT_POLICY, "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_neither_the_package_nor_this_module_imports_torch():
    said = python(
        "import sys, os, minimind_core, minimind_core.threads\n"
        "print('torch' in sys.modules, 'psutil' in sys.modules,"
        " 'OMP_WAIT_POLICY' in os.environ)"
    )
    # And a library does not change the environment by being imported.
    assert said.split() == ["False", "False", "False"]


WATCH = """
import os, sys

class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), file=sys.stderr)
            print(os.environ.get("OMP_WAIT_POLICY"))
            sys.stdout.flush()
            os._exit(0)

sys.meta_path.insert(0, Watch())
"""


@pytest.mark.parametrize(
    "start",
    [
        "from minimind_core.cli import main; main(['doctor'])",
        "import runpy; sys.argv = ['minimind', 'doctor']\n"
        "runpy.run_module('minimind_core', run_name='__main__')",
    ],
    ids=["minimind", "python -m minimind_core"],
)
def test_the_command_line_sets_it_before_torch_is_imported(start):
    assert python(WATCH + start).split() == ["PASSIVE"]
    assert python(WATCH + start, OMP_WAIT_POLICY="ACTIVE").split() == [
        "ACTIVE"
    ]


def test_the_set_up_cell_sets_it_before_torch_is_imported():
    from conftest import chapters

    book = json.loads((ROOT / f"{chapters()[0]}.ipynb").read_text("utf8"))
    code = [
        "".join(cell["source"])
        for cell in book["cells"]
        if cell["cell_type"] == "code"
    ]
    lines = code[0].splitlines()
    assert any("set_up" in line for line in lines)
    start = "\n".join(
        "    pass" if line.lstrip().startswith("%") else line
        for line in lines
    )
    assert python(WATCH + start).split() == ["PASSIVE"]


def test_gnus_library_takes_the_policy_to_mean_no_spinning():
    """Why GOMP_SPINCOUNT is not among the variables."""
    if sys.platform != "linux":
        pytest.skip("another processor library than GNU's")

    def spins(**environment):
        done = subprocess.run(
            [sys.executable, "-c", "import torch"],
            env={**os.environ, "OMP_DISPLAY_ENV": "VERBOSE", **environment},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        lines = done.stderr.splitlines()
        return [line.split("'")[1] for line in lines if "SPINCOUNT" in line]

    if spins(OMP_WAIT_POLICY="ACTIVE") in ([], ["0"]):
        pytest.skip("this processor's torch has another OpenMP library")
    assert spins(OMP_WAIT_POLICY="PASSIVE") == ["0"]
    # A user's own number goes first.
    mine = spins(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="5")
    assert mine == ["5"]


# --- how many ---


@pytest.mark.parametrize(
    ("busy", "number"),
    [(0.0, 2), (0.3, 2), (0.6, 1), (1.0, 1), (2.0, 1), (7.0, 1)],
)
def test_two_cores_with_something_beside(busy, number):
    found = choose(TINY, 2, 2, busy)
    assert found.number == number
    if number == 1:
        assert f"{busy:.1f} of 2 cores busy" in found.reason
    else:
        assert found.reason == "2 cores are available"


def test_a_large_machine():
    assert choose(BASE, 16, 16, 0.0).number == 16
    assert choose(BASE, 16, 16, 5.2).number == 11
    small = choose(TINY, 16, 16, 0.0)
    assert 1 < small.number < 16
    assert "would not help" in small.reason
    # The load does not count as long as enough cores are left.
    assert choose(TINY, 16, 16, 10.0).number == small.number
    assert choose(TINY, 16, 16, 15.0).number == 1


def test_a_very_small_model_needs_one():
    found = choose(100_000, 8, 8, 0.0)
    assert found.number == 1
    assert "100,000 parameters" in found.reason


def test_more_than_torch_is_set_to_is_never_chosen():
    assert choose(BASE, 4, 16, 0.0).number == 4
    assert "torch is set to use 4" in choose(BASE, 4, 16, 0.0).reason
    with using_threads(1):
        found = choose_threads(BASE, cores=8, busy=0.0, environment={})
    assert (found.number, found.reason) == (1, "torch is set to use one")


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_users_own_number_is_respected(name):
    # However busy the machine is, and however small the model.
    found = choose(1000, 6, 2, 2.0, **{name: "6"})
    assert (found.number, found.reason) == (6, f"{name} is set to 6")
    assert choose(BASE, 2, 2, 1.0, **{name: ""}).number == 1


def test_one_core():
    found = choose(BASE, 4, 1, 0.0)
    assert (found.number, found.reason) == (1, "there is one core")


def test_nobody_looks_at_the_load_if_it_cannot_matter(monkeypatch):
    def no(*_):
        raise AssertionError("this takes a fifth of a second")

    monkeypatch.setattr(threads, "busy_cores", no)
    assert choose(BASE, 1, 8, None).number == 1
    assert choose(BASE, 2, 2, None, OMP_NUM_THREADS="2").number == 2


def test_models_of_all_kinds_are_counted():
    model = MiniMind(TINY.replace(num_hidden_layers=1))
    for small in (TINY.num_parameters(), TINY, model):
        found = choose(small, 64, 64, 0.0)
        assert f"{threads._parameters(small):,}" in found.reason
    assert threads._parameters(TINY) == TINY.num_parameters()
    assert threads._parameters(model) == model.config.num_parameters()


def test_the_old_number_comes_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


# --- the machine ---


def test_cores_that_a_process_may_use(monkeypatch):
    monkeypatch.setattr(
        os, "sched_getaffinity", lambda _: {0, 3, 5, 6}, raising=False
    )
    monkeypatch.setattr(threads, "_quota", lambda: None)
    assert available_cores({}) == 4
    monkeypatch.setattr(threads, "_quota", lambda: 3)
    assert available_cores({}) == 3
    # torchrun's processes share the machine.
    assert available_cores({"LOCAL_WORLD_SIZE": "2"}) == 1
    assert available_cores({"LOCAL_WORLD_SIZE": "8"}) == 1
    assert available_cores({"LOCAL_WORLD_SIZE": "0"}) == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # a Mac, or Windows
    monkeypatch.setattr(threads, "_quota", lambda: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert available_cores({}) == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores({}) == 1


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu.max": ""}, None),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
         None),
        ({"cpu/cpu.cfs_quota_us": "400000",
          "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "400000"}, None),
    ],
)  # fmt: skip
def test_a_containers_limit(tmp_path, files, cores):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert threads._quota(tmp_path) == cores


def test_busy_cores_are_counted_among_ours(monkeypatch):
    import psutil

    monkeypatch.setattr(
        psutil, "cpu_percent", lambda seconds, percpu: [100.0, 50.0, 0.0, 9.0]
    )
    monkeypatch.setattr(
        os, "sched_getaffinity", lambda _: {1, 3}, raising=False
    )
    assert busy_cores() == pytest.approx(0.59)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert busy_cores() == pytest.approx(1.59)

    def forbidden(*_, **__):
        raise PermissionError(13, "/proc/stat")

    monkeypatch.setattr(psutil, "cpu_percent", forbidden)
    assert busy_cores() == 0.0


def test_this_machine():
    assert 0 <= busy_cores(0.05) <= available_cores()
    found = choose_threads(TINY)
    assert 1 <= found.number <= torch.get_num_threads()
    assert found.reason
