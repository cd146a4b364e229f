"""InternLM2 as a stock Llama, against the forward written out here from the definition of the fused layout."""

import json

import pytest
import torch
from torch.nn import functional as F

from ullsam import InputError
from ullsam.checkpoints import load_internlm2, load_tokenizer
from ullsam.checkpoints.internlm2 import empty_lm, from_llama, fuse, internlm2_name, llama_config, take_part
from ullsam.files import write_safetensors
from ullsam.pretrained import debug_llm

SETTINGS = {
    "model_type": "internlm2",
    "architectures": ["InternLM2ForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 60,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "max_position_embeddings": 32768,
    "bias": False,
}


def internlm2_state(seed=0):
    """Random weights under InternLM2's names."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator) * 0.2

    state = {"model.tok_embeddings.weight": random(60, 32), "model.norm.weight": 1 + random(32)}
    state["output.weight"] = random(60, 32)
    for i in range(2):
        layer = {
            "attention.wqkv": random(64, 32),
            "attention.wo": random(32, 32),
            "attention_norm": 1 + random(32),
            "feed_forward.w1": random(48, 32),
            "feed_forward.w3": random(48, 32),
            "feed_forward.w2": random(32, 48),
            "ffn_norm": 1 + random(32),
        }
        state |= {f"model.layers.{i}.{k}.weight": v for k, v in layer.items()}
    return state


def norm(x, weight):
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def rotate(x):
    """Rotary positions of x (L, heads, d): halves of each head are turned by position / theta^(2i/d)."""
    length, _, d = x.shape
    angles = torch.arange(length)[:, None] / 1e6 ** (torch.arange(0, d, 2) / d)  # (L, d/2)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def reference(state, ids):
    """InternLM2's logits (L, vocabulary), one head at a time."""
    heads, groups, d = 4, 2, 8
    x = state["model.tok_embeddings.weight"][ids]
    for i in range(2):
        w = {k.split(".", 3)[3]: v for k, v in state.items() if k.startswith(f"model.layers.{i}.")}
        rows = norm(x, w["attention_norm.weight"]) @ w["attention.wqkv.weight"].T  # (L, (4 + 2 * 2) * 8)
        rows = rows.view(len(ids), groups, heads // groups + 2, d)  # per key head: its query heads, key, value
        mixed = []
        for head in range(heads):
            group, within = divmod(head, heads // groups)
            q, k = rotate(rows[:, group, within][:, None])[:, 0], rotate(rows[:, group, -2][:, None])[:, 0]
            scores = (q @ k.T / d**0.5).masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf)
            mixed.append(scores.softmax(-1) @ rows[:, group, -1])
        x = x + torch.cat(mixed, dim=-1) @ w["attention.wo.weight"].T
        y = norm(x, w["ffn_norm.weight"])
        gated = F.silu(y @ w["feed_forward.w1.weight"].T) * (y @ w["feed_forward.w3.weight"].T)
        x = x + gated @ w["feed_forward.w2.weight"].T
    return norm(x, state["model.norm.weight"]) @ state["output.weight"].T


@pytest.fixture
def internvl(tmp_path):
    """A folder like InternVL2.5-2B: sharded, with a vision transformer and a projection, and its weights."""
    folder, state = tmp_path / "InternVL2_5-2B", internlm2_state()
    mlp1 = {
        "0.weight": torch.ones(64),
        "0.bias": torch.zeros(64),
        "1.weight": torch.randn(32, 64),
        "1.bias": torch.ones(32),
        "3.weight": torch.randn(32, 32),
        "3.bias": torch.randn(32),
    }
    weights = {f"language_model.{k}": v for k, v in state.items()} | {f"mlp1.{k}": v for k, v in mlp1.items()}
    write_safetensors(folder, weights | {"vision_model.embeddings.class_embedding": torch.ones(3)}, shard_bytes=20_000)
    (folder / "config.json").write_text(json.dumps({"model_type": "internvl_chat", "llm_config": SETTINGS}))
    return folder, state, mlp1


@torch.no_grad()
def test_sharded_internvl_gives_the_reference_forward(internvl):
    folder, state, mlp1 = internvl
    assert len(list(folder.glob("*.safetensors"))) > 2
    lm, projection = load_internlm2(folder)
    ids = torch.randint(0, 60, (40,))
    torch.testing.assert_close(lm(input_ids=ids[None]).logits[0], reference(state, ids), atol=2e-5, rtol=1e-4)
    assert type(lm).__name__ == "LlamaForCausalLM" and not lm.training
    assert not any(x.is_meta for x in (*lm.parameters(), *lm.buffers()))
    assert all(torch.equal(projection[k], mlp1[k]) for k in mlp1)


@torch.no_grad()
def test_internlm2_alone_loads_without_prefix_and_in_the_files_dtype(tmp_path):
    state = {k: v.bfloat16() for k, v in internlm2_state().items()}
    write_safetensors(tmp_path, state)
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    lm, projection = load_internlm2(tmp_path, dtype=None)
    assert {p.dtype for p in lm.parameters()} == {torch.bfloat16} and not projection
    assert lm.model.rotary_emb.inv_freq.dtype == torch.float32  # computed, never rounded
    assert {p.dtype for p in load_internlm2(tmp_path)[0].parameters()} == {torch.float32}


def test_names_and_fused_rows_go_both_ways():
    config = llama_config(SETTINGS, "here")
    lm = empty_lm(config).to_empty(device="cpu")
    with torch.no_grad():
        for p in lm.parameters():
            torch.nn.init.normal_(p)
    state = dict(from_llama(lm))
    assert set(state) == set(internlm2_state()) == {internlm2_name(k) for k in lm.state_dict()}
    wqkv = torch.arange(64.0)[:, None].expand(64, 32)  # each row holds its own number
    parts = [take_part(wqkv, part, config) for part in "qkv"]
    q, k, v = (part[::8, 0].tolist() for part in parts)  # first row of every head
    assert (q, k, v) == ([0, 8, 32, 40], [16, 48], [24, 56])  # groups of 2 query heads, a key and a value, 8 rows each
    assert torch.equal(fuse(*parts, config), wqkv)


def test_settings_of_other_language_models_are_refused():
    with pytest.raises(InputError, match="config.json describes a language model of type qwen2, not InternLM2"):
        llama_config({"model_type": "internvl_chat", "llm_config": {"model_type": "qwen2"}}, "config.json")
    with pytest.raises(InputError, match="with biases, not InternLM2"):
        llama_config(SETTINGS | {"bias": True}, "config.json")
    with pytest.raises(InputError, match="does not say hidden_size, vocab_size"):
        llama_config({k: v for k, v in SETTINGS.items() if k not in ("hidden_size", "vocab_size")}, "config.json")


def test_real_sizes_give_the_published_number_of_parameters():
    values = SETTINGS | dict(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=8,
        vocab_size=92553,
    )
    lm = empty_lm(llama_config(values, "here"))
    assert sum(p.numel() for p in lm.parameters()) == 24 * 62_918_656 + 2 * 92553 * 2048 + 2048  # 1.889 billion
    assert all(p.is_meta for p in lm.parameters())


def test_what_is_missing_or_left_over_is_named(internvl):
    folder, state, _ = internvl

    def rewrite(weights):
        for old in folder.glob("*.safetensors"):
            old.unlink()
        write_safetensors(folder, weights)

    prefixed = {f"language_model.{k}": v for k, v in state.items()}
    rewrite({k: v for k, v in prefixed.items() if "layers.1.attention.wqkv" not in k})
    with pytest.raises(InputError, match="is missing language_model.model.layers.1.attention.wqkv.weight"):
        load_internlm2(folder)
    rewrite(prefixed | {"language_model.model.layers.2.ffn_norm.weight": torch.ones(32)})
    with pytest.raises(InputError, match="has unexpected language_model.model.layers.2.ffn_norm.weight"):
        load_internlm2(folder)
    rewrite(prefixed | {"query_tokens": torch.ones(1)})
    with pytest.raises(InputError, match="has unexpected query_tokens"):
        load_internlm2(folder)
    rewrite(prefixed)
    settings = {"model_type": "internvl_chat", "llm_config": SETTINGS | {"num_key_value_heads": 4}}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="wqkv.weight with 64 rows where its settings say 96"):
        load_internlm2(folder)


SPECIAL = ["<|im_start|>", "<|im_end|>", "<img>", "</img>"]


def sentencepiece_folder(folder, **options):
    """A folder with a small sentencepiece model, and special tokens like InternLM2's: two in the file, two behind it."""
    spm = pytest.importorskip("sentencepiece")
    folder.mkdir(exist_ok=True)
    settings = dict(
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=["[A]", "[B]"],
        minloglevel=2,
        hard_vocab_limit=False,
    )
    text = ["the cells of the membrane divide in the light", "nuclei and mitochondria in the cells", "a  b\tc  d"] * 9
    prefix = folder / "tokenizer"
    spm.SentencePieceTrainer.train(sentence_iterator=iter(text), model_prefix=str(prefix), **(settings | options))
    model = spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    places = [model.piece_to_id("[A]"), model.piece_to_id("[B]"), len(model), len(model) + 1]
    listed = {str(i): {"content": text} for i, text in zip(places, SPECIAL, strict=True)}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": listed}))
    return model, places


def test_sentencepiece_file_becomes_the_same_tokenizer(tmp_path):
    model, places = sentencepiece_folder(tmp_path / "sp")
    tokenizer = load_tokenizer(tmp_path / "sp")
    for text in ("the nuclei divide", "  two  spaces\n", " the", "\u7ec6\u80de \u00b5m \U0001f52c", "mitochondria[0]\t"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert ids == model.encode(text) and tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == places
    chat = "<s><|im_start|>user\nthe cells<img></img><|im_end|>\n"
    ids = tokenizer(chat, add_special_tokens=False).input_ids
    plain = model.encode("user\nthe cells")
    assert ids == [1, places[0], *plain, places[2], places[3], places[1], *model.encode("\n")]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nthe cells\n"
    tokenizer.save_pretrained(tmp_path / "fast")  # what is saved needs no sentencepiece
    assert load_tokenizer(tmp_path / "fast")(chat, add_special_tokens=False).input_ids == ids


def test_sentencepiece_files_that_rewrite_text_are_refused(tmp_path):
    for options in (dict(normalization_rule_name="nmt_nfkc"), dict(add_dummy_prefix=True)):
        sentencepiece_folder(tmp_path, **options)
        with pytest.raises(InputError, match="rewrites text before it splits it"):
            load_tokenizer(tmp_path)


def test_tokenizers_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(InputError, match="has no tokenizer .*download it"):
        load_tokenizer(tmp_path)
    debug_llm()[1].save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)("ab", add_special_tokens=False).input_ids
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="tokenizer.json is damaged"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"damaged")
    with pytest.raises(InputError, match="not a sentencepiece model|needs the package sentencepiece"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 10**6}, "does not say num_hidden_layers"),
        ({"hidden_size": -48}, "does not say hidden_size"),
        ({"vocab_size": True}, "does not say vocab_size"),
        ({"num_attention_heads": 7}, "settings that no InternLM2 has"),
        ({"rope_theta": None}, "settings that no InternLM2 has"),
        ({"rms_norm_eps": float("nan")}, "settings that no InternLM2 has"),
        ({"llm_config": 3}, "of type unknown, not InternLM2"),
    ],
)
def test_settings_that_no_model_has_are_one_sentence(change, words):
    with pytest.raises(InputError, match=words) as error:
        llama_config(SETTINGS | change, "config.json")
    assert "\n" not in str(error.value)
