"""Out to the Hugging Face format and back in, exactly."""

import argparse
import contextlib
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import Qwen3ForCausalLM

from minimind_core import checkpoint
from minimind_core.checkpoint import read_weights, save_model
from minimind_core.config import PRESETS, ModelConfig, TrainConfig
from minimind_core.errors import CheckpointError, ConfigError, OutputError
from minimind_core.export import (
    export_hf,
    import_checkpoint,
    infer_config,
)
from minimind_core.loading import check_tokenizer, load_model
from minimind_core.model import MiniMind
from minimind_core.optim import build_optimizer
from minimind_core.run import read_metadata, write_metadata
from minimind_core.tokenizer import (
    encode_document,
    save_tokenizer,
    train_tokenizer,
)

TOKENIZER = train_tokenizer(["one small story about a small model"] * 4, 300)
TEXT = "one small story"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model that has learnt one sentence, and to stop after it."""
    torch.manual_seed(0)
    model = MiniMind(
        ModelConfig(
            vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, rope_theta=5e4,
            max_position_embeddings=128,
        )
    )  # fmt: skip
    ids = torch.tensor([encode_document(TOKENIZER, TEXT)])
    optimizer = build_optimizer(model, TrainConfig(optimizer="adamw"))
    for _ in range(60):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    out = tmp_path_factory.mktemp("run") / "run"
    out.mkdir()
    save_model(model, TOKENIZER, out)
    return out


READER = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "minimind_core":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
try:
    import minimind_core
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("minimind_core can be imported")
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
folder, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder)
tok = AutoTokenizer.from_pretrained(folder)
ids = torch.arange(3, 43)[None] % model.config.vocab_size
with torch.no_grad():
    logits = model(ids).logits
start = torch.tensor([[1]])
written = model.generate(start, max_new_tokens=40, do_sample=False)
chat = tok.apply_chat_template([{"role": "user", "content": "one"}],
                               add_generation_prompt=True,
                               return_dict=False)
piped = pipeline("text-generation", model=model, tokenizer=tok)
said = piped("one", max_new_tokens=30, do_sample=False)
torch.save({"logits": logits, "written": written,
            "chat": torch.tensor(chat), "class": type(model).__name__,
            "dtype": str(model.dtype), "said": said[0]["generated_text"]},
           out)
"""


def read_elsewhere(folder, tmp_path):
    out = tmp_path / "read.pt"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(READER), str(folder),
         str(out)],
        capture_output=True, text=True, cwd=tmp_path, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_a_process_without_us_reads_it_exactly(run, tmp_path, format):
    out = export_hf(run, tmp_path / "hf", format=format)
    read = read_elsewhere(out, tmp_path)
    assert read["class"] == "Qwen3ForCausalLM"
    model, tokenizer = load_model(run)
    ids = torch.arange(3, 43)[None] % model.config.vocab_size
    with torch.no_grad():
        assert torch.equal(model(ids).logits, read["logits"])
    # It stops by itself: the end token, and nothing behind it.
    written = read["written"][0].tolist()
    assert written == encode_document(tokenizer, TEXT)
    from minimind_core.chat import encode_prompt

    prompt = [{"role": "user", "content": "one"}]
    assert read["chat"].tolist() == encode_prompt(tokenizer, prompt)
    assert read["said"].startswith("one")


def test_the_files_are_what_other_readers_need(run, tmp_path):
    out = export_hf(run, tmp_path / "hf")
    names = {path.name for path in out.iterdir()}
    assert names >= {
        "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["rope_theta"] == 5e4
    assert config["rope_parameters"]["rope_theta"] == 5e4
    stop = json.loads((out / "generation_config.json").read_text())
    assert stop["eos_token_id"] == 2
    assert stop["bos_token_id"] == 1
    assert stop["pad_token_id"] == 0
    about = json.loads((out / "tokenizer_config.json").read_text())
    assert about["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_can_be_stored_smaller(run, tmp_path, dtype):
    out = export_hf(run, tmp_path / "hf", dtype=dtype)
    kind = getattr(torch, dtype)
    assert {t.dtype for t in read_weights(out).values()} == {kind}
    loaded = Qwen3ForCausalLM.from_pretrained(out)
    assert loaded.dtype == kind


def test_what_cannot_be_written_leaves_nothing(run, tmp_path, monkeypatch):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine").write_text("x")
    with pytest.raises(OutputError, match="already exists"):
        export_hf(run, tmp_path / "hf")
    for wrong in ({"format": "gguf"}, {"dtype": "int8"}):
        with pytest.raises(ConfigError, match="unknown"):
            export_hf(run, tmp_path / "new", **wrong)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_tokenizer", full)
    with pytest.raises(OutputError, match="free some space"):
        export_hf(run, tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_there_and_back_is_exact(run, tmp_path):
    export_hf(run, tmp_path / "hf")
    back = import_checkpoint(tmp_path / "hf", tmp_path / "back")
    ours, theirs = read_weights(run), read_weights(back)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert load_model(back)[0].config == load_model(run)[0].config


def test_what_transformers_saves_is_read_in_one_file_or_many(run, tmp_path):
    model = Qwen3ForCausalLM.from_pretrained(export_hf(run, tmp_path / "hf"))
    for name, size in (("one", "1GB"), ("many", "40KB")):
        folder = tmp_path / name
        model.save_pretrained(folder, max_shard_size=size)
        save_tokenizer(TOKENIZER, folder)
        back = import_checkpoint(folder, tmp_path / f"{name}-run")
        ours, theirs = read_weights(run), read_weights(back)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    shards = list((tmp_path / "many").glob("model-*.safetensors"))
    assert len(shards) > 1


# --- files of weights ---


def upstream_file(run, path, prefix="module.", **changes):
    """A file as MiniMind saves it: half precision, tables and prefixes."""
    model, _ = load_model(run)
    state = {f"{prefix}{k}": v.half() for k, v in model.state_dict().items()}
    state[f"{prefix}model.freqs_cos"] = torch.zeros(8, 4)
    state |= changes
    torch.save(state, path)
    return path


TOLD = {"rope_theta": 5e4, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128}  # fmt: skip


def same_weights(ours, theirs):
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[n].half(), theirs[n].half()) for n in ours)


def test_upstreams_own_file_is_read(run, tmp_path):
    path = upstream_file(run, tmp_path / "full_sft_32.pth")
    out = import_checkpoint(path, tmp_path / "run", tokenizer=run, **TOLD)
    ours, theirs = load_model(run)[0], load_model(out)[0]
    assert ours.config == theirs.config
    for name, tensor in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor.half().float())
    assert "assumed" not in read_metadata(out)


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.",
     "module._orig_mod.module."],
)  # fmt: skip
def test_prefixes_may_be_nested(run, tmp_path, prefix):
    path = upstream_file(run, tmp_path / "a.pth", prefix)
    out = import_checkpoint(path, tmp_path / "run", tokenizer=run, **TOLD)
    assert same_weights(read_weights(run), read_weights(out))


def test_a_layer_that_was_compiled_by_itself(run, tmp_path):
    model, _ = load_model(run)
    model.model.layers[1] = torch.compile(model.model.layers[1])
    torch.save(model.state_dict(), tmp_path / "a.pth")
    assert any("layers.1._orig_mod." in name for name in model.state_dict())
    out = import_checkpoint(
        tmp_path / "a.pth", tmp_path / "run", tokenizer=run, **TOLD
    )
    assert same_weights(read_weights(run), read_weights(out))


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_of_a_training_checkpoint_the_model_is_taken(run, tmp_path, key):
    state = load_model(run)[0].state_dict()
    saved = {key: state, "optimizer": {"state": {0: {"step": 3}}}, "epoch": 1}
    torch.save(saved, tmp_path / "resume.pth")
    out = import_checkpoint(
        tmp_path / "resume.pth", tmp_path / "run", tokenizer=run, **TOLD
    )
    assert same_weights(read_weights(run), read_weights(out))


IDS = torch.arange(3, 43)[None]


def logits(folder):
    model = load_model(folder)[0]
    with torch.no_grad():
        return model(IDS % model.config.vocab_size).logits


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_file_takes_what_it_lacks_from_beside_it(run, tmp_path, kind):
    # theta 5e4, 128 positions, another epsilon: none is MiniMind's.
    model, tokenizer = load_model(run)
    shape = model.config.replace(rms_norm_eps=1e-4)
    other = MiniMind(shape)
    other.load_state_dict(model.state_dict())
    (tmp_path / "other").mkdir()
    save_model(other, tokenizer, tmp_path / "other", pth=True)
    name = {"pth": "minimind.pth", "safetensors": "model.safetensors"}[kind]
    out = import_checkpoint(tmp_path / "other" / name, tmp_path / "back")
    assert load_model(out)[0].config == shape
    assert torch.equal(logits(out), logits(tmp_path / "other"))


def test_a_lone_file_asks_for_its_rotary_base(run, tmp_path):
    path = upstream_file(run, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="give --rope-theta"):
        import_checkpoint(path, tmp_path / "run", tokenizer=run)
    assert not (tmp_path / "run").exists()
    with pytest.warns(UserWarning, match="rms_norm_eps 1e-06") as told:
        out = import_checkpoint(
            path, tmp_path / "run", tokenizer=run, rope_theta=5e4
        )
    assert "rope_theta" not in str(told[0].message)
    assert read_metadata(out)["assumed"] == {
        "rms_norm_eps": 1e-6, "max_position_embeddings": 32768,
    }  # fmt: skip
    half = load_model(run)[0]
    with torch.no_grad():
        for parameter in half.parameters():
            parameter.copy_(parameter.half())
        assert torch.equal(logits(out), half(IDS % len(TOKENIZER)).logits)
    with pytest.raises(CheckpointError, match="must be greater than 0"):
        import_checkpoint(
            path, tmp_path / "x", tokenizer=run, rope_theta=-1
        )


def test_minimind_3_itself_gets_its_values_and_says_so(
    run, tmp_path, monkeypatch
):
    # The file is 128 MB: a smaller model stands for it.
    path = upstream_file(run, tmp_path / "full_sft_768.pth")
    small = load_model(run)[0].config.replace(
        rope_theta=1e6, max_position_embeddings=32768
    )
    as_base = dataclasses.replace(PRESETS["base"], model=small)
    monkeypatch.setitem(PRESETS, "base", as_base)
    with pytest.warns(UserWarning, match="assumed: rope_theta 1e"):
        out = import_checkpoint(path, tmp_path / "run", tokenizer=run)
    assert load_model(out)[0].config.rope_theta == 1e6
    assert read_metadata(out)["assumed"]["rope_theta"] == 1e6
    shape = MiniMind(ModelConfig(intermediate_size=2432)).state_dict()
    monkeypatch.undo()
    assert infer_config(shape, "x") == PRESETS["base"].model


def test_a_config_of_another_model_is_not_taken(run, tmp_path):
    path = upstream_file(run, tmp_path / "a.pth")
    other = load_model(run)[0].config.replace(hidden_size=64)
    (tmp_path / "config.json").write_text(json.dumps(other.to_hf()))
    with pytest.raises(CheckpointError, match="hidden_size is 64, not 32"):
        import_checkpoint(path, tmp_path / "run", tokenizer=run)
    out = import_checkpoint(path, tmp_path / "run", tokenizer=run, **TOLD)
    assert load_model(out)[0].config.rope_theta == 5e4


def test_what_is_given_counts_more_than_what_a_folder_says(run, tmp_path):
    hf = export_hf(run, tmp_path / "hf")
    out = import_checkpoint(hf, tmp_path / "run", rope_theta=7e4)
    assert load_model(out)[0].config.rope_theta == 7e4


def padded(run, folder, rows):
    """A run's model with more rows of embeddings."""
    model, tokenizer = load_model(run)
    larger = MiniMind(model.config.replace(vocab_size=rows))
    state = larger.state_dict()
    for name, tensor in model.state_dict().items():
        state[name][: len(tensor)] = tensor
    larger.load_state_dict(state)
    folder.mkdir()
    save_model(larger, tokenizer, folder)
    return folder


def test_the_tokenizer_must_fit_in_both_directions(run, tmp_path):
    large = tmp_path / "large"
    train_tokenizer(["so many other words here " * 9, "é漢"], 340, out=large)
    with pytest.raises(CheckpointError, match="tokens, the model only"):
        import_checkpoint(run, tmp_path / "x", tokenizer=large)
    # Padding, as Qwen3 has it, is no mistake.
    few = padded(run, tmp_path / "few", len(TOKENIZER) + 100)
    out = import_checkpoint(few, tmp_path / "few-run")
    assert load_model(out)[0].config.vocab_size == len(TOKENIZER) + 100
    many = padded(run, tmp_path / "many", 919)
    with pytest.raises(CheckpointError, match="hardly belong together"):
        import_checkpoint(many, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    import_checkpoint(many, tmp_path / "x", spare_rows=True)
    assert load_model(tmp_path / "x")[0].config.vocab_size == 919


@pytest.mark.parametrize(
    ("rows", "tokens", "fits"),
    [(151_936, 151_669, True), (6400, 6400, True), (6400, 919, False),
     (129_280, 128_815, True), (6400, 6401, False), (512, 500, True)],
)  # fmt: skip
def test_how_many_rows_may_be_spare(rows, tokens, fits):
    def check():
        check_tokenizer(
            range(tokens), ModelConfig(vocab_size=rows), "x",
            spare_rows=False,
        )  # fmt: skip

    if fits:
        check()
    else:
        with pytest.raises(CheckpointError, match="tokenizer"):
            check()


def test_what_cannot_be_read_says_why(run, tmp_path):
    out = tmp_path / "run"

    def refused(path, message, **options):
        options = {"tokenizer": run, "rope_theta": 5e4, **options}
        with pytest.raises(CheckpointError, match=message):
            import_checkpoint(path, out, **options)

    path = upstream_file(run, tmp_path / "a.pth")
    refused(path, "--tokenizer", tokenizer=None)
    refused(tmp_path / "none.pth", "no such file")
    moe = {"model.layers.0.mlp.experts.0.up_proj.weight": torch.zeros(2)}
    refused(
        upstream_file(run, tmp_path / "moe.pth", **moe), "mixture of experts"
    )
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    refused(tmp_path / "other.pth", "MiniMind-3's shape")
    lora = {"layers.0.self_attn.q_proj.lora.A.weight": torch.zeros(2, 2),
            "layers.0.self_attn.q_proj.lora.B.weight": torch.zeros(2, 2)}
    torch.save(lora, tmp_path / "lora.pth")
    refused(tmp_path / "lora.pth", "convert_merge_base_lora")
    twice = {"model.norm.weight": torch.ones(32)}
    refused(upstream_file(run, tmp_path / "twice.pth", **twice), "twice")
    torch.save({"model": [1], "step": 3}, tmp_path / "odd.pth")
    refused(tmp_path / "odd.pth", "model.state_dict")
    torch.save({"model": {}, "args": argparse.Namespace()},
               tmp_path / "args.pth")  # fmt: skip
    refused(tmp_path / "args.pth", "Python objects")
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:2000])
    refused(tmp_path / "cut.pth", "damaged")
    assert not out.exists()


# --- the model card ---


def test_the_card_says_what_is_recorded_and_no_more(run, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copytree(run, tmp_path / "run", dirs_exist_ok=True)
    metadata = {
        "stage": "sft", "data": ["/home/me/secret/talks.jsonl"], "seed": 4,
        "train": {"steps": 7, "lr": 0.001, "seed": 4, "seq_len": 99},
    }  # fmt: skip
    write_metadata(tmp_path / "run", metadata)
    out = export_hf(tmp_path / "run", tmp_path / "tales")
    card = ModelCard.load(out / "README.md")
    front = card.data.to_dict()
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-generation"
    assert {"license", "base_model", "language"}.isdisjoint(front)
    assert card.text.strip().startswith("# tales\n")
    assert "fine-tuned on conversations" in card.text
    assert "- Data: talks.jsonl\n" in card.text
    assert "steps 7" in card.text and "lr 0.001" in card.text
    assert "secret" not in card.content and str(tmp_path) not in card.content
    assert f"{load_model(out)[0].config.num_parameters():,}" in card.text
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    names = {}
    with contextlib.chdir(tmp_path):
        exec(code, names)
    assert type(names["model"]).__name__ == "Qwen3ForCausalLM"
    # What is kept, so that `eval` knows about it.
    assert read_metadata(out)["train"]["seq_len"] == 99
    assert read_metadata(out)["data"] == metadata["data"]


def test_the_card_of_a_model_about_which_nothing_is_known(run, tmp_path):
    imported = import_checkpoint(run, tmp_path / "imported")
    out = export_hf(imported, tmp_path / "hf")
    card = ModelCard.load(out / "README.md")
    assert "It was imported from `run`" in card.text
    assert "Data" not in card.text and "Settings" not in card.text
    plain = export_hf(run, tmp_path / "plain")
    assert "is not recorded" in ModelCard.load(plain / "README.md").text
