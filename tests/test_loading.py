"""Any model folder is opened in one way, or the error says what it is."""

import json
import shutil

import pytest
import torch

from minimind_core.checkpoint import save_checkpoint
from minimind_core.errors import CheckpointError
from minimind_core.loading import (
    adapter_base,
    load_adapter,
    load_config,
    load_model,
)

IDS = torch.arange(3, 43)[None]


def logits(folder):
    model, tokenizer = load_model(folder)
    assert not model.training
    assert len(tokenizer) == model.config.vocab_size
    with torch.no_grad():
        return model(IDS).logits


def test_every_kind_of_folder_is_opened(small_runs):
    assert torch.equal(
        logits(small_runs / "sft"), logits(small_runs / "hf")
    )
    assert torch.equal(
        logits(small_runs / "lora"), logits(small_runs / "merged")
    )
    assert not torch.equal(
        logits(small_runs / "hf"), logits(small_runs / "lora")
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none", "no such folder$"),
        ("Qwen/Qwen3-0.6B", "hf download Qwen/Qwen3-0.6B --local-dir"),
        ("file.pth", "minimind import file.pth"),
        ("tokens", "a tokenizer without a model"),
        ("journey", "in it are hf, lora"),
        ("lora", "minimind merge lora"),
        ("begun", "--resume"),
        ("begun/checkpoints/step_00000003", "open begun"),
        ("empty", "no config.json"),
    ],
)
def test_what_is_no_model_is_told_what_it_is(
    tmp_path, small_runs, monkeypatch, name, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.pth").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    shutil.copytree(small_runs / "tokenizer", "tokens")
    shutil.copytree(small_runs / "lora", "lora")
    for stage in ("hf", "lora"):
        shutil.copytree(small_runs / stage, f"journey/{stage}")
    save_checkpoint("begun", 3, {"a": torch.zeros(1)}, {}, {})
    with pytest.raises(CheckpointError, match=said) as error:
        load_config(name)
    assert str(error.value).startswith(f"{name}: ")


def test_another_architecture_is_named(tmp_path, small_runs):
    shutil.copytree(small_runs / "hf", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "model_type": "minimind"}))
    with pytest.raises(CheckpointError, match="model_type is 'minimind'"):
        load_model(tmp_path / "hf")


@pytest.mark.parametrize("stage", ["sft", "hf", "lora"])
def test_a_folder_of_another_version_is_refused(tmp_path, small_runs, stage):
    for name in {stage, "hf"}:
        shutil.copytree(small_runs / name, tmp_path / name)
    path = tmp_path / stage / "minimind.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99, which a newer"):
        load_model(tmp_path / stage)


def test_too_many_tokens_for_the_model(tmp_path, small_runs):
    shutil.copytree(small_runs / "hf", tmp_path / "hf")
    _, tokenizer = load_model(small_runs / "hf")
    tokenizer.add_tokens(["Kyoto"])
    tokenizer.save_pretrained(tmp_path / "hf")
    with pytest.raises(CheckpointError, match="tokens, the model only"):
        load_model(tmp_path / "hf")


# --- adapters ---


@pytest.fixture
def adapter(tmp_path, small_runs):
    shutil.copytree(small_runs / "lora", tmp_path / "adapter")
    return tmp_path / "adapter"


def name_base(adapter, base):
    path = adapter / "adapter_config.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "base_model_name_or_path": base}))


def test_the_base_is_found_as_other_tools_name_it(
    adapter, small_runs, monkeypatch
):
    name_base(adapter, str(small_runs / "hf"))
    assert adapter_base(adapter) == small_runs / "hf"
    # From the folder in which peft was started.
    monkeypatch.chdir(small_runs)
    name_base(adapter, "hf")
    assert adapter_base(adapter).samefile(small_runs / "hf")
    assert torch.equal(logits(adapter), logits(small_runs / "merged"))


def test_a_base_of_the_hub_is_to_be_downloaded(adapter):
    for named in ("Qwen/Qwen3-0.6B", "", None):
        name_base(adapter, named)
        with pytest.raises(CheckpointError, match=r"--base.*hub"):
            load_model(adapter)


def test_an_adapter_without_a_tokenizer_takes_its_bases(adapter, small_runs):
    for path in adapter.glob("*token*"):
        path.unlink()
    _, tokenizer = load_adapter(adapter, base=small_runs / "hf")
    assert len(tokenizer) == load_config(small_runs / "hf").vocab_size
