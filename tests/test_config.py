"""The settings: strict, derived as documented, and the presets' sizes."""

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
    assert sizes == {"tiny": 574_208, "small": 25_830_912, "base": 63_912_192}


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigError, match="tiny, small, base"):
        get_preset("huge")


def test_unknown_key_is_an_error():
    with pytest.raises(ConfigError, match="no setting num_layers"):
        ModelConfig.from_dict({"num_layers": 99})
    with pytest.raises(ConfigError, match="no setting lr"):
        TrainConfig().replace(lr=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be > 0"),
        ({"hidden_size": "128"}, "must be int"),
        ({"num_hidden_layers": True}, "must be int"),
        ({"num_attention_heads": 3}, "multiple of num_key_value_heads"),
        ({"num_attention_heads": 10, "num_key_value_heads": 5}, "head_dim"),
        ({"head_dim": 7}, "even"),
        ({"eos_token_id": 6400}, "outside the vocabulary"),
        ({"tie_word_embeddings": 1}, "must be bool"),
    ],
)
def test_wrong_shapes_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be > 0"),
        ({"optimizer": "sgd"}, "muon, adamw"),
        ({"schedule": "step"}, "linear, cosine, constant"),
        ({"warmup_ratio": 1.0}, r"\[0, 1\)"),
        ({"micro_batch_size": 0}, "not > 0"),
        ({"max_grad_norm": -1.0}, ">= 0"),
    ],
)
def test_wrong_training_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**change)


def test_derived_widths_are_minimind3s():
    config = ModelConfig()
    assert (config.head_dim, config.intermediate_size) == (96, 2432)


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
