"""What is measured is what is said: sums, floors, answers, characters."""

import copy
import functools
import io
import json
import math
import shutil

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AddedToken

from minimind_core.chat import (
    encode_conversation,
    encode_prompt,
    stop_token_ids,
)
from minimind_core.checkpoint import save_model
from minimind_core.config import ModelConfig
from minimind_core.data import HELD_OUT_EVERY, Row
from minimind_core.errors import CheckpointError, ConfigError, DataError
from minimind_core.evaluation import (
    Loss,
    _row_length,
    answer_prompts,
    batches,
    conversation_loss,
    describe,
    document_loss,
    evaluate,
    exact_match,
    held_out_conversations,
    held_out_documents,
    sample_documents,
    sample_texts,
    standard_error,
)
from minimind_core.generate import generate_tokens
from minimind_core.loading import load_hf_model, load_model
from minimind_core.microworld import (
    HELD_OUT_SEED,
    QUESTION_KINDS,
    conversation,
    held_out_questions,
    write_story,
)
from minimind_core.model import CausalLMOutput, MiniMind
from minimind_core.run import Run, read_metadata
from minimind_core.talk import answer, chat_loop, stream_answer
from minimind_core.tokenizer import decode, encode_document, encode_text

LOSSES = ("data", "part", "records", "tokens", "loss_per_token",
          "standard_error", "perplexity", "loss_per_byte",
          "bits_per_byte")  # fmt: skip
FEW = {"documents": 12, "samples": 6, "questions": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def loaded(small_runs):
    return load_model(small_runs / "sft")


@pytest.fixture
def model(loaded):
    return loaded[0]


@pytest.fixture
def tok(loaded):
    return loaded[1]


@pytest.fixture(scope="module")
def lively(loaded):
    """Weights at random, large: no two answers of it are alike."""
    torch.manual_seed(0)
    shape = loaded[0].config.replace(initializer_range=0.3)
    return MiniMind(shape).eval()


@pytest.fixture(scope="module")
def measured(small_runs):
    """Each stage evaluated, once."""
    def measure(stage):
        few = {**FEW, "questions": None} if stage == "pretrain" else FEW
        return evaluate(small_runs / stage, **few)

    return functools.cache(measure)


def stories(count, seed=HELD_OUT_SEED):
    return [write_story(seed, i) for i in range(count)]


# --- loss ---


def test_document_loss_is_the_sum_over_documents(model, tok):
    texts = [story.text for story in stories(7)]
    found = document_loss(model, tok, texts)
    nats = tokens = 0
    for text in texts:
        ids = encode_document(tok, text)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1]
        logp = logits.double().log_softmax(-1)
        nats -= sum(
            logp[i, token].item() for i, token in enumerate(ids[1:])
        )
        tokens += len(ids) - 1
    # Begin is input only, the end token is counted.
    assert found.tokens == tokens
    assert found.bytes == sum(len(t.encode()) for t in texts)
    # float32 sums in batches: 2e-7 measured.
    assert found.nats == pytest.approx(nats, rel=1e-6)
    assert found.per_token == found.nats / tokens
    assert found.per_byte == found.nats / found.bytes


def test_validation_works_on_an_apple_gpu(model, tok, metal):
    # Its first validation was a TypeError there: no float64.
    texts = ["One day Mia met Tom.", "Tom has a red ball."]
    expected = document_loss(model, tok, texts)
    with metal:
        assert document_loss(model, tok, texts) == expected


def test_the_order_and_the_batch_do_not_matter(model, tok, monkeypatch):
    from minimind_core import evaluation

    texts = [story.text for story in stories(30)]
    whole = document_loss(model, tok, texts)
    monkeypatch.setattr(evaluation, "TOKENS", 700)
    again = document_loss(model, tok, texts[::-1])
    assert again.tokens == whole.tokens
    assert again.nats == pytest.approx(whole.nats, rel=1e-6)
    assert again.standard_error == pytest.approx(
        whole.standard_error, rel=1e-5
    )


@pytest.mark.parametrize("vocab_size", [1000, 151_936])
def test_a_batch_has_as_much_as_fits(vocab_size):
    # Lengths up to that of a model with 32768 positions.
    rows = [row_of(n) for n in (5, 32_768, 90, 2048, 3, 700, 90, 300)] * 60
    groups = batches(rows, vocab_size)
    assert sorted(i for group in groups for i in group) == [*range(480)]
    for group in groups:
        longest = max(len(rows[i].input_ids) for i in group)
        tokens = len(group) * longest
        assert tokens <= 2**14 or len(group) == 1
        assert tokens * vocab_size <= 2**26 or len(group) == 1
    # Short ones do go together.
    assert len(groups[0]) > (40 if vocab_size > 2**16 else 150)


def row_of(length):
    return Row([3] * length, [3] * length, [0] * length)


def test_the_standard_error_is_over_documents(model, tok):
    texts = [story.text for story in stories(40)]
    each = [document_loss(model, tok, [text]) for text in texts]
    found = document_loss(model, tok, texts)
    assert found.records == 40
    assert each[0].standard_error is None
    # Leave each document out in turn: the jackknife, another estimate.
    left = [
        (found.nats - one.nats) / (found.tokens - one.tokens) for one in each
    ]
    mean = sum(left) / 40
    jackknife = math.sqrt(39 / 40 * sum((x - mean) ** 2 for x in left))
    assert found.standard_error == pytest.approx(jackknife, rel=0.1)
    assert standard_error([2.0, 6.0, 4.0], [2, 2, 2]) == pytest.approx(
        1 / math.sqrt(3)  # standard deviation 1 of 1, 3 and 2
    )


def test_the_same_loss_in_other_units():
    loss = Loss(20.0, 10, 40, 4, 0.1)
    found = loss.to_dict()
    assert found["loss_per_token"] == 2
    assert found["perplexity"] == pytest.approx(math.exp(2))
    assert found["bits_per_byte"] == pytest.approx(0.5 / math.log(2))
    assert found["records"] == 4 and found["tokens"] == 10
    assert math.isfinite(Loss(9e9, 1, 1).to_dict()["perplexity"])


def test_a_document_longer_than_the_model(model, tok):
    text = " ".join(story.text for story in stories(12))
    ids = encode_document(tok, text)
    assert len(ids) > 512
    pieces = -(-len(ids) // 512)
    # The first token of each piece has nothing to be predicted from.
    assert document_loss(model, tok, [text]).tokens == len(ids) - pieces
    assert document_loss(model, tok, [text], seq_len=64).tokens == (
        len(ids) - -(-len(ids) // 64)
    )


def test_measuring_leaves_the_model_as_it_was(model, tok):
    model.train()
    document_loss(model, tok, ["One day."])
    assert model.training
    model.eval()
    document_loss(model, tok, ["One day."])
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_the_floor_is_that_of_the_same_documents(model, tok):
    check = held_out_documents(tok, "microworld", seed=3, count=9)
    found = check(model)
    held = stories(9, seed=3 + HELD_OUT_SEED)
    loss = document_loss(model, tok, [s.text for s in held])
    floor = -sum(s.logprob for s in held)
    assert found["validation_loss"] == loss.per_token
    assert found["loss_over_floor"] == loss.nats / floor
    assert found["floor"] == floor / loss.tokens
    # Hardly trained, it is far above.
    assert found["loss_over_floor"] > 1.5


def test_a_perfect_model_is_on_the_floor(tok):
    # Not a model: an oracle that charges each story what the world did.
    held = stories(5)
    prices = {s.text: -s.logprob for s in held}

    class Oracle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(()))
            self.config = ModelConfig(
                vocab_size=512, max_position_embeddings=512
            )

        def forward(self, input_ids):
            logits = torch.zeros(*input_ids.shape, 512)
            for row, out in zip(input_ids, logits, strict=True):
                ids = [i for i in row.tolist() if i]
                price = prices[decode(tok, ids)] / (len(ids) - 1)
                # The same for each token, so that they add up to it.
                right = math.exp(-price)
                out += math.log((1 - right) / 511)
                for t, token in enumerate(ids[1:]):
                    out[t, token] = -price
            return CausalLMOutput(None, logits)

    check = held_out_documents(tok, "microworld", seed=0, count=5)
    assert check(Oracle())["loss_over_floor"] == pytest.approx(1, abs=1e-5)


def test_held_out_records_of_a_file(tmp_path, model, tok):
    path = tmp_path / "text.jsonl"
    lines = [f"Line number {i}, nothing else." for i in range(60)]
    path.write_text("".join(json.dumps({"text": x}) + "\n" for x in lines))
    check = held_out_documents(tok, path, seed=0)
    expected = lines[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    assert check(model) == {
        "validation_loss": document_loss(model, tok, expected).per_token
    }


def test_answers_alone_are_measured(model, tok):
    check = held_out_conversations(
        tok, "microworld", seed=0, seq_len=256, count=10
    )
    found = check(model)["validation_loss"]
    assert 0 < found < 10
    # With too little room for any answer there is nothing to say.
    nothing = held_out_conversations(
        tok, "microworld", seed=0, seq_len=4, count=10
    )
    assert nothing(model) == {}


# --- samples ---


def test_samples_are_seeded_and_start_from_nothing(model, tok):
    a = sample_texts(model, tok, 5, seed=1, max_new_tokens=20)
    assert a == sample_texts(model, tok, 5, seed=1, max_new_tokens=20)
    assert a != sample_texts(model, tok, 5, seed=2, max_new_tokens=20)
    assert len(a) == 5
    # Hardly trained, most do not end: those say so.
    assert any(text.endswith("…") for text in a)


def test_valid_samples_are_counted(model, tok, monkeypatch):
    from minimind_core import evaluation

    good = [story.text for story in stories(3)]

    def written(*args, **kwargs):
        return [*good, "Nonsense.", good[0] + "…"]

    monkeypatch.setattr(evaluation, "sample_texts", written)
    check = sample_documents(tok, "microworld", count=5)
    assert check(model) == {
        "samples": [*good, "Nonsense."], "valid_fraction": 3 / 5,
    }  # fmt: skip


# --- answers ---


def test_answers_in_a_batch_are_the_answers_alone(lively, tok):
    talks = held_out_questions("en", each=1)
    prompts = [talk.prompt(len(talk.kinds) - 1) for talk in talks]
    together = answer_prompts(lively, tok, prompts, max_new_tokens=12)
    alone = [answer(lively, tok, p, max_new_tokens=12) for p in prompts]
    assert together == alone
    assert len(set(together)) == len(together)
    few = answer_prompts(
        lively, tok, prompts, max_new_tokens=12, batch_size=3
    )
    assert few == together


def test_exact_match_by_kind(model, tok, monkeypatch):
    from minimind_core import evaluation

    talks = held_out_questions("en", each=3)
    asked = [(t, turn) for t in talks for turn in range(len(t.kinds))]

    def all_but_weather(model, tokenizer, prompts):
        assert [p for p in prompts] == [t.prompt(n) for t, n in asked]
        return [
            "No." if t.kinds[n] == "weather" else t.answers[n]
            for t, n in asked
        ]

    monkeypatch.setattr(evaluation, "answer_prompts", all_but_weather)
    found = exact_match(model, tok, talks)
    assert set(found) == set(QUESTION_KINDS)
    assert found.pop("weather") == 0
    assert set(found.values()) == {1.0}


def test_questions_are_held_out_and_about_other_stories():
    talks = held_out_questions("en", each=5, kinds=("weather", "skill"))
    assert len(talks) == 10
    assert [t.kinds for t in talks[:5]] == [("weather",)] * 5
    assert len({t.messages[0]["content"] for t in talks}) == 10
    trained = {
        conversation(0, i).messages[0]["content"] for i in range(200)
    }
    held = {t.messages[0]["content"] for t in talks}
    assert not trained & held


# --- evaluate ---


@pytest.mark.parametrize(
    ("stage", "skill"),
    [("pretrain", None), ("sft", False), ("hf", False), ("lora", True),
     ("merged", True)],
)  # fmt: skip
def test_every_stage_is_evaluated(measured, stage, skill):
    found = measured(stage)
    expected = {*LOSSES, "loss_over_floor", "valid_fraction"}
    if skill is None:
        assert set(found) == expected
    else:
        assert set(found) == {*expected, "exact_match"}
        kinds = {*QUESTION_KINDS, "skill"} if skill else {*QUESTION_KINDS}
        assert set(found["exact_match"]) == kinds
    assert json.loads(json.dumps(found)) == found
    # Hardly trained, it is far above the floor.
    assert 2 < found["loss_over_floor"] < 50
    assert found["loss_per_byte"] < found["loss_per_token"]
    assert found["valid_fraction"] == 0
    assert all(math.isfinite(found[name]) for name in LOSSES[2:])
    assert found["records"] == 12 and found["part"] == "held-out"
    assert found["standard_error"] < 0.2 * found["loss_per_token"]


def test_an_export_measures_as_its_run(measured):
    assert measured("sft") == measured("hf")
    # Merged in memory or on the disk.
    assert measured("lora") == measured("merged")
    lost = [measured(s)["loss_per_token"] for s in ("sft", "merged")]
    assert lost[0] != lost[1]


def test_a_run_in_memory_and_the_same_again(small_runs, loaded, measured):
    run = Run(*loaded, [], small_runs / "sft")
    # Samples included: their seed is fixed.
    assert evaluate(run, **FEW) == measured("sft")


def test_a_hugging_face_model_measures_alike(small_runs, model, tok):
    texts = [s.text for s in stories(10)]
    theirs = load_hf_model(small_runs / "sft").eval()
    ours = document_loss(model, tok, texts)
    assert document_loss(theirs, tok, texts).nats == pytest.approx(
        ours.nats, rel=1e-6
    )
    prompts = [conversation(1, i).prompt(0) for i in range(4)]
    assert answer_prompts(
        theirs, tok, prompts, max_new_tokens=10
    ) == answer_prompts(model, tok, prompts, max_new_tokens=10)


def write_texts(path, count):
    lines = [f"Line number {i}, and nothing else." for i in range(count)]
    path.write_text("".join(json.dumps({"text": x}) + "\n" for x in lines))
    return lines


def write_talks(path, count, key="conversations"):
    talks = [conversation(5, i).messages for i in range(count)]
    path.write_text("".join(json.dumps({key: t}) + "\n" for t in talks))
    return talks


CPU = {"device": "cpu"}


def test_a_file_that_a_run_was_not_trained_on_is_measured_whole(
    tmp_path, small_runs, model, tok
):
    lines = write_texts(tmp_path / "a.jsonl", 30)
    found = evaluate(small_runs / "sft", data=tmp_path / "a.jsonl", **CPU)
    assert set(found) == {*LOSSES, "seq_len"}
    assert found["records"] == 30 and found["part"] == "all"
    whole = document_loss(model, tok, lines)
    assert found["loss_per_token"] == pytest.approx(whole.per_token)
    assert found["tokens"] == whole.tokens
    assert found["standard_error"] == pytest.approx(whole.standard_error)
    assert "measured on 30 records of" in describe(found)
    few = evaluate(
        small_runs / "sft", data=tmp_path / "a.jsonl", documents=7, **CPU
    )
    assert few["records"] == 7
    assert few["loss_per_token"] == document_loss(
        model, tok, lines[:7]
    ).per_token


@pytest.mark.parametrize("key", ["conversations", "messages"])
def test_conversations_are_measured(tmp_path, small_runs, model, tok, key):
    talks = write_talks(tmp_path / "b.jsonl", 30, key)
    found = evaluate(
        small_runs / "sft", data=[str(tmp_path / "b.jsonl")], questions=2,
        **CPU,
    )  # fmt: skip
    assert set(found) == {
        *LOSSES, "seq_len", "skipped", "questions", "exact_match",
    }  # fmt: skip
    assert found["records"] + found["skipped"] == 30
    assert found["questions"] == 2
    said = sum(
        len(message["content"].encode())
        for talk in talks
        for message in talk
        if message["role"] == "assistant"
    )
    loss = conversation_loss(model, tok, talks)
    # All of them fit, so the bytes are those of the answers.
    assert loss.records == 30 and loss.bytes == said
    with pytest.raises(DataError, match="raise --seq-len"):
        evaluate(small_runs / "sft", data=tmp_path / "b.jsonl", seq_len=4,
                 **CPU)  # fmt: skip


def test_what_does_not_fit_is_neither_counted_nor_weighed(model, tok):
    talks = [conversation(5, i).messages for i in range(12)]
    rows = [encode_conversation(tok, talk).input_ids for talk in talks]
    limit = sorted(map(len, rows))[5]
    loss = conversation_loss(model, tok, talks, seq_len=limit)
    assert 0 < loss.records < 12
    alone = [conversation_loss(model, tok, [t], seq_len=limit) for t in talks]
    assert loss.records == sum(one.records for one in alone)
    assert loss.bytes == sum(one.bytes for one in alone)
    nats = sum(one.nats for one in alone)
    assert loss.nats == pytest.approx(nats, rel=1e-6)


@pytest.fixture
def trained(tmp_path, small_runs):
    """A run that was trained on files: its metadata say so."""

    def make(**changes):
        out = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(small_runs / "pretrain", out)
        path = out / "minimind.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return out

    return make


def test_of_what_a_run_was_trained_on_only_the_held_out_part_is(
    tmp_path, trained
):
    file = tmp_path / "a.jsonl"
    lines = write_texts(file, 60)
    run = trained(data=[str(file)])
    found = evaluate(run, **CPU)
    assert found == evaluate(run, data=file, **CPU)
    assert (found["part"], found["records"]) == ("held-out", 3)
    model, tok = load_model(run)
    held = document_loss(model, tok, lines[HELD_OUT_EVERY - 1 :: 20])
    assert found["loss_per_token"] == held.per_token
    assert "3 held-out records" in describe(found)
    assert "one in 20" in describe(found)
    found = evaluate(run, every_record=True, **CPU)
    assert (found["part"], found["records"]) == ("all", 60)
    # What an earlier stage was trained on is not new either.
    later = trained(data=["microworld"], trained_on=[[f"{file}#rest"]])
    assert evaluate(later, data=file, **CPU)["records"] == 3
    # A relative path, from a folder that nobody knows any more.
    moved = trained(data=["somewhere/a.jsonl"])
    assert evaluate(moved, data=file, **CPU)["records"] == 3


def test_files_that_were_held_out_together_are_measured_together(
    tmp_path, trained
):
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_texts(a, 50), write_texts(b, 50)
    run = trained(data=[str(a), str(b)])
    assert evaluate(run, data=[a, b], **CPU)["records"] == 5
    for part in ([b], [b, a], [a, b, a]):
        with pytest.raises(DataError, match="together"):
            evaluate(run, data=part, **CPU)
    assert evaluate(run, data=[b], every_record=True, **CPU)["records"] == 50


def test_what_is_not_known_is_asked_for(tmp_path, trained):
    unknown = trained(stage="import", data=None)
    with pytest.raises(DataError, match="--data microworld"):
        evaluate(unknown, **CPU)
    found = evaluate(unknown, data="microworld", **FEW)
    assert "loss_over_floor" in found
    gone = trained(data=[str(tmp_path / "gone.jsonl")])
    with pytest.raises(DataError, match="was trained on; name other data"):
        evaluate(gone, **CPU)


def test_rows_are_as_long_as_in_training(tmp_path, trained, monkeypatch):
    from minimind_core import evaluation

    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "a long story " * 400}) + "\n")
    widths = []
    nats = evaluation._nats
    monkeypatch.setattr(
        evaluation, "_nats",
        lambda logits, labels: widths.append(logits.size(1))
        or nats(logits, labels),
    )  # fmt: skip

    def widest(run, **options):
        widths.clear()
        found = evaluate(run, data=file, **CPU, **options)
        assert max(widths) == found["seq_len"]
        return found["seq_len"]

    assert widest(trained()) == 128
    assert widest(trained(), seq_len=200) == 200
    # Not known: as many as the model has positions, but never above 2048.
    assert widest(trained(train=None)) == 512
    model = small_model(max_position_embeddings=32_768)
    assert _row_length(model, {}, None) == 2048
    with pytest.raises(ConfigError, match="512 positions"):
        widest(trained(), seq_len=600)


def small_model(**changes):
    return MiniMind(
        ModelConfig(
            vocab_size=16, hidden_size=8, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, **changes,
        )
    )  # fmt: skip


def test_options_that_do_not_apply_are_refused(tmp_path, small_runs):
    write_texts(tmp_path / "a.jsonl", 3)
    with pytest.raises(ConfigError, match="samples"):
        evaluate(small_runs / "sft", data=tmp_path / "a.jsonl", samples=3,
                 device="cpu")  # fmt: skip
    for wrong in ({"every_record": True}, {"seq_len": 100}):
        with pytest.raises(ConfigError, match="is for files"):
            evaluate(small_runs / "sft", **FEW, **wrong)
    with pytest.raises(ConfigError, match="seed is for the microworld"):
        evaluate(small_runs / "sft", data=tmp_path / "a.jsonl", seed=0,
                 device="cpu")  # fmt: skip
    with pytest.raises(ConfigError, match="questions are for conversations"):
        evaluate(small_runs / "sft", data=tmp_path / "a.jsonl", questions=2,
                 device="cpu")  # fmt: skip
    with pytest.raises(ConfigError, match="only been pretrained"):
        evaluate(small_runs / "pretrain", **FEW)
    write_talks(tmp_path / "b.jsonl", 3)
    with pytest.raises(DataError, match="one after the other"):
        evaluate(
            small_runs / "sft", device="cpu",
            data=[tmp_path / "a.jsonl", tmp_path / "b.jsonl"],
        )  # fmt: skip


@pytest.mark.parametrize(
    "name", ["documents", "samples", "questions", "seq_len"]
)
def test_nothing_to_count(small_runs, name):
    with pytest.raises(ConfigError, match=name):
        evaluate(small_runs / "sft", **{**FEW, name: 0})


def test_no_model_there(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        evaluate(tmp_path / "none", device="cpu")


def test_facts_name_stage_and_data(small_runs):
    for stage, said in (("pretrain", "pretrain"), ("sft", "sft"),
                        ("lora", "lora"), ("merged", "merged")):  # fmt: skip
        facts = read_metadata(small_runs / stage)
        assert facts["stage"] == said
        assert facts["data"] == ["microworld"]


# --- talking ---


class Scripted:
    """Stands for `stream_tokens`: says what it is told to."""

    def __init__(self, ids):
        self.ids = ids

    def __call__(self, model, prompt, **options):
        return iter(self.ids)


@pytest.mark.parametrize(
    "text",
    ["Mia went to the lake.", "小猫去了湖边。", "naïve café €5 🙂🙃 x",
     "🙂", "a�b"],
)  # fmt: skip
def test_never_half_a_character(monkeypatch, model, tok, text):
    from minimind_core import talk

    # One byte a token: no text can come in smaller pieces than that.
    shown = ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_of = shown.pre_tokenize_str(text)[0][0]
    ids = [tok.convert_tokens_to_ids(byte) for byte in bytes_of]
    assert len(ids) == len(text.encode())
    monkeypatch.setattr(talk, "stream_tokens", Scripted(ids))
    pieces = list(
        stream_answer(model, tok, [{"role": "user", "content": "?"}])
    )
    assert "".join(pieces) == text
    assert all(piece for piece in pieces)
    if "�" not in text:
        assert not any("�" in piece for piece in pieces)
        assert len(pieces) == len(text)


def test_a_broken_end_is_shown_at_the_end(monkeypatch, model, tok):
    from minimind_core import talk

    whole = encode_text(tok, "ok ")
    half = tok.convert_tokens_to_ids("ð")  # the first byte of an emoji
    monkeypatch.setattr(talk, "stream_tokens", Scripted([*whole, half]))
    said = "".join(
        stream_answer(model, tok, [{"role": "user", "content": "?"}])
    )
    assert said == "ok �"


def test_a_stream_says_what_answer_says(lively, tok):
    for i in range(4):
        messages = conversation(2, i).prompt(0)
        streamed = "".join(
            stream_answer(lively, tok, messages, max_new_tokens=15)
        )
        assert streamed == answer(lively, tok, messages, max_new_tokens=15)


def test_sampled_streams_are_seeded(lively, tok):
    def said(seed):
        return list(
            stream_answer(
                lively, tok, [{"role": "user", "content": "Hello"}],
                temperature=1.0, seed=seed, max_new_tokens=12,
            )
        )  # fmt: skip

    assert said(1) == said(1)
    assert said(1) != said(2)


def test_a_hugging_face_models_draw_is_seeded(lively, tok, tmp_path):
    save_model(lively, tok, tmp_path)
    theirs = load_hf_model(tmp_path).eval()

    def said(seed, **cuts):
        return "".join(stream_answer(
            theirs, tok, [user("Hello")], temperature=1.0, seed=seed,
            max_new_tokens=12, **cuts,
        ))  # fmt: skip

    torch.manual_seed(5)
    first = said(1)
    torch.manual_seed(6)
    assert said(1) == first
    assert said(2) != first
    assert said(2, top_k=1) == said(3, top_k=1) == said(4, min_p=0.999)


def test_a_stream_is_cut_as_asked(lively, tok):
    def said(seed, **cuts):
        return "".join(stream_answer(
            lively, tok, [user("Hello")], temperature=2.0, seed=seed,
            max_new_tokens=12, **cuts,
        ))  # fmt: skip

    likeliest = answer(lively, tok, [user("Hello")], max_new_tokens=12)
    assert said(1) != likeliest
    for seed in range(3):
        assert said(seed, top_k=1) == likeliest
        assert said(seed, min_p=0.999) == likeliest


def test_an_answer_stops_at_the_templates_end(lively, tok):
    # As with Llama 3, whose turns end with another token than its texts.
    messages = [user("Hello")]
    ids = torch.tensor([encode_prompt(tok, messages)])
    free = generate_tokens(
        lively, ids, max_new_tokens=30, temperature=0, eos_token_id=None
    )[0, ids.size(1) :].tolist()
    word = next(one for one in free[2:] if free.index(one) >= 2)
    ending = tok.convert_ids_to_tokens(word)
    other = copy.deepcopy(tok)
    other.add_tokens([AddedToken(ending, special=True)])
    literal = json.dumps(ending, ensure_ascii=False)
    other.chat_template = tok.chat_template.replace(
        "'<|im_end|>' }}\n{%- endgen", literal + " }}\n{%- endgen"
    )
    assert stop_token_ids(other)[0] == word
    expected = decode(other, free[: free.index(word)])
    assert answer(lively, other, messages, max_new_tokens=30) == expected
    pieces = stream_answer(lively, other, messages, max_new_tokens=30)
    assert "".join(pieces) == expected


def test_a_conversation_too_long(model, tok):
    long = [{"role": "user", "content": "far too long " * 600}]
    for ask in (stream_answer, answer):
        with pytest.raises(DataError, match=r"'far too long .*no room"):
            list(ask(model, tok, long))


def test_one_prompt_too_long_leaves_the_others_alone(lively, tok):
    # Once, it made answers of its whole batch empty. One that nearly fills
    # the positions must not take the room from the others either.
    room = lively.config.max_position_embeddings
    prompts = [conversation(2, i).prompt(0) for i in range(3)]
    alone = [answer(lively, tok, p, max_new_tokens=8) for p in prompts]
    words = 1
    while len(encode_prompt(tok, [user("a b " * (words + 1))])) < room - 1:
        words += 1
    nearly = [user("a b " * words)]
    assert room - 8 < len(encode_prompt(tok, nearly)) < room
    mixed = [prompts[0], [user("far too long " * 600)], *prompts[1:], nearly]
    found = answer_prompts(lively, tok, mixed, max_new_tokens=8)
    assert found[1] is None
    assert [found[0], *found[2:4]] == alone
    assert found[4] is not None


def user(content):
    return {"role": "user", "content": content}


def test_a_question_too_long_counts_as_unanswered(model, tok):
    class Long:
        kinds = ("short", "long")

        def prompt(self, turn):
            return [user("Who? " + "far too long " * 600 * turn)]

        def check(self, turn, said):
            return True

    assert exact_match(model, tok, [Long()]) == {"short": 1.0, "long": 0.0}


def test_a_hugging_face_model_answers_in_one_piece(small_runs, model, tok):
    theirs = load_hf_model(small_runs / "hf").eval()
    messages = conversation(2, 0).prompt(0)
    pieces = list(stream_answer(theirs, tok, messages, max_new_tokens=9))
    assert len(pieces) == 1
    assert pieces[0] == answer(model, tok, messages, max_new_tokens=9)


@pytest.mark.parametrize("stage", ["pretrain", "sft", "hf", "lora", "merged"])
def test_one_prompt(small_runs, stage):
    out = io.StringIO()
    messages = chat_loop(
        small_runs / stage, prompt="Where is Mia?", max_new_tokens=5,
        out=out, device="cpu",
    )  # fmt: skip
    assert [m["role"] for m in messages] == ["user", "assistant"]
    assert out.getvalue() == messages[1]["content"] + "\n"


def test_an_adapter_talks_as_its_merged_model(small_runs):
    messages = [{"role": "user", "content": "Who are you?"}]
    said = [
        answer(*load_model(small_runs / stage), messages, max_new_tokens=12)
        for stage in ("lora", "merged")
    ]
    assert said[0] == said[1]


def talked(small_runs, typed, **options):
    out = io.StringIO()
    messages = chat_loop(
        small_runs / "sft", lines=io.StringIO(typed), out=out,
        max_new_tokens=4, device="cpu", **options,
    )  # fmt: skip
    return messages, out.getvalue()


def test_the_loop_remembers(small_runs, monkeypatch):
    from minimind_core import talk

    seen = []

    def remember(model, tokenizer, messages, **options):
        seen.append([m["content"] for m in messages])
        yield f"answer {len(seen)}"

    monkeypatch.setattr(talk, "stream_answer", remember)
    messages, shown = talked(
        small_runs, "first\n\n second\\nline \n/reset\nthird\n/exit\nmore\n"
    )
    assert seen == [
        ["first"],
        ["first", "answer 1", " second\nline "],
        ["third"],
    ]
    assert [m["content"] for m in messages] == ["third", "answer 3"]
    assert "/reset starts a new conversation" in shown
    assert shown.count("> ") == 6
    assert shown.endswith("> ")


def test_the_loop_ends_with_its_input(small_runs):
    messages, shown = talked(small_runs, "Hello")
    assert len(messages) == 2
    assert shown.endswith("> \n")
    assert talked(small_runs, "")[0] == []


def test_the_loop_goes_on_after_too_much(small_runs):
    typed = "word " * 3000 + "\nHello\n"
    messages, shown = talked(small_runs, typed)
    assert "begin a new conversation" in shown
    assert messages[0]["content"] == "Hello"
    assert len(messages) == 2


def test_what_is_typed_must_be_text(small_runs):
    with pytest.raises(DataError, match="not UTF-8"):
        chat_loop(small_runs / "sft", prompt="\udcff", device="cpu",
                  out=io.StringIO())  # fmt: skip
    broken = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), encoding="utf-8")
    with pytest.raises(DataError, match="not UTF-8"):
        chat_loop(small_runs / "sft", lines=broken, out=io.StringIO(),
                  device="cpu")  # fmt: skip
