"""The transformer: parity with transformers, causality, cache, masks."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen3Config, Qwen3ForCausalLM

from minimind_core.attention import attend, attention_weights
from minimind_core.config import ModelConfig, get_preset
from minimind_core.model import (
    IGNORE_INDEX,
    KVCache,
    MiniMind,
    RMSNorm,
    RotaryEmbedding,
    rotate,
)

SMALL = ModelConfig(
    vocab_size=199,
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=80,
    max_position_embeddings=256,
    rope_theta=1e4,
    initializer_range=0.2,
)

# Another shape means another order of summation: up to 6e-6 measured here,
# on logits of up to 8.
CLOSE = 1e-5


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MiniMind(SMALL).eval()


@pytest.fixture
def ids():
    return torch.randint(3, 199, (3, 40), generator=torch.manual_seed(1))


def reference(model):
    twin = Qwen3ForCausalLM(Qwen3Config(**model.config.to_hf())).eval()
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"tie_word_embeddings": False},
        {"head_dim": 16},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1},
        {"rope_theta": 1e6, "rms_norm_eps": 1e-5},
    ],
)
@torch.no_grad()
def test_logits_equal_qwen3_to_the_bit(change, ids):
    torch.manual_seed(0)
    model = MiniMind(SMALL.replace(**change)).eval()
    for parameter in model.parameters():  # norms too: all ones hide bugs
        parameter.mul_(torch.rand_like(parameter) + 0.5)
    twin = reference(model)
    assert set(twin.state_dict()) == set(model.state_dict())
    assert torch.equal(model(ids).logits, twin(ids).logits)


def test_gradients_equal_qwen3(model, ids):
    twin = reference(model)
    labels = ids.clone()
    labels[:, 10:20] = IGNORE_INDEX
    ours = model(ids, labels=labels, num_items_in_batch=50).loss
    theirs = twin(ids, labels=labels, num_items_in_batch=50).loss
    ours.backward()
    theirs.backward()
    # The sums run in another order: we skip the positions without labels.
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    own = dict(model.named_parameters())
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(
            own[name].grad, parameter.grad, rtol=1e-4, atol=2e-6
        )


def test_parameter_count_is_the_configs(model):
    for config in (SMALL, SMALL.replace(tie_word_embeddings=False)):
        counted = sum(p.numel() for p in MiniMind(config).parameters())
        assert counted == config.num_parameters()


def test_initial_loss_is_about_ln_vocab():
    torch.manual_seed(0)
    config = get_preset("tiny").model
    ids = torch.randint(3, config.vocab_size, (8, 64))
    with torch.no_grad():
        loss = MiniMind(config)(ids, labels=ids).loss
    # ln 1024 = 6.931; the logits' own variance adds a few hundredths.
    assert 6.931 < float(loss) < 7.05


@torch.no_grad()
def test_the_future_cannot_be_seen(model, ids):
    changed = ids.clone()
    changed[:, 25:] = 5
    before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :25], after[:, :25])
    assert not torch.equal(before[:, 25:], after[:, 25:])


@torch.no_grad()
def test_cached_equals_uncached(model, ids):
    whole = model(ids).logits
    cache = KVCache(SMALL, 3, 40)
    pieces = [ids[:, :7], ids[:, 7:8], ids[:, 8:20], ids[:, 20:]]
    parts = [model(piece, cache=cache).logits for piece in pieces]
    assert cache.length == 40
    out = torch.cat(parts, 1)
    torch.testing.assert_close(out, whole, rtol=0, atol=CLOSE)
    with pytest.raises(ValueError, match="holds 40 tokens, 41 needed"):
        model(ids[:, :1], cache=cache)


@torch.no_grad()
def test_left_padding_changes_nothing(model, ids):
    whole = model(ids).logits
    padded = torch.cat([torch.zeros(3, 9, dtype=torch.long), ids], 1)
    mask = (torch.arange(49) >= 9).expand(3, 49)
    out = model(padded, attention_mask=mask).logits
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out[:, 9:], whole, rtol=0, atol=CLOSE)
    cache = KVCache(SMALL, 3, 49)
    first = model(padded[:, :30], attention_mask=mask[:, :30], cache=cache)
    rest = model(padded[:, 30:], attention_mask=mask, cache=cache)
    joined = torch.cat([first.logits, rest.logits], 1)[:, 9:]
    torch.testing.assert_close(joined, whole, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_padding_mask_is_finite_in_half_precision(model, ids, dtype):
    # A mask of -1e9 is -inf in float16, and a row of only -inf is NaN.
    padded = torch.cat([torch.zeros(3, 9, dtype=torch.long), ids], 1)
    mask = torch.arange(49).expand(3, 49) >= 9
    out = model.to(dtype)(padded, attention_mask=mask).logits
    assert torch.isfinite(out).all()


@torch.no_grad()
def test_packed_documents_do_not_see_each_other(model, ids):
    first, second = ids[:1, :15], ids[1:2, :25]
    packed = torch.cat([first, second], 1)
    documents = torch.tensor([[0] * 15 + [1] * 25])
    positions = torch.cat([torch.arange(15), torch.arange(25)])[None]
    out = model(packed, document_ids=documents, position_ids=positions)
    alone = [model(one).logits for one in (first, second)]
    torch.testing.assert_close(
        out.logits, torch.cat(alone, 1), rtol=0, atol=CLOSE
    )


def test_labels_are_shifted_and_ignored(model, ids):
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[0, 7] = ids[0, 7]
    loss = model(ids, labels=labels).loss
    log_probs = model(ids).logits.log_softmax(-1)
    expected = -log_probs[0, 6, ids[0, 7]]
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("supervised", ["some", "all", "none"])
def test_both_ways_to_the_loss_are_equal(model, ids, supervised):
    labels = ids.clone()
    if supervised == "some":
        labels[:, 5:22] = IGNORE_INDEX
    elif supervised == "none":
        labels[:] = IGNORE_INDEX
    results = []
    for select in (True, False):
        hidden = model.model(ids).detach().requires_grad_()
        summed, count = model._summed_loss(hidden, labels, select)
        gradients = torch.autograd.grad(
            summed, (hidden, model.lm_head.weight)
        )
        assert count == max(int((labels[:, 1:] != IGNORE_INDEX).sum()), 1)
        results.append((summed, *gradients))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


class Operations(TorchDispatchMode):
    """Notes the operations that run, and the types they return."""

    def __init__(self):
        super().__init__()
        self.names, self.dtypes = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.names.add(str(function).split(".")[1])
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.dtypes.add(leaf.dtype)
        return out


# Their results' shapes or values are needed on the host, which waits for the
# GPU to have computed them.
WAITING = {"nonzero", "_local_scalar_dense", "item", "masked_select"}


def test_the_loss_on_a_gpu_does_not_wait_for_it(ids):
    # The meta device takes the same way as a GPU, and has no values to wait
    # for: what asks for one raises.
    with torch.device("meta"):
        model = MiniMind(SMALL)
    ids = ids.to("meta")
    with Operations() as seen:
        model(ids, labels=ids, attention_mask=ids).loss.backward()
    assert seen.names & {"nll_loss_forward", "_log_softmax"}
    assert not seen.names & WAITING


def test_the_loss_on_a_cpu_skips_positions_without_labels(model, ids):
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[0, 7] = ids[0, 7]
    rows = []
    model.lm_head.register_forward_pre_hook(
        lambda module, inputs: rows.append(len(inputs[0]))
    )
    model(ids, labels=labels)
    assert rows == [1]


def test_no_operation_of_the_model_is_in_float64(model, ids):
    # Metal has no float64.
    mask = torch.ones_like(ids)
    with Operations() as seen:
        model(ids, labels=ids, attention_mask=mask).loss.backward()
        model(ids, document_ids=mask)
        with torch.no_grad():
            cache = KVCache(SMALL, 3, 41)
            model(ids, cache=cache)
            model(ids[:, :1], cache=cache)
        model.attention_maps(ids)
    assert torch.float32 in seen.dtypes
    assert torch.float64 not in seen.dtypes


def test_a_batch_without_labels_gives_zero_and_zero_gradients(model, ids):
    labels = torch.full_like(ids, IGNORE_INDEX)
    loss = model(ids, labels=labels, num_items_in_batch=10).loss
    loss.backward()
    assert loss.item() == 0
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads
    assert all(float(g.abs().max()) == 0 for g in grads)


@torch.no_grad()
def test_attention_maps_are_what_attention_computes(model, ids):
    maps = model.attention_maps(ids)
    assert maps.shape == (3, 3, 6, 40, 40)
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 3, 6, 40))
    assert float(maps.triu(1).abs().max()) == 0
    q, k, v = (torch.randn(1, heads, 9, 8) for heads in (6, 2, 2))
    by_hand = attention_weights(q, k, None) @ v.repeat_interleave(3, 1)
    torch.testing.assert_close(attend(q, k, v, None), by_hand)


def test_rotation_depends_on_distance_only():
    rope = RotaryEmbedding(16, 1e4)
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float32)

    def score(at, to):
        turned = [
            rotate(x, *rope(torch.tensor([[place]])))
            for x, place in ((q, at), (k, to))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(5, 2) == pytest.approx(score(105, 102), abs=2e-5)
    assert score(5, 2) != pytest.approx(score(5, 4), abs=1e-2)
    assert score(0, 0) == pytest.approx(float((q * k).sum()), abs=1e-6)


CASTS = {
    "bfloat16": lambda module: module.to(torch.bfloat16),
    "half": lambda module: module.half(),
    "double and back": lambda module: module.double().float(),
    "device": lambda module: module.to("cpu"),
    "from meta": lambda module: module.to("meta").to_empty(device="cpu"),
}


@pytest.mark.parametrize("cast", CASTS)
def test_rotary_angles_stay_exact_when_a_model_is_cast(cast):
    # Rounded to bfloat16, the angle at position 500 is off by 0.22 radians.
    exact = RotaryEmbedding(64, 1e4)
    model = MiniMind(SMALL.replace(head_dim=64))
    rope = CASTS[cast](model).model.rotary_emb
    assert rope.inv_freq.dtype == torch.float32
    where = torch.tensor([[500]])
    for one, other in zip(rope(where), exact(where), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
    assert "model.rotary_emb.inv_freq" not in model.state_dict()


def test_rotary_angles_follow_the_model_to_its_device():
    rope = RotaryEmbedding(16, 1e4).to("meta")
    assert rope.inv_freq.device.type == "meta"
    assert rope(torch.zeros(1, 3, device="meta"))[0].device.type == "meta"


def test_rms_norm_by_hand_and_in_half_precision():
    norm = RMSNorm(4, 0.0)
    x = torch.tensor([3.0, 4.0, 0.0, 0.0])
    expected = x / 2.5  # the root of (9 + 16) / 4
    torch.testing.assert_close(norm(x), expected)
    huge = torch.full((4,), 1000.0, dtype=torch.float16)  # square overflows
    assert norm(huge).tolist() == [1.0] * 4


def test_residual_stream_stays_float32_under_autocast(model, ids):
    seen = {}
    block = model.model.layers[0]
    block.self_attn.register_forward_hook(
        lambda module, args, out: seen.update(attention=out.clone())
    )
    block.register_forward_hook(
        lambda module, args, out: seen.update(stream=out.dtype)
    )
    with torch.autocast("cpu", torch.bfloat16):
        model(ids)
    assert seen["stream"] == torch.float32
    assert seen["attention"].dtype == torch.bfloat16


def test_initial_weights_are_seeded_and_scaled():
    torch.manual_seed(3)
    first = MiniMind(SMALL.replace(initializer_range=0.02))
    torch.manual_seed(3)
    second = MiniMind(SMALL.replace(initializer_range=0.02))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    mlp = first.model.layers[0].mlp
    # 3,840 draws each: the standard deviation is known to about 1.1%.
    plain = mlp.up_proj.weight.std().item()
    assert plain == pytest.approx(0.02, rel=0.05)
    scaled = 0.02 / 6**0.5
    written = mlp.down_proj.weight.std().item()
    assert written == pytest.approx(scaled, rel=0.05)


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_gets_more_rows(tied):
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = MiniMind(config).eval()
    ids = torch.randint(40, (2, 7))
    with torch.no_grad():
        before = model(ids).logits
        mean = model.lm_head.weight.mean(0)
        model.resize_token_embeddings(43)
        after = model(ids).logits
    assert model.config.vocab_size == 43 and after.shape == (2, 7, 43)
    assert torch.allclose(after[..., :40], before, atol=1e-6)
    assert torch.equal(model.lm_head.weight[42], mean)
    head = model.lm_head.weight
    assert (head is model.model.embed_tokens.weight) is tied
    assert model(ids, labels=ids).loss.requires_grad
    model.resize_token_embeddings(41)
    assert model.model.embed_tokens.weight.shape == (41, 16)
