"""Question sets on disk, other models' answers, and runs that go on where they stopped."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ullsam import ULLSAM, InputError
from ullsam.cli import main
from ullsam.cli.measure import open_model
from ullsam.lab.microvqa import RandomGuess, difference, official_choice, official_prompt, run, synthetic_questions
from ullsam.lab.vision_language import VisionLanguageModel

QUESTIONS = synthetic_questions(9, seed=1, size=64)


class Counting(RandomGuess):
    """Counts what it is asked, and stops after `limit` questions as a power cut would."""

    def __init__(self, limit=None):
        super().__init__()
        self.asked, self.limit = [], limit

    def score(self, question, use_image=True):
        if len(self.asked) == self.limit:
            raise KeyboardInterrupt
        self.asked.append(question.key_question)
        return super().score(question)


# ---------------------------------------------------------------- files of questions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("datasets")
    out = tmp_path_factory.mktemp("questions") / "set"
    assert main(["make-questions", str(out), "--count", "9", "--seed", "1"]) == 0
    return out


def read(source, split=None):
    pytest.importorskip("datasets")
    from ullsam.data.questions import read_questions

    return read_questions(source, split)


def test_what_was_written_is_read_again(folder):
    made, found = synthetic_questions(9, seed=1), read(folder)
    assert len(found) == 9 and {len(q.images_list) for q in found} == {1, 2}
    for a, b in zip(made, found, strict=True):
        assert replace(b, images_list=[], key_question=a.key_question) == replace(a, images_list=[])
        assert all(np.array_equal(x, y) for x, y in zip(a.images_list, b.images_list, strict=True))


def benchmark(path, rows, **changes):
    """A parquet file with the benchmark's other columns, too, written without anything of ours."""
    datasets = pytest.importorskip("datasets")
    images = datasets.List(datasets.Image())
    text, number = datasets.Value("string"), datasets.Value("int64")
    columns = {
        "key_question": number,
        "key_image": number,
        "question": text,
        "choices": datasets.List(text),
        "correct_index": number,
        "correct_answer": text,
        "images_list": images,
        "task": number,
        "task_str": text,
        "question_1": text,
        "context_image_generation": text,
    }
    features = datasets.Features({k: v for k, v in columns.items() if k not in changes.get("without", ())})
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{k: v for k, v in row.items() if k in features} for row in rows]
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)


def row(key, images, **changes):
    return {
        "key_question": key,
        "key_image": 7,
        "question": "What is this?",
        "choices": ["a", "b", "c", "d", "e"],
        "correct_index": 3,
        "correct_answer": "d",
        "images_list": images,
        "task": 2,
        "task_str": "hypothesis_gen",
        "question_1": "Is it?",
        "context_image_generation": "by hand",
    } | changes


def png(array, mode=None):
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_file_of_the_benchmark_whatever_its_split(tmp_path, split):
    red = np.zeros((5, 4, 3), np.uint8) + np.array([204, 0, 51], np.uint8)  # a colour of the palette, too
    deep = np.array([[0, 40000], [20000, 65535]], np.uint16)
    images = [png(red), png(red, "P"), png(red, "RGBA"), png(deep), png(red[..., 0])]
    benchmark(tmp_path / "data" / f"{split}-00000-of-00001.parquet", [row(11, images), row(12, images[:1])])
    first, second = read(tmp_path)
    assert (first.key_question, first.correct_answer, first.task, len(first.images_list)) == (11, "d", 2, 5)
    for shown in list(first.images_list)[:3]:
        assert np.array_equal(shown, red)
    assert np.array_equal(first.images_list[3][..., 0], np.rint(deep / 65535 * 255).astype(np.uint8))  # 16 bits kept
    assert np.array_equal(first.images_list[4], np.full((5, 4, 3), 204, np.uint8))
    assert len(second.images_list) == 1
    assert run(RandomGuess(), [first, second], "official")["n_questions"] == 2


def test_several_splits_must_be_named(tmp_path):
    for split in ("train", "test"):
        benchmark(tmp_path / f"{split}-00000-of-00001.parquet", [row(len(split), [png(np.zeros((3, 3), np.uint8))])])
    with pytest.raises(InputError, match="splits.*name one"):
        read(tmp_path)
    assert read(tmp_path, "test")[0].key_question == 4
    with pytest.raises(InputError, match="splits"):
        read(tmp_path, "validation")


def test_sets_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no .parquet file"):
        read(tmp_path)
    with pytest.raises(InputError, match="no folder .*jmhb/microvqa"):
        read(tmp_path / "nowhere")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="could not be read"):
        read(tmp_path)
    image = png(np.zeros((3, 3), np.uint8))
    benchmark(tmp_path / "a" / "test-0.parquet", [row(1, [image])], without=("task", "choices"))
    with pytest.raises(InputError, match="no column choices, task"):
        read(tmp_path / "a")
    benchmark(tmp_path / "b" / "test-0.parquet", [row(1, [image], correct_index=5)])
    with pytest.raises(InputError, match="Question 1 has 5 choices and correct_index 5"):
        read(tmp_path / "b")
    benchmark(tmp_path / "c" / "test-0.parquet", [row(1, [image | {"bytes": image["bytes"][:30]}])])
    with pytest.raises(InputError, match="Image 1 of question 1 is damaged"):
        read(tmp_path / "c")[0].images_list[0]


def test_no_network(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="jmhb/microvqa could not be read") as error:
        read("jmhb/microvqa")
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- answers that are kept


def test_a_run_that_was_stopped_goes_on(tmp_path):
    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(Counting(limit=4), QUESTIONS, answers=path)
    (part,) = tmp_path.glob("*.part")
    assert len(part.read_text().splitlines()) == 1 + 4  # the settings and four answers, each there at once
    part.write_text(part.read_text() + '{"index": 4, "key_que')  # cut off in the middle of a line
    rest = Counting()
    result = run(rest, QUESTIONS, answers=path)
    assert rest.asked == [q.key_question for q in QUESTIONS[4:]]
    assert result == run(Counting(), QUESTIONS)
    assert list(tmp_path.iterdir()) == [path]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["index"] for line in lines[1:]] == list(range(9))
    assert [line["predicted"] for line in lines[1:]] == [r["predicted"] for r in result["rows"]]
    again = Counting()
    assert run(again, QUESTIONS, answers=path) == result and again.asked == []


def test_parts_of_several_processes_are_taken_together(tmp_path):
    path = tmp_path / "answers.jsonl"
    whole = run(Counting(), QUESTIONS, answers=path)
    head, *lines = path.read_text().splitlines(keepends=True)
    path.unlink()
    (tmp_path / "answers.0.part").write_text(head + "".join(lines[::2]))
    (tmp_path / "answers.1.part").write_text(head + lines[1] + lines[3])
    rest = Counting()
    assert run(rest, QUESTIONS, answers=path) == whole
    assert rest.asked == [QUESTIONS[5].key_question, QUESTIONS[7].key_question]


def test_answers_of_another_run_are_not_taken_over(tmp_path):
    path = tmp_path / "answers.jsonl"
    run(Counting(), QUESTIONS, answers=path)
    for other in ({"image": "none"}, {"method": "generate"}, {"seed": 4}):
        with pytest.raises(InputError, match="other settings"):
            run(Counting(), QUESTIONS, answers=path, **other)
    with pytest.raises(InputError, match="other settings"):
        run(Counting(), synthetic_questions(9, seed=2, size=64), answers=path)
    model = ULLSAM.from_preset("debug")
    debug = tmp_path / "debug.jsonl"
    run(model, QUESTIONS[:1], answers=debug)
    with torch.no_grad():
        next(model.projection.parameters()).add_(1)
    with pytest.raises(InputError, match="other settings"):  # the same name, but weights of another training
        run(model, QUESTIONS[:1], answers=debug)
    path.write_text("no json\n")
    with pytest.raises(InputError, match="damaged"):
        run(Counting(), QUESTIONS, answers=path)


# ---------------------------------------------------------------- the protocol


def test_official_words_and_extraction():
    text = official_prompt(QUESTIONS[0])
    assert text.startswith("The following is a multiple choice question (with answers). \nThink step by step and then")
    assert text.endswith("".join(f"  ({i}): {c}\n" for i, c in enumerate(QUESTIONS[0].choices, 1)))
    readings = {
        "The answer is (2)": 1,
        "answer is **3**": 2,
        "the answer is 1. answer is 2": 0,
        "Answer is 2": -1,
        "": -1,
        "The answer is B": -1,
        "answer is (9)": 8,
        "answer is **(4)**": 3,
    }
    for words, expected in readings.items():
        assert official_choice(words, 5) == expected


def test_an_answer_that_is_no_choice_is_wrong_but_no_bad_response():
    class Nine(RandomGuess):
        def write(self, *args):
            return "The answer is (9)"

    official, ours = (run(Nine(), QUESTIONS, method) for method in ("official", "generate"))
    assert (official["accuracy"], official["bad_response_rate"]) == (0, 0)
    assert (ours["accuracy"], ours["bad_response_rate"]) == (0, 1)


def test_random_guesses_are_at_chance_and_repeat():
    questions = [replace(q, key_question=i) for i, q in enumerate(QUESTIONS * 100)]
    result = run(RandomGuess(), questions)
    assert abs(result["accuracy"] - result["chance"]) < 0.06
    assert result["accuracy"] == run(RandomGuess(), questions, "official")["accuracy"]
    assert run(RandomGuess(1), questions)["accuracy"] != result["accuracy"]
    tasks = result["per_task"]
    assert [tasks[i]["letter"] for i in (1, 2, 3)] == ["V", "H", "E"]
    for part in tasks.values():
        assert part["interval"][0] < part["accuracy"] < part["interval"][1] and part["n"] == 300


def test_difference_is_paired():
    a, b = ({"rows": [{"correct": c} for c in row]} for row in ([1, 1, 1, 0], [0, 1, 1, 0]))
    found = difference(a, b)
    assert found["mean"] == 0.25 and 0 <= found["interval"][0] <= 0.25 <= found["interval"][1]


# ---------------------------------------------------------------- other people's models


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
    with pytest.raises(InputError, match="one of tiny"):
        open_model("huge")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="could not be loaded .*give one that transformers knows as image-text"):
        open_model(str(tmp_path))
    model = VisionLanguageModel.load(llava)
    model.processor.chat_template = model.processor.tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        VisionLanguageModel(model.model, model.processor, "base")


# ---------------------------------------------------------------- the command


def test_the_command_in_all_conditions(folder, tmp_path, capsys):
    ULLSAM.from_preset("debug").save_pretrained(tmp_path / "small")
    out = tmp_path / "out" / "result.json"
    words = [
        "microvqa",
        "--model",
        str(tmp_path / "small"),
        "--data",
        str(folder),
        "--method",
        "likelihood",
        "official",
        "--image",
        "own",
        "none",
        "shuffled",
        "--limit",
        "4",
        "--max-new-tokens",
        "3",
        "--out",
        str(out),
    ]
    assert main(words) == 0
    result = json.loads(out.read_text())
    assert [(r["method"], r["image"], r["n_questions"]) for r in result["results"]] == [
        (method, image, 4) for method in ("likelihood", "official") for image in ("own", "none", "shuffled")
    ]
    assert [(d["method"], d["second"]) for d in result["differences"]] == [
        (method, image) for method in ("likelihood", "official") for image in ("none", "shuffled")
    ]
    assert str(tmp_path) not in out.read_text() and "rows" not in result["results"][0]
    printed = capsys.readouterr().out
    assert "chance" in printed and "likelihood: image own minus none" in printed
    files = sorted(p.name for p in out.parent.iterdir())
    assert len(files) == 7 and "result.official.none.jsonl" in files
    for r in result["results"]:
        rows = [json.loads(x) for x in (out.parent / r["answers"]).read_text().splitlines()[1:]]
        assert r["accuracy"] == np.mean([x["correct"] for x in rows])


def test_the_command_on_synthetic_questions_at_random(tmp_path):
    out = tmp_path / "r.json"
    assert main(["microvqa", "--model", "random", "--count", "6", "--image", "own", "--out", str(out)]) == 0
    (result,) = json.loads(out.read_text())["results"]
    assert (result["model"], result["data"], result["n_questions"]) == ("random", "synthetic", 6)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--method", "guess"], "guess is no method"),
        (["--image", "blurred"], "blurred is no method"),
        (["--limit", "0"], "1 or more"),
        (["--data", "nowhere"], "no folder nowhere"),
        (["--out", "."], "is a folder"),
        (["--model", "huge"], "one of tiny"),
    ],
)
def test_wrong_input_is_one_sentence(words, sentence, tmp_path, capsys):
    assert main(["microvqa", "--model", "random", "--count", "2", "--out", str(tmp_path / "r.json"), *words]) == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    ULLSAM.from_preset("debug").save_pretrained(tmp_path / "small")
    results = []
    for count in (1, 2):
        out = tmp_path / str(count) / "r.json"
        words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--standalone", "-m"]
        words += ["ullsam", "microvqa", "--model", str(tmp_path / "small"), "--count", "7", "--out", str(out)]
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("written to") == 1
        assert ("4/4" in done.stderr) is ("3/3" in done.stderr) is (count == 2)  # each process asks its share
        results.append(json.loads(out.read_text())["results"])
        assert sorted(p.suffix for p in out.parent.iterdir()) == [".json", ".jsonl", ".jsonl"]
    assert results[0] == results[1]
