"""Who is moved by which optimizer, schedules, the hybrid as one object."""

import copy
import pickle

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from minimind_core.config import ModelConfig, TrainConfig
from minimind_core.errors import ConfigError
from minimind_core.model import MiniMind
from minimind_core.optim import (
    build_optimizer,
    gradient_norm,
    learning_rate_scale,
    orthogonalize,
    parameter_groups,
    same_shape,
    set_learning_rates,
)

SHAPE = ModelConfig(
    vocab_size=61, hidden_size=16, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, intermediate_size=32,
)  # fmt: skip


def make(seed=0):
    torch.manual_seed(seed)
    return MiniMind(SHAPE)


def one_step(model, optimizer, seed=1):
    ids = torch.randint(0, 61, (4, 12), generator=torch.manual_seed(seed))
    optimizer.zero_grad()
    model(ids, labels=ids).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("tied", [True, False])
def test_groups_hold_each_parameter_once(tied):
    torch.manual_seed(0)
    model = MiniMind(SHAPE.replace(tie_word_embeddings=tied))
    groups = parameter_groups(model)
    assert [len(groups[n]) for n in ("matrices", "embeddings", "norms")] == [
        14, 1 if tied else 2, 9,
    ]  # fmt: skip
    everything = [id(p) for group in groups.values() for p in group]
    assert sorted(everything) == sorted(id(p) for p in model.parameters())


def test_groups_of_a_hugging_face_model_are_the_same():
    twin = Qwen3ForCausalLM(Qwen3Config(**SHAPE.to_hf()))
    sizes = {n: len(g) for n, g in parameter_groups(twin).items()}
    assert sizes == {"matrices": 14, "embeddings": 1, "norms": 9}


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_only_matrices_decay(name):
    model = make()
    optimizer = build_optimizer(model, TrainConfig(optimizer=name))
    matrices = {id(p) for p in parameter_groups(model)["matrices"]}
    for group in optimizer.param_groups:
        decays = {id(p) in matrices for p in group["params"]}
        assert decays == {group["weight_decay"] > 0}


def test_muon_moves_matrices_and_adamw_the_rest():
    model = make()
    optimizer = build_optimizer(model, TrainConfig())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    one_step(model, optimizer)
    assert all(
        not torch.equal(before[n], p) for n, p in model.named_parameters()
    )
    kinds = {
        group["name"]: {
            key for p in group["params"] for key in optimizer.state[p]
        }
        for group in optimizer.param_groups
    }
    assert kinds["matrices"] == {"momentum_buffer"}
    assert kinds["embeddings"] == kinds["norms"] > {"exp_avg_sq"}


def test_the_hybrid_equals_its_two_halves():
    config = TrainConfig()
    one, two = make(), make()
    optimizer = build_optimizer(one, config)
    groups = parameter_groups(two)
    halves = [
        torch.optim.Muon(
            groups["matrices"], lr=config.lr * config.muon_lr_ratio,
            weight_decay=config.weight_decay, momentum=config.momentum,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            groups["embeddings"] + groups["norms"], lr=config.lr,
            betas=(config.beta1, config.beta2), weight_decay=0.0,
        ),
    ]  # fmt: skip
    for seed in (1, 2, 3):
        one_step(one, optimizer, seed)
        ids = torch.randint(0, 61, (4, 12), generator=torch.manual_seed(seed))
        two.zero_grad()
        two(ids, labels=ids).loss.backward()
        for half in halves:
            half.step()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_orthogonalized_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    coefficients = (3.4445, -4.775, 2.0315)
    for shape in ((24, 40), (40, 24)):
        matrix = torch.randn(shape)
        found = orthogonalize(matrix, coefficients, 5)
        assert found.shape == shape
        sizes = torch.linalg.svdvals(found)
        assert 0.6 < sizes.min() <= sizes.max() < 1.3
        # The directions are kept.
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        inside = u.T @ found @ v.T
        off = inside - inside.diag().diag()
        assert off.abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(5, 24, 40), (5, 40, 24)])
def test_several_matrices_are_orthogonalized_like_one(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.tensor([1e-3, 1, 9, 1, 0])[
        :, None, None
    ]
    options = (3.4445, -4.775, 2.0315), 5
    together = orthogonalize(matrices, *options)
    for one, other in zip(matrices, together, strict=True):
        torch.testing.assert_close(orthogonalize(one, *options), other)


def test_matrices_of_a_shape_are_updated_together_as_on_a_gpu(monkeypatch):
    from minimind_core import optim

    def moved(together):
        monkeypatch.setattr(
            optim, "same_shape", lambda found: same_shape(found, together)
        )
        model = make()
        optimizer = build_optimizer(model, TrainConfig(), "float32")
        for seed in (1, 2):
            one_step(model, optimizer, seed)
        return [p.detach() for p in model.parameters()]

    parameters = parameter_groups(make())["matrices"]
    assert len(same_shape(parameters)) == 14, "on a CPU, one by one"
    lists = same_shape(parameters, together=True)
    assert sorted(map(len, lists)) == [2, 4, 4, 4]
    for one, other in zip(moved(True), moved(False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_without_bfloat16_muon_computes_in_float32():
    groups = {}
    for dtype in ("float32", "float16", "bfloat16"):
        model = make()
        optimizer = build_optimizer(model, TrainConfig(), dtype)
        one_step(model, optimizer)
        moved = next(
            g for g in optimizer.param_groups if g["name"] == "matrices"
        )
        groups[dtype] = moved["params"][0].detach(), moved["ns_dtype"]
    assert groups["float32"][1] == groups["float16"][1] == "float32"
    assert groups["bfloat16"][1] == "bfloat16"
    assert torch.equal(groups["float32"][0], groups["float16"][0])
    assert not torch.equal(groups["float32"][0], groups["bfloat16"][0])
    torch.testing.assert_close(
        groups["float32"][0], groups["bfloat16"][0], atol=1e-3, rtol=0.02
    )


def test_a_resumed_optimizer_keeps_the_dtype_of_its_products():
    model = make()
    saved = build_optimizer(model, TrainConfig(), "float32").state_dict()
    resumed = build_optimizer(model, TrainConfig(), "bfloat16")
    resumed.load_state_dict(saved)
    kept = {g["name"]: g.get("ns_dtype") for g in resumed.param_groups}
    assert kept["matrices"] == "float32"


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_state_dict_continues_to_the_bit(name):
    config = TrainConfig(optimizer=name)
    model = make()
    optimizer = build_optimizer(model, config)
    for seed in (1, 2):
        one_step(model, optimizer, seed)
    twin = make(5)
    twin.load_state_dict(model.state_dict())
    resumed = build_optimizer(twin, config)
    # A copy, as from a file: loading alone would share the tensors.
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for optimizer_, model_ in ((optimizer, model), (resumed, twin)):
        set_learning_rates(optimizer_, learning_rate_scale(7, config))
        one_step(model_, optimizer_, 3)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_overflow_stops_both_halves():
    model = make()
    optimizer = build_optimizer(model, TrainConfig())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    ids = torch.randint(0, 61, (2, 8))
    scaler.scale(model(ids, labels=ids).loss).backward()
    # Only a parameter of AdamW's half overflows.
    model.model.norm.weight.grad[0] = torch.inf
    before = [p.detach().clone() for p in model.parameters()]
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    for a, b in zip(before, model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert scaler.get_scale() == 2.0


def test_schedules():
    def curve(**changes):
        config = TrainConfig(steps=100, warmup_ratio=0.1, **changes)
        return [learning_rate_scale(s, config) for s in range(100)]

    ends = {"linear": 1 / 90, "cosine": 0.1, "constant": 1}
    for schedule, end in ends.items():
        values = curve(schedule=schedule)
        assert 0 < values[0] < 0.1
        assert values[10] == max(values) == 1
        assert values[:11] == sorted(values[:11])
        assert values[10:] == sorted(values[10:], reverse=True)
        assert values[-1] == pytest.approx(end, rel=3e-3)
    assert learning_rate_scale(0, TrainConfig(warmup_ratio=0.0)) == 1


def test_rates_keep_their_ratio():
    config = TrainConfig(lr=1e-3, muon_lr_ratio=4.0)
    optimizer = build_optimizer(make(), config)
    assert set_learning_rates(optimizer, 0.5) == pytest.approx(
        {"lr_matrices": 2e-3, "lr_embeddings": 5e-4, "lr_norms": 5e-4}
    )
    # Each is a share of the peak, not of the rate before.
    assert set_learning_rates(optimizer, 1.0) == pytest.approx(
        {"lr_matrices": 4e-3, "lr_embeddings": 1e-3, "lr_norms": 1e-3}
    )


def test_rates_of_an_optimizer_that_names_no_groups():
    model = make()
    one = torch.optim.SGD(model.parameters(), lr=0.5)
    assert set_learning_rates(one, 0.1) == {}
    assert one.param_groups[0]["lr"] == pytest.approx(0.05)
    first, *rest = model.parameters()
    two = torch.optim.SGD(
        [{"params": [first], "lr": 0.1}, {"params": rest}], lr=0.5
    )
    assert set_learning_rates(two, 1.0) == {"lr_0": 0.1, "lr_1": 0.5}


# --- the hybrid is an optimizer like any other ---


def trained(steps=2):
    model = make()
    optimizer = build_optimizer(model, TrainConfig())
    for seed in range(steps):
        one_step(model, optimizer, seed)
    return model, optimizer


def test_the_state_dict_has_the_standard_layout():
    model, optimizer = trained()
    state = optimizer.state_dict()
    assert set(state) == {"state", "param_groups"}
    count = len(list(model.parameters()))
    assert sorted(state["state"]) == list(range(count))
    numbers = [n for g in state["param_groups"] for n in g["params"]]
    assert sorted(numbers) == list(range(count))
    assert len(optimizer.state) == count


def test_a_distributed_checkpoint_carries_it():
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    model, optimizer = trained()
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    names = {name for name, _ in model.named_parameters()}
    assert set(saved["state"]) == names
    twin = make(5)
    twin.load_state_dict(model.state_dict())
    resumed = build_optimizer(twin, TrainConfig())
    set_optimizer_state_dict(twin, resumed, saved)
    for model_, optimizer_ in ((model, optimizer), (twin, resumed)):
        one_step(model_, optimizer_, 3)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_accelerate_prepares_it():
    accelerate = pytest.importorskip("accelerate")
    plain, optimizer = trained(0)
    model, prepared = trained(0)
    engine = accelerate.Accelerator(cpu=True)
    model, prepared = engine.prepare(model, prepared)
    for seed in (1, 2):
        one_step(plain, optimizer, seed)
        one_step(model, prepared, seed)
    saved = copy.deepcopy(prepared.state_dict())
    prepared.load_state_dict(saved)
    one_step(plain, optimizer, 3)
    one_step(model, prepared, 3)
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_schedulers_of_torch_move_each_group():
    _, optimizer = trained(0)
    peaks = [g["lr"] for g in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1 / (1 + step)
    )
    optimizer.step()
    schedule.step()
    rates = [g["lr"] for g in optimizer.param_groups]
    assert rates == pytest.approx([peak / 2 for peak in peaks])


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))]
)
def test_a_copy_goes_on_by_itself(copied):
    model, optimizer = trained()
    twin, other = copied((model, optimizer))
    before = [p.detach().clone() for p in model.parameters()]
    one_step(twin, other, 3)
    for a, b in zip(before, model.parameters(), strict=True):
        assert torch.equal(a, b)
    one_step(model, optimizer, 3)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_group_added_later_is_updated():
    # A layer that is unfrozen half way.
    model = make()
    late = model.model.layers[0].mlp.up_proj.weight
    late.requires_grad_(False)
    optimizer = build_optimizer(model, TrainConfig())
    before = late.detach().clone()
    one_step(model, optimizer)
    assert torch.equal(late, before)
    late.requires_grad_(True)
    optimizer.add_param_group({"params": [late], "use_muon": True, "lr": 0.1})
    one_step(model, optimizer)
    assert not torch.equal(late, before)
    assert set(optimizer.state[late]) == {"momentum_buffer"}


def test_a_frozen_model_cannot_be_trained():
    model = make().requires_grad_(False)
    with pytest.raises(ConfigError, match="every parameter"):
        build_optimizer(model, TrainConfig())


def test_clipping_is_over_all_gradients_together():
    model = make()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    total = sum(p.numel() for p in model.parameters()) ** 0.5
    assert float(gradient_norm(model, 0)) == pytest.approx(total)
    assert float(gradient_norm(model, 1.0)) == pytest.approx(total)
    assert float(gradient_norm(model, 0)) == pytest.approx(1.0, abs=1e-4)
