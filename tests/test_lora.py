"""LoRA by hand and through peft: the same, exact where it can be."""

import copy
import json
import shutil

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import nn

from minimind_core.adapters import merge_lora
from minimind_core.checkpoint import save_model
from minimind_core.config import ModelConfig
from minimind_core.data import tokenizer_texts
from minimind_core.errors import CheckpointError, ConfigError
from minimind_core.export import export_hf
from minimind_core.loading import load_adapter, load_hf_model, load_model
from minimind_core.lora import (
    ALL_LINEAR,
    LoRALinear,
    apply_lora,
    merge_lora_layers,
)
from minimind_core.model import MiniMind
from minimind_core.recipes import train_lora
from minimind_core.tokenizer import train_tokenizer
from minimind_core.train import Trainer

SETTINGS = {"steps": 6, "batch_size": 4, "seq_len": 200, "device": "cpu",
            "dtype": "float32", "progress": False}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small exported model; its layers are not square."""
    tokenizer = train_tokenizer(tokenizer_texts("microworld", count=100), 500)
    torch.manual_seed(0)
    model = MiniMind(
        ModelConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=64, max_position_embeddings=256,
            initializer_range=0.1,
        )
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    (folder / "run").mkdir()
    save_model(model, tokenizer, folder / "run")
    return export_hf(folder / "run", folder / "hf")


@pytest.fixture
def model(base):
    return load_model(base)[0]


IDS = torch.randint(3, 400, (4, 30), generator=torch.manual_seed(1))


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def train(model, steps=50):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()


# --- by hand ---


def test_every_linear_layer_is_adapted_square_or_not(model):
    # Upstream adapts only square ones: of these seven kinds q and o.
    names = apply_lora(model, rank=4)
    assert len(names) == 2 * len(ALL_LINEAR)
    assert {name.rpartition(".")[2] for name in names} == set(ALL_LINEAR)
    learning = [n for n, p in model.named_parameters() if p.requires_grad]
    assert all(".lora_" in name for name in learning)
    assert len(learning) == 2 * len(names)


def test_it_starts_as_the_model_it_was(model):
    before = logits(model)
    apply_lora(model, rank=4)
    assert torch.equal(logits(model), before)


def test_alpha_over_rank_scales_the_change():
    layer = LoRALinear(nn.Linear(6, 5, bias=False), rank=3, alpha=12)
    nn.init.ones_(layer.lora_B.weight)
    x = torch.randn(2, 6)
    change = x @ layer.lora_A.weight.T @ torch.ones(3, 5) * 4
    torch.testing.assert_close(layer(x), layer.base(x) + change)


def test_merging_leaves_a_plain_model_with_the_same_answers(model):
    apply_lora(model, rank=4)
    train(model, 20)
    adapted = logits(model)
    merge_lora_layers(model)
    assert not any(isinstance(m, LoRALinear) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    # One product instead of three: rounding, 3e-6 measured.
    torch.testing.assert_close(logits(model), adapted, rtol=0, atol=2e-5)


def test_a_copy_is_a_copy(model):
    apply_lora(model, rank=4)
    twin = copy.deepcopy(model)
    before = logits(twin)
    train(model, 5)
    assert torch.equal(logits(twin), before)
    assert not torch.equal(logits(model), before)


def test_wrong_targets_are_refused(model, base, tmp_path):
    with pytest.raises(ConfigError, match="no linear layer is named wq"):
        apply_lora(model, targets=("q_proj", "wq"))
    with pytest.raises(ConfigError, match="rank"):
        apply_lora(model, rank=0)
    for tied in ("embed_tokens", "lm_head"):
        with pytest.raises(ConfigError, match="trainable_token_indices"):
            apply_lora(model, targets=(tied,))
        with pytest.raises(ConfigError, match="trainable_token_indices"):
            train_lora(base, tmp_path / "x", targets=[tied], **SETTINGS)
    assert not (tmp_path / "x").exists()


def test_ours_and_pefts_train_to_the_same_weights(model, base):
    apply_lora(model, rank=4, alpha=8)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=list(ALL_LINEAR)
    )
    theirs = peft.get_peft_model(load_hf_model(base), config)
    ours = {n: p for n, p in model.named_parameters() if p.requires_grad}
    twins = {
        name.removeprefix("base_model.model.").replace(".default", ""): p
        for name, p in theirs.named_parameters()
        if p.requires_grad
    }
    assert ours.keys() == twins.keys()
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(twins[name])
    train(model)
    train(theirs)
    gap = max(
        float((ours[n] - twins[n]).detach().abs().max()) for n in ours
    )
    moved = max(float(p.abs().max()) for n, p in twins.items() if "_B." in n)
    assert moved > 0.02
    assert gap < 1e-6


# --- through peft ---


@pytest.fixture(scope="module")
def trained(base):
    out = base.parent / "lora"
    run = train_lora(base, out, rank=4, **SETTINGS)
    return out, run


def test_the_adapter_learns_and_comes_off_again(trained, base):
    out, run = trained
    assert [r["step"] for r in run.history][-1] == SETTINGS["steps"]
    adapted, _ = load_adapter(out)
    assert torch.equal(logits(adapted), logits(run.model))
    plain = logits(load_hf_model(base))
    assert not torch.equal(logits(adapted), plain)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), plain)


def test_merged_it_is_one_plain_model(trained, tmp_path):
    out, run = trained
    merged = merge_lora(out, tmp_path / "merged")
    assert not (merged / "adapter_config.json").exists()
    # Rounding of one addition to each weight: 2e-6 measured.
    gap = (logits(load_hf_model(merged)) - logits(run.model)).abs().max()
    assert gap < 1e-5
    assert torch.equal(
        logits(load_model(merged)[0]), logits(load_hf_model(merged))
    )


def test_base_and_adapter_may_be_moved_together(trained, base, tmp_path):
    before = logits(trained[1].model)
    there = tmp_path / "elsewhere"
    shutil.copytree(base, there / "hf")
    shutil.copytree(trained[0], there / "lora")
    assert torch.equal(logits(load_adapter(there / "lora")[0]), before)
    shutil.move(there / "hf", tmp_path / "lost")
    with pytest.raises(CheckpointError, match="--base"):
        load_adapter(there / "lora")
    found, _ = load_adapter(there / "lora", base=tmp_path / "lost")
    assert torch.equal(logits(found), before)


def test_a_stopped_run_goes_on_to_the_bit(trained, base, tmp_path):
    class Stopped(Exception):
        pass

    settings = {**SETTINGS, "rank": 4, "save_every": 4}
    step = Trainer.train_step
    try:
        def stop(self, module):
            if self.step == 5:
                raise Stopped
            return step(self, module)

        Trainer.train_step = stop
        with pytest.raises(Stopped):
            train_lora(base, tmp_path / "lora", **settings)
    finally:
        Trainer.train_step = step
    run = train_lora(base, tmp_path / "lora", resume=True, **settings)
    assert torch.equal(logits(run.model), logits(trained[1].model))


def test_another_base_or_length_is_not_resumed(base, tmp_path):
    out = tmp_path / "lora"
    settings = {**SETTINGS, "rank": 4, "save_every": 4}
    step = Trainer.train_step

    def stop(self, module):
        if self.step == 5:
            raise KeyboardInterrupt
        return step(self, module)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train_lora(base, out, **settings)
    # The same folder, but other weights in it.
    other = tmp_path / "other"
    shutil.copytree(base, other)
    file = other / "model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    weights[name] = weights[name] + 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    about = json.loads((other / "minimind.json").read_text())
    del about["files"]  # changed on purpose
    (other / "minimind.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="base was"):
        train_lora(other, out, resume=True, **settings)
    longer = {**settings, "seq_len": 120}
    with pytest.raises(CheckpointError, match="seq_len was"):
        train_lora(base, out, resume=True, **longer)
    train_lora(base, out, resume=True, **settings)


def test_replay_mixes_ordinary_answers_in(base, tmp_path):
    run = train_lora(
        base, tmp_path / "a", replay=0.5, **{**SETTINGS, "steps": 2}
    )
    other = train_lora(base, tmp_path / "b", **{**SETTINGS, "steps": 2})
    assert run.history[-1]["tokens"] != other.history[-1]["tokens"]


def test_damage_is_told(trained, base, tmp_path):
    broken = base.parent / "broken"
    shutil.copytree(trained[0], broken)
    file = broken / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="broken"):
        load_adapter(broken)
    with pytest.raises(CheckpointError, match="no adapter here"):
        merge_lora(base, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_an_old_torchao_is_explained(base, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise ImportError("Found an incompatible version of torchao.")

    monkeypatch.setattr(peft, "get_peft_model", refuse)
    with pytest.raises(ConfigError, match="pip uninstall -y torchao"):
        train_lora(base, tmp_path / "lora", **SETTINGS)
    assert not (tmp_path / "lora").exists()


def test_an_adapter_has_a_card(trained, base, tmp_path):
    card = ModelCard.load(trained[0] / "README.md")
    front = card.data.to_dict()
    assert front["library_name"] == "peft"
    assert "lora" in front["tags"]
    # The hub takes only its own models' names there.
    assert {"license", "base_model"}.isdisjoint(front)
    assert "`../hf` as seen from this folder" in card.text
    assert "- Data: microworld" in card.text
    assert "steps 6" in card.text
    merged = merge_lora(trained[0], tmp_path / "merged")
    text = ModelCard.load(merged / "README.md").text
    assert "merged into it" in text and "- Data: microworld" in text
