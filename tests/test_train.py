"""The training loop: what is summed, what is resumed, what is refused."""

import io
import json
import math

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from minimind_core.chat import IGNORE_INDEX
from minimind_core.checkpoint import checkpoints
from minimind_core.config import ModelConfig, TrainConfig
from minimind_core.data import Encoded, Rows, collate, count_labels, next_rows
from minimind_core.errors import CheckpointError, ConfigError, TrainingError
from minimind_core.model import MiniMind
from minimind_core.run import column, read_log
from minimind_core.train import Progress, Trainer

SHAPE = ModelConfig(
    vocab_size=67, hidden_size=32, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, intermediate_size=48,
    max_position_embeddings=64,
)  # fmt: skip
BASE = TrainConfig(
    steps=6, batch_size=8, seq_len=24, log_every=1, dtype="float32",
    device="cpu",
)  # fmt: skip


class Counting:
    """Documents of very different lengths, some with masked labels."""

    size = None

    def records(self, indices):
        return [[(3 + i * k) % 64 + 3 for k in range(2 + (i * 7) % 21)]
                for i in indices]  # fmt: skip


def encode(documents):
    return [
        Encoded(d, [t if k % 3 else IGNORE_INDEX for k, t in enumerate(d)])
        for d in documents
    ]


def stream(packed=False, seed=0):
    return Rows(Counting(), encode, seq_len=24, packed=packed, seed=seed)


def fresh(seed=0):
    torch.manual_seed(seed)
    return MiniMind(SHAPE)


def trainer(model=None, config=BASE, **options):
    packed = options.pop("packed", False)
    options.setdefault("progress", False)
    return Trainer(model or fresh(), stream(packed), config, **options)


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters()}


def relative(a, b):
    """Largest difference over the largest value, over all tensors."""
    top = max(float(t.abs().max()) for t in b.values())
    return max(float((a[n] - b[n]).abs().max()) for n in b) / top


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("micro", [1, 3, 8])
def test_accumulation_equals_the_whole_batch(packed, micro):
    # 8 rows by 3 leaves a remainder of 2, and rows differ in their number
    # of labels: a mean of means would be another gradient.
    model = fresh()
    rows = next_rows(stream(packed), 8)
    counts = [count_labels([row]) for row in rows]
    assert max(counts) > min(counts) * (1 if packed else 2)
    whole = collate(rows, 0)
    model(**whole).loss.backward()
    expected = gradients(model)
    config = BASE.replace(micro_batch_size=micro, max_grad_norm=0.0)
    one = trainer(fresh(), config, packed=packed)
    record = one.train_step(one.model)
    # Another order of summation in float32: 4e-7 measured.
    assert relative(gradients(one.model), expected) < 1e-6
    with torch.no_grad():
        loss = float(model(**whole).loss)
    assert record["loss"] == pytest.approx(loss, rel=1e-6)


def test_a_mean_of_means_would_be_another_gradient():
    model = fresh()
    rows = next_rows(stream(), 8)
    for row in rows:
        (model(**collate([row], 0)).loss / 8).backward()
    means = gradients(model)
    model.zero_grad()
    model(**collate(rows, 0)).loss.backward()
    assert relative(means, gradients(model)) > 0.1


def test_the_last_rows_are_learnt_before_the_end(tmp_path):
    # Upstream saves before the left-over accumulation is applied.
    config = BASE.replace(steps=1, batch_size=5, micro_batch_size=2)
    model = fresh()
    before = [p.detach().clone() for p in model.parameters()]
    run = trainer(model, config)
    run.fit()
    assert run.tokens == count_labels(next_rows(stream(), 5))
    assert all(
        not torch.equal(a, b)
        for a, b in zip(before, model.parameters(), strict=True)
    )


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_hugging_face_model_trains_alike(optimizer):
    ours = fresh()
    theirs = Qwen3ForCausalLM(Qwen3Config(**SHAPE.to_hf()))
    theirs.load_state_dict(ours.state_dict())
    config = BASE.replace(steps=5, optimizer=optimizer)
    losses = [
        column(trainer(m, config).fit(), "loss")[1] for m in (ours, theirs)
    ]
    # float32 sums in another order; Muon's bfloat16 iteration rounds those
    # differences up: 2e-6 (AdamW) and 3e-4 (Muon) measured.
    close = 1e-5 if optimizer == "adamw" else 1e-3
    assert losses[0] == pytest.approx(losses[1], rel=close)


def test_one_batch_overfits_to_nothing():
    class Same(Counting):
        def records(self, indices):
            # Told apart by their first token: nothing is left to chance.
            indices = [i % 4 + 1 for i in indices]
            return [[60 + i, *d] for i, d in zip(
                indices, super().records(indices), strict=True)]  # fmt: skip

    config = BASE.replace(steps=300, batch_size=4, log_every=300)
    rows = Rows(Same(), lambda d: [Encoded(x, x) for x in d], seq_len=24)
    history = Trainer(fresh(), rows, config, progress=False).fit()
    assert history[0]["loss"] == pytest.approx(math.log(67), abs=0.1)
    assert history[-1]["loss"] < 0.02


# --- stopping and going on ---


def finish(folder, config, *, from_checkpoint, model_seed=0, **options):
    folder.mkdir(exist_ok=True)
    run = trainer(fresh(model_seed), config, out=folder, **options)
    if from_checkpoint:
        run.resume(checkpoints(folder)[-1])
    run.fit()
    return run


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_resuming_equals_never_stopping(tmp_path, optimizer, dtype):
    config = BASE.replace(
        steps=8, save_every=5, optimizer=optimizer, dtype=dtype,
        warmup_ratio=0.2,
    )
    whole = finish(tmp_path / "a", config, from_checkpoint=False)
    finish(tmp_path / "b", config, from_checkpoint=False)
    assert checkpoints(tmp_path / "b")[-1].name == "step_00000005"
    resumed = finish(
        tmp_path / "b", config, from_checkpoint=True, model_seed=9
    )
    for a, b in zip(
        whole.model.parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(a, b)
    for name in ("loss", "gradient_norm", "lr", "tokens"):
        assert column(whole.history, name) == column(resumed.history, name)
    logged = [r["step"] for r in read_log(tmp_path / "b")]
    assert logged == list(range(1, 9))


def test_resuming_another_run_is_refused(tmp_path):
    config = BASE.replace(save_every=3)
    finish(tmp_path, config, from_checkpoint=False, state={"tokenizer": "x"})
    saved = checkpoints(tmp_path)[-1]
    other = trainer(
        None, config.replace(lr=1e-3), out=tmp_path,
        state={"tokenizer": "y"},
    )  # fmt: skip
    with pytest.raises(CheckpointError) as error:
        other.resume(saved)
    assert "lr was 0.003, now 0.001" in str(error.value)
    assert "tokenizer was 'x', now 'y'" in str(error.value)
    torch.manual_seed(0)
    deeper = MiniMind(SHAPE.replace(num_hidden_layers=3))
    with pytest.raises(CheckpointError, match="not this model's"):
        Trainer(deeper, stream(), config, out=tmp_path, progress=False,
                state={"tokenizer": "x"}).resume(saved)  # fmt: skip


def test_a_bf16_run_goes_on_as_fp16(tmp_path):
    # Upstream crashes here on the scaler's empty state.
    config = BASE.replace(save_every=3, dtype="bfloat16")
    finish(tmp_path, config, from_checkpoint=False)
    changed = config.replace(dtype="float16")
    resumed = finish(tmp_path, changed, from_checkpoint=True)
    assert resumed.scaler.is_enabled()
    assert resumed.step == config.steps


# --- precision ---


def test_float16_is_scaled_and_overflows_are_skipped():
    config = BASE.replace(dtype="float16", steps=3)
    run = trainer(None, config)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = [p.detach().clone() for p in run.model.parameters()]
    record = run.train_step(run.model)
    assert record["skipped"]
    assert record["scale"] == 2.0**40
    for a, b in zip(before, run.model.parameters(), strict=True):
        assert torch.equal(a, b)
    run = trainer(None, config)
    assert not run.train_step(run.model)["skipped"]


def test_gradients_are_clipped_at_their_true_size():
    norms = {}
    for dtype in ("float32", "float16"):
        run = trainer(None, BASE.replace(dtype=dtype, max_grad_norm=0.01))
        norms[dtype] = run.train_step(run.model)["gradient_norm"]
        clipped = gradients(run.model).values()
        total = sum(float(g.square().sum()) for g in clipped) ** 0.5
        assert total == pytest.approx(0.01, rel=1e-3)
    # float16 rounds to 11 bits: 5e-4 measured.
    assert norms["float16"] == pytest.approx(norms["float32"], rel=2e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_flag_is_believed(dtype):
    # For 14 months upstream's autocast ran float16 whatever the flag said.
    run = trainer(None, BASE.replace(dtype=dtype))
    seen = []
    run.model.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda module, args, out: seen.append(out.dtype)
    )
    run.train_step(run.model)
    assert set(seen) == {getattr(torch, dtype)}
    assert run.scaler.is_enabled() == (dtype == "float16")


# --- what is refused, and what is said ---


def test_a_loss_that_is_no_number_stops_the_run():
    model = fresh()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match="step 1: the loss is nan"):
        trainer(model).fit()


def test_a_batch_must_be_shared_evenly(monkeypatch):
    from minimind_core import train
    from minimind_core.distributed import Processes

    three = Processes(0, 3)
    monkeypatch.setattr(train, "join_processes", lambda device: three)
    with pytest.raises(ConfigError, match="cannot be shared evenly"):
        trainer()


def test_checks_join_the_log(tmp_path):
    calls = []

    def validate(model):
        calls.append(model.training)
        return {"validation_loss": 1.5}

    config = BASE.replace(steps=5, validate_every=2, log_every=3)
    run = trainer(None, config, validate=validate, out=tmp_path)
    history = run.fit()
    assert calls == [False] * 3
    assert column(history, "validation_loss") == ([2, 4, 5], [1.5] * 3)
    assert column(history, "loss")[0] == [1, 2, 3, 4, 5]
    assert read_log(tmp_path) == history
    assert not run.model.training


def test_a_log_cut_short_is_still_read(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2')
    assert read_log(tmp_path) == [{"step": 1}]


def test_progress_is_plain_text():
    record = {"step": 5, "loss": 1.25, "tokens_per_second": 1234.5,
              "seconds": 3.0}  # fmt: skip
    out = io.StringIO()
    progress = Progress("training", 10, out, every=0.0)
    progress.show(record)
    progress.show({**record, "step": 10}, last=True)
    lines = out.getvalue().splitlines()
    assert lines[0] == (
        "training [##########..........] 5/10  loss 1.250"
        "  1,234 tokens/s  3 s"
    )
    assert "10/10" in lines[1]
    json.dumps(record)
