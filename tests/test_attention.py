"""Which kernel attends where, and that all of them compute the same."""

import inspect
import itertools
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from minimind_core import attention
from minimind_core.attention import (
    Documents,
    Kernel,
    TorchBuild,
    attend,
    attention_weights,
    build_mask,
    choose_kernel,
    compute_dtype,
    find_documents,
    fit_attention,
    kernel_for,
    register_attention,
)
from minimind_core.config import ModelConfig
from minimind_core.model import IGNORE_INDEX, KVCache, MiniMind
from minimind_core.precision import DeviceFacts

CPU = DeviceFacts("cpu", "Some CPU", False)
MPS = DeviceFacts("mps", "Apple GPU", True)
V100 = DeviceFacts("cuda", "Tesla V100", False, (7, 0))
T4 = DeviceFacts("cuda", "Tesla T4", False, (7, 5))
A100 = DeviceFacts("cuda", "NVIDIA A100", True, (8, 0))
L4 = DeviceFacts("cuda", "NVIDIA L4", True, (8, 9))
H100 = DeviceFacts("cuda", "NVIDIA H100", True, (9, 0))
B200 = DeviceFacts("cuda", "NVIDIA B200", True, (10, 0))

TODAY = TorchBuild(flash=True, varlen=True)
F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32

DOCUMENTS = torch.tensor(
    [[0] * 7 + [1] * 1 + [2] * 16, [0] * 21 + [-1] * 3]
)  # the second row ends in padding


# --- the choice ------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "dtype", "causal", "masked", "packed"),
    [
        (CPU, F32, "sdpa", "sdpa", "sdpa"),
        (CPU, BF16, "sdpa", "sdpa", "sdpa"),
        (MPS, F32, "composed", "composed", "composed"),
        (MPS, F16, "composed", "composed", "composed"),
        (V100, F16, "expanded", "expanded", "expanded"),
        (T4, F16, "expanded", "expanded", "expanded"),
        (T4, F32, "expanded", "expanded", "expanded"),
        (A100, BF16, "sdpa", "expanded", "varlen"),
        (A100, F32, "expanded", "expanded", "expanded"),
        (L4, F16, "sdpa", "expanded", "varlen"),
        (H100, BF16, "sdpa", "expanded", "varlen"),
        (H100, F32, "expanded", "expanded", "expanded"),
        (B200, BF16, "sdpa", "expanded", "varlen"),
    ],
)
def test_grouped_heads(facts, dtype, causal, masked, packed):
    def path(**situation):
        kernel = choose_kernel(facts, dtype, build=TODAY, **situation)
        assert kernel.reason.startswith(facts.name)
        return kernel.path

    assert path() == causal
    assert path(masked=True) == masked
    assert path(packed=True) == packed


@pytest.mark.parametrize("facts", [T4, A100, H100])
@pytest.mark.parametrize("dtype", [F16, F32])
@pytest.mark.parametrize("masked", [False, True])
def test_nothing_is_copied_where_no_heads_are_shared(facts, dtype, masked):
    kernel = choose_kernel(
        facts, dtype, grouped=False, masked=masked, build=TODAY
    )
    assert kernel.path == "sdpa"


@pytest.mark.parametrize(
    ("change", "causal", "packed"),
    [
        ({"build": TorchBuild(True, False)}, "sdpa", "expanded"),  # 2.9
        ({"build": TorchBuild(False, False)}, "expanded", "expanded"),
        ({"head_dim": 256}, "expanded", "expanded"),
        ({"head_dim": 12}, "sdpa", "expanded"),  # SDPA pads it, varlen not
    ],
)
def test_an_ampere_gpu_that_lacks_something(change, causal, packed):
    settings = {"build": TODAY, **change}
    assert choose_kernel(A100, BF16, **settings).path == causal
    assert choose_kernel(A100, BF16, packed=True, **settings).path == packed


def test_the_reason_names_the_cause():
    def why(facts, dtype, **situation):
        return choose_kernel(facts, dtype, build=TODAY, **situation).reason

    assert "float16 on this GPU" in why(T4, F16)
    assert "float32 on this GPU" in why(H100, F32)
    assert "a mask" in why(H100, BF16, masked=True)
    assert "skips" in why(H100, BF16, packed=True)


def test_the_installed_build_is_looked_at():
    build = attention.torch_build()
    from torch.nn.attention.varlen import varlen_attn

    has_window = "window_size" in inspect.signature(varlen_attn).parameters
    on_amd = torch.version.hip is not None
    assert build.varlen == (has_window and not on_amd)
    if torch.version.cuda is None:
        assert not build.flash


def test_a_device_is_asked_about_only_once(monkeypatch):
    asked = []

    def detect(device):
        asked.append(device)
        return CPU

    monkeypatch.setattr(attention, "detect_device", detect)
    attention._look_up.cache_clear()
    q, k = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    for _ in range(3):
        attend(q, k, k)
    attention._look_up.cache_clear()
    assert asked == ["cpu"]


@pytest.mark.parametrize("name", ["cuda:1", "mps:0"])
def test_a_device_is_asked_about_by_a_name_that_is_known(name, monkeypatch):
    # 'mps:0', which a tensor says, is not a device that users may name.
    asked = []

    def detect(device):
        asked.append(device)
        return CPU

    monkeypatch.setattr(attention, "detect_device", detect)
    attention._look_up.cache_clear()
    device = torch.device(name)
    attention._look_up(device, F32, 64, True, False, False)
    attention._look_up.cache_clear()
    assert asked == [name.removesuffix(":0")]


def test_autocast_decides_the_dtype_of_the_kernel():
    x = torch.zeros(1)
    assert compute_dtype(x) == F32
    assert compute_dtype(x.half()) == F16
    with torch.autocast("cpu", BF16):
        assert compute_dtype(x) == BF16
        assert compute_dtype(x.to("meta")) == F32
    with torch.autocast("cpu", BF16, enabled=False):
        assert compute_dtype(x) == F32


# --- all paths compute the same --------------------------------------------


def by_definition(q, k, v, allowed):
    """Attention in float64, as the formula says it."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.size(1) // x.size(1), 1) for x in (k, v))
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.size(-1))
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
    return torch.einsum("bhij,bhjd->bhid", weights, v)


def draw(heads, kv_heads, time, past=0, head_dim=8, dtype=F32, device="cpu"):
    generator = torch.manual_seed(0)
    shapes = [(heads, time), (kv_heads, past + time), (kv_heads, past + time)]
    return [
        torch.randn(2, h, t, head_dim, generator=generator)
        .to(device, dtype)
        .requires_grad_()
        for h, t in shapes
    ]


def with_gradients(function, q, k, v, *rest):
    """The output and the three gradients."""
    out = function(q, k, v, *rest)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device)
    loss = (out.double() * weights.view_as(out)).sum()
    return out, *torch.autograd.grad(loss, (q, k, v))


def causal_table(past, time):
    return torch.ones(time, past + time, dtype=torch.bool).tril(past)


def padding(time):
    mask = torch.ones(2, time)
    mask[1, :9] = 0
    return mask


def situations():
    """Name, tokens in the cache, new tokens, options of `build_mask`."""
    return [
        pytest.param(0, 24, {}, id="causal"),
        pytest.param(0, 24, {"attention_mask": padding(24)}, id="padding"),
        pytest.param(0, 24, {"document_ids": DOCUMENTS}, id="packed"),
        pytest.param(10, 14, {}, id="cache"),
        pytest.param(23, 1, {}, id="one-token"),
        pytest.param(
            23, 1, {"attention_mask": padding(24)}, id="one-token-padding"
        ),
    ]


def table_of(past, time, options):
    """The same situation as a table, written down once more."""
    allowed = causal_table(past, time)[None].repeat(2, 1, 1)
    if "document_ids" in options:
        ids = options["document_ids"]
        allowed &= ids[:, :, None] == ids[:, None, :]
    if "attention_mask" in options:
        allowed &= options["attention_mask"].bool()[:, None, :]
        allowed |= torch.eye(past + time, dtype=torch.bool)[past:]
    return allowed[:, None]


@pytest.mark.parametrize("kv_heads", [2, 6])
@pytest.mark.parametrize("path", ["sdpa", "expanded", "composed"])
@pytest.mark.parametrize(("past", "time", "options"), situations())
def test_paths_are_equal(path, kv_heads, past, time, options, monkeypatch):
    monkeypatch.setattr(
        attention, "kernel_for", lambda *args, **more: Kernel(path, "")
    )
    q, k, v = draw(6, kv_heads, time, past)
    mask = build_mask(torch.zeros(2, time, 48), 8, past=past, **options)
    assert (mask is None) == (not options and (past == 0 or time == 1))
    ours = with_gradients(attend, q, k, v, mask)
    allowed = table_of(past, time, options)
    exact = with_gradients(by_definition, q, k, v, allowed)
    # Float32 sums over at most 24 positions; up to 1e-6 was seen.
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(one.double(), other.double(),
                                   rtol=1e-5, atol=5e-6)  # fmt: skip


@pytest.mark.parametrize(
    ("path", "calls"),
    [
        ("sdpa", [(2, True)]),
        ("expanded", [(6, False)]),
        ("composed", []),
    ],
)
def test_what_pytorch_is_asked_for(path, calls, monkeypatch):
    seen = []
    sdpa = F.scaled_dot_product_attention

    def note(q, k, v, **options):
        assert k.size(1) == v.size(1)
        seen.append((k.size(1), options["enable_gqa"]))
        return sdpa(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", note)
    monkeypatch.setattr(
        attention, "kernel_for", lambda *args, **more: Kernel(path, "")
    )
    attend(*draw(6, 2, 24))
    assert seen == calls


def test_the_choice_is_told_the_situation(monkeypatch):
    asked = []

    def note(x, head_dim, **situation):
        asked.append((head_dim, situation))
        return Kernel("sdpa", "")

    monkeypatch.setattr(attention, "kernel_for", note)
    q, k, v = draw(6, 2, 24)
    attend(q, k, v)
    attend(q, q, q, causal_table(0, 24))
    assert asked == [
        (8, {"grouped": True, "masked": False}),
        (8, {"grouped": False, "masked": True}),
    ]


def test_weights_are_float32_under_autocast():
    q, k, _ = draw(6, 2, 24)
    plain = attention_weights(q, k)
    with torch.autocast("cpu", BF16):
        assert torch.equal(attention_weights(q, k), plain)


def test_every_token_may_look_at_itself():
    x = torch.zeros(1, 4, 8)
    mask = build_mask(x, 8, attention_mask=torch.zeros(1, 4))
    assert torch.equal(mask, torch.eye(4, dtype=torch.bool)[None, None])


# --- documents -------------------------------------------------------------


def test_documents_are_found_where_they_begin():
    offsets, longest = find_documents(DOCUMENTS, torch.device("cpu"))
    assert offsets.tolist() == [0, 7, 8, 24, 45, 48]
    assert offsets.dtype == torch.int32
    assert longest == 24
    # A document ends with its row, though the next row's has its number.
    same = torch.zeros(2, 5, dtype=torch.long)
    offsets, longest = find_documents(same, torch.device("cpu"))
    assert offsets.tolist() == [0, 5, 10]


def varlen_by_loop(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *,
                   window_size=(-1, -1), enable_gqa=False):  # fmt: skip
    """What `varlen_attn` is documented to do, one sequence at a time."""
    assert window_size == (-1, 0)
    assert q.dim() == 3 and cu_seq_q is cu_seq_k
    assert enable_gqa == (q.size(1) != k.size(1))
    bounds = cu_seq_q.tolist()
    assert bounds[0] == 0 and bounds[-1] == q.size(0)
    outs = []
    for start, end in itertools.pairwise(bounds):
        assert 0 < end - start <= max_q == max_k
        one = [x[None, start:end].transpose(1, 2) for x in (q, k, v)]
        out = F.scaled_dot_product_attention(
            *one, is_causal=True, enable_gqa=enable_gqa
        )
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


def varlen_of_211(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *,
                  window_size=(-1, -1)):  # fmt: skip
    """As torch 2.11 has it, where this function knows no grouped heads."""
    return varlen_by_loop(
        q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, window_size=window_size
    )


@pytest.fixture(params=[varlen_by_loop, varlen_of_211])
def stand_in(request, monkeypatch):
    """Documents on a CPU: their kernel is written out as a loop."""
    from torch.nn.attention import varlen

    monkeypatch.setattr(varlen, "varlen_attn", request.param)
    attention.torch_build.cache_clear()
    yield
    attention.torch_build.cache_clear()


@pytest.mark.parametrize("kv_heads", [2, 6])
def test_documents_equal_their_table(kv_heads, stand_in):
    q, k, v = draw(6, kv_heads, 24)
    documents = find_documents(DOCUMENTS, torch.device("cpu"))
    table = build_mask(torch.zeros(2, 24, 48), 8, document_ids=DOCUMENTS)
    ours = with_gradients(attend, q, k, v, documents)
    masked = with_gradients(attend, q, k, v, table)
    for one, other in zip(ours, masked, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=5e-6)


def test_documents_are_attended_in_the_type_of_autocast(monkeypatch):
    from torch.nn.attention import varlen

    seen = []

    def note(q, k, v, *args, **options):
        seen.extend((q.dtype, k.dtype, v.dtype))
        return varlen_by_loop(q, k, v, *args, **options)

    monkeypatch.setattr(varlen, "varlen_attn", note)
    monkeypatch.setattr(
        note, "__signature__", inspect.signature(varlen_by_loop),
        raising=False,
    )  # fmt: skip
    q, k, v = draw(6, 2, 24)
    documents = find_documents(DOCUMENTS, torch.device("cpu"))
    with torch.autocast("cpu", BF16):
        attend(q, k, v.bfloat16(), documents)  # as on a GPU: norms in float32
    assert seen == [BF16] * 3


def test_the_real_varlen_takes_our_call():
    # On the meta device the installed function checks its arguments and
    # answers with a shape; computing needs a GPU.
    q, k, v = draw(6, 2, 24, dtype=BF16, device="meta")
    documents = find_documents(DOCUMENTS, torch.device("meta"))
    documents = Documents(documents.offsets, 24)
    out = attend(q, k, v, documents)
    assert out.shape == q.shape and out.dtype == BF16


def test_flex_attention_agrees_about_documents():
    # Another library function with another idea of a mask. Its forward pass
    # only: it has no backward pass on CPUs.
    from torch.nn.attention.flex_attention import (
        create_block_mask,
        flex_attention,
    )

    def visible(batch, head, row, column):
        same = DOCUMENTS[batch, row] == DOCUMENTS[batch, column]
        return (row >= column) & same

    q, k, v = (x.detach() for x in draw(6, 2, 24))
    blocks = create_block_mask(visible, 2, None, 24, 24, device="cpu")
    with warnings.catch_warnings():  # not compiled: slow, and equal
        warnings.simplefilter("ignore")
        theirs = flex_attention(q, k, v, block_mask=blocks, enable_gqa=True)
    mask = build_mask(torch.zeros(2, 24, 48), 8, document_ids=DOCUMENTS)
    torch.testing.assert_close(attend(q, k, v, mask), theirs)


# --- in the model ----------------------------------------------------------

SMALL = ModelConfig(
    vocab_size=199,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=80,
    max_position_embeddings=256,
    initializer_range=0.2,
)


def make_model():
    torch.manual_seed(0)
    return MiniMind(SMALL)


def make_batch(device="cpu"):
    ids = torch.randint(3, 199, (2, 24), generator=torch.manual_seed(1))
    labels = ids.clone()
    labels[0, :5] = IGNORE_INDEX
    return {
        "input_ids": ids.to(device),
        "labels": labels.to(device),
        "document_ids": DOCUMENTS.to(device),
    }


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch, num_items_in_batch=40).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


# --- in models of transformers ---


def hf_model(attention=None):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SMALL.to_hf())).eval()
    if attention is not None:
        model.set_attn_implementation(attention)
    return model


@pytest.mark.parametrize("path", ["sdpa", "expanded", "composed"])
@pytest.mark.parametrize("case", ["causal", "padded", "packed"])
def test_a_model_of_transformers_may_use_our_attention(
    monkeypatch, path, case
):
    ids = make_batch()["input_ids"]
    inputs = {"input_ids": ids, "use_cache": False}
    if case == "padded":
        inputs["attention_mask"] = torch.ones_like(ids)
        inputs["attention_mask"][0, :7] = 0
    if case == "packed":
        inputs["position_ids"] = torch.arange(24).remainder(10)[None]
        inputs["position_ids"] = inputs["position_ids"].expand(2, -1)
    used = []

    def choose(x, head_dim, **rest):
        used.append(rest)
        return Kernel(path, "")

    theirs = hf_model()(**inputs).logits
    monkeypatch.setattr(attention, "kernel_for", choose)
    ours = hf_model(register_attention())(**inputs).logits
    kept = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    torch.testing.assert_close(ours[kept], theirs[kept])
    assert len(used) == SMALL.num_hidden_layers


def test_it_generates_with_a_cache_alike():
    ids = make_batch()["input_ids"][:1]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    theirs = hf_model().generate(ids, **options)
    ours = hf_model(register_attention()).generate(ids, **options)
    assert torch.equal(ours, theirs)


def test_dropout_is_left_to_transformers(monkeypatch):
    def never(*arguments):
        raise AssertionError("attend has no dropout")

    model = hf_model(register_attention()).train()
    monkeypatch.setattr(attention, "attend", never)
    with pytest.raises(AssertionError, match="no dropout"):
        model(make_batch()["input_ids"])
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    assert model(make_batch()["input_ids"]).logits.isfinite().all()


@pytest.mark.parametrize(
    ("device", "fitted"), [("cpu", False), ("cuda", True), ("mps", True)]
)
def test_attention_is_fitted_to_the_device(monkeypatch, device, fitted):
    model = hf_model()
    there = SimpleNamespace(device=torch.device(device))
    monkeypatch.setattr(model, "parameters", lambda: iter([there]))
    assert fit_attention(model) is fitted
    now = model.config._attn_implementation
    assert (now == register_attention()) is fitted
    assert fit_attention(make_model()) is False


def test_attention_that_means_more_is_left_alone(monkeypatch):
    model = hf_model()
    monkeypatch.setattr(model.config, "model_type", "gemma2")
    there = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(model, "parameters", lambda: iter([there]))
    before = model.config._attn_implementation
    assert fit_attention(model) is False
    assert model.config._attn_implementation == before


def test_packed_rows_use_documents_where_a_kernel_takes_them(
    stand_in, monkeypatch
):
    model, batch = make_model(), make_batch()
    masked = loss_and_gradients(model, batch)
    masks = []
    forward = model.model.layers[0].forward

    def note(x, rope, mask, *rest):
        masks.append(mask)
        return forward(x, rope, mask, *rest)

    def on_a_gpu(x, head_dim, *, packed=False, **rest):
        assert head_dim == 16
        return Kernel("varlen" if packed else "sdpa", "")

    monkeypatch.setattr(model.model.layers[0], "forward", note)
    monkeypatch.setattr(attention, "kernel_for", on_a_gpu)
    packed = loss_and_gradients(model, batch)
    assert isinstance(masks[0], Documents)
    for one, other in zip(packed, masked, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=5e-6)
    # With padding, and to look at the weights, a table is needed after all.
    padded = torch.ones_like(batch["input_ids"])
    model(**batch, attention_mask=padded)
    model(**batch, maps=[])
    assert all(isinstance(mask, torch.Tensor) for mask in masks[1:])
    assert len(masks) == 3


def test_a_cache_and_documents_exclude_each_other():
    model, batch = make_model(), make_batch()
    cache = KVCache(SMALL, 2, 48)
    model(batch["input_ids"], cache=cache)
    with pytest.raises(ValueError, match="cannot be combined"):
        model(batch["input_ids"], document_ids=DOCUMENTS, cache=cache)


@pytest.mark.parametrize("packed", [False, True])
def test_the_choice_does_not_break_a_compiled_graph(packed):
    model, batch = make_model(), make_batch()
    ids = batch["input_ids"]
    more = {"document_ids": DOCUMENTS} if packed else {}
    attention._look_up.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        out = compiled(ids, **more).logits
    torch._dynamo.reset()
    torch.testing.assert_close(out, model(ids, **more).logits)


# --- on a GPU --------------------------------------------------------------

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.version.hip is not None,
    reason="needs an NVIDIA GPU",
)
FUSED = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
]
# Relative to values of about one: float32 may run in TF32.
GPU_CLOSE = {F32: 2e-3, F16: 5e-3, BF16: 4e-2}


def skip_without(dtype):
    if dtype == BF16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("kv_heads", [2, 6])
@pytest.mark.parametrize(("past", "time", "options"), situations())
def test_gpu_kernels_are_fused_and_right(
    dtype, kv_heads, past, time, options
):
    skip_without(dtype)
    q, k, v = draw(6, kv_heads, time, past, 64, dtype, "cuda")
    moved = {name: value.cuda() for name, value in options.items()}
    x = torch.zeros(2, time, 384, device="cuda", dtype=dtype)
    mask = build_mask(x, 64, past=past, **moved)
    kernel = kernel_for(
        q, 64, grouped=kv_heads != 6, masked=mask is not None,
        packed=isinstance(mask, Documents),
    )  # fmt: skip
    if "document_ids" in options:
        assert isinstance(mask, Documents) == (kernel.path == "varlen")
    with sdpa_kernel(FUSED):  # an error where only the table would do
        ours = with_gradients(attend, q, k, v, mask)
    cpu = [x.detach().cpu().requires_grad_() for x in (q, k, v)]
    allowed = table_of(past, time, options)
    exact = with_gradients(by_definition, *cpu, allowed)
    close = GPU_CLOSE[dtype]
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(
            one.cpu().double(), other.double(), rtol=close, atol=close
        )


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("packed", [False, True])
def test_gpu_model_equals_the_cpu(dtype, packed):
    skip_without(dtype)
    model, batch = make_model(), make_batch()
    if not packed:
        del batch["document_ids"]
    exact = loss_and_gradients(model, batch)
    model.cuda()
    moved = {name: value.cuda() for name, value in batch.items()}
    with torch.autocast("cuda", dtype, enabled=dtype != F32):
        ours = loss_and_gradients(model, moved)
    close = GPU_CLOSE[dtype]
    torch.testing.assert_close(ours[0].cpu(), exact[0], rtol=close, atol=0)
    for one, other in zip(ours[1:], exact[1:], strict=True):
        error = (one.cpu() - other).norm() / other.norm()
        assert error < 2 * close


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("packed", [False, True])
def test_gpu_training_does_not_wait(packed):
    model = make_model().cuda()
    batch = make_batch("cuda")
    if packed:  # on the CPU, as `build_mask` says
        batch["document_ids"] = DOCUMENTS
    else:
        del batch["document_ids"]
    items = torch.tensor(40, device="cuda")
    half = BF16 if torch.cuda.get_device_capability() >= (8, 0) else F16
    like = torch.zeros(1, device="cuda", dtype=half)
    if packed and kernel_for(like, 16, packed=True).path != "varlen":
        pytest.skip("this PyTorch or GPU takes a table of documents")

    def step():
        with torch.autocast("cuda", half):
            loss = model(**batch, num_items_in_batch=items).loss
        loss.backward()

    step()  # whatever waits only once has done so
    try:
        torch.cuda.set_sync_debug_mode("error")
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
