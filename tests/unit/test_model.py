"""The whole model: knowledge, segmentation with and without it, words, saving and loading."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ullsam import ULLSAM, InputError, ModelConfig, Prompts, load, preset
from ullsam.model import check_words
from ullsam.tiny.recipes import load_parts


@pytest.fixture(scope="module")
def model():
    return ULLSAM.from_preset("debug")


def pixels(model, count=1, seed=0):
    rng = np.random.default_rng(seed)
    return model.preprocess([rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(count)])[0]


PROMPTS = Prompts(torch.tensor([[[[10.0, 20], [40, 50]]] * 3]), torch.tensor([[[1.0, 0]] * 3]))


@torch.no_grad()
def test_shapes(model):
    features = model.encode(pixels(model, 2))
    assert features.embedding.shape == (2, 32, 4, 4)
    assert model.image_tokens(features).shape == (2, 4, 48)
    assert model.knowledge(features).shape == (2, 32, 4, 4)
    logits, iou = model.segment(features, Prompts(PROMPTS.points.repeat(2, 1, 1, 1), PROMPTS.labels.repeat(2, 1, 1)))
    assert logits.shape == (2, 3, 4, 16, 16) and iou.shape == (2, 3, 4)


@torch.no_grad()
def test_without_knowledge_it_is_sam_to_the_bit(model):
    features = model.encode(pixels(model))
    sparse, dense = model.sam.prompt_encoder((PROMPTS.points[0], PROMPTS.labels[0]), None, None)
    theirs = model.sam.mask_decoder(features.embedding, model.sam.prompt_encoder.get_dense_pe(), sparse, dense, False)[0]
    assert torch.equal(model.segment(features, PROMPTS)[0][0, :, :1], theirs)


@torch.no_grad()
def test_knowledge_takes_the_dense_prompts_place(model):
    features = model.encode(pixels(model))
    knowledge = model.knowledge(features)
    with_knowledge = model.segment(features, PROMPTS, knowledge)[0]
    assert not torch.equal(with_knowledge, model.segment(features, PROMPTS)[0])
    sparse, _ = model.sam.prompt_encoder((PROMPTS.points[0], PROMPTS.labels[0]), None, None)
    pe = model.sam.prompt_encoder.get_dense_pe()
    theirs = model.sam.mask_decoder(features.embedding, pe, sparse, knowledge.expand(3, -1, -1, -1), False)[0]
    assert torch.equal(with_knowledge[0, :, :1], theirs)


@torch.no_grad()
def test_a_mask_prompt_keeps_its_own_dense_embedding(model):
    features = model.encode(pixels(model))
    prompts = PROMPTS._replace(masks=torch.randn(1, 3, 16, 16))
    knowledge = model.knowledge(features)
    assert torch.equal(model.segment(features, prompts, knowledge)[0], model.segment(features, prompts)[0])


@torch.no_grad()
def test_knowledge_depends_on_the_image_alone(model):
    features = model.encode(pixels(model, 2))
    tokens = model.image_tokens(features)
    hidden = model.llm.read(tokens).image
    before = len(model.llm.ids(model.llm.config.before_image))
    for answer in ("three nuclei", "a very different and longer caption"):
        ids = model.llm.ids(model.llm.config.after_image + answer)
        parts = [model.llm.embed(model.llm.ids(model.llm.config.before_image), 2), tokens, model.llm.embed(ids, 2)]
        states = model.llm.lm.model(inputs_embeds=torch.cat(parts, 1)).last_hidden_state
        torch.testing.assert_close(states[:, before : before + tokens.shape[1]], hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["paper", "last_word"])  # words before the image and after it
@torch.no_grad()
def test_knowledge_follows_words_of_one_image_or_each(name):
    model = ULLSAM.from_preset("debug", vlsa=name)
    features = model.encode(pixels(model, 2))
    none, nucleus, each = (model.knowledge(features, x) for x in (None, "nucleus", ["nucleus", "the neurite"]))
    assert not torch.equal(none, nucleus)
    torch.testing.assert_close(each[0], nucleus[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(each[1], nucleus[1], atol=1e-4)
    torch.testing.assert_close(model.knowledge(features, " nucleus \n"), nucleus)  # spaces around words say nothing
    states = model.states(features, ["nucleus", "the neurite"])
    assert states.texts == ("nucleus", "neurite") and torch.equal(model.vlsa(states), each)  # "Segment the" has the article


@torch.no_grad()
def test_an_image_is_remembered_where_words_stand_after_it():
    model = ULLSAM.from_preset("debug", vlsa="last_word")
    features = model.encode(pixels(model, 2))
    memory = model.remember(features)
    for words in (None, "nucleus", ["nucleus", "the neurite"]):
        again, first = model.knowledge(features, words, memory), model.knowledge(features, words)
        torch.testing.assert_close(again, first, rtol=1e-4, atol=1e-4)
    for other in (ULLSAM.from_preset("debug"), ULLSAM.from_preset("debug", vlsa="none")):  # reads it again; has no VLSA
        assert other.remember(features) is None


def test_an_article_is_no_word():
    """ "Segment the" stands before the words already."""
    given = ["the neurite", "An axon", "a cell", "all nuclei", "A-type axon", "theca", "allantois", " nucleus \n"]
    expected = ["neurite", "axon", "cell", "nuclei", "A-type axon", "theca", "allantois", "nucleus"]
    assert check_words(given, len(given)) == expected and check_words(None, 2) is None


BAD_WORDS = {
    "an article": ("the ", "words is empty"),
    "empty": ("", "words is empty; say what to segment, such as 'nuclei', or leave words out"),
    "spaces": (" \n", "words is empty"),
    "one of two empty": (["nuclei", ""], "words is empty"),
    "very long": ("x" * 201, "words has 201 letters; name the object in at most 200"),
    "a number": (3, "words must be one text, or one for each of 2 images, such as 'nuclei'; not 3"),
    "bytes": (b"nuclei", "words must be one text"),
    "texts and none": (["nuclei", None], "words must be one text, or one for each of 2 images"),
    "three for two images": (["a", "b", "c"], "one for each of 2 images"),
}


@pytest.mark.parametrize("case", BAD_WORDS)
def test_bad_words_get_a_sentence(model, case):
    words, sentence = BAD_WORDS[case]
    with pytest.raises(InputError, match=sentence):
        model.knowledge(model.encode(pixels(model, 2)), words)


def test_any_letters_and_the_longest_words_are_read(model):
    with torch.no_grad():
        for words in ("细胞核", "größter Zellkern", "🔬", "x" * 200):
            assert model.knowledge(model.encode(pixels(model)), words).isfinite().all()


@pytest.mark.parametrize("changes", [{"llm": None, "vlsa": "none"}, {"vlsa": "none"}])
def test_words_for_a_model_without_knowledge_get_a_sentence(changes):
    model = ULLSAM.from_preset("debug", **changes)
    features = model.encode(pixels(model))
    assert model.knowledge(features) is None
    with pytest.raises(InputError, match="Model debug has no VLSA and cannot follow words; load 'tiny' or leave them out"):
        model.knowledge(features, "nuclei")


def test_a_centred_model_saves_and_loads_its_means(tmp_path):
    layers = {"vlsa": "layers", "vlsa_options": {"layers": (1,)}}
    model = ULLSAM.from_preset("debug", centred_states=True, token_length=3.2, **layers)
    features = model.encode(pixels(model, 2))
    with torch.no_grad():
        before = model.knowledge(features, "nucleus")
        for _ in range(3):
            model.train().knowledge(features, ["nucleus", "axon"])
        after = model.eval().knowledge(features, "nucleus")
    assert not torch.equal(after, before)
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    buffers = {k for k, _ in again.named_buffers() if not k.startswith(("sam", "llm"))}
    expected = {f"centre.means.{name}.{x}" for name in ("image", "words", "image1", "words1") for x in ("mean", "steps")}
    assert buffers == expected | {f"projection.balance.{x}" for x in ("power", "common.mean", "common.steps")}
    assert all(torch.equal(x, model.get_buffer(k)) for k, x in again.named_buffers())
    assert again.centre.means["words1"].steps == 3 and again.centre.means["words1"].mean.any()
    with torch.no_grad():
        assert torch.equal(again.knowledge(features, "nucleus"), after)


def test_no_gradient_of_knowledge_reaches_the_encoder(model):
    model.requires_grad_(True)
    model.zero_grad()
    model.knowledge(model.encode(pixels(model))).sum().backward()
    assert all(p.grad is None for p in model.sam.image_encoder.parameters())
    assert model.projection.mlp[1].weight.grad is not None and model.vlsa.scale.grad is not None
    model.requires_grad_(False)


def test_describe_one_and_several(model):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((30, 50), (64, 64, 3))]
    texts = model.describe(images, max_new_tokens=6)
    assert len(texts) == 2 and all(isinstance(t, str) for t in texts)
    assert isinstance(model.describe(images[0], "How many cells are there?", 4), str)
    assert model.describe(images[0], max_new_tokens=6) == texts[0]


def test_a_model_without_language_says_so():
    model = ULLSAM.from_preset("debug", llm=None, vlsa="none")
    assert model.knowledge(model.encode(pixels(model))) is None
    with pytest.raises(InputError, match="no language model"):
        model.describe(np.zeros((20, 20), np.uint8))


def test_seeds_decide_the_weights_and_leave_other_randomness_alone():
    torch.manual_seed(5)
    a = ULLSAM.from_preset("debug", seed=1)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    b, c = ULLSAM.from_preset("debug", seed=1), ULLSAM.from_preset("debug", seed=2)
    assert torch.equal(a.projection.mlp[1].weight, b.projection.mlp[1].weight)
    assert not torch.equal(a.projection.mlp[1].weight, c.projection.mlp[1].weight)


@pytest.mark.parametrize("changes", [{}, {"vlsa": "tokens", "vlsa_options": {"count": 2}}, {"llm": None, "vlsa": "none"}])
def test_save_and_load_give_the_same_model(tmp_path, changes):
    model = ULLSAM.from_preset("debug", seed=3, **changes)
    model.save_pretrained(tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.config == model.config
    states = zip(again.state_dict().items(), model.state_dict().items(), strict=True)
    assert all(ka == kb and torch.equal(a, b) for (ka, a), (kb, b) in states)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]


def test_lora_models_store_only_what_is_theirs(tmp_path):
    llm = preset("debug").llm.__class__(name="debug", lora_rank=2)
    model = ULLSAM.from_preset("debug", llm=llm)
    keys = model.own_state()
    assert any("lora_A" in k for k in keys) and not any("embed_tokens" in k or "base_layer" in k for k in keys)


def test_bad_folders_get_a_sentence(tmp_path, model):
    with pytest.raises(InputError, match="no model in"):
        load(tmp_path / "absent")
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="model.safetensors is damaged"):
        load(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="is missing"):
        load(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not a model's config.json"):
        load(tmp_path / "m")
    values = preset("debug").to_dict() | {"colour": 1}
    (tmp_path / "m" / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="no field colour"):
        load(tmp_path / "m")


def test_missing_keys_are_named(tmp_path, model):
    ULLSAM.from_preset("debug", llm=None, vlsa="none").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(preset("debug").to_dict()))
    with pytest.raises(InputError, match="is missing llm.lm"):
        load(tmp_path)


def test_parts_of_another_model(tmp_path):
    start = ULLSAM.from_preset("debug", seed=4, llm=None, vlsa="none")
    start.save_pretrained(tmp_path)
    model = ULLSAM.from_preset("debug", seed=5)
    load_parts(model, tmp_path)
    assert torch.equal(model.sam.image_encoder.pos_embed, start.sam.image_encoder.pos_embed)
    assert torch.equal(model.sam.mask_decoder.iou_token.weight, start.sam.mask_decoder.iou_token.weight)
    ULLSAM.from_preset("debug").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="unexpected"):
        load_parts(start, tmp_path)


def test_config_round_trip_and_unknown_preset():
    for name in ("debug", "tiny", "paper"):
        assert ModelConfig.from_dict(json.loads(json.dumps(preset(name).to_dict()))) == preset(name)
    with pytest.raises(InputError, match="no preset 'tinny'; choose one of debug, paper, tiny"):
        preset("tinny")


def test_push_to_hub_uploads_what_save_pretrained_writes(model, monkeypatch):
    uploaded = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **_):
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, folder_path, **_):
            again = ULLSAM.from_pretrained(folder_path)
            uploaded["same"] = all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert model.push_to_hub("lab/ullsam-debug") == "https://hub/commit" and uploaded == {"same": True}


def test_a_model_comes_from_the_hub_by_its_name(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "cache")
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or tmp_path / "cache")
    again = ULLSAM.from_pretrained("lab/ullsam-debug")
    assert asked == ["lab/ullsam-debug"] and again.config == model.config
