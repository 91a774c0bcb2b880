"""The training loop: what is summed, what is resumed, what is refused."""

import io
import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from minimind_core import train
from minimind_core.callbacks import Callback
from minimind_core.chat import IGNORE_INDEX
from minimind_core.checkpoint import (
    all_finite,
    checkpoints,
    load_checkpoint,
)
from minimind_core.config import ModelConfig, TrainConfig
from minimind_core.data import (
    Encoded,
    Rows,
    collate,
    count_labels,
    count_tokens,
    next_rows,
)
from minimind_core.distributed import Processes
from minimind_core.errors import CheckpointError, ConfigError, TrainingError
from minimind_core.model import MiniMind
from minimind_core.precision import DeviceFacts, Precision
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
    assert run.tokens == count_tokens(next_rows(stream(), 5))
    assert run.supervised_tokens == count_labels(next_rows(stream(), 5))
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


def test_documents_of_a_packed_row_are_apart_in_any_model():
    ours = fresh()
    theirs = Qwen3ForCausalLM(Qwen3Config(**SHAPE.to_hf()))
    theirs.load_state_dict(ours.state_dict())
    config = BASE.replace(steps=1)
    apart, same = (
        trainer(model, config, packed=True).fit()[0]["loss"]
        for model in (ours, theirs)
    )
    assert same == pytest.approx(apart, rel=1e-5)
    # Otherwise the two would differ by far more than rounding: with a cache,
    # transformers does not look for documents.
    batch = collate(next_rows(stream(packed=True), 8), 0)
    leaking = float(theirs(**batch, use_cache=True).loss.detach())
    closed = float(theirs(**batch, use_cache=False).loss.detach())
    assert abs(leaking - closed) > 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "float16", "auto"])
@pytest.mark.parametrize("packed", [False, True])
def test_gpu_training_reaches_what_the_cpu_does(dtype, packed, tmp_path):
    config = BASE.replace(steps=30, log_every=30)
    here = trainer(fresh(), config, packed=packed).fit()[-1]["loss"]
    there = config.replace(device="cuda", dtype=dtype)
    run = trainer(fresh(), there, packed=packed, out=tmp_path)
    assert run.fit()[-1]["loss"] == pytest.approx(here, rel=0.05)
    again = trainer(
        fresh(), there.replace(steps=35), packed=packed, out=tmp_path
    )
    again.resume(checkpoints(tmp_path)[-1])
    assert again.step == 30
    assert again.fit()[-1]["loss"] < here * 1.05


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


class Killed(Exception):
    """A process that was killed, as far as the files know."""


class KillAt(Callback):
    def __init__(self, step):
        self.at = step

    def on_step_end(self, trainer, record):
        if trainer.step == self.at:
            raise Killed


def precision_for(dtype):
    """Autocast can compute in bfloat16 on processors that lack it, too."""
    return Precision("cpu", dtype, dtype == "float16", "as the test asks")


def kill(folder, config, at, model=None, **options):
    """Leave a run folder behind as a process does that is killed."""
    folder.mkdir(exist_ok=True)
    with pytest.raises(Killed):
        trainer(
            model, config, out=folder, callbacks=[KillAt(at)], **options
        ).fit()
    return checkpoints(folder)[-1]


def go_on(folder, config, model=None, **options):
    """Resume from the last checkpoint, with other weights to begin with."""
    run = trainer(model or fresh(9), config, out=folder, **options)
    run.resume(checkpoints(folder)[-1])
    run.fit()
    return run


def same_weights(one, two):
    return all(
        torch.equal(a, b)
        for a, b in zip(
            one.model.parameters(), two.model.parameters(), strict=True
        )
    )


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("packed", [False, True])
def test_resuming_equals_never_stopping(tmp_path, optimizer, dtype, packed):
    config = BASE.replace(
        steps=8, save_every=5, optimizer=optimizer, dtype=dtype,
        warmup_ratio=0.2,
    )
    options = {"precision": precision_for(dtype), "packed": packed}
    whole = trainer(None, config, **options)
    whole.fit()
    saved = kill(tmp_path, config, 7, **options)
    assert saved.name == "step_00000005"
    resumed = go_on(tmp_path, config, **options)
    assert same_weights(whole, resumed)
    for name in ("loss", "gradient_norm", "lr", "tokens"):
        assert column(whole.history, name) == column(resumed.history, name)
    logged = [r["step"] for r in read_log(tmp_path)]
    assert logged == list(range(1, 9))


def test_the_position_is_not_a_copy_of_the_data(tmp_path):
    # It once held every row that was laid out: 1 MB in a real run.
    saved = kill(tmp_path, BASE.replace(save_every=3), 4)
    assert (saved / "state.json").stat().st_size < 3000


def test_a_finished_run_continues_with_more_steps(tmp_path):
    config = BASE.replace(steps=4, schedule="constant", warmup_ratio=0.0)
    longer = config.replace(steps=9)
    whole = trainer(None, longer)
    whole.fit()
    trainer(None, config, out=tmp_path).fit()
    assert [c.name for c in checkpoints(tmp_path)] == ["step_00000004"]
    resumed = go_on(tmp_path, longer)
    assert same_weights(whole, resumed)
    assert [r["step"] for r in read_log(tmp_path)] == list(range(1, 10))


def test_more_steps_move_the_schedule_and_say_so(tmp_path, capsys):
    config = BASE.replace(steps=4, warmup_ratio=0.0)
    trainer(None, config, out=tmp_path).fit()
    resumed = go_on(tmp_path, config.replace(steps=8), progress=True)
    said = capsys.readouterr().out
    assert "from step 5 on the learning rate follows the schedule" in said
    shares = [rate / config.lr for rate in column(resumed.history, "lr")[1]]
    assert shares == pytest.approx(
        [1, 3 / 4, 2 / 4, 1 / 4, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    with pytest.raises(CheckpointError, match="steps was 8, now 6"):
        go_on(tmp_path, config.replace(steps=6))


def test_a_finished_run_is_not_saved_again(tmp_path):
    trainer(None, BASE, out=tmp_path).fit()
    (saved,) = checkpoints(tmp_path)
    before = (saved / "training.pt").stat().st_mtime_ns
    again = go_on(tmp_path, BASE)
    assert again.step == BASE.steps
    assert (saved / "training.pt").stat().st_mtime_ns == before


def test_resuming_another_run_is_refused(tmp_path):
    config = BASE.replace(save_every=3)
    saved = kill(tmp_path, config, 4, state={"tokenizer": "x"})
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


def test_a_bf16_run_goes_on_as_fp16_and_says_so(tmp_path):
    # Upstream crashes here on the scaler's empty state.
    config = BASE.replace(save_every=3, dtype="bfloat16")
    kill(tmp_path, config, 4, precision=precision_for("bfloat16"))
    with pytest.warns(UserWarning, match="'bfloat16', now 'float16'"):
        resumed = go_on(tmp_path, config.replace(dtype="float16"))
    assert resumed.scaler.is_enabled()
    assert resumed.step == config.steps


def test_auto_goes_on_as_the_run_began(tmp_path, recwarn):
    # What auto comes to may differ the next time: it is measured.
    config = BASE.replace(save_every=3, dtype="auto")
    float16 = precision_for("float16")
    whole = trainer(None, config, precision=float16)
    whole.fit()
    kill(tmp_path, config, 4, precision=float16)
    resumed = go_on(tmp_path, config, precision=precision_for("float32"))
    assert resumed.precision.dtype == "float16"
    assert resumed.scaler.is_enabled()
    assert same_weights(whole, resumed)
    assert not [w for w in recwarn if "to the bit" in str(w.message)]


def test_auto_warns_where_it_cannot_go_on_as_it_began(tmp_path, monkeypatch):
    config = BASE.replace(save_every=3, dtype="auto")
    kill(tmp_path, config, 4, precision=precision_for("bfloat16"))
    lacking = DeviceFacts("cpu", "An old processor", bf16=False)
    resolve = train.resolve
    monkeypatch.setattr(
        train, "resolve",
        lambda *args, **more: resolve(*args, **more, facts=lacking),
    )
    with pytest.warns(UserWarning, match="'bfloat16', now 'float32'"):
        resumed = go_on(tmp_path, config)
    assert resumed.precision.dtype == "float32"


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_are_recorded_and_taken_again(tmp_path, threads, recwarn):
    saved = kill(tmp_path, BASE.replace(save_every=3, threads=3), 4)
    state = json.loads((saved / "state.json").read_text())
    assert state["runtime"]["threads"] == 3
    torch.set_num_threads(1)
    resumed = go_on(tmp_path, BASE.replace(save_every=3))
    assert torch.get_num_threads() == 3
    assert resumed.metadata()["runtime"]["threads"] == 3
    assert resumed.metadata()["runtime"]["dtype"] == "float32"
    assert not [w for w in recwarn if "to the bit" in str(w.message)]


def test_other_threads_or_micro_batches_are_told(tmp_path, threads):
    kill(tmp_path, BASE.replace(save_every=3), 4)
    changed = BASE.replace(save_every=3, threads=2, micro_batch_size=4)
    with pytest.warns(UserWarning, match="to the bit") as said:
        go_on(tmp_path, changed)
    (message,) = [str(w.message) for w in said if "to the bit" in str(w)]
    assert "micro_batch_size was None, now 4" in message
    assert "threads was 1, now 2" in message


def test_random_states_of_another_number_of_processes():
    # Once an IndexError, when all GPUs' states were set at once.
    run = trainer()
    states = []
    for rank in (0, 1, 1):
        run.processes = Processes(rank, 2)
        run._set_random_state([{"cpu": torch.get_rng_state()}])
        states.append(torch.get_rng_state())
    assert not torch.equal(states[0], states[1])
    assert torch.equal(states[1], states[2])  # and can be repeated
    # A state of a device that is not used here is passed over.
    run.processes = Processes()
    run._set_random_state([{"cpu": states[0], "cuda": torch.zeros(16)}] * 4)
    assert torch.equal(torch.get_rng_state(), states[0])


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
    run = trainer(
        None, BASE.replace(dtype=dtype), precision=precision_for(dtype)
    )
    seen = []
    run.model.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda module, args, out: seen.append(out.dtype)
    )
    run.train_step(run.model)
    assert set(seen) == {getattr(torch, dtype)}
    assert run.scaler.is_enabled() == (dtype == "float16")


# --- numbers that are not finite ---


class Poison:
    """Make the loss or one gradient not finite, in chosen steps."""

    def __init__(self, model, *steps, gradient=None, loss=None):
        self.step = 0
        self.steps, self.gradient, self.loss = steps, gradient, loss
        model.register_forward_hook(self.forward)
        if gradient is not None:
            model.model.norm.weight.register_hook(self.backward)

    def forward(self, module, args, out):
        if module.training:
            self.step += 1
            if self.step in self.steps and self.loss is not None:
                return out._replace(loss=out.loss * self.loss)
        return out

    def backward(self, gradient):
        return gradient * (self.gradient if self.step in self.steps else 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_optimizer_never_moves_by_it(tmp_path, what, value, optimizer):
    model = fresh()
    Poison(model, 3, **{what: value})
    config = BASE.replace(save_every=1, optimizer=optimizer)
    run = trainer(model, config, out=tmp_path)
    seen = []
    run.callbacks.append(Remember(seen))
    with pytest.raises(TrainingError) as error:
        run.fit()
    said = str(error.value)
    name = "the loss" if what == "loss" else "the gradient norm"
    assert said.startswith(f"step 3: {name} is {value}")
    assert "rows 16 to 23 of the data stream" in said
    assert "records 0 to 63 in the order they are drawn" in said
    newest = checkpoints(tmp_path)[-1]
    assert newest.name == "step_00000002"
    assert f"{newest} is the newest checkpoint, and it is sound" in said
    for before, now in zip(seen[-1], run.model.parameters(), strict=True):
        assert torch.equal(before, now)
    assert all_finite(run.optimizer.state_dict())


class Dropping(MiniMind):
    """With dropout, so that the random state matters."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        super().__init__(SHAPE)
        self.model.embed_tokens.register_forward_hook(
            lambda module, args, out: torch.nn.functional.dropout(
                out, 0.2, self.training
            )
        )


class Remember(Callback):
    def __init__(self, seen):
        self.seen = seen

    def on_step_end(self, trainer, record):
        self.seen.append([p.detach().clone()
                          for p in trainer.model.parameters()])  # fmt: skip


def test_the_batch_is_where_the_error_says(tmp_path):
    # Records 128 to 191 are those the rows 136 to 143 come from.
    model = fresh()
    Poison(model, 18, loss=math.nan)
    run = trainer(model, BASE.replace(steps=20))
    with pytest.raises(TrainingError, match="rows 136 to 143") as error:
        run.fit()
    assert "records 128 to 191" in str(error.value)
    rows = next_rows(stream(), 144)[136:]
    again = Rows(Counting(), encode, seq_len=24)
    again.drawn = 128
    chunk = next_rows(again, 64)
    assert all(row in chunk for row in rows)


def test_the_last_step_is_looked_at_as_well(tmp_path):
    model = fresh()
    Poison(model, BASE.steps, gradient=math.nan)
    with pytest.raises(TrainingError, match="step 6: the gradient norm"):
        trainer(model, out=tmp_path).fit()
    assert checkpoints(tmp_path) == []


class Breaking(torch.optim.SGD):
    """An update that destroys the weights, from finite gradients."""

    def __init__(self, params, at, value):
        super().__init__(params, lr=1e-3)
        self.at, self.value, self.count = at, value, 0

    def step(self, closure=None):
        self.count += 1
        super().step()
        if self.count == self.at:
            with torch.no_grad():
                self.param_groups[0]["params"][-1].view(-1)[0] = self.value


@pytest.mark.parametrize("out", [True, False])
@pytest.mark.parametrize("at", [3, 6])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, at, out):
    # The loss of this step was sound. The next one would be NaN, too late
    # for a checkpoint in between, and for the last step.
    model = fresh()
    run = trainer(
        model, BASE.replace(save_every=3), out=tmp_path if out else None,
        optimizer=lambda model: Breaking(model.parameters(), at, math.inf),
    )  # fmt: skip
    with pytest.raises(TrainingError) as error:
        run.fit()
    if out:
        assert f"step {at}: its update has made weights" in str(error.value)
        names = [c.name for c in checkpoints(tmp_path)]
        assert names == (["step_00000003"] if at == 6 else [])
        for folder in checkpoints(tmp_path):
            assert all_finite(load_checkpoint(folder)[0])


def test_a_damaged_checkpoint_is_not_called_sound(tmp_path):
    model = fresh()
    Poison(model, 6, loss=math.nan)

    class Damage(Callback):
        def on_save(self, trainer, folder):
            if folder.name == "step_00000004":
                (folder / "training.pt").write_bytes(b"half")

    run = trainer(
        model, BASE.replace(save_every=2), out=tmp_path, callbacks=[Damage()]
    )
    with pytest.raises(TrainingError, match="step_00000002 is the newest"):
        run.fit()


def test_bad_batches_can_be_skipped(tmp_path):
    model = fresh()
    Poison(model, 2, 5, gradient=math.nan)
    seen = []
    config = BASE.replace(on_nonfinite="skip", max_skipped=1)
    run = trainer(model, config, out=tmp_path, callbacks=[Remember(seen)])
    history = run.fit()
    skipped = [r["step"] for r in history if r["skipped"]]
    assert skipped == [2, 5]
    assert history[-1]["skipped_steps"] == run.skipped_steps == 2
    assert run.metadata()["skipped_steps"] == 2
    assert history[1]["gradient_norm"] is None
    moved = [
        any(not torch.equal(a, b) for a, b in zip(one, two, strict=True))
        for one, two in itertools.pairwise(seen)
    ]
    assert moved == [False, True, True, False, True]
    # The log is JSON for everyone, and not only for Python.
    text = (tmp_path / "log.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_skipping_has_a_limit(what):
    model = fresh()
    Poison(model, *range(2, 100), **{what: math.nan})
    config = BASE.replace(steps=9, on_nonfinite="skip", max_skipped=3)
    run = trainer(model, config)
    with pytest.raises(TrainingError, match="step 5: 4 steps in a row"):
        run.fit()
    assert run.step == 4


def test_a_limit_of_skips_survives_resuming(tmp_path):
    config = BASE.replace(
        steps=9, on_nonfinite="skip", max_skipped=3, save_every=3
    )
    model = fresh()
    Poison(model, *range(2, 100), loss=math.nan)
    kill(tmp_path, config, 4, model)
    model = fresh()
    Poison(model, *range(100), loss=math.nan)
    with pytest.raises(TrainingError, match="step 5: 4 steps in a row"):
        go_on(tmp_path, config, model)


def test_a_loss_scale_that_collapses_is_noticed():
    # The scaler by itself would skip every step for ever, and finish.
    model = fresh()
    Poison(model, *range(1, 100), gradient=math.inf)
    config = BASE.replace(dtype="float16", steps=90)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(TrainingError, match="21 steps in a row") as error:
        trainer(model, config).fit()
    assert "the loss scale has fallen to 0.0625" in str(error.value)
    for a, b in zip(before, model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_float16_loss_that_is_no_number_is_not_the_scalers_business():
    model = fresh()
    Poison(model, 2, loss=math.nan)
    with pytest.raises(TrainingError, match="step 2: the loss is nan"):
        trainer(model, BASE.replace(dtype="float16")).fit()


class Transfers(TorchDispatchMode):
    """Counts how often the program needs a number from a tensor."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count = 0
        tolist = torch.Tensor.tolist

        def counted(tensor):
            self.count += 1
            return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counted)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("micro", [None, 2])
def test_a_step_waits_for_the_device_once(monkeypatch, micro):
    # Counted with an optimizer that needs no number itself.
    run = trainer(
        None, BASE.replace(micro_batch_size=micro),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    )  # fmt: skip
    with Transfers(monkeypatch) as transfers:
        run.train_step(run.model)
    assert transfers.count == 1


# --- what is logged ---


def test_the_log_names_the_rate_of_each_group():
    config = BASE.replace(
        steps=4, lr=1e-3, muon_lr_ratio=4.0, warmup_ratio=0.0
    )
    second = trainer(None, config).fit()[1]
    rates = {n: v for n, v in second.items() if n.startswith("lr")}
    assert rates == pytest.approx({
        "lr": 75e-5, "lr_matrices": 3e-3, "lr_embeddings": 75e-5,
        "lr_norms": 75e-5,
    })  # fmt: skip


def test_speed_counts_all_tokens_and_labels_are_a_column():
    history = trainer().fit()
    rows = next_rows(stream(), 8 * BASE.steps)
    last = history[-1]
    assert last["tokens"] == count_tokens(rows)
    assert last["supervised_tokens"] == count_labels(rows)
    assert last["tokens"] > 1.4 * last["supervised_tokens"]
    speed = last["tokens"] / last["seconds"]
    assert last["tokens_per_second"] == pytest.approx(speed, rel=0.05)


# --- with parts of your own ---


def test_an_optimizer_and_a_schedule_of_ones_own(tmp_path):
    def build(model):
        return torch.optim.SGD(model.parameters(), lr=0.5)

    def halving(step):
        return 0.5**step

    parts = {"optimizer": build, "schedule": halving}
    config = BASE.replace(save_every=3)
    whole = trainer(None, config, **parts)
    rates = column(whole.fit(), "lr")[1]
    assert rates == pytest.approx([0.5, 0.25, 0.125, 1 / 16, 1 / 32, 1 / 64])
    kill(tmp_path, config, 4, **parts)
    assert same_weights(whole, go_on(tmp_path, config, **parts))
    saved = checkpoints(tmp_path)[-1]
    with pytest.raises(CheckpointError, match="own_optimizer was 'SGD'"):
        trainer(None, config, out=tmp_path).resume(saved)


def test_an_optimizer_may_be_made_before():
    model = fresh()
    sgd = torch.optim.SGD(model.parameters(), lr=0.5)
    run = trainer(model, optimizer=sgd)
    assert run.optimizer is sgd
    run.fit()


def test_frozen_layers_stay(tmp_path):
    config = BASE.replace(save_every=3)

    def frozen():
        model = fresh()
        model.model.embed_tokens.requires_grad_(False)
        model.model.layers[0].requires_grad_(False)
        return model

    whole = trainer(frozen(), config)
    whole.fit()
    for (name, a), b in zip(
        fresh().named_parameters(), whole.model.parameters(), strict=True
    ):
        assert torch.equal(a, b) == (not b.requires_grad), name
    kill(tmp_path, config, 4, frozen())
    assert same_weights(whole, go_on(tmp_path, config, frozen()))


def test_any_iterable_is_trained_on(tmp_path):
    config = BASE.replace(save_every=3)
    data = [{"input_ids": torch.tensor([[7, 8, 9, i], [9, 8, 7, i]])}
            for i in range(3, 40)]  # fmt: skip
    whole = Trainer(fresh(), data, config, progress=False)
    whole.fit()
    with pytest.raises(Killed):
        Trainer(
            fresh(), data, config, progress=False, out=tmp_path,
            callbacks=[KillAt(4)],
        ).fit()  # fmt: skip
    resumed = Trainer(fresh(9), data, config, progress=False, out=tmp_path)
    resumed.resume(checkpoints(tmp_path)[-1])
    resumed.fit()
    assert same_weights(whole, resumed)


class Bigram(torch.nn.Module):
    """Another model class: each token from the one before."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(67, 67)

    def forward(self, input_ids, labels, num_items_in_batch):
        logits = self.table(input_ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )
        return SimpleNamespace(loss=loss / num_items_in_batch)


def test_another_model_class_is_trained():
    torch.manual_seed(0)
    history = trainer(Bigram(), BASE.replace(steps=30, lr=0.1)).fit()
    assert history[-1]["loss"] < history[0]["loss"] - 0.3


# --- what is refused, and what is said ---


def test_a_batch_must_be_shared_evenly(monkeypatch):
    three = Processes(0, 3)
    monkeypatch.setattr(Processes, "broadcast", lambda self, value: value)
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


RECORD = {"step": 5, "loss": 1.25, "tokens_per_second": 1234.5,
          "seconds": 3.0}  # fmt: skip


def test_progress_is_plain_text():
    out = io.StringIO()
    progress = Progress("training", 10, out, every=0.0)
    progress.show(RECORD)
    progress.say("a message")
    progress.show({**RECORD, "step": 10, "loss": None}, last=True)
    progress.close()
    assert out.getvalue().splitlines() == [
        "training 5/10  loss 1.250  1,234 tokens/s  3 s",
        "a message",
        "training 10/10  loss not finite  1,234 tokens/s  3 s",
    ]
    json.dumps(RECORD)


def test_lines_come_now_and_then():
    out = io.StringIO()
    progress = Progress("training", 10, out, every=1000.0)
    for step in range(1, 10):
        progress.show({**RECORD, "step": step})
    assert out.getvalue() == ""
    progress.show({**RECORD, "step": 10}, last=True)
    assert out.getvalue().startswith("training 10/10")


def test_progress_is_a_bar_in_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    progress = Progress("training", 10, out)
    progress.show(RECORD)
    progress.say("a message")
    progress.show({**RECORD, "step": 10}, last=True)
    progress.close()
    shown = out.getvalue()
    assert "training" in shown and "a message\n" in shown
    last = shown.rpartition("\r")[2]
    assert "10/10" in last and "loss 1.250" in last
    assert shown.endswith("\n")


def test_quiet_progress_writes_nothing(capsys):
    run = trainer(None, BASE.replace(steps=1))
    run.progress.say("a message")
    run.fit()
    assert capsys.readouterr().out == ""
