"""Packages with one thing broken: what a reader says, and what it hides."""

import json

import pytest
import torch

from minimind_core.book.exhibits.packages import (
    BREAKS,
    PAIRED,
    broken,
    examine,
    export_like_upstream,
    interleave,
)
from minimind_core.checkpoint import save_model
from minimind_core.config import ModelConfig, TrainConfig
from minimind_core.errors import CheckpointError
from minimind_core.export import export_hf
from minimind_core.loading import load_model
from minimind_core.model import MiniMind
from minimind_core.optim import build_optimizer
from minimind_core.tokenizer import encode_document, train_tokenizer

TOKENIZER = train_tokenizer(["one small story about a small model"] * 4, 300)
TEXT = "one small story about a small model"
ACCENT = "cafe\u0301"  # an e and an accent, as two characters

SAID = {
    "nothing": "sound",
    "no-stop": "silent",
    "half-stop": "silent",
    "no-generation-config": "sound",
    "no-tokenizer-class": "silent",
    "no-template": "refused",
    "wrong-theta": "silent",
    "wrong-epsilon": "silent",
    "untied": "reported",
    "no-head-dim": "refused",
    "layer-lost": "reported",
    "layer-more": "reported",
    "llama": "reported",
    "own-names": "reported",
    "other-pairs": "silent",
    "half": "silent",
    "cut-short": "refused",
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A model that has learnt one sentence, exported; and how to look."""
    torch.manual_seed(0)
    model = MiniMind(
        ModelConfig(
            vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, rope_theta=1e4,
            max_position_embeddings=128,
        )
    )  # fmt: skip
    ids = torch.tensor([encode_document(TOKENIZER, TEXT)])
    optimizer = build_optimizer(model, TrainConfig(optimizer="adamw"))
    for _ in range(60):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("package")
    (folder / "run").mkdir()
    save_model(model, TOKENIZER, folder / "run")
    return export_hf(folder / "run", folder / "hf")


@pytest.fixture(scope="module")
def look(package):
    prompt = encode_document(TOKENIZER, TEXT)[:4]
    ours, _ = load_model(package)
    with torch.no_grad():
        exact = ours(torch.tensor([prompt])).logits
    texts = {text: TOKENIZER(text)["input_ids"] for text in (TEXT, ACCENT)}

    def found(folder):
        seen = examine(folder, prompt, exact, texts=texts)
        if not seen.error:  # the template is asked for by itself
            talk = [{"role": "user", "content": "one"}]
            asked = TOKENIZER.apply_chat_template(
                talk, add_generation_prompt=True, return_dict=False
            )
            with torch.no_grad():
                logits = ours(torch.tensor([asked])).logits
            chat = examine(folder, asked, logits, messages=talk)
            return chat if chat.error else seen
        return seen

    return found


@pytest.mark.parametrize("one", BREAKS, ids=lambda one: one.key)
def test_what_a_reader_says_of_each(package, look, tmp_path, one):
    seen = look(broken(package, tmp_path / "copy", one.key))
    assert seen.verdict == SAID[one.key], seen
    facts = seen.facts()
    assert facts["verdict"] == seen.verdict
    assert ("error" in facts) == bool(seen.error)
    assert ("missing" in facts) == bool(seen.missing)


def test_what_is_drawn_at_random_is_drawn_alike(package, look, tmp_path):
    copy = broken(package, tmp_path / "copy", "own-names")
    assert look(copy) == look(copy)


def test_a_break_leaves_the_original_alone(package, tmp_path):
    before = {f.name: f.read_bytes() for f in package.iterdir()}
    for one in BREAKS:
        broken(package, tmp_path / one.key, one.key)
    assert before == {f.name: f.read_bytes() for f in package.iterdir()}


def test_ours_says_where_an_answer_ends_and_upstreams_does_not(
    package, look, tmp_path
):
    ours, tokenizer = load_model(package)
    assert look(package).stops
    export_like_upstream(
        ours.config.to_dict(), ours.state_dict(), tmp_path / "theirs"
    )
    tokenizer.save_pretrained(tmp_path / "theirs")
    theirs = look(tmp_path / "theirs")
    assert theirs.gap == 0 and not theirs.missing
    assert not theirs.stops
    for name in ("config.json", "generation_config.json"):
        kept = json.loads((package / name).read_text())
        lost = json.loads((tmp_path / "theirs" / name).read_text())
        assert kept["eos_token_id"] == 2
        assert lost.get("eos_token_id") is None


def test_pairs_laid_out_differently_are_wrong_and_silent(
    package, look, tmp_path
):
    seen = look(broken(package, tmp_path / "copy", "other-pairs"))
    assert seen.gap > 0.01 and not seen.missing and not seen.unexpected
    assert look(package).gap == 0


def test_interleaved_rows_are_those_of_neighbouring_pairs():
    # Both layouts give the same scores, each under its own rotation.
    torch.manual_seed(0)
    head, time = 8, 5
    weights = [torch.randn(head, 16) for _ in range(2)]
    x = torch.randn(time, 16)
    angles = torch.outer(
        torch.arange(time).float(), 1e4 ** (-torch.arange(4).float() / 4)
    )

    def scores(turn, rows):
        q, k = (turn(x @ w.T) for w in rows)
        return q @ k.T

    def halves(v):
        a, b = v.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def neighbours(v):
        pairs = torch.view_as_complex(v.reshape(time, -1, 2).contiguous())
        turned = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(turned).flatten(1)

    right = scores(halves, weights)
    mixed = [interleave(w, head) for w in weights]
    torch.testing.assert_close(scores(neighbours, mixed), right)
    assert not torch.allclose(scores(halves, mixed), right, atol=0.1)
    assert all("_" in name for name in PAIRED)


@pytest.mark.parametrize("key", ["untied", "layer-lost", "layer-more",
                                 "own-names", "no-head-dim", "cut-short",
                                 "llama"])  # fmt: skip
def test_our_own_reader_refuses_what_others_only_report(
    package, tmp_path, key
):
    with pytest.raises(CheckpointError):
        load_model(broken(package, tmp_path / "copy", key))
