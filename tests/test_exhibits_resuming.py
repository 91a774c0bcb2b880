"""What loading does wrong; the package's way is in the tests beside it."""

import pytest
import torch

from minimind_core.book.exhibits.bench import new_model
from minimind_core.book.exhibits.resuming import load_leniently, resume_scaler
from minimind_core.book.exhibits.settings import LooseConfig
from minimind_core.config import ModelConfig


def test_a_scaler_refuses_the_state_of_one_that_was_off():
    saved = torch.amp.GradScaler("cpu", enabled=False).state_dict()
    assert saved == {}
    with pytest.raises(RuntimeError, match="empty"):
        resume_scaler(torch.amp.GradScaler("cpu"), saved)
    resume_scaler(torch.amp.GradScaler("cpu", enabled=False), saved)


def test_half_a_model_is_loaded_without_a_word():
    four = new_model(num_hidden_layers=4)
    eight = new_model(1, num_hidden_layers=8)
    drawn = {n: t.clone() for n, t in eight.state_dict().items()}
    missing = load_leniently(eight, four.state_dict())
    assert len(missing) == 4 * 11
    now = eight.state_dict()
    assert all(torch.equal(now[name], drawn[name]) for name in missing)
    kept = set(now) - set(missing)
    assert all(torch.equal(now[n], four.state_dict()[n]) for n in kept)


def test_a_loose_config_takes_any_name():
    assert LooseConfig(num_layers=99).num_hidden_layers == 8
    assert LooseConfig(num_hidden_layers=99).num_hidden_layers == 99
    # Its defaults are the package's own.
    ours = ModelConfig()
    for name, value in vars(LooseConfig()).items():
        assert getattr(ours, name) == value, name
