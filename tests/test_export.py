"""Out to the Hugging Face format and back in, exactly."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from transformers import Qwen3ForCausalLM

from minimind_core import export
from minimind_core.checkpoint import read_weights, save_model
from minimind_core.config import ModelConfig, TrainConfig
from minimind_core.errors import CheckpointError, ConfigError, OutputError
from minimind_core.export import export_hf, import_checkpoint
from minimind_core.loading import load_model
from minimind_core.model import MiniMind
from minimind_core.optim import build_optimizer
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

    monkeypatch.setattr(export, "save_tokenizer", full)
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


def upstream_file(run, path, **changes):
    """A file as MiniMind saves it: half precision, tables and prefixes."""
    model, _ = load_model(run)
    state = {f"module.{k}": v.half() for k, v in model.state_dict().items()}
    state["module.model.freqs_cos"] = torch.zeros(8, 4)
    state |= changes
    torch.save(state, path)
    return path


def test_upstreams_own_file_is_read(run, tmp_path):
    path = upstream_file(run, tmp_path / "full_sft_32.pth")
    out = import_checkpoint(path, tmp_path / "run", tokenizer=run)
    ours, theirs = load_model(run)[0], load_model(out)[0]
    same = {"rope_theta", "max_position_embeddings"}  # not seen in weights
    for name, value in ours.config.to_dict().items():
        if name not in same:
            assert getattr(theirs.config, name) == value, name
    assert theirs.config.rope_theta == 1e6
    for name, tensor in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor.half().float())


def test_what_cannot_be_read_says_why(run, tmp_path):
    out = tmp_path / "run"
    path = upstream_file(run, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="--tokenizer"):
        import_checkpoint(path, out)
    moe = {"model.layers.0.mlp.experts.0.up_proj.weight": torch.zeros(2)}
    path = upstream_file(run, tmp_path / "moe.pth", **moe)
    with pytest.raises(CheckpointError, match="mixture of experts"):
        import_checkpoint(path, out, tokenizer=run)
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="MiniMind-3's shape"):
        import_checkpoint(tmp_path / "other.pth", out, tokenizer=run)
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="damaged"):
        import_checkpoint(tmp_path / "cut.pth", out, tokenizer=run)
    large = tmp_path / "large"
    train_tokenizer(["so many other words here " * 9, "é漢"], 340, out=large)
    path = upstream_file(run, tmp_path / "b.pth")
    bigger = json.loads((large / "tokenizer.json").read_text())
    if len(bigger["model"]["vocab"]) > len(TOKENIZER):
        with pytest.raises(CheckpointError, match="tokens, the model only"):
            import_checkpoint(path, out, tokenizer=large)
    assert not out.exists()
