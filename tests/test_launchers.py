"""The launchers' files: read, and their torchrun line run on one machine."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from minimind_core.loading import load_model

FOLDER = ROOT / "book" / "launchers"
FILES = ("slurm.sbatch", "pytorchjob.yaml", "skypilot.yaml")

pytestmark = pytest.mark.skipif(
    os.name == "nt", reason="torchrun needs libuv, which Windows lacks"
)
SETTINGS = """\
preset = "tiny"
tokenizer = TOKENIZER
steps = 2
batch_size = 4
seq_len = 16
device = "cpu"
dtype = "float32"
[model]
num_hidden_layers = 1
hidden_size = 16
num_attention_heads = 2
num_key_value_heads = 1
"""


def read(name):
    return yaml.safe_load((FOLDER / name).read_text("utf8"))


def container():
    spec = read("pytorchjob.yaml")["spec"]
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    (found,) = worker["template"]["spec"]["containers"]
    return found


@pytest.fixture
def place(tmp_path, small_runs):
    """Settings of a very short run, and commands that Slurm would bring."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in {
        "scontrol": 'test "$1 $2 $3" = "show hostnames a,b"; echo localhost',
        "srun": 'test "$1" = --kill-on-bad-exit=1; shift; exec "$@"',
        "torchrun": f'exec "{sys.executable}" -m torch.distributed.run "$@"',
    }.items():
        file = folder / name
        file.write_text(f"#!/bin/bash\nset -e\n{body}\n")
        file.chmod(0o755)
    settings = tmp_path / "run.toml"
    tokenizer = json.dumps(str(small_runs / "tokenizer"))
    settings.write_text(SETTINGS.replace("TOKENIZER", tokenizer))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    return tmp_path, {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "SETTINGS": str(settings),
        "OUT": str(tmp_path / "out"),
        "PORT": port,
    }


def run(command, where, variables, processes=1):
    """Run a line; only one of them as two, to spare the processor."""
    done = subprocess.run(
        command, cwd=where, env=variables, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    runtime = json.loads((where / "out" / "minimind.json").read_text())
    assert runtime["runtime"]["processes"] == processes
    assert runtime["runtime"]["shard"] is (processes > 1)
    assert runtime["train"]["shard"] is True
    model, _ = load_model(where / "out")
    assert model.config.hidden_size == 16


def test_slurm_runs_here(place):
    where, variables = place
    script = FOLDER / "slurm.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    options = [
        line.split("#SBATCH ")[1].split("#")[0].strip()
        for line in script.read_text("utf8").splitlines()
        if line.startswith("#SBATCH ")
    ]
    assert len(options) > 5 and all(o.startswith("--") for o in options)
    assert "--ntasks-per-node=1" in options
    # Slurm stops reading options at the first command.
    text = script.read_text("utf8")
    assert text.rindex("#SBATCH") < text.index("set -e")
    run(["bash", script], where, variables | {
        "SLURM_JOB_NODELIST": "a,b", "SLURM_JOB_NUM_NODES": "1",
        "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "7",
    }, processes=2)  # fmt: skip


def test_kubernetes_runs_here(place):
    where, variables = place
    job = read("pytorchjob.yaml")
    assert (job["apiVersion"], job["kind"]) == (
        "kubeflow.org/v1", "PyTorchJob",
    )  # fmt: skip
    spec, one = job["spec"], container()
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    policy = spec["elasticPolicy"]
    assert policy["minReplicas"] == policy["maxReplicas"]
    assert policy["maxReplicas"] == worker["replicas"]
    assert one["name"] == "pytorch"
    gpus = one["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--nproc-per-node={gpus}" in one["command"]
    mounted = {mount["name"] for mount in one["volumeMounts"]}
    volumes = worker["template"]["spec"]["volumes"]
    assert mounted == {volume["name"] for volume in volumes}
    here = {
        f"--nproc-per-node={gpus}": "--nproc-per-node=1",
        "--config=/shared/run.toml": f"--config={variables['SETTINGS']}",
        "--out=/shared/runs/base": f"--out={variables['OUT']}",
    }
    assert set(here) <= set(one["command"])
    command = [here.get(word, word) for word in one["command"]]
    command[0] = shutil.which("torchrun", path=variables["PATH"])
    run(command, where, variables | {
        "PET_NNODES": "1:1", "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": f"localhost:{variables['PORT']}",
        "PET_MAX_RESTARTS": str(policy["maxRestarts"]),
    })  # fmt: skip


def test_skypilot_runs_here(place):
    where, variables = place
    task = read("skypilot.yaml")
    assert set(task) == {
        "name", "resources", "num_nodes", "envs", "file_mounts", "workdir",
        "setup", "run",
    }  # fmt: skip
    assert set(task["envs"]) == {"SETTINGS", "OUT", "PORT"}
    run(["bash", "-c", task["run"]], where, variables | {
        "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2",
        "SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0",
        "SKYPILOT_NUM_GPUS_PER_NODE": "1",
    })  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_each_says_that_it_was_not_run(name):
    text = (FOLDER / name).read_text("utf8")
    head = " ".join(text.replace("#", " ").split())
    assert "itself was not part of that" in head
    assert max(map(len, text.splitlines())) <= 78
    assert set(FILES) == {path.name for path in Path(FOLDER).iterdir()}
