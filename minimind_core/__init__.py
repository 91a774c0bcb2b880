"""A small language model, from raw text to a LoRA-adapted chat model.

Each stage is one function, and the names below are all of them::

    from minimind_core import pretrain, sft

    base = pretrain("runs/base")
    chat = sft("runs/base", "runs/chat")

Nothing heavy is imported here: a name brings in its module (and PyTorch with
it) when it is first asked for, so `import minimind_core` takes milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from minimind_core.version import __version__

if TYPE_CHECKING:  # the same names, said so that a type checker can see them
    from .adapters import merge_lora as merge_lora
    from .calibration import choose_precision as choose_precision
    from .chat import encode_conversation as encode_conversation
    from .chat import encode_prompt as encode_prompt
    from .checkpoint import save_model as save_model
    from .config import PRESETS as PRESETS
    from .config import ModelConfig as ModelConfig
    from .config import TrainConfig as TrainConfig
    from .config import get_preset as get_preset
    from .errors import MiniMindError as MiniMindError
    from .evaluation import evaluate as evaluate
    from .export import export_hf as export_hf
    from .export import import_checkpoint as import_checkpoint
    from .generate import generate_tokens as generate_tokens
    from .generate import stream_tokens as stream_tokens
    from .loading import load_model as load_model
    from .model import KVCache as KVCache
    from .model import MiniMind as MiniMind
    from .precision import Precision as Precision
    from .precision import detect_device as detect_device
    from .precision import resolve as resolve
    from .recipes import pretrain as pretrain
    from .recipes import run_journey as run_journey
    from .recipes import sft as sft
    from .recipes import train_lora as train_lora
    from .run import Run as Run
    from .system import doctor as doctor
    from .talk import answer as answer
    from .talk import chat_loop as chat_loop
    from .tokenizer import load_tokenizer as load_tokenizer
    from .tokenizer import train_tokenizer as train_tokenizer
    from .train import Trainer as Trainer

# Public name -> the module it lives in.
_HOME = {
    "train_tokenizer": "tokenizer",
    "load_tokenizer": "tokenizer",
    "pretrain": "recipes",
    "sft": "recipes",
    "run_journey": "recipes",
    "export_hf": "export",
    "import_checkpoint": "export",
    "train_lora": "recipes",
    "merge_lora": "adapters",
    "answer": "talk",
    "chat_loop": "talk",
    "evaluate": "evaluation",
    "doctor": "system",
    "MiniMind": "model",
    "KVCache": "model",
    "ModelConfig": "config",
    "TrainConfig": "config",
    "PRESETS": "config",
    "get_preset": "config",
    "Precision": "precision",
    "detect_device": "precision",
    "choose_precision": "calibration",
    "resolve": "precision",
    "Trainer": "train",
    "Run": "run",
    "load_model": "loading",
    "save_model": "checkpoint",
    "generate_tokens": "generate",
    "stream_tokens": "generate",
    "encode_conversation": "chat",
    "encode_prompt": "chat",
    "MiniMindError": "errors",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    """Import the module that `name` lives in, the first time it is asked for.

    See PEP 562.
    """
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
