"""The language half: sequence layout, words, caption loss, generation, option scores, and loading."""

import ast
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ullsam import InputError, LlmConfig
from ullsam import llm as llm_module
from ullsam.llm import load_llm


@pytest.fixture(scope="module")
def language():
    return load_llm(LlmConfig(name="debug"))


def image_tokens(batch=2, count=4):
    return torch.randn(batch, count, 48, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_hidden_states_stand_at_the_image_tokens(language):
    tokens = image_tokens()
    before = language.embed(language.ids(language.config.before_image), 2)
    states = language.lm.model(inputs_embeds=torch.cat([before, tokens], 1)).last_hidden_state
    assert torch.equal(language.read(tokens).image, states[:, -4:])
    assert language.read(tokens).image.shape == (2, 4, language.dim)


# ---------------------------------------------------------------- words before and after the image

WORDS = ["nucleus", "the dark oval organelle", None, "Zellkern, größer", "细胞核 и ядро"]
START = "<|im_start|>user\nDescribe the image in detail\n<img>"
PARTS = {  # what stands before the words, the words, and behind them; in "before" the image follows, in "after" it is first
    ("before", True): ("<|im_start|>user\nSegment the", " {}", "\n<img>"),
    ("before", False): ("", START, ""),
    ("after", True): ("</img>\nSegment the", " {}", ""),
    ("after", False): ("", "</img>", ""),
}


def by_hand(language, row, text, reads):
    """One image's sequence written out: of each layer the states at the image tokens (N, D) and at the words (T, D)."""
    ids = [language.ids(part.format(text)) for part in PARTS[reads, text is not None]]
    around, start = language.embed(sum(ids, []), 1), language.embed(language.ids(START), 1)
    parts = [around, row[None]] if reads == "before" else [start, row[None], around]
    image = (around if reads == "before" else start).shape[1]
    words = len(ids[0]) + (0 if reads == "before" else image + len(row))
    states = language.lm.model(inputs_embeds=torch.cat(parts, 1), output_hidden_states=True).hidden_states
    return [(x[0, image : image + len(row)], x[0, words : words + len(ids[1])]) for x in states]


@torch.no_grad()
@pytest.mark.parametrize("reads", ["before", "after"])
def test_a_batch_of_texts_equals_sequences_written_out_by_hand(language, reads):
    tokens = image_tokens(len(WORDS))
    found = language.read(tokens, WORDS, reads, layers=(1,))
    assert found.texts == tuple(WORDS) and list(found.layers) == [1] and found.layers[1].texts == found.texts
    for i, text in enumerate(WORDS):
        first, last = by_hand(language, tokens[i], text, reads)[1:]
        for states, (image, words) in ((found, last), (found.layers[1], first)):
            torch.testing.assert_close(states.image[i], image, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(states.words[i, states.valid[i]], words, rtol=1e-4, atol=1e-5)
            assert states.valid[i].sum() == len(words) and not states.words[i, ~states.valid[i]].any()
        torch.testing.assert_close(found.last[i], last[1][-1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.mean[i], last[1].mean(0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_words_reach_the_image_tokens_only_where_they_stand_before(language):
    tokens = image_tokens(1).expand(2, -1, -1)
    before, after = (language.read(tokens, ["nucleus", "axon"], reads) for reads in ("before", "after"))
    assert not torch.allclose(before.image[0], before.image[1], atol=1e-3)
    torch.testing.assert_close(after.image[0], after.image[1])
    torch.testing.assert_close(after.image, language.read(tokens).image, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after.last[0], after.last[1], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("layers", [(), (1, 2)])
def test_words_behind_a_remembered_image_are_as_if_it_were_read_again(language, layers):
    """The image is read once; a phrase then costs its own tokens."""
    tokens, lengths = image_tokens(1), []
    memory = language.remember(tokens, layers)
    hook = language.lm.model.register_forward_hook(lambda m, x, out: lengths.append(out.last_hidden_state.shape[1]))
    for words in (["nucleus"], [None], ["the dark oval organelle"], ["nucleus", "an axon", "cell"]):  # three of one image
        found = language.read(tokens, words, "after", layers, memory)
        assert sum(lengths) == max(0 if text is None else len(language.ids(f" {text}")) for text in words)
        again = language.read(tokens.expand(len(words), -1, -1), words, "after", layers)
        for x, y in ((found, again), *((found.layers[n], again.layers[n]) for n in layers)):
            torch.testing.assert_close(x.image, y.image, rtol=0, atol=1e-4)
            torch.testing.assert_close(x.words, y.words, rtol=0, atol=1e-4)
            assert torch.equal(x.valid, y.valid) and x.texts == y.texts == tuple(words)
        lengths.clear()
    hook.remove()


@torch.no_grad()
def test_words_about_some_of_the_images_of_a_memory(language):
    tokens, words = image_tokens(), [None, "nucleus"]
    found, again = (language.read(tokens, words, "after", (), x) for x in (language.remember(tokens), None))
    torch.testing.assert_close(found.words, again.words, rtol=0, atol=1e-4)
    assert torch.equal(found.valid, again.valid)


def test_layers_that_are_not_there_get_a_sentence(language):
    for layers in ((3,), (0,), (1, 20)):
        with pytest.raises(InputError, match=r"The language model has the layers 1 to 2; layers is \("):
            language.read(image_tokens(), None, "before", layers)


@torch.no_grad()
def test_non_english_letters_are_words_like_others(language):
    tokens = image_tokens(1)
    found = [language.read(tokens, [text], "after") for text in ("Zellkern, größer", "细胞核 и ядро", "🔬")]
    lengths = [int(x.valid.sum()) for x in found]
    assert lengths == [len(f" {text}".encode()) for text in ("Zellkern, größer", "细胞核 и ядро", "🔬")]  # bytes
    assert all(x.words.isfinite().all() for x in found) and not torch.allclose(found[0].last, found[1].last, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("reads", ["before", "after"])
def test_states_beside_a_caption_loss_are_those_of_reading_alone(language, reads):
    tokens, answers = image_tokens(), ["ab", "a longer answer"]
    found, loss = language.read_and_loss(tokens, answers, None, reads, (1,))
    alone = language.read(tokens, None, reads, (1,))
    for x, y in ((found, alone), (found.layers[1], alone.layers[1])):
        torch.testing.assert_close(x.image, y.image, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(x.words, y.words, rtol=1e-4, atol=1e-5)
        assert torch.equal(x.valid, y.valid) and x.texts == y.texts == (None, None)
    assert loss.item() == pytest.approx(language.caption_loss(tokens, answers).item(), rel=1e-5)


# ---------------------------------------------------------------- captions, answers and loading


@torch.no_grad()
def test_caption_loss_counts_the_answers_tokens_only(language):
    """By hand, one caption at a time, without padding."""
    tokens, answers = image_tokens(), ["ab", "a longer answer"]
    losses = []
    c = language.config
    for row, answer in zip(tokens, answers, strict=True):
        before = language.ids(c.before_image)
        after, reply = language.ids(c.after_image + c.answer), language.ids(answer + c.end)
        x = torch.cat([language.embed(before, 1), row[None], language.embed(after + reply, 1)], 1)
        logits = language.lm(inputs_embeds=x).logits[0]
        losses += F.cross_entropy(logits[-len(reply) - 1 : -1], torch.tensor(reply), reduction="none").tolist()
    expected = sum(losses) / len(losses)
    assert language.caption_loss(tokens, answers).item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_the_question_stands_after_the_image(language):
    tokens = image_tokens(1)
    plain, asked = (language.caption_loss(tokens, ["yes"], q) for q in (None, ["Is it round?"]))
    assert plain != asked
    assert language._asked("Is it round?").startswith("</img>\nIs it round?<|im_end|>")


def test_generation_is_greedy_and_stops_at_the_end(language):
    tokens = image_tokens()
    texts = language.generate(tokens, max_new_tokens=5)
    assert texts == language.generate(tokens, max_new_tokens=5) and len(texts) == 2
    c = language.config
    ids = language.ids(c.before_image), language.ids(c.after_image + c.answer)
    x = torch.cat([language.embed(ids[0], 1), tokens[:1], language.embed(ids[1], 1)], 1)
    reply = []
    for _ in range(5):  # without a cache
        with torch.no_grad():
            reply.append(language.lm(inputs_embeds=x).logits[0, -1].argmax().item())
        if reply[-1] == language.ids(c.end)[-1]:
            break
        x = torch.cat([x, language.embed(reply[-1:], 1)], 1)
    assert texts[0] == language.tokenizer.decode(reply, skip_special_tokens=True).strip()


def test_lora_starts_as_the_base_and_merges_exactly():
    torch.manual_seed(0)
    language = load_llm(LlmConfig(name="debug", lora_rank=4, lora_alpha=8))
    tokens, config = image_tokens(), language.lm.config
    with torch.no_grad():
        for name, parameter in language.lm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        adapted = language.read(tokens).image
        language.merge_lora()
        language.merge_lora()  # twice does nothing more
        torch.testing.assert_close(language.read(tokens).image, adapted, rtol=1e-4, atol=1e-5)
        language.merge_lora(False)
        torch.testing.assert_close(language.read(tokens).image, adapted, rtol=1e-4, atol=1e-5)
    assert config.hidden_size == language.dim


def test_names_that_cannot_be_loaded_get_a_sentence(tmp_path):
    with pytest.raises(InputError, match="no file or folder .*absent"):
        load_llm(LlmConfig(name=str(tmp_path / "absent")))


def test_a_model_that_brings_its_own_code_is_not_run(tmp_path):
    """transformers would ask whether to run it; here the answer is always no."""
    (tmp_path / "config.json").write_text(
        '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}'
    )
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["mine.Tokenizer", null]}}')
    with pytest.raises(InputError, match="it needs code of its own, which is never run"):
        load_llm(LlmConfig(name=str(tmp_path)))
    assert not (tmp_path / "ran").exists()


def test_no_call_of_transformers_trusts_code():
    root = Path(llm_module.__file__).parent
    calls = [
        (path.relative_to(root), node.lineno)
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("from_pretrained", "from_config")
        and getattr(node.func.value, "id", "ULLSAM") not in ("ULLSAM", "cls")
        and not any(k.arg == "trust_remote_code" and k.value.value is False for k in node.keywords)
    ]
    assert not calls, f"trust_remote_code=False is missing at {calls}"
