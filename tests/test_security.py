"""What is opened runs no code, reaches no other file, and asks no server."""

import ast
import json
import re
import shutil
import socket
import sys

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

from minimind_core import cli
from minimind_core.chat import encode_prompt
from minimind_core.checkpoint import read_weight_file, read_weights
from minimind_core.errors import CheckpointError, DataError, MiniMindError
from minimind_core.loading import load_model
from minimind_core.tokenizer import load_tokenizer, train_tokenizer

NETWORK = {"socket", "ssl", "http", "urllib", "requests", "httpx", "aiohttp",
           "ftplib", "smtplib", "xmlrpc"}  # fmt: skip
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal",
           "shelve"}  # fmt: skip
PARSERS = {"urllib.parse"}


def sources(root):
    """The modules of the library, and the tools, as syntax trees."""
    for folder in ("minimind_core", "benchmarks", "tools", "book/_ext"):
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            yield name, ast.parse(path.read_text("utf8"))


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_every_load_of_torch_reads_weights_only(root):
    found = []
    for name, tree in sources(root):
        for node, function in calls(tree):
            if function == "torch.load":
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                found.append((name, given.get("weights_only")))
    assert found
    assert {only for _, only in found} == {"True"}, found


def test_there_is_no_pickle_of_ours_and_no_code_from_elsewhere(root):
    for name, tree in sources(root):
        used = {one.partition(".")[0] for one in imports(tree)}
        assert not used & PICKLES, name
        for node, function in calls(tree):
            assert function not in ("eval", "exec", "compile", "__import__",
                                    "os.system", "os.popen"), name
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                if keyword.arg in ("trust_remote_code", "shell"):
                    assert value == "False", (name, keyword.arg)
                if keyword.arg == "weights_only":
                    assert value == "True", name
            if function.endswith(("yaml.load", "yaml.unsafe_load")):
                raise AssertionError(f"{name}: {function}")


def test_the_library_speaks_to_no_server(root):
    """The command for corpora reads files, and stages come from a build."""
    for name, tree in sources(root):
        if name.startswith("minimind_core/") and "/book/" not in name:
            names = {
                one for one in imports(tree)
                if one not in PARSERS and one.partition(".")[0] in NETWORK
            }  # fmt: skip
            assert not names, name


def test_templates_are_parsed_in_the_sandbox(root):
    used = set()
    for name, tree in sources(root):
        used |= {
            (name, function)
            for _, function in calls(tree)
            if function.endswith("Environment")
        }
    assert used == {
        ("minimind_core/tokenizer.py", "ImmutableSandboxedEnvironment")
    }


# CVE-2025-32434: until 2.5.1, weights_only=True could be made to run code.
# CVE-2026-24747: until 2.9.1, it could be made to corrupt memory.
SAFE = Version("2.10")


def test_the_floor_of_torch_is_safe(root):
    text = (root / "pyproject.toml").read_text("utf8")
    line = re.search(r'^ *"(torch>=[^"]+)", # .*$', text, re.M)
    assert line, "the floor, with a comment"
    assert "CVE-2025-32434" in text
    assert "CVE-2026-24747" in text
    (floor,) = Requirement(line[1]).specifier
    assert Version(floor.version) >= SAFE
    assert Version(torch.__version__) >= SAFE


# --- the same, seen from outside ---


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["a.pth", "pytorch_model.bin"])
def test_a_pickle_is_not_run(tmp_path, name):
    torch.save({"a": Evil(tmp_path / "ran")}, tmp_path / name)
    with pytest.raises(CheckpointError, match="they may run code"):
        read_weight_file(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_config_brings_no_code(tmp_path, small_runs):
    shutil.copytree(small_runs / "hf", tmp_path / "hf")
    code = f"open({str(tmp_path / 'ran')!r}, 'w')"
    for name in ("modeling_evil", "tokenization_evil"):
        (tmp_path / "hf" / f"{name}.py").write_text(code)
    for name, classes in (
        ("config.json", {"AutoModelForCausalLM": "modeling_evil.Evil",
                         "AutoConfig": "modeling_evil.Evil"}),
        ("tokenizer_config.json", {
            "AutoTokenizer": ["tokenization_evil.Evil"] * 2}),
    ):  # fmt: skip
        path = tmp_path / "hf" / name
        about = json.loads(path.read_text("utf8")) | {"auto_map": classes}
        path.write_text(json.dumps(about))
    load_model(tmp_path / "hf")
    out = str(tmp_path / "out")
    assert cli.main(["lora", str(tmp_path / "hf"), "--steps", "1",
                     "--batch-size", "1", "--device", "cpu", "--replay",
                     "0", "--out", out]) == 0  # fmt: skip
    assert not (tmp_path / "ran").exists()


def test_an_adapter_brings_no_code(tmp_path, small_runs, monkeypatch):
    for stage in ("hf", "lora"):
        shutil.copytree(small_runs / stage, tmp_path / stage)
    (tmp_path / "evil_module.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "lora" / "adapter_config.json"
    sound = json.loads(path.read_text())
    for values, said in (
        ({"megatron_config": {"a": 1}, "megatron_core": "evil_module"},
         "megatron_config names code"),
        ({"peft_type": "XLORA"}, "only 'LORA' adapters"),
        ({"peft_type": None}, "only 'LORA' adapters"),
    ):  # fmt: skip
        path.write_text(json.dumps(sound | values))
        with pytest.raises(CheckpointError, match=said):
            load_model(tmp_path / "lora")
    assert not (tmp_path / "ran").exists()
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize("template", [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{% set f = messages.append %}{{ f(1) }}",
    "{% include '/etc/passwd' %}",
])  # fmt: skip
def test_a_template_stays_in_the_sandbox(template):
    tok = train_tokenizer(["One day."], 280)
    tok.chat_template = template + "{{ messages[0]['content'] }}"
    with pytest.raises(DataError, match="chat template"):
        encode_prompt(tok, [{"role": "user", "content": "Hi"}])


def test_no_path_leaves_its_folder(tmp_path, small_runs):
    """Neither an index's nor, in a tokenizer's config, a file's."""
    folder = tmp_path / "hf"
    folder.mkdir()
    shutil.copy(small_runs / "hf" / "model.safetensors", tmp_path / "secret")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../secret"}})
    )
    with pytest.raises(CheckpointError, match="is not in its folder"):
        read_weights(folder)


def test_nothing_asks_the_network(tmp_path, small_runs, monkeypatch, capsys):
    asked = []

    def refuse(self, address, *rest):
        asked.append(address)
        raise OSError("no network here")

    # As a user has it: nothing tells the libraries to stay offline.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    cpu = ["--device", "cpu"]
    small = [*cpu, "--steps", "1", "--batch-size", "1", "--replay", "0"]
    for words in (
        ["chat", small_runs / "sft", "--prompt", "Hi", *cpu],
        ["chat", small_runs / "lora", "--prompt", "Hi", *cpu],
        ["export", small_runs / "sft", "--out", tmp_path / "hf"],
        ["import", small_runs / "hf", "--out", tmp_path / "import"],
        ["merge", small_runs / "lora", "--out", tmp_path / "merged"],
        ["lora", small_runs / "hf", "--out", tmp_path / "lora", *small],
        ["sft", small_runs / "pretrain", "--out", tmp_path / "sft", *small],
    ):
        assert cli.main([str(word) for word in words]) == 0, words
    # What looks like a name of the hub is no reason to ask it.
    for name in ("Qwen/Qwen3-0.6B", "gpt2"):
        assert cli.main(["chat", name, *cpu]) == 2
        with pytest.raises(MiniMindError):
            load_tokenizer(name)
    assert asked == []
