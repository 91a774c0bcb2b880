"""Sampling keeps exactly what it says, and the cache changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3Config, Qwen3ForCausalLM

from minimind_core.config import ModelConfig
from minimind_core.errors import ConfigError
from minimind_core.generate import (
    generate_tokens,
    next_token_probs,
    pad_left,
    penalise_repetition,
    position_limit,
    stream_tokens,
)
from minimind_core.model import KVCache, MiniMind

SHAPE = ModelConfig(
    vocab_size=97, hidden_size=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
    max_position_embeddings=64, initializer_range=0.3,
)  # fmt: skip
NEVER = None  # no end token: every row runs to its full length


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MiniMind(SHAPE).eval()


@pytest.fixture(scope="module")
def qwen(model):
    theirs = Qwen3ForCausalLM(Qwen3Config(**SHAPE.to_hf())).eval()
    theirs.load_state_dict(model.state_dict())
    return theirs


def prompts(batch, time, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(3, SHAPE.vocab_size, (batch, time), generator=draw)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- shaping and cutting the distribution ---

# 0.5, 0.25, 0.125, 0.0625, 0.0625
PROBS = torch.tensor([[0.0625, 0.5, 0.125, 0.25, 0.0625]])


def kept(**options):
    probs = next_token_probs(PROBS.log(), **options)[0]
    assert probs.sum().item() == pytest.approx(1, abs=1e-6)
    return {i for i, p in enumerate(probs.tolist()) if p > 0}


def test_temperature_one_changes_nothing():
    found = next_token_probs(PROBS.log())
    assert torch.allclose(found, PROBS, atol=1e-7)


def test_temperature_sharpens_and_flattens():
    # p ** (1 / T), normalised: by hand.
    for temperature in (0.5, 2.0):
        expected = PROBS ** (1 / temperature)
        expected = expected / expected.sum()
        found = next_token_probs(PROBS.log(), temperature=temperature)
        assert torch.allclose(found, expected, atol=1e-6)


def test_temperature_zero_is_the_most_likely_token():
    found = next_token_probs(PROBS.log(), temperature=0)
    assert found.tolist() == [[0, 1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [(0, {0, 1, 2, 3, 4}), (1, {1}), (2, {1, 3}), (3, {1, 2, 3}),
     (5, {0, 1, 2, 3, 4}), (99, {0, 1, 2, 3, 4})],
)  # fmt: skip
def test_top_k_keeps_the_k_most_likely(top_k, expected):
    assert kept(top_k=top_k) == expected


def test_top_k_keeps_no_more_than_k_of_equals():
    assert len(kept(top_k=4)) == 4
    flat = next_token_probs(torch.zeros(3, 50), top_k=7)
    assert (flat > 0).sum(-1).tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.01, {1}), (0.5, {1}), (0.51, {1, 3}), (0.75, {1, 3}),
     (0.8, {1, 2, 3}), (1.0, {0, 1, 2, 3, 4})],
)  # fmt: skip
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p, expected):
    assert kept(top_p=top_p) == expected


@pytest.mark.parametrize(
    ("min_p", "expected"),
    [(0.0, {0, 1, 2, 3, 4}), (0.1, {0, 1, 2, 3, 4}), (0.2, {1, 2, 3}),
     (0.4, {1, 3}), (0.6, {1})],
)  # fmt: skip
def test_min_p_is_relative_to_the_most_likely(min_p, expected):
    assert kept(min_p=min_p) == expected


def test_cuts_apply_one_after_the_other():
    # After top-k 2 the rest is 2/3 and 1/3: top-p 0.6 keeps the first.
    assert kept(top_p=0.6) == {1, 3}
    assert kept(top_k=2, top_p=0.6) == {1}
    # Flatter by temperature, so that top-p needs more of them.
    assert kept(top_p=0.75, temperature=3.0) > kept(top_p=0.75)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 0.99),
)
def test_any_cut_is_a_distribution(seed, temperature, top_k, top_p, min_p):
    logits = torch.randn(3, 30, generator=seeded(seed)) * 4
    probs = next_token_probs(
        logits, temperature=temperature, top_k=top_k, top_p=top_p,
        min_p=min_p,
    )  # fmt: skip
    assert torch.allclose(probs.sum(-1), torch.ones(3), atol=1e-5)
    best = logits.argmax(-1)
    assert (probs.gather(-1, best[:, None]) > 0).all()
    if top_k:
        assert ((probs > 0).sum(-1) <= top_k).all()
    # What is cut is never more likely than what is kept.
    for row, p in zip(logits, probs, strict=True):
        if (p == 0).any():
            assert row[p > 0].min() >= row[p == 0].max()


def test_half_precision_logits_are_cut_in_float32():
    logits = torch.randn(1, 50, generator=seeded()).bfloat16()
    found = next_token_probs(logits, top_p=0.9)
    assert found.dtype is torch.float32
    assert torch.equal(found, next_token_probs(logits.float(), top_p=0.9))


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5},
     {"min_p": 1.0}, {"min_p": -0.1}, {"temperature": float("nan")}],
)  # fmt: skip
def test_settings_out_of_range(model, wrong):
    name = next(iter(wrong))
    with pytest.raises(ConfigError, match=name):
        next_token_probs(PROBS, **wrong)
    with pytest.raises(ConfigError, match=name):
        generate_tokens(model, prompts(1, 4), max_new_tokens=2, **wrong)
    with pytest.raises(ConfigError, match=name):
        next(stream_tokens(model, prompts(1, 4), max_new_tokens=2, **wrong))


def test_repetition_penalty_by_hand():
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    seen = torch.tensor([[0, 1, 1, 0]])
    found = penalise_repetition(logits, seen, 2.0)
    assert found.tolist() == [[1.0, -4.0, 1.0, 0.5]]
    assert penalise_repetition(logits, seen, 1.0) is logits
    with pytest.raises(ConfigError):
        penalise_repetition(logits, seen, 0.0)


# --- the loop ---


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch", [1, 5])
def test_cached_equals_uncached(model, temperature, batch):
    found = [
        generate_tokens(
            model, prompts(batch, 7), max_new_tokens=40, eos_token_id=NEVER,
            temperature=temperature, generator=seeded(3),
            use_cache=use_cache,
        )
        for use_cache in (True, False)
    ]  # fmt: skip
    assert found[0].shape == (batch, 47)
    assert torch.equal(*found)


def test_the_caches_logits(model):
    ids = prompts(3, 20)
    cache = KVCache(SHAPE, 3, 20)
    with torch.no_grad():
        whole = model(ids).logits
        steps = [
            model(piece, cache=cache).logits for piece in ids.split(6, 1)
        ]
    # Another shape, another order of summation: at most 8e-6 over 20 draws
    # of prompts, on logits as large as 7.
    assert (torch.cat(steps, 1) - whole).abs().max() < 1e-5
    assert cache.length == 20


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_transformers(model, qwen, penalty):
    ids = prompts(4, 6)
    settings = {"max_new_tokens": 30, "repetition_penalty": penalty}
    ours = generate_tokens(
        model, ids, temperature=0, eos_token_id=2, **settings
    )
    theirs = qwen.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False,
        eos_token_id=2, pad_token_id=0, **settings,
    )  # fmt: skip
    assert torch.equal(ours, theirs)
    # The same through the same call.
    same = generate_tokens(qwen, ids, temperature=0, **settings)
    assert torch.equal(same, theirs)


def test_left_padding_changes_no_answer(model, qwen):
    rows = [prompts(1, n, seed=n)[0].tolist() for n in (3, 9, 5, 1)]
    ids, mask = pad_left(rows, 0)
    assert ids.shape == mask.shape == (4, 9)
    assert [row[m.bool()].tolist() for row, m in zip(ids, mask, strict=True)
            ] == rows  # fmt: skip
    new = {"max_new_tokens": 20, "eos_token_id": NEVER, "temperature": 0}
    together = generate_tokens(model, ids, attention_mask=mask, **new)
    slow = generate_tokens(
        model, ids, attention_mask=mask, use_cache=False, **new
    )
    assert torch.equal(together, slow)
    for row, answer in zip(rows, together, strict=True):
        alone = generate_tokens(model, torch.tensor([row]), **new)
        assert alone[0, len(row) :].tolist() == answer[9:].tolist()
    theirs = generate_tokens(
        qwen, ids, attention_mask=mask, max_new_tokens=20, temperature=0,
        eos_token_id=96,
    )  # fmt: skip
    ours = generate_tokens(
        model, ids, attention_mask=mask, max_new_tokens=20, temperature=0,
        eos_token_id=96,
    )  # fmt: skip
    assert torch.equal(ours, theirs)


def test_rows_stop_at_their_end_and_are_padded(model):
    ids = prompts(6, 5)
    free = generate_tokens(
        model, ids, max_new_tokens=30, temperature=0, eos_token_id=NEVER
    )
    eos = int(free[0, 12])  # whatever the first row says as its 8th token
    found = generate_tokens(
        model, ids, max_new_tokens=30, temperature=0, eos_token_id=eos
    )
    ended = 0
    for row, whole in zip(found[:, 5:], free[:, 5:], strict=True):
        said, expected = row.tolist(), whole.tolist()
        if eos in expected:
            stop = expected.index(eos) + 1
            ended += 1
            assert said[:stop] == expected[:stop]
            assert set(said[stop:]) <= {0}
        else:
            assert said == expected[: len(said)]
    assert ended >= 1
    one = generate_tokens(
        model, ids[:1], max_new_tokens=30, temperature=0, eos_token_id=eos
    )
    # Nothing is computed once every row has ended.
    assert one.size(1) == 5 + free[0, 5:].tolist().index(eos) + 1


def test_the_models_own_end_is_the_default(model):
    ids = prompts(6, 5)
    free = generate_tokens(
        model, ids, max_new_tokens=30, temperature=0, eos_token_id=None
    )
    eos = int(free[0, 12])
    one = ids[:1]
    settings = {"max_new_tokens": 30, "temperature": 0}
    expected = generate_tokens(model, one, eos_token_id=eos, **settings)
    assert expected.size(1) < free.size(1)
    found = generate_tokens(model, one, eos_token_id=(95, eos), **settings)
    assert 95 not in free[0, 5:12]
    assert torch.equal(expected, found)
    own = model.config
    model.config = own.replace(eos_token_id=eos)
    try:
        assert torch.equal(expected, generate_tokens(model, one, **settings))
        streamed = list(stream_tokens(model, one, **settings))
    finally:
        model.config = own
    assert streamed == expected[0, 5:-1].tolist()


def test_seeds(model):
    def draw(seed):
        return generate_tokens(
            model, prompts(8, 4), max_new_tokens=20, eos_token_id=NEVER,
            generator=seeded(seed),
        )  # fmt: skip

    before = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_reach_a_hugging_face_model(qwen):
    def draw(seed):
        return generate_tokens(
            qwen, prompts(8, 4), max_new_tokens=12, eos_token_id=96,
            generator=seeded(seed),
        )  # fmt: skip

    before = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    # The global generator is put back.
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_follow_the_models_distribution(model):
    # Chi-squared over 4,000 draws of one next token; its mean is the
    # number of degrees of freedom, its deviation sqrt(2 df).
    ids = prompts(1, 3).expand(4000, -1)
    found = generate_tokens(
        model, ids, max_new_tokens=1, temperature=1.5, top_k=12,
        eos_token_id=NEVER, generator=seeded(5),
    )[:, -1]  # fmt: skip
    with torch.no_grad():
        logits = model(ids[:1]).logits[:, -1]
    probs = next_token_probs(logits, temperature=1.5, top_k=12)[0]
    counts = torch.bincount(found, minlength=SHAPE.vocab_size).float()
    assert counts[probs == 0].sum() == 0
    common = probs * 4000 >= 5
    expected = probs[common] * 4000
    chi = ((counts[common] - expected) ** 2 / expected).sum().item()
    freedom = int(common.sum())
    assert chi < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_streaming_equals_the_batch(model, temperature):
    ids = prompts(1, 6)
    options = {
        "max_new_tokens": 30, "temperature": temperature, "top_p": 0.9,
        "min_p": 0.02, "repetition_penalty": 1.1,
    }  # fmt: skip
    whole = generate_tokens(
        model, ids, eos_token_id=NEVER, generator=seeded(2), **options
    )[0, 6:].tolist()
    pieces = list(
        stream_tokens(
            model, ids, eos_token_id=NEVER, generator=seeded(2), **options
        )
    )
    assert pieces == whole
    # The end token stops the stream and is not part of it.
    stop = whole[10]
    cut = list(
        stream_tokens(
            model, ids, eos_token_id=stop, generator=seeded(2), **options
        )
    )
    assert cut == whole[: whole.index(stop)]


def test_a_stream_is_lazy_and_leaves_no_gradient_mode(model):
    calls = []
    hook = model.register_forward_hook(lambda *a: calls.append(1))
    stream = stream_tokens(
        model, prompts(1, 4), max_new_tokens=50, eos_token_id=NEVER
    )
    assert not calls
    next(stream)
    assert len(calls) == 1
    assert torch.is_grad_enabled()
    stream.close()
    hook.remove()


def test_positions_that_run_out(model):
    assert position_limit(model) == 64
    ids = prompts(1, 60)
    with pytest.raises(ConfigError, match="64 positions"):
        generate_tokens(model, ids, max_new_tokens=5)
    full = generate_tokens(model, ids, max_new_tokens=4, eos_token_id=NEVER)
    assert full.shape == (1, 64)
    streamed = list(
        stream_tokens(model, ids, max_new_tokens=50, eos_token_id=NEVER)
    )
    assert len(streamed) == 4
    assert list(stream_tokens(model, prompts(1, 70), max_new_tokens=5)) == []


def test_no_new_tokens(model):
    ids = prompts(2, 4)
    assert torch.equal(generate_tokens(model, ids, max_new_tokens=0), ids)
    assert list(stream_tokens(model, ids[:1], max_new_tokens=0)) == []
