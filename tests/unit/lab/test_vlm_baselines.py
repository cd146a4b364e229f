"""Vision-language models of Hugging Face: their likelihoods and texts are those of transformers, and what is refused."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ullsam import InputError
from ullsam.cli.measure import open_model
from ullsam.data.questions import synthetic_questions
from ullsam.lab.microvqa import official_prompt, run
from ullsam.lab.vlm_baselines import VisionLanguageModel

QUESTIONS = synthetic_questions(9, seed=1, size=64)


def tokenizer():
    alphabet = ["<pad>", "</s>", "<image>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>", additional_special_tokens=["<image>"]
    )


TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}"
    "{{ c.text }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}model: {% endif %}"
)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A small random LLaVA, saved by transformers' own classes."""
    folder, words = tmp_path_factory.mktemp("hub") / "llava", tokenizer()
    torch.manual_seed(0)
    vision = hf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = hf.LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=1,
        bos_token_id=None,
        pad_token_id=0,
    )
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_id=2, vision_feature_layer=-1)
    model = hf.LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = [1]
    model.save_pretrained(folder)
    images = hf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    hf.LlavaProcessor(
        images,
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


def by_hand(folder, question, use_image):
    """Scores of the choices from transformers alone."""
    model, processor = hf.LlavaForConditionalGeneration.from_pretrained(folder), hf.AutoProcessor.from_pretrained(folder)
    images = [Image.fromarray(image) for image in question.images_list] if use_image else None
    start = "user: " + "<image>" * len(images or []) + question.question + "model: "
    scores = []
    for choice in question.choices:
        length = len(processor.tokenizer(choice).input_ids) + 1
        inputs = processor(images=images, text=start + choice + "</s>", return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0].log_softmax(-1)
        ids = inputs["input_ids"][0, -length:]
        scores.append(logits[-length - 1 : -1].gather(1, ids[:, None]).mean())
    return torch.stack(scores)


@pytest.mark.parametrize("use_image", [True, False])
@pytest.mark.parametrize("images", [1, 2])
def test_likelihoods_of_a_hugging_face_model(llava, use_image, images):
    question = next(q for q in synthetic_questions(24, 0, 64) if len(q.images_list) == images)
    found = VisionLanguageModel.load(llava).score(question, use_image)
    torch.testing.assert_close(found, by_hand(llava, question, use_image), atol=1e-4, rtol=1e-4)


def test_a_hugging_face_model_sees_the_image_and_writes(llava):
    model, question = VisionLanguageModel.load(llava), QUESTIONS[0]
    other = replace(question, images_list=[255 - image for image in question.images_list])
    assert not torch.equal(model.score(question), model.score(other))
    assert torch.equal(model.score(question, False), model.score(other, False))
    text = model.write(question, official_prompt(question), max_new_tokens=5)
    assert isinstance(text, str) and "multiple choice" not in text
    result = run(model, QUESTIONS[:2], "official", max_new_tokens=4)
    assert result["bad_response_rate"] == 1 and result["accuracy"] == 0


def test_what_is_no_vision_language_model(llava, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="could not be fetched"):
        open_model("OpenGVLab/InternVL3-2B-hf")
    with pytest.raises(InputError, match="or tiny or usam-tiny"):
        open_model("huge")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="could not be loaded .*give one that transformers knows as image-text"):
        open_model(str(tmp_path))
    model = VisionLanguageModel.load(llava)
    model.processor.chat_template = model.processor.tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        VisionLanguageModel(model.model, model.processor, "base")


@pytest.mark.parametrize("file", ["config.json", "processor_config.json"])
def test_code_in_a_folder_is_not_run(llava, tmp_path, file):
    """Without an answer to transformers' question "run the custom code?": a read from the terminal would fail here."""
    folder, marker = tmp_path / "model", tmp_path / "was run"
    shutil.copytree(llava, folder)
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w')\n")
    names = {"AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Own", "AutoProcessor": "own.Own"}
    settings = json.loads((folder / file).read_text()) | {"auto_map": names, "model_type": "own", "processor_class": "Own"}
    (folder / file).write_text(json.dumps(settings))
    with pytest.raises(InputError, match="could not be loaded"):
        VisionLanguageModel.load(folder)
    assert not marker.exists() and not any("own" in name for name in sys.modules if "transformers_modules" in name)
