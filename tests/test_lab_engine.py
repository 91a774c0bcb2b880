"""The engine in the pages computes what the package computes."""

import json
import math
import random
import shutil
import sys
import unicodedata

import pytest
import torch
from conftest import LAB

from minimind_core.book.lab import (
    bundle,
    describe_model,
    describe_stage,
    write_stage,
    write_world,
)
from minimind_core.chat import encode_conversation, encode_prompt
from minimind_core.config import ModelConfig
from minimind_core.data import tokenizer_texts
from minimind_core.errors import CheckpointError, ConfigError
from minimind_core.export import export_hf
from minimind_core.generate import (
    generate_tokens,
    next_token_probs,
    penalise_repetition,
)
from minimind_core.loading import load_merged, load_model
from minimind_core.microworld import conversation, write_story
from minimind_core.microworld.truth import Truth
from minimind_core.model import MiniMind
from minimind_core.tokenizer import (
    MARKERS,
    SPECIAL_TOKENS,
    decode,
    encode_document,
    encode_text,
    load_tokenizer,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def bilingual(tmp_path_factory):
    """A tokenizer of both languages, and its folder."""
    folder = tmp_path_factory.mktemp("bilingual") / "tokenizer"
    texts = [
        *tokenizer_texts("microworld", count=400),
        *tokenizer_texts("microworld:zh", count=400),
        *(chr(n) * 3 for n in range(0x1F600, 0x1F640)),
        # Merges across the edges of a marker, where one might be missed.
        *["(<think>) (<think>) <|im_end|>. 你。<|im_end|>."] * 99,
    ]
    return train_tokenizer(texts, 1400, out=folder), folder


def any_texts(count, seed=0):
    """Stories, and everything that is none: emoji, markers, bytes, spaces."""
    rng = random.Random(seed)
    pieces = [
        *SPECIAL_TOKENS, *MARKERS, " ", "  ", "\n", "\t", "\u00a0", "\u3000",
        "\u0085", "\ufeff", "'s", "'re", "'", "I'll", "1234", "½", "٣", "é",
        "e\u0301", "🎉", "👩‍👩‍👧", "你好", "。“", "ß", "<|im_", "_", "\x00",
        "\u200b",
    ]  # fmt: skip
    for number in range(count):
        language = rng.choice(("en", "zh"))
        story = write_story(seed, number, language).text
        kind = number % 5
        if kind == 0:
            yield story
        elif kind == 1:
            at = rng.randrange(len(story))
            yield story[:at] + rng.choice(pieces) + story[at:]
        elif kind == 2:
            yield "".join(rng.choices(pieces, k=rng.randrange(12)))
        elif kind == 3:
            raw = rng.randbytes(rng.randrange(1, 40))
            yield raw.decode(rng.choice(("latin-1", "utf-8")), "replace")
        else:
            codes = (rng.choice((0x7F, 0x3FF, 0xD7FF, 0x1FFFF))
                     for _ in range(12))  # fmt: skip
            chars = (chr(rng.randrange(top)) for top in codes)
            yield "".join(c for c in chars if unicodedata.category(c) not in (
                "Cs", "Cn",
            ))  # fmt: skip


TOKENIZER = """
const file = `${input.folder}/tokenizer.json`;
const cutter = new tokenizer.Tokenizer(json(file));
"""


def test_token_ids_are_the_packages_and_lead_back(bilingual, javascript):
    tok, folder = bilingual
    texts = list(any_texts(5000))
    found = javascript(
        TOKENIZER
        + """
return input.texts.map((text) => {
  const ids = cutter.encodeDocument(text);
  return [ids, cutter.decode(ids)];
});
""",
        {"folder": str(folder), "texts": texts},
    )
    for text, (ids, back) in zip(texts, found, strict=True):
        assert ids == encode_document(tok, text), text
        assert back == text


def test_every_character_is_cut_alike(bilingual, javascript):
    """Letters, digits and spaces are Unicode's, not JavaScript's."""
    tok, folder = bilingual
    known = [
        chr(n) for n in range(sys.maxunicode)
        # Later versions of Unicode have more, which one side may not know.
        if unicodedata.category(chr(n)) not in ("Cn", "Cs", "Co")
    ]  # fmt: skip
    texts = [
        "".join(f"a {c}{c}1  {c} b" for c in known[n : n + 400])
        for n in range(0, len(known), 400)
    ]
    found = javascript(
        TOKENIZER + "return input.texts.map((text) => cutter.encode(text));",
        {"folder": str(folder), "texts": texts},
    )
    wrong = [
        text for text, ids in zip(texts, found, strict=True)
        if ids != encode_text(tok, text)
    ]  # fmt: skip
    assert len(texts) > 300
    assert not wrong


def test_any_ids_are_decoded_alike(bilingual, javascript):
    tok, folder = bilingual
    rng = random.Random(1)
    rows = [
        [rng.randrange(len(tok)) for _ in range(rng.randrange(30))]
        for _ in range(500)
    ]
    found = javascript(
        TOKENIZER + "return input.rows.map((ids) => cutter.decode(ids));",
        {"folder": str(folder), "rows": rows},
    )
    assert found == [decode(tok, ids) for ids in rows]


def test_prompts_and_labels_are_the_packages(bilingual, javascript):
    tok, folder = bilingual
    talks = [conversation(51, i, "zh" if i % 3 == 0 else "en").messages
             for i in range(200)]  # fmt: skip
    # Markers stand on their own, whatever is before and behind them.
    near = ("One. ", "(", ")", ".", "<", " ", "\n", "你。", "")
    texts = [
        f"{before}{marker}{behind}"
        for marker in (*SPECIAL_TOKENS, *MARKERS)
        for before in near
        for behind in near
    ]
    texts += any_texts(300, seed=52)
    for number, text in enumerate(texts):
        talks.append([
            {"role": "system", "content": text},
            {"role": "user", "content": text[::-1]},
            {"role": "assistant", "content": text[number % 7 :]},
        ])
    found = javascript(
        TOKENIZER
        + """
return input.talks.map((talk) => [
  cutter.encodePrompt(talk.slice(0, -1)), cutter.encodeConversation(talk)]);
""",
        {"folder": str(folder), "talks": talks},
    )
    for talk, (prompt, whole) in zip(talks, found, strict=True):
        assert prompt == encode_prompt(tok, talk[:-1])
        ours = encode_conversation(tok, talk)
        assert whole["ids"] == ours.input_ids
        assert whole["labels"] == ours.labels


def test_another_kind_of_tokenizer_is_refused(bilingual, javascript):
    _, folder = bilingual
    data = json.loads((folder / "tokenizer.json").read_text("utf8"))
    data["pre_tokenizer"] = {"type": "Whitespace"}
    message = javascript(
        """
try { new tokenizer.Tokenizer(input); } catch (error) {
  return [error instanceof tokenizer.TokenizerError, error.message];
}
""",
        data,
    )
    assert message[0] and "byte-level BPE" in message[1]


# --- the model -------------------------------------------------------------


def random_model(seed=0, **changes):
    """A model whose weights are large enough for attention to matter."""
    settings = {
        "vocab_size": 500, "hidden_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 72, "max_position_embeddings": 160,
        "rope_theta": 1e4,
    } | changes  # fmt: skip
    torch.manual_seed(seed)
    model = MiniMind(ModelConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            if "q_norm" in name or "k_norm" in name:
                parameter.mul_(2)
    return model


@pytest.fixture(scope="module")
def scene(small_runs, tmp_path_factory):
    """A random model with its tokenizer, exported; and the same in float16.

    A random one, because in a barely trained one attention hardly matters.
    """
    tok = load_tokenizer(small_runs / "tokenizer")
    model = random_model()
    stage = describe_model(model, tok)
    path = tmp_path_factory.mktemp("scene") / "stage.json"
    path.write_text(json.dumps(stage))
    rounded = MiniMind(model.config).eval()
    rounded.load_state_dict(
        {k: v.half().float() for k, v in model.state_dict().items()}
    )
    return model, rounded, tok, stage, str(path)


MODEL = """
const { model, tokenizer: cutter } = weights.loadStage(json(input.path));
"""


def prompts(tok, count, longest=140):
    for index in range(count):
        language = "zh" if index % 4 == 3 else "en"
        ids = encode_document(tok, write_story(61, index, language).text)
        yield ids[: min(1 + index * 7 % longest, len(ids))]


@torch.no_grad()
def test_logits_agree_within_the_formats_error(scene, javascript):
    model, rounded, tok, stage, path = scene
    rows = list(prompts(tok, 200))
    found = javascript(
        MODEL + "return input.rows.map((ids) => [...model.read(ids)]);",
        {"path": path, "rows": rows},
    )
    assert 0 < stage["error"]["logits"] < 0.05
    assert 0 < stage["error"]["nats"] < 1e-4
    spread = 0.0
    for ids, logits in zip(rows, found, strict=True):
        theirs = torch.tensor(logits)
        same = rounded(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(theirs, same, atol=2e-4, rtol=1e-4)
        exact = model(torch.tensor([ids])).logits[0, -1]
        gap = float((theirs - exact).abs().max())
        assert gap < 2 * stage["error"]["logits"]
        spread = max(spread, float(exact.max() - exact.min()))
    assert spread > 4


def test_cached_equals_uncached_and_undone(scene, javascript):
    *_, tok, _, path = scene
    ids = encode_document(tok, write_story(62, 0).text)[:60]
    javascript(
        MODEL
        + """
const same = (a, b) => a.every((x, n) => x === b[n]);
for (const length of [1, 2, 17, 40, 60]) {
  const ids = input.ids.slice(0, length);
  const whole = model.read(ids).slice();
  model.read(ids.slice(0, -1));
  check(same(model.forward(ids[length - 1]), whole), "one token further");
  model.read([...ids.slice(0, 5), 99, 98, 97]);          // something else
  check(same(model.read(ids, Math.min(5, length - 1)), whole), "undone");
  check(model.cache.length === length, "what the cache holds");
}
model.cache.length = model.cache.maxLength;
let refused = false;
try { model.forward(5); } catch (error) { refused = error; }
check(refused instanceof RangeError, "beyond the last position");
""",
        {"path": path, "ids": ids},
    )


@torch.no_grad()
def test_attention_maps_are_the_models(scene, javascript):
    _, rounded, tok, _, path = scene
    ids = encode_document(tok, write_story(63, 1).text)[:50]
    found = javascript(
        MODEL
        + """
return model.attentionMaps(input.ids).map((layer) => layer.map(
  (head) => head.map((row) => [...row])));
""",
        {"path": path, "ids": ids},
    )
    maps = rounded.attention_maps(torch.tensor([ids]))[:, 0]
    assert len(found) == 3 and len(found[0]) == 4
    for layer, heads in enumerate(found):
        for head, rows in enumerate(heads):
            for time, row in enumerate(rows):
                ours = maps[layer, head, time, : time + 1]
                theirs = torch.tensor(row, dtype=torch.float32)
                torch.testing.assert_close(
                    theirs, ours, atol=1e-5, rtol=1e-4
                )
    assert float(maps.std()) > 0.05


def without(model, layer, head=None, part=None):
    """The model with a head, or a part of a layer, adding nothing."""
    state = {k: v.clone() for k, v in model.state_dict().items()}
    name = f"model.layers.{layer}."
    if head is not None:
        width = model.config.head_width
        columns = slice(head * width, (head + 1) * width)
        state[f"{name}self_attn.o_proj.weight"][:, columns] = 0
    elif part == "attention":
        state[f"{name}self_attn.o_proj.weight"].zero_()
    else:
        state[f"{name}mlp.down_proj.weight"].zero_()
    other = MiniMind(model.config).eval()
    other.load_state_dict(state)
    return other


@torch.no_grad()
def test_switching_off_equals_zeroing_in_pytorch(scene, javascript):
    _, rounded, tok, _, path = scene
    ids = encode_document(tok, write_story(64, 2).text)[:40]
    found = javascript(
        MODEL
        + """
const { layers } = model.model;
const all = [];
for (const { mlp, off, selfAttn } of layers) {
  for (let head = 0; head < selfAttn.heads; head++) {
    selfAttn.off[head] = 1;
    all.push([...model.read(input.ids)]);
    selfAttn.off[head] = 0;
  }
  for (const part of ["attention", "mlp"]) {
    off[part] = true;
    all.push([...model.read(input.ids)]);
    off[part] = false;
  }
}
return [...all, [...model.read(input.ids)]];
""",
        {"path": path, "ids": ids},
    )
    ways = [
        without(rounded, layer, **what)
        for layer in range(3)
        for what in (
            *({"head": head} for head in range(4)),
            {"part": "attention"},
            {"part": "mlp"},
        )
    ]
    plain = rounded(torch.tensor([ids])).logits[0, -1]
    for model, logits in zip([*ways, rounded], found, strict=True):
        theirs = torch.tensor(logits)
        ours = model(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(theirs, ours, atol=2e-4, rtol=1e-4)
        if model is not rounded:
            assert float((ours - plain).abs().max()) > 1e-2


@torch.no_grad()
def test_the_stream_can_be_watched_and_patched(scene, javascript):
    _, rounded, tok, _, path = scene
    ids = encode_document(tok, write_story(65, 0).text)[:30]
    other = encode_document(tok, write_story(65, 5).text)[:30]
    found = javascript(
        MODEL
        + """
const kept = [];
model.watch = (depth, position, x) => {
  if (depth === 2) kept.push([...x]);
};
model.read(input.other);
model.watch = (depth, position, x) => {
  if (depth === 2 && position === 20) x.set(kept[20]);
};
const patched = [...model.read(input.ids)];
model.watch = null;
return { kept, patched };
""",
        {"path": path, "ids": ids, "other": other},
    )
    seen = []
    layer = rounded.model.layers[1]
    hook = layer.register_forward_hook(lambda m, i, out: seen.append(out))
    rounded(torch.tensor([other]))
    hook.remove()
    kept = torch.tensor(found["kept"])
    torch.testing.assert_close(kept, seen[0][0], atol=1e-4, rtol=1e-4)

    def patch(module, args, out):
        out = out.clone()
        out[0, 20] = seen[0][0, 20]
        return out

    hook = layer.register_forward_hook(patch)
    ours = rounded(torch.tensor([ids])).logits[0, -1]
    hook.remove()
    theirs = torch.tensor(found["patched"])
    torch.testing.assert_close(theirs, ours, atol=2e-4, rtol=1e-4)
    plain = rounded(torch.tensor([ids])).logits[0, -1]
    assert float((ours - plain).abs().max()) > 1e-2


def test_an_untied_head_of_other_widths(small_runs, javascript, tmp_path):
    """Widths that no loop of four divides, one head for all the keys."""
    tok = load_tokenizer(small_runs / "tokenizer")
    model = random_model(
        3, tie_word_embeddings=False, num_key_value_heads=1, hidden_size=50,
        intermediate_size=61, head_dim=6, num_hidden_layers=1,
    )  # fmt: skip
    (tmp_path / "stage.json").write_text(
        json.dumps(describe_model(model, tok))
    )
    ids = list(range(10, 60))
    (logits,) = javascript(
        MODEL + "return [[...model.read(input.ids)]];",
        {"path": str(tmp_path / "stage.json"), "ids": ids},
    )
    model.load_state_dict(
        {k: v.half().float() for k, v in model.state_dict().items()}
    )
    with torch.no_grad():
        ours = model(torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(
        torch.tensor(logits), ours, atol=2e-4, rtol=1e-4
    )


@torch.no_grad()
def test_weights_in_int8_take_half_the_room_and_are_read_right(
    scene, javascript, tmp_path
):
    model, _, tok, half, _ = scene
    stage = describe_model(model, tok, "int8")
    assert len(stage["weights"]) < 0.6 * len(half["weights"])
    (tmp_path / "stage.json").write_text(json.dumps(stage))
    rows = list(prompts(tok, 20))
    found = javascript(
        MODEL + "return input.rows.map((ids) => [...model.read(ids)]);",
        {"path": str(tmp_path / "stage.json"), "rows": rows},
    )
    stored = MiniMind(model.config).eval()
    state = {}
    for name, tensor in model.state_dict().items():
        state[name] = tensor.half().float()
        if tensor.ndim == 2:
            scale = tensor.abs().max(1, keepdim=True).values / 127
            state[name] = (tensor / scale).round() * scale
    stored.load_state_dict(state)
    for ids, logits in zip(rows, found, strict=True):
        theirs = torch.tensor(logits)
        same = stored(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(theirs, same, atol=2e-4, rtol=1e-4)
        exact = model(torch.tensor([ids])).logits[0, -1]
        gap = float((theirs - exact).abs().max())
        assert gap < 2 * stage["error"]["logits"]
    assert half["error"]["nats"] < stage["error"]["nats"] < 0.05
    with pytest.raises(ConfigError, match="int4"):
        describe_model(model, tok, "int4")


# --- adapters --------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted(small_runs, tmp_path_factory):
    """An adapter that changes its base a lot, and its stage."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("adapted")
    shutil.copytree(small_runs / "hf", folder / "hf")
    shutil.copytree(small_runs / "lora", folder / "lora")
    path = folder / "lora" / "adapter_model.safetensors"
    torch.manual_seed(1)
    tensors = {
        name: torch.randn_like(tensor) * 0.1
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    about = json.loads((folder / "lora" / "minimind.json").read_text())
    del about["files"]  # changed on purpose
    (folder / "lora" / "minimind.json").write_text(json.dumps(about))
    stage = folder / "stage.json"
    stage.write_text(json.dumps(describe_stage(folder / "lora")))
    return folder, str(stage)


@torch.no_grad()
def test_an_adapter_on_is_the_merged_model_and_off_the_base(
    adapted, javascript
):
    folder, path = adapted
    merged, tok = load_merged(folder / "lora")
    base, _ = load_model(folder / "hf")
    rows = list(prompts(tok, 20, 60))
    found = javascript(
        MODEL
        + """
return input.rows.map((ids) => {
  check(model.adapted, "an adapter that was loaded is on");
  const on = [...model.read(ids)];
  model.adapted = false;
  const off = [...model.read(ids)];
  model.adapted = true;
  return [on, off];
});
""",
        {"path": path, "rows": rows},
    )
    for ids, (on, off) in zip(rows, found, strict=True):
        ids = torch.tensor([ids])
        ours = merged(ids).logits[0, -1]
        without = base(ids).logits[0, -1]
        torch.testing.assert_close(
            torch.tensor(on), ours, atol=2e-2, rtol=1e-2
        )
        torch.testing.assert_close(
            torch.tensor(off), without, atol=2e-2, rtol=1e-2
        )
        gap = float((torch.tensor(on) - ours).abs().mean())
        assert float((ours - without).abs().mean()) > 20 * gap


def test_an_adapter_that_is_more_than_lora_is_refused(adapted, tmp_path):
    folder, _ = adapted
    shutil.copytree(folder / "hf", tmp_path / "hf")
    shutil.copytree(folder / "lora", tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(ConfigError, match="use_dora"):
        describe_stage(tmp_path / "lora")


# --- files -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_folder_that_a_reader_exported_opens(
    dtype, small_runs, javascript, tmp_path
):
    folder = export_hf(small_runs / "sft", tmp_path / "hf", dtype=dtype)
    model, tok = load_model(folder)
    ids = encode_document(tok, write_story(66, 0).text)[:40]
    logits = javascript(
        """
const [config, cutter] = ["config.json", "tokenizer.json"].map(
  (name) => json(`${input.folder}/${name}`));
const file = bytes(`${input.folder}/model.safetensors`);
return [...weights.loadModel(config, cutter, file).model.read(input.ids)];
""",
        {"folder": str(folder), "ids": ids},
    )
    with torch.no_grad():
        ours = model(torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(
        torch.tensor(logits), ours, atol=2e-4, rtol=1e-4
    )


def test_every_float16_is_read_exactly(javascript, tmp_path):
    from safetensors.torch import save_file

    bits = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    ours = bits.view(torch.float16)
    save_file({"all": ours}, tmp_path / "all.safetensors")
    found = javascript(
        """
const { all } = weights.readSafetensors(bytes(input.file));
return Array.from(all.data, (x, n) => {
  check(Object.is(x, weights.fromHalf(n)), `the bits ${n}`);
  return String(x);
});
""",
        {"file": str(tmp_path / "all.safetensors")},
    )
    theirs = torch.tensor([float(text) for text in found])
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.float().nan_to_num(5e5), theirs.nan_to_num(5e5))


def test_a_file_that_does_not_fit_is_refused_with_the_reason(
    small_runs, javascript
):
    messages = javascript(
        """
const [config, cutter] = ["config.json", "tokenizer.json"].map(
  (name) => json(`${input.folder}/${name}`));
const file = bytes(`${input.folder}/model.safetensors`);
const header = (text) => {
  const bytes = new TextEncoder().encode(text);
  const whole = new Uint8Array(8 + bytes.length);
  whole[0] = bytes.length;
  whole.set(bytes, 8);
  return whole.buffer;
};
const why = (config, file, data = cutter) => {
  try { weights.loadModel(config, data, file); } catch (error) {
    check(error instanceof weights.ModelError, String(error.stack));
    return error.message;
  }
  return "opened";
};
const small = { ...cutter, model: { ...cutter.model,
  vocab: { ...cutter.model.vocab, more: 500 } } };
return [
  why(config, file), why({ ...config, hidden_size: 64 }, file),
  why({ ...config, num_hidden_layers: 9 }, file),
  why({ ...config, vocab_size: undefined }, file),
  why({ ...config, model_type: "llama" }, file),
  why({ ...config, attention_bias: true }, file),
  why({ ...config, num_key_value_heads: 3 }, file),
  why({ ...config, num_hidden_layers: 1 }, file),
  why({ ...config, rope_parameters: { rope_type: "yarn" } }, file),
  why(config, file.slice(0, 5)), why(config, file.slice(0, 5000)),
  why(config, file.slice(0, file.byteLength - 9)),
  why(config, header("{ not JSON")),
  why(config, header(
    '{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}')),
  why(config, header(
    '{"a":{"dtype":"I8","shape":[0,1],"data_offsets":[0,0]}}')),
  why(config, file, small),
];
""",
        {"folder": str(small_runs / "hf")},
    )
    for message, part in zip(messages, (
        "opened", "has the shape (500, 128), but", "layers.2.", "vocab_size",
        "model_type is llama", "attention_bias", "multiple of",
        "no place for model.layers.1.", "rotary", "no safetensors",
        "cut short", "cut short", "header", "I64", "scale for each row",
        "501 tokens, the model only 500",
    ), strict=True):  # fmt: skip
        assert part in message


def test_weights_that_float16_cannot_hold_are_refused(scene):
    model, _, tok, _, _ = scene
    wide = random_model()
    with torch.no_grad():
        wide.model.norm.weight[3] = 1e6
    with pytest.raises(CheckpointError, match=r"model\.norm.*float16"):
        describe_model(wide, tok)
    assert describe_model(model, tok)["config"]["hidden_size"] == 48


def test_a_page_without_modules_runs_the_same(scene, javascript, tmp_path):
    """The scripts that a page from a file loads, and a worker's text."""
    *_, tok, stage, path = scene
    (tmp_path / "engine.js").write_text(bundle(LAB), "utf8")
    write_stage("one", stage, tmp_path / "one.js")
    write_world(tmp_path / "world.js")
    story = write_story(0, 4).text
    javascript(
        MODEL
        + """
const known = { TextEncoder, TextDecoder, atob, console };
const run = (scope, ...files) => {
  for (const file of files) {
    vm.runInContext(readFileSync(`${input.folder}/${file}`, "utf8"), scope);
  }
  return scope.MiniMindLab;
};
const names = [engine, linear, questions, sampling, tokenizer, weights,
  world, xray].flatMap((module) => Object.keys(module));
const text = JSON.stringify(input.story);
for (const order of [["engine.js", "one.js", "world.js"],
                     ["world.js", "one.js", "engine.js"]]) {
  const scope = vm.createContext({ ...known });
  const lab = run(scope, ...order);
  for (const name of names) check(name in lab, `no ${name} in the bundle`);
  const loaded = lab.loadStage(lab.stages.one);
  const logits = loaded.model.read(input.ids);
  check(model.read(input.ids).every((x, n) => x === logits[n]), "logits");
  const tongue = new lab.Language(new lab.World(lab.data.world),
                                  lab.data.english);
  check(lab.readStory(input.story, tongue).left === null, "the world");
  // A worker is made from the engine's own text.
  const worker = vm.createContext({ ...known });
  vm.runInContext(`(${lab.install})(globalThis)`, worker);
  check("MiniMind" in worker.MiniMindLab, "the worker");
}
""",
        {
            "folder": str(tmp_path), "path": path, "story": story,
            "ids": encode_document(tok, story)[:20],
        },
    )  # fmt: skip


# --- sampling --------------------------------------------------------------

SETTINGS = (
    {}, {"temperature": 0.5}, {"temperature": 0}, {"top_k": 7},
    {"top_p": 0.8}, {"top_p": 0.01}, {"min_p": 0.1},
    {"temperature": 1.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
)  # fmt: skip


def camel(settings):
    names = {"top_k": "topK", "top_p": "topP", "min_p": "minP"}
    return {names.get(k, k): v for k, v in settings.items()}


def test_distributions_are_cut_as_the_package_cuts_them(javascript):
    torch.manual_seed(0)
    logits = torch.randn(20, 300) * 3
    found = javascript(
        """
const sampler = new sampling.Sampler(300);
return input.settings.map((settings) => input.logits.map((row) => [
  ...sampler.nextTokenProbs(Float32Array.from(row), settings)]));
""",
        {"logits": logits.tolist(), "settings": list(map(camel, SETTINGS))},
    )
    for settings, theirs in zip(SETTINGS, found, strict=True):
        ours = next_token_probs(logits, **settings)
        torch.testing.assert_close(
            torch.tensor(theirs, dtype=torch.float32), ours, atol=1e-6,
            rtol=1e-5,
        )  # fmt: skip


def test_values_out_of_range_are_refused(javascript):
    messages = javascript("""
const wrong = [{ temperature: -1 }, { temperature: NaN }, { topK: -1 },
  { topP: 0 }, { topP: 1.1 }, { minP: 1 }];
return wrong.map((settings) => {
  try {
    new sampling.Sampler(3).nextTokenProbs(new Float32Array(3), settings);
  } catch (error) { return error.message; }
});
""")
    parts = ["temperature", "temperature", "topK", "topP", "topP", "minP"]
    for message, part in zip(messages, parts, strict=True):
        assert message.startswith(part)


def test_repetition_is_penalised_alike(javascript):
    torch.manual_seed(2)
    logits, seen = torch.randn(1, 50), [3, 9, 9, 20]
    found = javascript(
        """
const logits = Float32Array.from(input.logits);
sampling.penaliseRepetition(logits, input.seen, 1.3);
return [...logits];
""",
        {"logits": logits[0].tolist(), "seen": seen},
    )
    ours = penalise_repetition(logits, torch.tensor([seen]), 1.3)
    torch.testing.assert_close(torch.tensor([found]), ours)


def test_greedy_answers_are_the_packages(scene, javascript):
    _, rounded, tok, _, path = scene
    rows = list(prompts(tok, 30, 50))
    found = javascript(
        MODEL
        + """
const penalties = [1, 1.2];
return input.rows.map((ids) => penalties.map((repetitionPenalty) => [
  ...sampling.streamTokens(model, ids, { maxNewTokens: 40,
    settings: { temperature: 0, repetitionPenalty } })]));
""",
        {"path": path, "rows": rows},
    )
    lengths = []
    for ids, answers in zip(rows, found, strict=True):
        for penalty, answer in zip((1, 1.2), answers, strict=True):
            ours = generate_tokens(
                rounded, torch.tensor([ids]), max_new_tokens=40,
                temperature=0, repetition_penalty=penalty,
            )[0, len(ids) :].tolist()  # fmt: skip
            assert answer == [token for token in ours if token != 2]
            lengths.append(len(answer))
    assert sum(lengths) > 1000


def test_a_seed_repeats_what_was_drawn(scene, javascript):
    *_, path = scene
    found = javascript(
        MODEL
        + """
const draw = (seed, settings = {}) => [...sampling.streamTokens(
  model, [1, 20, 30], { maxNewTokens: 30, settings, eos: -1,
    random: new sampling.Random(seed) })];
return { one: draw(1), again: draw(1), other: draw(2), far: draw(2 ** 32 + 1),
  full: [...sampling.streamTokens(model, Array(158).fill(9),
    { maxNewTokens: 30, eos: -1 })].length };
""",
        {"path": path},
    )
    assert found["one"] == found["again"]
    assert len(found["one"]) == 30
    assert found["one"] != found["other"]
    assert found["one"] != found["far"]
    assert found["full"] == 2


def test_numbers_are_uniform_and_draws_follow_the_distribution(javascript):
    found = javascript("""
const random = new sampling.Random(7);
const sampler = new sampling.Sampler(4);
const logits = Float32Array.from([0, Math.log(2), -Infinity, Math.log(5)]);
sampler.nextTokenProbs(logits);
const counts = [0, 0, 0, 0];
let sum = 0, squares = 0;
for (let n = 0; n < 80000; n++) {
  const uniform = random.next();
  check(uniform >= 0 && uniform < 1, "in [0, 1)");
  sum += uniform;
  squares += uniform ** 2;
  counts[sampler.draw(uniform)] += 1;
}
check(sampler.draw(1 - 2 ** -53) === 3, "the last that can be");
return { counts, mean: sum / 80000, square: squares / 80000 };
""")
    assert found["mean"] == pytest.approx(1 / 2, abs=0.005)
    assert found["square"] == pytest.approx(1 / 3, abs=0.005)
    shares = [count / 80000 for count in found["counts"]]
    assert shares == pytest.approx([1 / 8, 2 / 8, 0, 5 / 8], abs=0.01)


# --- the X-ray -------------------------------------------------------------


@torch.no_grad()
def test_the_x_ray_shows_the_model_beside_the_truth(
    scene, javascript, tmp_path
):
    _, rounded, tok, _, path = scene
    write_world(tmp_path / "world.js")
    truth = Truth("en", lambda text: encode_text(tok, text))
    story = write_story(68, 3)
    odd = story.text.replace(story.text[40:44], "你🎉")
    texts = [story.text, odd, story.text[:-30]]
    found = javascript(
        MODEL
        + """
vm.runInThisContext(readFileSync(input.world, "utf8"));
const { data } = globalThis.MiniMindLab;
const tongue = new world.Language(new world.World(data.world), data.english);
const truth = new world.Truth(tongue, (text) => cutter.encode(text));
return input.texts.flatMap((text) => [true, false].map((whole) => {
  const seen = xray.xray(text, model, cutter, truth, whole);
  return { ...seen, left: seen.left && seen.left.reason,
    tokens: seen.tokens.map((one) => ({ ...one,
      truth: Math.exp(one.truth) })) };
}));
""",
        {"path": path, "texts": texts, "world": str(tmp_path / "world.js")},
    )
    for number, seen in enumerate(found):
        text, whole = texts[number // 2], number % 2 == 0
        ids = encode_document(tok, text)
        if not whole:
            ids = ids[:-1]
        logprobs = rounded(torch.tensor([ids])).logits[0].log_softmax(-1)
        ours = logprobs[range(len(ids) - 1), ids[1:]]
        tokens = seen["tokens"]
        assert [one["id"] for one in tokens] == ids[1:]
        assert "".join(one["text"] for one in tokens) == text
        theirs = torch.tensor([one["model"] for one in tokens])
        torch.testing.assert_close(theirs, ours, atol=2e-4, rtol=1e-4)
        assert seen["loss"] == pytest.approx(-float(ours.sum()), rel=1e-4)
        read = truth.read(text)
        assert [one["truth"] for one in tokens] == pytest.approx(
            [math.exp(p) for p in read.logprobs[: len(tokens)]], rel=1e-9
        )
        beginning = not whole and text != odd
        reason = read.left and read.left.reason
        assert seen["left"] == (None if beginning else reason)
        place = truth.start()
        for row, one in zip(logprobs, tokens, strict=False):
            gap = sum(
                p * (math.log(p) - float(row[token]))
                for token, p in place.probs().items()
            )
            if one["truth"]:
                assert one["divergence"] == pytest.approx(gap, abs=1e-3)
                assert gap > 0
            place = place.after(one["id"])
    assert found[0]["floor"] == pytest.approx(-story.logprob, abs=1e-9)
    assert found[0]["loss"] > found[0]["floor"]
    assert found[2]["left"] and found[4]["left"]


# --- in a browser ----------------------------------------------------------

PAGE = """<!doctype html><meta charset="utf-8"><title>lab</title>
<script src="engine.js"></script><script src="one.js"></script>
<script src="world.js"></script>
"""

IN_WORKER = """async ([ids, prompt]) => {
  const lab = MiniMindLab;
  const { model, tokenizer } = lab.loadStage(lab.stages.one);
  const here = [...model.read(ids)];
  const text = `(${lab.install})(self);
    onmessage = ({ data: [stage, ids] }) => {
      const { model } = MiniMindLab.loadStage(stage);
      postMessage([...model.read(ids)]);
    };`;
  const url = URL.createObjectURL(new Blob([text]));
  const worker = new Worker(url);
  const there = await new Promise((done, failed) => {
    worker.onmessage = ({ data }) => done(data);
    worker.onerror = failed;
    worker.postMessage([lab.stages.one, ids]);
  });
  worker.terminate();
  const language = new lab.Language(
    new lab.World(lab.data.world), lab.data.english);
  return { here, there, ids: tokenizer.encode(prompt),
    logprob: lab.logProbability(prompt, language) };
}"""


def test_a_page_opened_from_a_file_computes_the_same(
    scene, browser, tmp_path
):
    _, rounded, tok, stage, _ = scene
    (tmp_path / "engine.js").write_text(bundle(LAB), "utf8")
    write_stage("one", stage, tmp_path / "one.js")
    write_world(tmp_path / "world.js")
    (tmp_path / "page.html").write_text(PAGE)
    story = write_story(67, 0)
    ids = encode_document(tok, story.text)[:50]
    page = browser.new_page()
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto((tmp_path / "page.html").as_uri())
    found = page.evaluate(IN_WORKER, [ids, story.text])
    page.close()
    with torch.no_grad():
        ours = rounded(torch.tensor([ids])).logits[0, -1]
    assert found["here"] == found["there"]
    theirs = torch.tensor(found["here"])
    torch.testing.assert_close(theirs, ours, atol=2e-4, rtol=1e-4)
    assert found["ids"] == encode_text(tok, story.text)
    assert found["logprob"] == pytest.approx(story.logprob, abs=1e-9)
    assert not wrong
    assert {url.split(":")[0] for url in asked} <= {"file", "blob"}
