"""Saving and loading: atomic, strict, full precision."""

import hashlib
import json
import math
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from minimind_core import checkpoint
from minimind_core.checkpoint import (
    RUN_FORMAT,
    all_finite,
    checkpoints,
    last_sound,
    load_checkpoint,
    load_weights,
    read_weights,
    save_checkpoint,
    save_model,
    weights_digest,
)
from minimind_core.config import ModelConfig
from minimind_core.errors import CheckpointError, OutputError
from minimind_core.files import atomic_folder
from minimind_core.loading import load_model
from minimind_core.model import MiniMind
from minimind_core.tokenizer import encode_document, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["one small story about a small model"] * 4, 300)


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    return MiniMind(
        ModelConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1,
        )
    ).eval()  # fmt: skip


@pytest.fixture
def folder(tmp_path, model, tokenizer):
    out = tmp_path / "run"
    out.mkdir()
    save_model(model, tokenizer, out, pth=True)
    return out


def test_round_trip_is_exact(folder, model, tokenizer):
    loaded, tok = load_model(folder)
    assert loaded.config == model.config
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    text = "a small <|im_end|> story"
    assert encode_document(tok, text) == encode_document(tokenizer, text)


def test_a_half_precision_model_is_saved_in_float32(
    tmp_path, model, tokenizer
):
    # Half-precision files forget small updates; ours hold float32 always.
    save_model(model.half(), tokenizer, tmp_path)
    dtypes = {t.dtype for t in read_weights(tmp_path).values()}
    assert dtypes == {torch.float32}


def test_a_small_update_survives_saving(tmp_path, model, tokenizer):
    weight = model.model.norm.weight
    with torch.no_grad():
        weight += 1e-6
    save_model(model, tokenizer, tmp_path)
    saved = read_weights(tmp_path)["model.norm.weight"]
    assert torch.equal(saved, weight)
    assert torch.equal(weight.half().float(), torch.ones(32))  # as half: lost


def test_native_file_has_every_key(folder, model):
    state = torch.load(folder / "minimind.pth", weights_only=True)
    assert set(state) == set(model.state_dict())


def test_older_layouts_are_read(folder, model):
    state = read_weights(folder)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert set(read_weights(folder)) == set(state)
    (folder / "pytorch_model.bin").unlink()
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({k: state[k] for k in keys}, folder / file)
    where = {k: file for file, keys in parts.items() for k in keys}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    loaded, _ = load_model(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_wrong_weights_name_each_tensor(folder, model):
    path = folder / "model.safetensors"
    state = load_file(path)
    state["extra"] = torch.zeros(1)
    state["model.norm.weight"] = torch.zeros(7)
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, path)
    with pytest.raises(CheckpointError) as error:
        load_model(folder)
    for part in (
        "layers.1.mlp.up_proj.weight is missing", "extra is unknown",
        "model.norm.weight has shape (7,), not (32,)",
    ):  # fmt: skip
        assert part in str(error.value)


def test_fewer_layers_do_not_load_into_more(model):
    # strict=False would leave the second layer at its random start.
    small = MiniMind(model.config.replace(num_hidden_layers=1))
    with pytest.raises(CheckpointError, match="and 6 more"):
        load_weights(model, small.state_dict(), "small")


def test_a_tie_that_is_none_is_refused(model):
    state = model.state_dict() | {
        "lm_head.weight": torch.zeros_like(model.lm_head.weight)
    }
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        load_weights(model, state, "file")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_files_are_named(folder, model, name):
    if name.endswith(".bin"):
        torch.save(model.state_dict(), folder / name)
        (folder / "model.safetensors").unlink()
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=f"{name}: damaged"):
        load_model(folder)


def test_folders_that_are_no_model(tmp_path, folder):
    with pytest.raises(CheckpointError, match="no such folder"):
        load_model(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_model(tmp_path / "empty")
    # The folder of a run lies in this one.
    with pytest.raises(CheckpointError, match=f"in it are {folder.name}"):
        load_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"its base .* is not there"):
        load_model(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load_model(folder)


def test_atomic_folder_appears_complete_or_not_at_all(tmp_path):
    out = tmp_path / "deep" / "out"
    with atomic_folder(out) as partial:
        (partial / "file").write_text("x")
        assert not out.exists()
    assert (out / "file").read_text() == "x"
    with pytest.raises(OutputError, match="already exists"):
        with atomic_folder(out):
            raise AssertionError("must not start")
    other = tmp_path / "other"
    with pytest.raises(ZeroDivisionError):
        with atomic_folder(other) as partial:
            (partial / "file").write_text("x")
            _ = 1 / 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]


def test_a_full_disk_leaves_nothing(tmp_path, folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    before = {p: p.read_bytes() for p in folder.iterdir()}
    model, tokenizer = load_model(folder)
    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(OutputError, match="free some space"):
        save_model(model, tokenizer, folder)
    assert {p: p.read_bytes() for p in folder.iterdir()} == before
    with pytest.raises(OutputError, match="free some space"):
        save_checkpoint(tmp_path, 5, {}, {}, {})
    assert checkpoints(tmp_path) == []
    assert not any((tmp_path / "checkpoints").iterdir())


def test_checkpoints_keep_the_newest(tmp_path):
    for step in (5, 10, 1000):
        save_checkpoint(
            tmp_path, step, {"w": torch.full((3,), step)},
            {"optimizer": {"m": torch.ones(2)}}, {"data": {"drawn": step}},
        )  # fmt: skip
    names = [p.name for p in checkpoints(tmp_path)]
    assert names == ["step_00000010", "step_00001000"]
    weights, training, state = load_checkpoint(checkpoints(tmp_path)[-1])
    assert weights["w"].tolist() == [1000] * 3
    assert training["optimizer"]["m"].tolist() == [1, 1]
    assert state == {
        "format": RUN_FORMAT, "step": 1000, "data": {"drawn": 1000},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (RUN_FORMAT + 1, r"newer version .* Update minimind_core"),
        (RUN_FORMAT - 1, "older version"),
        (None, "format 0, which an older version"),
        ("a", "format a, which a newer version"),
    ],
)
def test_another_format_is_refused(tmp_path, found, message):
    saved = save_checkpoint(tmp_path, 5, {"w": torch.ones(3)}, {}, {})
    state = json.loads((saved / "state.json").read_text())
    assert state.pop("format") == RUN_FORMAT
    if found is not None:
        state["format"] = found
    (saved / "state.json").write_text(json.dumps(state))
    sums = json.loads((saved / "sha256.json").read_text())
    digest = hashlib.sha256((saved / "state.json").read_bytes())
    sums["state.json"] = digest.hexdigest()
    (saved / "sha256.json").write_text(json.dumps(sums))
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(saved)
    assert str(saved) in str(error.value)


def test_the_last_sound_checkpoint(tmp_path):
    assert last_sound(tmp_path) is None
    states = {
        1: (1.0, 1.0), 2: (1.0, 2.0), 3: (math.nan, 1.0), 4: (1.0, math.inf),
        5: (1.0, 1.0),
    }  # fmt: skip
    for step, (weight, moment) in states.items():
        save_checkpoint(
            tmp_path, step, {"w": torch.full((3,), weight)},
            {"optimizer": {"state": {0: {"m": torch.tensor([moment])}}}},
            {}, keep=9,
        )  # fmt: skip
    newest = checkpoints(tmp_path)[-1]
    assert last_sound(tmp_path) == newest
    (newest / "state.json").write_text("{}")
    assert last_sound(tmp_path).name == "step_00000002"


def test_finite_is_looked_for_in_all_that_is_nested():
    good = {"a": [torch.ones(2), (torch.zeros(1), {"b": 5})],
            "c": torch.tensor([1, 2])}  # fmt: skip
    assert all_finite(good)
    assert all_finite({})
    assert not all_finite([good, {"d": (torch.tensor([1.0, math.inf]),)}])


def test_digests_tell_weights_apart_in_every_dtype(model):
    ours = weights_digest(model.parameters())
    assert len(ours) == 16
    assert ours == weights_digest(p.clone() for p in model.parameters())
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-6
    assert ours != weights_digest(model.parameters())
    halves = [p.bfloat16() for p in model.parameters()]
    assert weights_digest(halves) != ours


@pytest.mark.parametrize(
    "name", ["model.safetensors", "training.pt", "state.json", "sha256.json"]
)
def test_a_truncated_checkpoint_is_told(tmp_path, name):
    saved = save_checkpoint(tmp_path, 5, {"w": torch.ones(3)}, {}, {})
    path = saved / name
    os.truncate(path, path.stat().st_size - 1 if name != "sha256.json" else 9)
    with pytest.raises(CheckpointError, match="continue from the one before"):
        load_checkpoint(saved)
    shutil.rmtree(saved)
    assert checkpoints(tmp_path) == []
