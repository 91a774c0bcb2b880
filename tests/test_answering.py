"""What was trained is what is asked: a foreign template, end to end.

A model of other people brings its own chat template. Once, training encoded
conversations with ours, so that the answers followed a prompt that nobody
would ever give: none of six questions was answered right, all six with the
prompt of the training.
"""

from __future__ import annotations

import pytest
import torch
from test_templates import LLAMA, THINKING, foreign, trl_template

from minimind_core.chat import encode_prompt
from minimind_core.config import ModelConfig
from minimind_core.data import collate, conversation_encoder, pack
from minimind_core.model import MiniMind
from minimind_core.talk import answer, stream_answer
from minimind_core.tokenizer import special_ids

QUESTIONS = {
    "Where is Mia?": "At the lake.",
    "Where is Tom?": "In the garden.",
    "Who is Nora?": "A doctor.",
    "What did Max see?": "A red boat.",
    "Is it day?": "Yes, and sunny.",
    "Who are you?": "A small model.",
}


def thinking():
    """ChatML with an empty thought in each prompt; ids are not 0 to 2."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>",
               "</think>", "<tool_call>", "</tool_call>")  # fmt: skip
    made = foreign(special, "<|im_start|>", "<|im_end|>", "<|endoftext|>")
    made.chat_template = THINKING
    return made


def llama():
    """Its turns end with another token than its texts; no padding token."""
    made = foreign(LLAMA, LLAMA[0], LLAMA[1])
    made.chat_template = trl_template("llama3")
    return made


def finetuned(tokenizer):
    bos, eos, pad = special_ids(tokenizer)
    torch.manual_seed(0)
    model = MiniMind(ModelConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
        max_position_embeddings=128, bos_token_id=bos, eos_token_id=eos,
        pad_token_id=pad,
    ))  # fmt: skip
    talks = [
        [{"role": "user", "content": asked},
         {"role": "assistant", "content": told}]
        for asked, told in QUESTIONS.items()
    ]  # fmt: skip
    encoded = conversation_encoder(tokenizer, 128)(talks)
    batch = collate(pack(encoded, 0), pad, "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.05
    return model.eval()


@pytest.mark.parametrize("make", [thinking, llama])
def test_a_foreign_template_is_trained_as_it_is_asked(make):
    tokenizer = make()
    model = finetuned(tokenizer)
    for asked, told in QUESTIONS.items():
        messages = [{"role": "user", "content": asked}]
        assert answer(model, tokenizer, messages) == told
        assert "".join(stream_answer(model, tokenizer, messages)) == told
    assert encode_prompt(tokenizer, messages) == (
        tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
    )
