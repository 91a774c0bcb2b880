"""The number format for every device, on any machine: facts are injected."""

import inspect
import warnings

import pytest
import torch

from minimind_core import precision
from minimind_core.errors import MiniMindError, PrecisionError
from minimind_core.precision import (
    DTYPES,
    DeviceFacts,
    Precision,
    StepTimings,
    detect_device,
    resolve,
)

GIB = 1024**3
T4 = DeviceFacts("cuda", "Tesla T4", False, (7, 5), 15 * GIB)
V100 = DeviceFacts("cuda", "Tesla V100", False, (7, 0), 16 * GIB)
AMPERE = DeviceFacts("cuda", "NVIDIA A100", True, (8, 0), 40 * GIB)
HOPPER = DeviceFacts("cuda", "NVIDIA H100", True, (9, 0), 80 * GIB)
APPLE = DeviceFacts("mps", "Apple GPU", True)
OLD_APPLE = DeviceFacts("mps", "Apple GPU", False)
NEW_CPU = DeviceFacts("cpu", "Zen 4", True)
OLD_CPU = DeviceFacts("cpu", "Haswell", False)
XEON = DeviceFacts("cpu", "Xeon without AMX", True)
DEVICES = (
    T4, V100, AMPERE, HOPPER, APPLE, OLD_APPLE, NEW_CPU, OLD_CPU,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_warning_unless_expected():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- the rule ---


@pytest.mark.parametrize(
    ("facts", "dtype", "scaler"),
    [
        (T4, "float16", True),
        (V100, "float16", True),
        (AMPERE, "bfloat16", False),
        (HOPPER, "bfloat16", False),
        (APPLE, "float32", False),
        (OLD_APPLE, "float32", False),
        (NEW_CPU, "float32", False),  # as long as nothing was measured
        (OLD_CPU, "float32", False),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_auto(facts, dtype, scaler):
    found = resolve("auto", "auto", facts=facts)
    assert (found.device, found.dtype) == (facts.type, dtype)
    assert found.needs_scaler is scaler
    assert found.torch_dtype is getattr(torch, dtype)
    assert resolve(facts.type, facts=facts) == found


# Seconds a step as they were measured: on an Intel Xeon with avx512_bf16
# and no AMX, and on an AMD Zen 4, which has the same flag.
@pytest.mark.parametrize(
    ("facts", "timings", "dtype"),
    [
        (XEON, StepTimings(0.228, 0.273), "float32"),
        (XEON, StepTimings(0.64, 1.0), "float32"),
        (NEW_CPU, StepTimings(0.273, 0.170), "bfloat16"),
        (NEW_CPU, StepTimings(1.2, 1.0), "bfloat16"),
        (NEW_CPU, StepTimings(1.01, 1.0), "float32"),  # within the error
    ],
)
def test_auto_on_a_cpu_is_what_was_measured_to_be_faster(
    facts, timings, dtype
):
    found = resolve("cpu", facts=facts, timings=timings)
    assert (found.dtype, found.needs_scaler) == (dtype, False)
    assert found == resolve("auto", facts=facts, timings=timings)
    slower = "float32 trains faster" in found.reason
    assert slower is (timings.float32 < timings.bfloat16)
    assert ("times faster" in found.reason) is (dtype == "bfloat16")
    # Both figures are in the reason.
    assert facts.name in found.reason
    for name in ("float32", "bfloat16"):
        rate = 1 / getattr(timings, name)
        assert f"{name} {rate:.3g} steps/s" in found.reason
    assert ". " not in found.reason and not found.reason.endswith(".")


def test_without_a_measurement_auto_on_a_cpu_is_float32_and_says_so():
    found = resolve("cpu", facts=NEW_CPU)
    assert found.dtype == "float32"
    assert "no measurement was made" in found.reason
    assert "measurement" not in resolve("cpu", facts=OLD_CPU).reason


@pytest.mark.parametrize(
    "facts", [T4, V100, AMPERE, HOPPER, APPLE, OLD_APPLE, OLD_CPU],
    ids=lambda facts: facts.name,
)  # fmt: skip
def test_timings_decide_nothing_elsewhere(facts):
    for timings in (StepTimings(1.0, 0.1), StepTimings(0.1, 1.0)):
        assert resolve(facts=facts, timings=timings) == resolve(facts=facts)
        for dtype in ("float32", "float16"):
            given = resolve("auto", dtype, facts=facts, timings=timings)
            assert given == resolve("auto", dtype, facts=facts)


def test_timings_do_not_overrule_what_was_asked():
    slow = StepTimings(0.1, 1.0)
    found = resolve("cpu", "bfloat16", facts=XEON, timings=slow)
    assert found.dtype == "bfloat16"
    fast = StepTimings(1.0, 0.1)
    found = resolve("cpu", "float32", facts=XEON, timings=fast)
    assert found.dtype == "float32"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_recorded_dtype_is_taken_as_it_is(dtype):
    """What resuming and the other processes of a run do."""
    found = resolve(
        "cpu", dtype, facts=XEON, origin="as recorded by the run"
    )
    assert found.dtype == dtype
    assert f"{dtype} as recorded by the run" in found.reason
    asked = resolve("cpu", dtype, facts=XEON)
    assert found.needs_scaler == asked.needs_scaler
    assert "as asked" in asked.reason


def test_timings_in_words():
    found = StepTimings(0.25, 0.5, "8 rows of 128 tokens")
    assert str(found) == (
        "float32 4 steps/s, bfloat16 2 steps/s, measured on 8 rows of "
        "128 tokens"
    )
    assert (found.speedup, found.fastest) == (0.5, "float32")
    assert "0.05 steps/s" in str(StepTimings(20.0, 1.0))
    assert "2,000 steps/s" in str(StepTimings(0.0005, 1.0))


@pytest.mark.parametrize("facts", DEVICES, ids=lambda facts: facts.name)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_asked_for_is_what_runs(facts, dtype):
    found = resolve("auto", dtype, facts=facts)
    assert found.dtype == dtype
    assert found.needs_scaler is (dtype == "float16")


@pytest.mark.parametrize(
    "facts", [f for f in DEVICES if f.bf16], ids=lambda facts: facts.name
)
def test_bfloat16_needs_no_scaler(facts):
    found = resolve("auto", "bfloat16", facts=facts)
    assert (found.dtype, found.needs_scaler) == ("bfloat16", False)
    assert "range" in found.reason


def test_bfloat16_on_a_t4_falls_back_aloud():
    # torch.cuda.is_bf16_supported() says True there: it is emulated.
    with pytest.warns(UserWarning, match="T4 has no bfloat16") as said:
        found = resolve("cuda", "bfloat16", facts=T4)
    assert (found.dtype, found.needs_scaler) == ("float16", True)
    assert found.reason == str(said[0].message)
    # It points at the caller, not at this module.
    assert said[0].filename == __file__


@pytest.mark.parametrize("facts", [OLD_CPU, OLD_APPLE])
def test_bfloat16_where_there_is_none_falls_back_to_float32(facts):
    with pytest.warns(UserWarning, match="float32 runs instead"):
        found = resolve("auto", "bfloat16", facts=facts)
    assert (found.dtype, found.needs_scaler) == ("float32", False)


def test_float16_on_a_cpu_is_said_to_be_slow():
    reason = resolve("cpu", "float16", facts=NEW_CPU).reason
    assert "slow" in reason
    assert "slow" not in resolve("cuda", "float16", facts=T4).reason


def test_short_names_mean_the_long_ones():
    for short, long in (
        ("fp16", "float16"), ("half", "float16"), ("fp32", "float32"),
        ("bf16", "bfloat16"),
    ):  # fmt: skip
        found = resolve("auto", short, facts=AMPERE)
        assert found == resolve("auto", long, facts=AMPERE)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("facts", DEVICES, ids=lambda facts: facts.name)
@pytest.mark.parametrize("dtype", ["auto", *DTYPES])
def test_the_reason_is_one_sentence_about_this_device(facts, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = resolve("auto", dtype, facts=facts)
    assert facts.name in found.reason
    assert found.dtype in found.reason
    assert ". " not in found.reason
    assert not found.reason.endswith(".")
    # The scaler is on for float16 and for nothing else, on any road.
    assert found.needs_scaler is (found.dtype == "float16")


# --- what cannot be ---


@pytest.mark.parametrize("dtype", ["float8", "fp64", "", "Float16", "int8"])
def test_an_unknown_dtype(dtype):
    with pytest.raises(PrecisionError, match="there is auto, float32"):
        resolve("auto", dtype, facts=NEW_CPU)


@pytest.mark.parametrize(
    "device", ["gpu", "tpu", "cpu:0", "auto:1", "mps:0", "", "CUDA"]
)
def test_an_unknown_device(device):
    with pytest.raises(PrecisionError, match="unknown device"):
        resolve(device)


def test_facts_of_another_device():
    with pytest.raises(PrecisionError, match="'cuda' was asked for"):
        resolve("cuda", facts=NEW_CPU)
    assert resolve("cuda:1", facts=HOPPER).device == "cuda:1"


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for device in ("cuda", "cuda:0", "mps"):
        with pytest.raises(PrecisionError, match="--device cpu") as error:
            resolve(device)
        assert device in str(error.value)
        assert isinstance(error.value, MiniMindError)
        assert isinstance(error.value, ValueError)
    assert resolve().device == "cpu"


# --- what a device is ---


class Properties:
    name = "Some GPU"
    total_memory = 8 * GIB


def pretend_gpus(monkeypatch, count, capability, hip=None):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: Properties
    )
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda index: capability
    )
    monkeypatch.setattr(torch.version, "hip", hip)


@pytest.mark.parametrize(
    ("capability", "native"),
    [((7, 0), False), ((7, 5), False), ((8, 0), True), ((8, 9), True),
     ((9, 0), True), ((12, 0), True)],
)  # fmt: skip
def test_bfloat16_counts_from_ampere_on(monkeypatch, capability, native):
    pretend_gpus(monkeypatch, 1, capability)
    # An emulation does not count, so torch is not even asked.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    found = detect_device()
    assert found == DeviceFacts(
        "cuda", "Some GPU", native, capability, 8 * GIB
    )
    assert resolve().needs_scaler is not native


def test_numbered_gpus(monkeypatch):
    pretend_gpus(monkeypatch, 2, (8, 0))
    assert resolve("cuda:1").device == "cuda:1"
    for device in ("cuda:2", "cuda:x", "cuda:-1"):
        with pytest.raises(PrecisionError, match="there are 2 GPUs"):
            resolve(device)


def test_an_amd_gpu(monkeypatch):
    # Its numbers are not NVIDIA's.
    pretend_gpus(monkeypatch, 1, (9, 0), hip="6.2")
    assert resolve().dtype == "bfloat16"


@pytest.mark.parametrize(
    ("version", "bf16"), [("13.6", False), ("14.1", True)]
)
def test_a_mac(monkeypatch, version, bf16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(
        precision.platform, "mac_ver", lambda: (version, (), "arm64")
    )
    assert detect_device() == DeviceFacts("mps", "Apple GPU", bf16)
    assert resolve().device == "mps"


@pytest.mark.parametrize(
    ("flags", "bf16"),
    [
        ({"avx2", "avx512_bf16"}, True),  # Zen 4, Cooper Lake
        ({"avx2", "amx_bf16", "amx_tile"}, True),  # Sapphire Rapids
        ({"asimd", "bf16"}, True),  # Graviton 3
        ({"avx2", "avx512f"}, False),  # Skylake
        ({"avx2"}, False),
        (set(), False),
    ],
)
def test_a_cpu(monkeypatch, flags, bf16):
    monkeypatch.setattr(precision, "_cpu_flags", lambda: flags)
    found = detect_device("cpu")
    assert (found.type, found.bf16, found.capability) == ("cpu", bf16, None)
    assert found.name
    # Whatever the flags say, nobody has measured it.
    assert resolve("cpu").dtype == "float32"
    if bf16:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert resolve("cpu", "bfloat16").dtype == "bfloat16"


def test_the_processor_is_asked_with_and_without_torchs_help(
    monkeypatch, tmp_path
):
    def capabilities():
        return {"avx2": True, "avx512_bf16": True, "amx_bf16": False,
                "num_logical_cores": 2, "cpu_name": "Zen"}  # fmt: skip

    monkeypatch.setattr(
        torch.cpu, "get_capabilities", capabilities, raising=False
    )
    assert precision._cpu_flags() == {"avx2", "avx512_bf16"}
    # Colab's torch 2.11 may not have it: Linux then says.
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    info = tmp_path / "cpuinfo"
    info.write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n"
        "flags\t\t: fpu avx2 avx512_bf16\n"
    )
    monkeypatch.setattr(precision, "Path", lambda name: info)
    assert precision._cpu_flags() == {"fpu", "avx2", "avx512_bf16"}
    assert precision._cpu_name() == "Some CPU @ 2 GHz"
    info.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert precision._cpu_has_bf16()
    info.unlink()  # neither Linux nor a recent torch
    assert precision._cpu_flags() == set()
    assert not precision._cpu_has_bf16()


def test_this_machine():
    found = detect_device("cpu")
    assert found.memory_bytes is None or found.memory_bytes > GIB / 4
    assert resolve("cpu").dtype == "float32"


# --- what it does ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_runs_the_dtype_it_names(dtype):
    a = torch.randn(4, 4)
    chosen = Precision("cpu", dtype, dtype == "float16", "a test")
    with chosen.autocast():
        assert (a @ a).dtype is getattr(torch, dtype)
        # Sums and norms stay in float32.
        assert a.softmax(-1).dtype is torch.float32
    assert (a @ a).dtype is torch.float32


def test_float32_is_not_another_word_for_float16():
    # Inside somebody else's autocast too: asked for float32, float32 runs.
    a = torch.randn(4, 4)
    chosen = resolve("cpu", "float32", facts=NEW_CPU)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype is torch.bfloat16
        with chosen.autocast():
            assert (a @ a).dtype is torch.float32


def test_autocast_always_names_its_dtype(monkeypatch):
    calls = []
    real = torch.autocast

    def watched(*args, **kwargs):
        bound = inspect.signature(real.__init__).bind(None, *args, **kwargs)
        calls.append(bound.arguments)
        return real("cpu", torch.bfloat16)

    monkeypatch.setattr(torch, "autocast", watched)
    for facts in (T4, AMPERE, APPLE, NEW_CPU, OLD_CPU):
        for dtype in ("auto", "float32", "float16"):
            chosen = resolve("auto", dtype, facts=facts)
            chosen.autocast()
            named = calls[-1]
            assert named["device_type"] == facts.type
            if chosen.dtype == "float32":
                assert named["enabled"] is False
            else:
                assert named["dtype"] is chosen.torch_dtype
                assert named.get("enabled", True)
    numbered = resolve("cuda:1", facts=HOPPER)
    numbered.autocast()
    assert calls[-1]["device_type"] == "cuda"


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_scaler_is_on_for_float16_alone(dtype):
    scaler = resolve("cpu", dtype, facts=NEW_CPU).scaler()
    # Not the deprecated torch.cuda.amp.GradScaler.
    assert type(scaler) is torch.amp.GradScaler
    assert scaler.is_enabled() is (dtype == "float16")
    loss = torch.tensor(2.0, requires_grad=True)
    factor = 65536.0 if dtype == "float16" else 1.0
    assert scaler.scale(loss).item() == 2.0 * factor


def test_scaling_saves_gradients_that_float16_would_lose():
    # What the scaler is for, in six numbers: 1e-8 is nothing in float16.
    lost = {}
    for dtype in ("float16", "bfloat16"):
        weight = torch.ones(8, 8, requires_grad=True)
        x = torch.ones(1, 8)
        for scaled in (False, True):
            chosen = Precision("cpu", dtype, scaled, "a test")
            scaler = chosen.scaler()
            weight.grad = None
            with chosen.autocast():
                out = x @ weight
            scaler.scale(out.float().sum() * 1e-8).backward()
            lost[dtype, scaled] = bool((weight.grad == 0).all())
    assert lost == {
        ("float16", False): True,
        ("float16", True): False,
        ("bfloat16", False): False,
        ("bfloat16", True): False,
    }


# --- on a real GPU, where there is one ---


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_the_flag_is_believed(dtype):
    facts = detect_device("cuda")
    if dtype == "bfloat16" and not facts.bf16:
        pytest.skip("this GPU has no bfloat16")
    chosen = resolve("cuda", dtype)
    a = torch.randn(16, 16, device="cuda", requires_grad=True)
    with chosen.autocast():
        out = a @ a
    assert out.dtype is getattr(torch, dtype)
    scaler = chosen.scaler()
    assert scaler.is_enabled() is (dtype == "float16")
    scaler.scale(out.float().sum()).backward()
    assert torch.isfinite(a.grad).all()
