"""What is exported works in other people's tools, at their versions.

The newest transformers and trl are installed beside the package. Version
4.57 of transformers, which many still use, comes from the package index into
a folder of its own that is put before everything else: the tests of it need
the index once, and then the folder.
"""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from transformers import AddedToken, AutoTokenizer

from minimind_core.chat import IGNORE_INDEX, encode_conversation
from minimind_core.checkpoint import save_model
from minimind_core.config import ModelConfig
from minimind_core.export import export_hf, import_checkpoint
from minimind_core.loading import load_model
from minimind_core.model import MiniMind
from minimind_core.tokenizer import save_tokenizer, train_tokenizer

OLDER = ("transformers==4.57.6", "tokenizers==0.22.2",
         "huggingface-hub==0.36.2")  # fmt: skip
TALK = [
    {"role": "user", "content": "one small story?"},
    {"role": "assistant", "content": "a small model"},
    {"role": "user", "content": "and one more?"},
    {"role": "assistant", "content": "one story"},
]


def own_tokenizer():
    return train_tokenizer(["one small story about a small model"] * 4, 300)


def upstreams_kind_of_tokenizer():
    """With special tokens beyond begin, end and padding, as MiniMind's."""
    tokenizer = own_tokenizer()
    extra = [AddedToken(f"<|{n}|>", special=True) for n in ("box", "quad")]
    tokenizer.add_special_tokens({"extra_special_tokens": extra})
    tokenizer.add_tokens([AddedToken("<|buffer1|>", special=False)])
    return tokenizer


KINDS = {"ours": own_tokenizer, "upstream": upstreams_kind_of_tokenizer}


@pytest.fixture(scope="module", params=KINDS)
def export(request, tmp_path_factory):
    """An exported model, untrained, with either kind of tokenizer."""
    tokenizer = KINDS[request.param]()
    torch.manual_seed(0)
    model = MiniMind(
        ModelConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, rope_theta=5e4,
            max_position_embeddings=256, initializer_range=0.3,
        )
    )  # fmt: skip
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "run").mkdir()
    save_model(model, tokenizer, folder / "run")
    return export_hf(folder / "run", folder / "hf")


READER = """
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder)
tok = AutoTokenizer.from_pretrained(folder)
given = tok("one small story <|box|> <|buffer1|>", return_tensors="pt")
written = model.generate(**given, max_new_tokens=12, do_sample=False)
messages = [{"role": "user", "content": "one"}]
prompt = tok.apply_chat_template(messages, add_generation_prompt=True,
                                 return_dict=True, return_tensors="pt")
said = model.generate(**prompt, max_new_tokens=12, do_sample=False)
with torch.no_grad():
    logits = model(**given).logits
torch.save({
    "version": transformers.__version__, "ids": given["input_ids"],
    "keys": sorted(given), "logits": logits, "written": written,
    "prompt": prompt["input_ids"], "said": said,
    "special": sorted(tok.all_special_tokens),
    "text": tok.decode(written[0], skip_special_tokens=True),
    "theta": model.model.rotary_emb.inv_freq,
    "pad": tok(["one", "one small story"], padding=True)["attention_mask"],
}, out)
"""


def read_in(folder, out, packages=None):
    """What a version of transformers makes of a folder, without us."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    if packages is not None:
        environment["PYTHONPATH"] = str(packages)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(READER), str(folder),
         str(out)],
        capture_output=True, text=True, cwd=out.parent, timeout=200,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def older(pytestconfig):
    """A folder with transformers 4.57, kept for the next time."""
    cache = getattr(pytestconfig, "cache", None)
    if cache is None:
        pytest.skip("pytest keeps no cache here, into which to install")
    folder = cache.mkdir("transformers-4.57") / OLDER[0]
    if folder.exists():
        return folder
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    # The rest, torch before all, is what is installed beside the package.
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
         "--disable-pip-version-check", "--target", str(partial), *OLDER],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if done.returncode:
        shutil.rmtree(partial, ignore_errors=True)
        pytest.skip(
            "transformers 4.57 cannot be fetched from the package index: "
            + done.stderr.strip()[-200:]
        )
    partial.rename(folder)
    return folder


@pytest.mark.slow
def test_two_versions_of_transformers_read_an_export_alike(
    export, older, tmp_path
):
    new = read_in(export, tmp_path / "new.pt")
    old = read_in(export, tmp_path / "old.pt", older)
    assert new.pop("version").startswith("5.")
    assert old.pop("version") == "4.57.6"
    assert old["keys"] == ["attention_mask", "input_ids"]
    for name, value in new.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, old[name]), name
        else:
            assert value == old[name], name
    # And both as this package does.
    model, tokenizer = load_model(export)
    with torch.no_grad():
        logits = model(old["ids"]).logits
    assert torch.equal(logits, old["logits"])
    prompt = [{"role": "user", "content": "one"}]
    ids = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_dict=False
    )
    assert old["prompt"][0].tolist() == ids


@pytest.mark.slow
def test_the_rotary_base_is_written_for_both_versions(
    export, older, tmp_path
):
    """Chapter 8 says what 4.57 does to a package of version 5."""
    new = read_in(export, tmp_path / "new.pt")
    shutil.copytree(export, tmp_path / "one-key")
    path = tmp_path / "one-key" / "config.json"
    about = json.loads(path.read_text())
    del about["rope_theta"]
    path.write_text(json.dumps(about))
    old = read_in(tmp_path / "one-key", tmp_path / "old.pt", older)
    assert not torch.equal(new["logits"], old["logits"])
    assert not torch.equal(new["theta"], old["theta"])


def test_the_files_say_what_both_versions_need(export):
    about = json.loads((export / "tokenizer_config.json").read_text())
    assert about["model_input_names"] == ["input_ids", "attention_mask"]
    # A list under this name is what 4.57 cannot read.
    assert not isinstance(about.get("extra_special_tokens"), list)
    tokenizer = load_model(export)[1]
    theirs = AutoTokenizer.from_pretrained(export)
    assert theirs.all_special_tokens == tokenizer.all_special_tokens
    if "<|box|>" in tokenizer.get_vocab():
        assert "<|box|>" in theirs.all_special_tokens
        assert about["additional_special_tokens"] == ["<|box|>", "<|quad|>"]


def test_what_transformers_itself_has_saved_comes_out_readable(
    export, tmp_path
):
    """Version 5 writes the list; a model that passed through it is mended."""
    tokenizer = AutoTokenizer.from_pretrained(export)
    tokenizer.save_pretrained(tmp_path / "theirs")
    save_tokenizer(
        AutoTokenizer.from_pretrained(tmp_path / "theirs"),
        tmp_path / "theirs",
    )
    about = json.loads(
        (tmp_path / "theirs" / "tokenizer_config.json").read_text()
    )
    assert not isinstance(about.get("extra_special_tokens"), list)
    again = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert again.all_special_tokens == tokenizer.all_special_tokens


# --- trl ---


@pytest.fixture(scope="module")
def trained_by_trl(export, tmp_path_factory):
    """The export, two steps later, and the rows that trl made of it."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    folder = tmp_path_factory.mktemp("trl")
    trainer = SFTTrainer(
        model=str(export),
        args=SFTConfig(
            output_dir=str(folder / "out"), assistant_only_loss=True,
            max_steps=2, per_device_train_batch_size=2, use_cpu=True,
            report_to="none", save_strategy="no", logging_steps=1,
            disable_tqdm=True, bf16=False, learning_rate=1e-3,
        ),
        train_dataset=Dataset.from_list([{"messages": TALK}] * 4),
    )  # fmt: skip
    row = trainer.train_dataset[0]
    trainer.train()
    trainer.save_model(str(folder / "saved"))
    return folder / "saved", row, trainer.state.log_history


def test_trl_trains_on_what_we_train_on(trained_by_trl, export):
    _, row, log = trained_by_trl
    ours = encode_conversation(load_model(export)[1], TALK)
    assert row["input_ids"] == ours.input_ids
    assert row["labels"] == ours.labels
    assert sum(label != IGNORE_INDEX for label in ours.labels) > 0
    assert log[0]["loss"] > 0


def test_what_trl_has_trained_comes_back(trained_by_trl, export, tmp_path):
    saved, _, _ = trained_by_trl
    out = import_checkpoint(saved, tmp_path / "back")
    before, after = load_model(export)[0], load_model(out)[0]
    assert after.config == before.config
    assert not torch.equal(
        after.model.embed_tokens.weight, before.model.embed_tokens.weight
    )
