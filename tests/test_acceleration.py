"""Compiled blocks, recomputed activations and the loss in chunks."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from minimind_core.acceleration import accelerate, float32_products
from minimind_core.book.scaling import kept_for_backward
from minimind_core.config import ModelConfig, TrainConfig
from minimind_core.data import Row
from minimind_core.errors import ConfigError
from minimind_core.generate import generate_tokens
from minimind_core.model import MiniMind
from minimind_core.train import Trainer

SMALL = ModelConfig(
    vocab_size=67, hidden_size=32, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128,
)  # fmt: skip
PACKED = torch.tensor([[0] * 10 + [1] * 14, [0] * 17 + [1] * 7])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MiniMind(SMALL)


@pytest.fixture(autouse=True)
def forget():
    yield
    torch._dynamo.reset()


def batch(packed=False, rows=2, time=24):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 67, (rows, time), generator=generator)
    found = {"input_ids": ids, "labels": ids}
    return found | ({"document_ids": PACKED} if packed else {})


def loss_and_gradient(model, autocast=False, **options):
    model.zero_grad()
    half = torch.autocast("cpu", torch.bfloat16)
    with half if autocast else nullcontext():
        loss = model(**options).loss
    loss.backward()
    return loss.detach(), torch.cat([
        p.grad.flatten() for p in model.parameters()
    ])  # fmt: skip


def rows(count=8, time=24):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 67, (count, time), generator=generator).tolist()
    return [Row(one, one, [0] * (time // 2) + [1] * (time // 2))
            for one in ids]  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("options", [
    {"compile": True},
    {"activation_checkpointing": True},
    {"compile": True, "activation_checkpointing": True},
])  # fmt: skip
def test_results_stay_the_same(model, packed, autocast, options):
    plain = loss_and_gradient(model, autocast, **batch(packed))
    accelerate(model, backend="aot_eager", **options)
    ours = loss_and_gradient(model, autocast, **batch(packed))
    close = 2e-2 if autocast else 1e-5
    torch.testing.assert_close(ours[0], plain[0], rtol=close, atol=0)
    assert (ours[1] - plain[1]).norm() < close * plain[1].norm()


@pytest.mark.parametrize("packed", [False, True])
def test_a_compiled_block_is_one_graph_for_all_blocks(model, packed):
    counter = CompileCounter()
    accelerate(model, compile=True, backend=counter)
    # fullgraph=True raises an error at a break; here the graphs are counted
    # besides: one for the three blocks, and one for the loss.
    loss_and_gradient(model, **batch(packed))
    on_cpu = 2
    assert counter.frame_count == on_cpu
    loss_and_gradient(model, **batch(packed))
    assert counter.frame_count == on_cpu


def test_documents_of_any_number_do_not_compile_anew(model, monkeypatch):
    from torch.nn.attention import varlen

    from minimind_core import attention

    def attend_each(q, k, v, starts, _, longest, __, **options):
        return q + k.repeat_interleave(2, 1) + v.repeat_interleave(
            2, 1
        ) + starts.sum()

    def on_a_gpu(x, head_dim, *, packed=False, **rest):
        return attention.Kernel("varlen" if packed else "sdpa", "")

    monkeypatch.setattr(attention, "kernel_for", on_a_gpu)
    monkeypatch.setattr(varlen, "varlen_attn", attend_each)
    monkeypatch.setattr(attention, "_varlen_grouped", lambda: True)
    counter = CompileCounter()
    accelerate(model, compile=True, backend=counter)
    seen = []
    for documents in (2, 3, 5, 7, 11):
        ids = torch.arange(24).expand(2, -1) * documents // 24
        model(**batch(), document_ids=ids).loss.backward()
        seen.append(counter.frame_count)
    assert seen[1] <= 4
    assert seen[-1] == seen[1]


def test_only_training_is_compiled(model):
    counter = CompileCounter()
    accelerate(model, compile=True, backend=counter)
    model.eval()
    ids = batch()["input_ids"]
    plain = MiniMind(SMALL)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(ids).logits, plain.eval()(ids).logits)
    generate_tokens(model, ids, max_new_tokens=3, temperature=0.0)
    model.attention_maps(ids)
    assert counter.frame_count == 0


def test_names_and_copies_are_those_of_the_model(model):
    names = list(model.state_dict())
    accelerate(model, compile=True, activation_checkpointing=True,
               backend="eager")  # fmt: skip
    assert list(model.state_dict()) == names
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.layers[0].self_attn.o_proj.weight.zero_()
    ours = loss_and_gradient(model, **batch())[0]
    theirs = loss_and_gradient(twin, **batch())[0]
    assert ours != theirs, "the copy must run its own blocks"


def test_it_can_be_undone(model):
    accelerate(model, compile=True, loss_chunk=5)
    accelerate(model)
    assert "forward" not in model.model.layers[0].__dict__
    assert "head_loss" not in model.__dict__
    whole_batches = 2**31 // (4 * 67)
    assert model.loss_chunk == whole_batches


def test_a_large_vocabulary_gets_chunks():
    with torch.device("meta"):
        model = MiniMind(SMALL.replace(vocab_size=151_936))
    accelerate(model)
    assert model.loss_chunk is not None
    assert 3000 < model.loss_chunk < 4000
    accelerate(model, loss_chunk=8192)
    assert model.loss_chunk == 8192


# --- the loss in chunks ---


@pytest.mark.parametrize("size", [1, 7, 46, 1000])
def test_chunks_give_the_same_loss_and_gradient(model, size):
    labels = batch()["labels"].clone()
    labels[0, :9] = -100

    def run(chunk):
        model.zero_grad()
        model.loss_chunk = chunk
        hidden = model.model(batch()["input_ids"])
        total, count = model._summed_loss(hidden, labels, select=False)
        total.backward()
        return total.detach(), count, [p.grad.clone()
                                       for p in model.parameters()]

    whole, parts = run(None), run(size)
    assert whole[1] == parts[1]
    torch.testing.assert_close(whole[0], parts[0])
    for one, other in zip(whole[2], parts[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_chunks_never_hold_all_logits(model):
    sizes = []

    def note(module, inputs, logits):
        sizes.append(len(logits))

    model.lm_head.register_forward_hook(note)
    model.loss_chunk = 10
    hidden = model.model(batch()["input_ids"])

    def kept():
        found = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: found.append(x.shape) or x, lambda x: x
        ):
            total, _ = model._summed_loss(
                hidden, batch()["labels"], select=False
            )
        return total, found

    total, shapes = kept()
    assert not any(shape[-1:] == (67,) and len(shape) == 2 and shape[0] > 10
                   and shape != (67, 32) for shape in shapes)
    total.backward()
    assert max(sizes) == 10
    # The logits of each of the five chunks are computed twice.
    assert len(sizes) == 10


# --- memory ---


def test_recomputing_keeps_less(model):
    plain = kept_for_backward(model, **batch(rows=8))
    accelerate(model, activation_checkpointing=True)
    assert kept_for_backward(model, **batch(rows=8)) < plain / 3


# --- in a run ---


@pytest.mark.parametrize("options", [
    {"compile": True}, {"activation_checkpointing": True}, {"tf32": True},
])  # fmt: skip
def test_a_run_with_it_learns_the_same(options, monkeypatch):
    from minimind_core import train

    if "compile" in options:
        def with_eager(model, **given):
            accelerate(model, backend="eager", **given)

        monkeypatch.setattr(train, "accelerate", with_eager)

    def run(**options):
        torch.manual_seed(0)
        config = TrainConfig(
            steps=5, batch_size=4, seq_len=32, packed=True, device="cpu",
            dtype="float32", optimizer="adamw", **options,
        )  # fmt: skip
        history = Trainer(
            MiniMind(SMALL), rows(), config, progress=False
        ).fit()
        return [record["loss"] for record in history]

    assert run(**options) == pytest.approx(run(), rel=1e-5)


def test_compiled_rows_have_one_length(monkeypatch):
    from minimind_core import train

    seen = []
    collate = train.collate

    def note(*args, **options):
        found = collate(*args, **options)
        seen.append(found["input_ids"].shape[1])
        return found

    monkeypatch.setattr(train, "collate", note)
    monkeypatch.setattr(
        train, "accelerate",
        lambda model, **given: accelerate(model, backend="eager", **given),
    )  # fmt: skip
    for compiled, time in ((True, 40), (False, 24)):
        config = TrainConfig(
            steps=1, batch_size=4, seq_len=40, device="cpu",
            dtype="float32", compile=compiled,
        )  # fmt: skip
        Trainer(MiniMind(SMALL), rows(), config, progress=False).fit()
        assert seen.pop() == time


def test_tf32_is_for_the_run_only():
    before = torch.get_float32_matmul_precision()
    with float32_products(tf32=True):
        assert torch.get_float32_matmul_precision() == "high"
    with pytest.raises(KeyError), float32_products(tf32=True):
        raise KeyError
    assert torch.get_float32_matmul_precision() == before
    with float32_products(tf32=False):
        assert torch.get_float32_matmul_precision() == before


# --- other models ---


def test_a_model_of_transformers(model):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    theirs = Qwen3ForCausalLM(Qwen3Config(**SMALL.to_hf()))
    theirs.train()
    given = batch() | {"use_cache": False}
    plain = loss_and_gradient(theirs, **given)
    accelerate(theirs, compile=True, activation_checkpointing=True,
               backend="eager")  # fmt: skip
    assert theirs.is_gradient_checkpointing
    ours = loss_and_gradient(theirs, **given)
    torch.testing.assert_close(ours[0], plain[0])
    torch.testing.assert_close(ours[1], plain[1], rtol=1e-4, atol=1e-6)


def test_a_model_that_cannot_recompute():
    with pytest.raises(ConfigError, match="gradient_checkpointing_enable"):
        accelerate(torch.nn.Linear(2, 2), activation_checkpointing=True)


# --- on a GPU ---

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.version.hip is not None,
    reason="needs an NVIDIA GPU",
)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("packed", [False, True])
def test_gpu_compiled_training_equals_eager(packed):
    shape = SMALL.replace(hidden_size=64, num_attention_heads=4)
    torch.manual_seed(0)
    model = MiniMind(shape).cuda()
    given = {
        # document_ids stay on the CPU, as `collate` leaves them
        name: value if name == "document_ids" else value.cuda()
        for name, value in batch(packed).items()
    }
    half = torch.cuda.get_device_capability() >= (8, 0)
    dtype = torch.bfloat16 if half else torch.float16

    def run():
        model.zero_grad()
        with torch.autocast("cuda", dtype):
            loss = model(**given).loss
        (loss * 128).backward()
        return loss.detach(), torch.cat([
            p.grad.flatten() for p in model.parameters()
        ])  # fmt: skip

    plain = run()
    accelerate(model, compile=True, loss_chunk=16)
    ours = run()
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-2, atol=0)
    assert (ours[1] - plain[1]).norm() < 3e-2 * plain[1].norm()


@pytest.mark.gpu
@needs_gpu
def test_gpu_muon_takes_matrices_of_a_shape_together():
    from minimind_core.optim import build_optimizer

    def moved(device):
        torch.manual_seed(0)
        model = MiniMind(SMALL)
        generator = torch.Generator().manual_seed(3)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        model.to(device)
        for p in model.parameters():
            p.grad = p.grad.to(device)
        before = [p.detach().clone() for p in model.parameters()]
        build_optimizer(model, TrainConfig(), "float32").step()
        return [(p.detach() - b).cpu()
                for p, b in zip(model.parameters(), before, strict=True)]

    for one, other in zip(moved("cuda"), moved("cpu"), strict=True):
        assert (one - other).norm() < 2e-2 * other.norm()
