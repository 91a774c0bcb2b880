"""Where settings come from: names, files, the command line, the base."""

import dataclasses
import json

import pytest

from minimind_core import recipes, settings
from minimind_core.cli import main
from minimind_core.config import PRESETS, ModelConfig, TrainConfig, get_preset
from minimind_core.errors import CheckpointError, ConfigError
from minimind_core.settings import (
    find_setting,
    nearest_preset,
    parse_assignments,
    parse_value,
    read_settings,
    starting_settings,
    suited_settings,
)

# A value for each setting that no preset has, as one would type it.
TYPED = {
    "model": {
        "vocab_size": "2000", "hidden_size": "64", "num_hidden_layers": "3",
        "num_attention_heads": "2", "num_key_value_heads": "1",
        "head_dim": "8", "intermediate_size": "96",
        "max_position_embeddings": "300", "rope_theta": "5e5",
        "rms_norm_eps": "1e-5", "initializer_range": "0.01",
        "tie_word_embeddings": "false", "pad_token_id": "3",
        "bos_token_id": "4", "eos_token_id": "5",
    },
    "train": {
        "steps": "7", "batch_size": "6", "micro_batch_size": "3",
        "seq_len": "48", "packed": "true", "optimizer": "adamw",
        "lr": "3e-4", "muon_lr_ratio": "1.5", "beta1": "0.8",
        "beta2": "0.98", "momentum": "0.9", "weight_decay": "0.05",
        "warmup_ratio": "0.5", "schedule": "constant",
        "max_grad_norm": "2", "on_nonfinite": "skip", "max_skipped": "3",
        "on_bad_record": "skip",
        "seed": "11", "log_every": "3", "validate_every": "4",
        "sample_every": "5", "save_every": "6", "replay": "0.25",
        "dtype": "float32", "device": "cpu", "threads": "1",
        "shard": "true", "tf32": "true", "compile": "true",
        "activation_checkpointing": "true", "loss_chunk": "64",
    },
}  # fmt: skip
FIELDS = [
    (section, field.name)
    for section, cls in (("model", ModelConfig), ("train", TrainConfig))
    for field in dataclasses.fields(cls)
]


class Reached(Exception):
    """Thrown where training would begin."""


@pytest.fixture
def prepared(small_runs, monkeypatch):
    """Run a command up to the trainer; gives its model and settings."""

    def stop(model, stream, config, **rest):
        error = Reached()
        error.model, error.config, error.rest = model, config, rest
        raise error

    monkeypatch.setattr(recipes, "Trainer", stop)

    def run(*words):
        with pytest.raises(Reached) as caught:
            code = main([str(word) for word in words])
            raise AssertionError(f"ended with {code}")
        return caught.value.model, caught.value.config

    return run


@pytest.fixture
def pretraining(prepared, small_runs, tmp_path):
    def run(*words):
        return prepared(
            "pretrain", "--out", tmp_path / "out", "--tokenizer",
            small_runs / "tokenizer", *words,
        )  # fmt: skip

    return run


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_every_setting_can_be_set(
    pretraining, prepared, small_runs, tmp_path, section, name
):
    if name == "replay":  # which pretraining has no use for

        def pretraining(*words):
            return prepared("sft", small_runs / "pretrain", "--out",
                            tmp_path / "out", *words)  # fmt: skip

    text = TYPED[section][name]
    expected = parse_value(section, name, text)
    written = tmp_path / "settings.json"
    written.write_text(json.dumps({section: {name: expected}}))
    for words in (
        ("--set", f"{name}={text}"),
        ("--set", f"{section}.{name}={text}"),
        ("--config", written),
    ):
        model, config = pretraining(*words)
        found = getattr({"model": model.config, "train": config}[section],
                        name)  # fmt: skip
        assert found == expected
        assert type(found) is type(expected)
    # And it is a change.
    model, config = pretraining()
    before = {"model": model.config, "train": config}[section]
    same = getattr(before, name) == expected
    assert not same


@pytest.mark.parametrize("stage", ["sft", "lora"])
def test_what_one_stage_can_be_told_the_others_can(
    prepared, small_runs, tmp_path, stage
):
    base = {"sft": "pretrain", "lora": "hf"}[stage]
    options = [
        word
        for name in ("steps", "batch_size", "micro_batch_size", "seq_len",
                     "optimizer", "lr", "replay", "save_every", "device",
                     "dtype", "seed")
        for word in (f"--{name.replace('_', '-')}", TYPED["train"][name])
    ]  # fmt: skip
    others = [
        word
        for name in ("beta2", "max_grad_norm", "schedule")
        for word in ("--set", f"{name}={TYPED['train'][name]}")
    ]
    _, config = prepared(stage, small_runs / base, "--out", tmp_path / "out",
                         *options, *others)  # fmt: skip
    for name in ("steps", "batch_size", "micro_batch_size", "seq_len",
                 "optimizer", "lr", "replay", "save_every", "device",
                 "dtype", "seed", "beta2", "max_grad_norm",
                 "schedule"):  # fmt: skip
        expected = parse_value("train", name, TYPED["train"][name])
        assert getattr(config, name) == expected, name


@pytest.mark.parametrize("stage", ["sft", "lora"])
@pytest.mark.parametrize("word", ["packed=true", "sample_every=5"])
def test_a_setting_without_effect_is_refused(
    small_runs, tmp_path, capsys, stage, word
):
    base = small_runs / {"sft": "pretrain", "lora": "hf"}[stage]
    out = tmp_path / "x"
    assert main([stage, str(base), "--out", str(out), "--set", word]) == 2
    assert "would have no effect" in capsys.readouterr().err
    assert not out.exists()


def test_no_preset_has_a_setting_without_effect():
    for preset in PRESETS.values():
        for stage in ("pretrain", "sft", "lora"):
            recipes._refuse_without_effect(stage, getattr(preset, stage))


def test_what_is_said_last_counts(pretraining, tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(
        'preset = "small"\nsteps = 50\n\n'
        "[model]\nhidden_size = 64\nnum_hidden_layers = 1\n\n"
        "[train]\nlr = 1e-4\nbatch_size = 8\nmicro_batch_size = 8\n"
    )
    model, config = pretraining("--config", file, "--lr", "2e-4", "--set",
                                "num_hidden_layers=2")  # fmt: skip
    assert (config.steps, config.batch_size, config.lr) == (50, 8, 2e-4)
    assert config.muon_lr_ratio == get_preset("small").pretrain.muon_lr_ratio
    assert model.config.hidden_size == 64
    assert model.config.num_hidden_layers == 2
    # The preset gave this one, and the derived ones followed the width.
    assert model.config.intermediate_size == 1408
    assert model.config.head_dim == 8
    model, config = pretraining("--config", file, "--preset", "tiny")
    assert model.config.intermediate_size == 256
    assert config.muon_lr_ratio == get_preset("tiny").pretrain.muon_lr_ratio


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"lr": 3e-4, "model": {"head_dim": null},'
         ' "micro_batch_size": null, "data": "microworld:zh"}'),
        ("a.toml", 'data = "microworld:zh"\nlr = 3e-4\n'
         'micro_batch_size = "none"\nmodel.head_dim = "none"'),
        # YAML 1.1 takes 3e-4 for a text.
        ("a.yaml", "lr: 3e-4\nmodel:\n  head_dim: null\n"
         "micro_batch_size:\ndata: microworld:zh\n"),
    ],
)  # fmt: skip
def test_three_kinds_of_file(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert read_settings(path, "pretrain") == {
        "data": ["microworld:zh"],
        "model": {"head_dim": None},
        "config": {"lr": 3e-4, "micro_batch_size": None},
    }


def test_paths_in_a_file_are_relative_to_it(tmp_path):
    path = tmp_path / "deep" / "a.yaml"
    path.parent.mkdir()
    path.write_text("data: [one.txt, ../two.txt]\ntokenizer: tok\nbase: b\n")
    home = tmp_path.resolve()
    assert read_settings(path, "pretrain") == {
        "data": [f"{home}/deep/one.txt", f"{home}/two.txt"],
        "tokenizer": f"{home}/deep/tok",
        "base": f"{home}/deep/b",
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"lr": "fast"}', "train.lr must be a valid number"),
        ("a.json", '{"lr": -1}', "lr must be greater than 0, not -1"),
        ("a.json", '{"stesp": 1}', "did you mean 'steps'"),
        ("a.json", '{"model": {"num_layers": 1}}', "'num_hidden_layers'"),
        ("a.json", '{"model": 3}', "model must be a section"),
        ("a.json", '{"optimiser": "adamw"}', "did you mean 'optimizer'"),
        ("a.json", "{lr: 1}", "line 1: not valid JSON"),
        ("a.toml", "lr =", "Invalid value"),
        ("a.yaml", "a: [", "not valid YAML"),
        ("a.yaml", "- 1", "expected names and values"),
        ("a.ini", "lr = 1", "read from .json, .toml, .yaml and .yml"),
        ("none.toml", None, "no such file"),
        ("none.json", None, "no such file"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file(tmp_path, capsys, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_settings(path, "pretrain")
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert main(["pretrain", "--config", str(path), "--out",
                 str(tmp_path / "x")]) == 2  # fmt: skip
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    with pytest.raises(ConfigError, match="a folder"):
        read_settings(tmp_path, "pretrain")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "num_layers=2"], "did you mean 'num_hidden_layers'?"),
        (["--set", "learning_rate=2"], "did you mean 'lr'?"),
        (["--set", "model.steps=2"], "ModelConfig has no setting 'steps'"),
        (["--set", "optim.lr=2"], "no section 'optim', only model and train"),
        (["--set", "lr"], "--set lr: write NAME=VALUE"),
        (["--set", "steps=1.5"], "train.steps must be a valid integer"),
        (["--set", "packed=maybe"], "train.packed must be a valid boolean"),
        (["--set", "schedule=step"], "must be 'linear', 'cosine' or 'const"),
        (["--set", "steps=0"], "train.steps must be greater than 0, not '0'"),
        (["--set", "steps=none"], "train.steps must be a valid integer"),
        (["--lr", "1", "--set", "lr=2"], "lr is given twice, by --lr"),
        (["--set", "replay=0.5"], "replay=0.5 would have no effect"),
        (["--optimizer", "sgd"], "must be 'muon' or 'adamw', not 'sgd'"),
    ],
)
def test_what_is_wrong_on_the_command_line(tmp_path, capsys, words, message):
    assert main(["pretrain", *words, "--out", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err


def test_a_name_that_could_be_either(monkeypatch):
    monkeypatch.setattr(
        settings, "SECTIONS", {"model": TrainConfig, "train": TrainConfig}
    )
    settings._kinds.cache_clear()
    with pytest.raises(ConfigError, match=r"write model\.lr or train\.lr"):
        find_setting("lr")
    settings._kinds.cache_clear()


def test_none_where_it_is_allowed():
    assert parse_assignments(["head_dim=None", "micro_batch_size=null"]) == {
        "model": {"head_dim": None}, "train": {"micro_batch_size": None},
    }  # fmt: skip


@pytest.mark.parametrize("stage", ["sft", "lora"])
def test_the_shape_belongs_to_the_base(
    small_runs, tmp_path, capsys, stage
):
    base = small_runs / {"sft": "pretrain", "lora": "hf"}[stage]
    out = str(tmp_path / "x")
    words = [stage, str(base), "--out", out]
    assert main([*words, "--set", "model.hidden_size=64"]) == 2
    assert "model.hidden_size: the shape" in capsys.readouterr().err
    file = tmp_path / "a.json"
    file.write_text('{"num_hidden_layers": 3}')
    assert main([*words, "--config", str(file)]) == 2
    assert "model.num_hidden_layers: the shape" in capsys.readouterr().err
    assert main(["pretrain", "--from", str(base), "--out", out,
                 "--set", "rope_theta=5"]) == 2  # fmt: skip
    assert "model.rope_theta: the shape" in capsys.readouterr().err


def test_a_stage_on_nothing(tmp_path, capsys):
    for stage in ("sft", "lora"):
        assert main([stage, "--out", str(tmp_path / "x")]) == 2
        assert f"minimind {stage} FOLDER" in capsys.readouterr().err


def test_the_record_of_another_stage(small_runs):
    path = small_runs / "sft" / "minimind.json"
    with pytest.raises(ConfigError, match="`minimind sft` repeats it"):
        read_settings(path, "pretrain")
    path = small_runs / "hf" / "minimind.json"
    with pytest.raises(ConfigError, match="no training made it"):
        read_settings(path, "lora")


@pytest.mark.parametrize("number", [0, 99, "new", None])
def test_the_record_of_another_version(small_runs, tmp_path, number):
    values = json.loads((small_runs / "sft/minimind.json").read_text())
    path = tmp_path / "minimind.json"
    path.write_text(json.dumps({**values, "format": number}))
    with pytest.raises(CheckpointError, match=r"minimind_core wrote"):
        read_settings(path, "sft")


# --- what suits a model ---


def test_the_base_says_which_preset():
    tiny = get_preset("tiny")
    start = starting_settings("sft", tiny.model, {"preset": "tiny"})
    assert (start.config, start.preset, start.about) == (
        tiny.sft, "tiny", "",
    )  # fmt: skip
    # Another takes precedence, and one of your own is known by its size.
    small = get_preset("small")
    start = starting_settings("lora", tiny.model, {"preset": "tiny"}, "small")
    assert start.config == small.lora
    start = starting_settings("sft", small.model, {"preset": "mine"})
    assert start.preset == "small"
    own = dataclasses.replace(tiny, name="own", sft=TrainConfig(steps=3))
    assert starting_settings("sft", tiny.model, {}, own).config.steps == 3


def test_nearest_in_size():
    for name, preset in PRESETS.items():
        assert nearest_preset(preset.model).name == name
        wider = preset.model.replace(vocab_size=preset.model.vocab_size + 99)
        assert nearest_preset(wider).name == name


LARGE = ModelConfig(
    vocab_size=151_936, hidden_size=1024, num_hidden_layers=28,
    num_attention_heads=16, num_key_value_heads=8, head_dim=128,
    intermediate_size=3072, max_position_embeddings=40_960,
)  # fmt: skip


@pytest.mark.parametrize("stage", ["pretrain", "sft", "lora"])
@pytest.mark.parametrize("shape", [
    get_preset("tiny").model, get_preset("small").model,
    get_preset("base").model, LARGE,
])  # fmt: skip
def test_a_model_from_elsewhere_is_treated_with_care(shape, stage):
    start = starting_settings(stage, shape, {"stage": "import"})
    config = start.config
    assert start == suited_settings(shape, stage)
    assert start.preset is None
    assert config.optimizer == "adamw"
    assert 1e-5 <= config.lr <= 5e-4
    assert config.replay == 0
    assert config.seq_len <= shape.max_position_embeddings
    assert config.batch_size % config.micro_batch_size == 0
    size = shape.num_parameters()
    words = f"{size:,}" if size < 1e6 else f"{size / 1e6:.1f}M"
    assert f"imported model of {words} parameters" in start.about


def test_minimind3_is_recognised():
    # As a file of upstream's comes in: other positions and special tokens.
    shape = get_preset("base").model.replace(
        max_position_embeddings=4096, rms_norm_eps=1e-5
    )
    start = suited_settings(shape, "sft")
    assert "MiniMind-3's shape" in start.about
    assert start.config.lr == 1e-5
    assert suited_settings(shape, "lora").config.lr == 1e-4
    other = suited_settings(shape.replace(num_hidden_layers=7), "sft")
    assert "MiniMind-3" not in other.about
    # Not by a round number, but by what fits: fewer rows of a larger model.
    large = suited_settings(LARGE, "sft").config
    assert large.micro_batch_size < start.config.micro_batch_size
    assert large.lr < other.config.lr
