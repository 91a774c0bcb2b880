"""The settings: strict, derived as documented, and the presets' sizes."""

import copy
import dataclasses
import pickle

import pytest

from minimind_core.config import (
    PRESETS,
    ModelConfig,
    TrainConfig,
    get_preset,
)
from minimind_core.errors import ConfigError
from minimind_core.files import read_json


def test_presets_have_the_documented_sizes():
    sizes = {n: p.model.num_parameters() for n, p in PRESETS.items()}
    assert sizes == {
        "tiny": 574_208, "t4": 13_227_648, "small": 25_830_912,
        "base": 63_912_192,
    }  # fmt: skip


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigError, match="tiny, t4, small, base"):
        get_preset("huge")


def test_unknown_key_is_an_error():
    with pytest.raises(ConfigError, match="no setting 'num_layers'"):
        ModelConfig.from_dict({"num_layers": 99})
    with pytest.raises(ConfigError, match="no setting 'zzz'; it has steps"):
        TrainConfig().replace(zzz=1e-3)


@pytest.mark.parametrize(
    ("cls", "typo", "meant"),
    [
        (ModelConfig, "num_layers", "num_hidden_layers"),
        (ModelConfig, "rope_base_theta", "rope_theta"),
        (TrainConfig, "setps", "steps"),
        (TrainConfig, "learning_rate", "lr"),
        (TrainConfig, "clip", "max_grad_norm"),
    ],
)
def test_a_typo_is_told_the_nearest_name(cls, typo, meant):
    for build in (cls, lambda **v: cls().replace(**v)):
        with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
            build(**{typo: 1})


def test_every_problem_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        TrainConfig(steps="many", lr=-1, schedul="linear")
    for part in ("steps must be a valid integer, not 'many'",
                 "lr must be greater than 0, not -1",
                 "did you mean 'schedule'?"):  # fmt: skip
        assert part in str(caught.value)


def test_a_config_does_not_change():
    for config in (ModelConfig(), TrainConfig()):
        name = next(iter(config.to_dict()))
        with pytest.raises(AttributeError):
            setattr(config, name, 1)


def test_an_integer_may_stand_for_a_number():
    config = TrainConfig(max_grad_norm=1)
    assert type(config.max_grad_norm) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be greater than 0, not 0"),
        ({"hidden_size": "128"}, "must be a valid integer, not '128'"),
        ({"num_hidden_layers": True}, "must be a valid integer, not True"),
        ({"num_attention_heads": 3}, "multiple of num_key_value_heads"),
        ({"num_attention_heads": 10, "num_key_value_heads": 5}, "head_dim"),
        ({"head_dim": 7}, "even"),
        ({"eos_token_id": 6400}, "outside the vocabulary"),
        ({"tie_word_embeddings": 1}, "must be a valid boolean"),
        ({"rope_theta": float("inf")}, "must be a finite number"),
        ({"rope_theta": True}, "must be a valid number"),
    ],
)
def test_wrong_shapes_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be greater than 0, not 0"),
        ({"optimizer": "sgd"}, "must be 'muon' or 'adamw', not 'sgd'"),
        ({"schedule": "step"}, "'linear', 'cosine' or 'constant'"),
        ({"warmup_ratio": 1.0}, "must be less than 1, not 1.0"),
        ({"micro_batch_size": 0}, "must be greater than 0, not 0"),
        ({"micro_batch_size": 1.5}, "must be a valid integer"),
        ({"seq_len": 1}, "must be greater than or equal to 2"),
        ({"dtype": "int8"}, "'bfloat16' or 'float16', not 'int8'"),
        ({"seed": 2**63}, "must be less than 9223372036854775808"),
        ({"max_grad_norm": -1.0}, "greater than or equal to 0, not -1.0"),
    ],
)
def test_wrong_training_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**change)


def test_derived_widths_are_minimind3s():
    config = ModelConfig()
    assert (config.head_dim, config.intermediate_size) == (96, 2432)


@pytest.mark.parametrize("copied", [
    lambda c: c, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c)),
    lambda c: ModelConfig.from_dict(c.as_given()),
])  # fmt: skip
def test_derived_widths_follow_the_width(copied):
    wide = copied(ModelConfig()).replace(hidden_size=1024)
    assert (wide.head_dim, wide.intermediate_size) == (128, 3264)
    assert wide == ModelConfig(hidden_size=1024)
    # A second change after one that has nothing to do with it.
    again = wide.replace(num_hidden_layers=2).replace(hidden_size=768)
    assert again == ModelConfig(num_hidden_layers=2)


def test_given_widths_stay():
    given = ModelConfig(head_dim=96).replace(hidden_size=1024)
    assert (given.head_dim, given.intermediate_size) == (96, 3264)
    assert given.replace(head_dim=None).head_dim == 128
    # What a file says was given, whatever it was made from.
    read = ModelConfig.from_hf(ModelConfig().to_hf())
    assert read.replace(hidden_size=1024).head_dim == 96


def test_the_presets_widths_follow_too():
    wide = get_preset("tiny").model.replace(hidden_size=256)
    assert (wide.head_dim, wide.intermediate_size) == (64, 832)


def test_hugging_face_gets_numbers():
    written = ModelConfig().replace(hidden_size=1024).to_hf()
    assert written["head_dim"] == 128
    assert written["intermediate_size"] == 3264


def test_a_preset_of_your_own():
    own = dataclasses.replace(get_preset("tiny"), name="own")
    assert get_preset(own) is own
    with pytest.raises(ConfigError, match=r"unknown preset \['tiny'\]"):
        get_preset(["tiny"])


@pytest.mark.parametrize("name", PRESETS)
def test_hugging_face_json_round_trip(name):
    config = get_preset(name).model
    written = config.to_hf()
    assert ModelConfig.from_hf(written) == config
    # Version 4 of transformers reads this one, version 5 the other.
    assert written["rope_theta"] == config.rope_theta
    assert written["rope_parameters"]["rope_theta"] == config.rope_theta


def test_what_the_model_lacks_is_refused_when_reading():
    good = ModelConfig().to_hf()
    for key, value in (
        ("model_type", "llama"),
        ("attention_bias", True),
        ("hidden_act", "gelu"),
        ("use_sliding_window", True),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e6}),
    ):
        with pytest.raises(ConfigError, match=r"my\.json"):
            ModelConfig.from_hf({**good, key: value}, "my.json")


def test_qwen3_defaults_are_used_where_a_file_is_silent():
    written = ModelConfig(head_dim=128).to_hf()
    del written["head_dim"], written["tie_word_embeddings"]
    read = ModelConfig.from_hf(written)
    assert read.head_dim == 128
    assert read.tie_word_embeddings is False


def test_read_json_names_file_and_line(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{\n"a": 1,\n"b" 2}')
    with pytest.raises(ConfigError, match=r"config\.json, line 3"):
        read_json(path)
    path.write_text("[]")
    with pytest.raises(ConfigError, match="JSON object"):
        read_json(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigError, match="UTF-8"):
        read_json(path)
    with pytest.raises(ConfigError, match="no such file"):
        read_json(tmp_path / "none.json")
