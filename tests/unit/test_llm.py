"""The language half: sequence layout, caption loss, generation, option scores, and loading."""

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
    assert torch.equal(language.hidden(tokens), states[:, -4:])
    assert language.hidden(tokens).shape == (2, 4, language.dim)


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
    assert language._after("Is it round?").startswith("</img>\nIs it round?<|im_end|>")


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
        adapted = language.hidden(tokens)
        language.merge_lora()
        language.merge_lora()  # twice does nothing more
        torch.testing.assert_close(language.hidden(tokens), adapted, rtol=1e-4, atol=1e-5)
        language.merge_lora(False)
        torch.testing.assert_close(language.hidden(tokens), adapted, rtol=1e-4, atol=1e-5)
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
