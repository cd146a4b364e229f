"""Probes with known answers, shares by hand, and masks of models that listen to knowledge or do not."""

import csv
import json
import sys

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ullsam import STYLES, ULLSAM, Corpus, InputError, Predictor, Sample, generate, write_labels
from ullsam.cli import main
from ullsam.evaluation.protocol import score_image
from ullsam.lab.knowledge import ARMS, measure_knowledge, read, summarise_knowledge
from ullsam.lab.probes import (
    STEPS,
    class_probabilities,
    fit_probe,
    power_fractions,
    ranking,
    split_power,
    trace_image,
    variance_fractions,
)
from ullsam.plots.charts import show_knowledge

METAS = [{"modality": "fluorescence", "structure": "nucleus"}, {"modality": "SEM", "structure": "axon"}]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Two corpora of different styles, two validation and three training images each."""
    folder = tmp_path_factory.mktemp("corpora")
    return [_corpus(folder / name, *facts) for name, *facts in zip("ab", list(STYLES)[:2], METAS, strict=True)]


def _corpus(folder, style, meta):
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i in range(5):
        sample = generate(style, i, 64)
        cv2.imwrite(str(folder / "images" / f"{i}.png"), sample.image[..., ::-1])
        write_labels(folder / "masks" / f"{i}.png", sample.labels)
    with (folder / "images.csv").open("w", newline="") as table:
        rows = [(f"{i}.png", "val" if i < 2 else "train") for i in range(5)]
        csv.writer(table).writerows([("file", "split"), *rows])
    (folder / "meta.json").write_text(json.dumps(meta))
    return Corpus(folder)


@pytest.fixture(scope="module")
def model():
    return ULLSAM.from_preset("debug")


@pytest.fixture(scope="module")
def result(model, corpora):
    return measure_knowledge(model, corpora, "val", fit_limit=1, most_objects=100)


# ---------------------------------------------------------------- probes


def test_probe_learns_what_is_linear_and_nothing_else():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 5))
    y = (x[:, 1] > 0.2).astype(int) + (x[:, 1] > 1)  # three classes in a row
    right = (fit_probe(x[:200], y[:200]).predict(x[200:]) == y[200:]).mean()
    noise = rng.integers(0, 3, 400)
    guessed = (fit_probe(x[:200], noise[:200]).predict(x[200:]) == noise[200:]).mean()
    assert right > 0.9 and guessed < 0.5


def test_probe_ignores_constants():
    x = np.random.default_rng(0).standard_normal((200, 4))
    x[:, 3] = 7.0
    for y in (x[:, :2] > 0).astype(int).T:
        found = class_probabilities(fit_probe(x, y), x, 2)
        assert ((found[:, 1] > 0.5) == y).mean() > 0.97 and np.isfinite(found).all()


@pytest.mark.parametrize("only", [0, 1])
def test_probe_of_a_single_class_is_sure_of_it(only):
    x = np.random.default_rng(0).standard_normal((20, 3))
    probe = fit_probe(x, np.full(20, only), np.arange(20) // 4)
    np.testing.assert_array_equal(class_probabilities(probe, x, 2)[:, only], 1)


def test_probe_bears_a_class_that_is_only_held_out():
    x = np.random.default_rng(0).standard_normal((40, 3))
    y = np.where(np.arange(40) % 4 == 3, 2, x[:, 0] > 0).astype(int)
    assert class_probabilities(fit_probe(x, y), x, 3).sum(1) == pytest.approx(1)


def test_probe_is_held_back_where_examples_of_a_group_repeat_noise():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 60)), rng.integers(0, 2, 40)
    x, y, groups = (v.repeat(5, 0) for v in (x, y, np.arange(40)))  # 40 images of 5 equal tokens
    alone, grouped = (np.linalg.norm(fit_probe(x, y, g)[-1].coef_) for g in (None, groups))
    assert grouped < alone / 5  # single tokens look learnable, whole images do not


def test_probe_minimises_the_penalised_loss():
    """Three groups leave none out: the largest penalty, checked by the gradient that a minimum has not."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 4))
    y = (x @ [2, -1, 0, 0] + rng.standard_normal(60) > 0).astype(int)
    probe = fit_probe(x, y, np.arange(60) % 3)
    z = (x - x.mean(0)) / x.std(0)
    gradient = z.T @ (probe.predict_proba(x)[:, 1] - y) + 1000 * probe[-1].coef_[0]
    np.testing.assert_allclose(gradient, 0, atol=1e-2)


def test_without_scikit_learn_one_sentence_names_the_remedy(model, corpora, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(InputError, match="need scikit-learn; install it"):
        measure_knowledge(model, corpora, "val")


def test_ranking_by_hand():
    assert ranking([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75  # of four pairs one is the wrong way round
    assert ranking([1, 1], [0, 1]) == 0.5
    assert ranking([1, 2], [1, 1]) is None and ranking([1, 2], [0, 0]) is None


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=20))
def test_ranking_of_the_opposite_is_the_rest(pairs):
    scores, truth = np.array(pairs).T
    value = ranking(scores, truth)
    if value is not None:
        assert value + ranking(-scores, truth) == pytest.approx(1)


def test_shares_of_pure_states():
    image, place = np.array([[1.0], [-1.0]]), np.array([[2.0], [-2.0], [0.0]])
    zeros = np.zeros((2, 3, 1))
    pure = {
        "constant": zeros + 3,
        "image": zeros + image[:, None],
        "place": zeros + place,
        "both": zeros + image[:, None] * place,
    }
    for name, x in pure.items():
        found = {key: share["mean"] for key, share in variance_fractions(x, draws=10).items()}
        assert found == pytest.approx({key: float(key == name) for key in pure})


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_shares_add_up_to_one(seed):
    x = np.random.default_rng(seed).normal(1, 2, (4, 5, 3))
    found = {key: share["mean"] for key, share in variance_fractions(x, draws=50).items()}
    assert sum(found.values()) == pytest.approx(1) and min(found.values()) >= 0
    assert found["constant"] == pytest.approx((x.mean((0, 1)) ** 2).sum() / (x**2).sum(2).mean())


# ---------------------------------------------------------------- states


def test_knowledge_is_a_grid_or_some_vectors(model):
    sample = generate(next(iter(STYLES)), 0, 64)
    shapes = {
        "paper": (4, 128),
        "tokens": (4, 32),
        "last_word": (1, 32),
        "film": (1, 64),
        "cross_attention": (10, 33),
    }  # 4 image tokens, 6 of "</img>"
    for name, shape in shapes.items():
        trace = trace_image(ULLSAM.from_preset("debug", vlsa=name), sample)
        assert trace.states["knowledge"].shape == shape and trace.grids == (STEPS if name == "paper" else STEPS[:3])
        assert trace.on_image("hidden").shape == (4, 48) and trace.on_image("knowledge").shape == shape


def test_patches_are_those_of_the_image(model):
    labels = np.zeros((64, 32), np.int32)
    labels[16:32, :16] = 4  # the patch in the second row, first column; the right half of the canvas is padding
    trace = trace_image(model, Sample(np.zeros((64, 32, 3), np.uint8), labels))
    assert trace.inside.tolist() == [True, False] * 2
    assert trace.objects.tolist() == [[0, 0, 1, 0], [0] * 4, [0] * 4, [0] * 4]  # in the order of pixel_shuffle
    assert list(trace.states) == list(STEPS)


# ---------------------------------------------------------------- power

FACTORS = {  # what states (sets, images, words, positions, d) are made of -> what they depend on
    "constant": (1, 1, 1, 1, 3),
    "position": (1, 1, 1, 5, 3),
    "set": (2, 1, 1, 1, 3),
    "image": (2, 3, 1, 1, 3),
    "words": (1, 1, 4, 1, 3),
}


@pytest.mark.parametrize("name", FACTORS)
def test_power_of_pure_states(name):
    x = np.random.default_rng(0).standard_normal(FACTORS[name])
    axis = {"constant": (), "position": 3, "set": 0, "image": 1, "words": 2}[name]
    x = x - x.mean(axis, keepdims=True) if name != "constant" else x
    found = split_power(np.broadcast_to(x, (2, 3, 4, 5, 3)))
    assert found == pytest.approx({key: float(key == name) for key in [*FACTORS, "rest"]}, abs=1e-9)


def test_power_of_a_sum_is_that_of_its_parts():
    """9 : 4 : 1 of mean squares; a product of position and words belongs to neither."""
    words, positions = np.array([1.0, -1]).reshape(1, 1, 2, 1, 1), np.array([1.0, -1]).reshape(1, 1, 1, 2, 1)
    x = np.broadcast_to(3 + 2 * words + words * positions, (2, 2, 2, 2, 1))
    expected = {"constant": 9 / 14, "position": 0, "set": 0, "image": 0, "words": 4 / 14, "rest": 1 / 14}
    assert split_power(x) == pytest.approx(expected, abs=1e-12)


IMAGES = [list(np.random.default_rng(i).integers(0, 40 * i + 60, (2, 64, 64), dtype=np.uint8)) for i in range(3)]


def test_power_where_a_language_model_reads_words_before_and_after_the_image():
    model = ULLSAM.from_preset("debug", vlsa="last_word")
    rows = power_fractions(model, IMAGES, ["nucleus", "axon"])
    assert [(row["states"], row["layer"]) for row in rows] == [
        *(("image tokens", layer) for layer in (0, 1, 2, "VLSA")),
        *(("last word", layer) for layer in (1, 2, "VLSA")),
    ]
    table = {(row["states"], row["layer"]): row for row in rows}
    for row in rows:
        assert sum(row[key] for key in (*FACTORS, "rest")) == pytest.approx(1)
        assert all(row[key] >= -1e-9 for key in FACTORS)
    assert table["image tokens", 0]["words"] == pytest.approx(0, abs=1e-9)  # tokens as they come in
    assert table["image tokens", 2]["words"] > 1e-6  # words stand before the image
    assert table["image tokens", "VLSA"]["words"] == pytest.approx(0, abs=1e-9)  # this variant reads them after it
    assert all(table["last word", n]["position"] == pytest.approx(0, abs=1e-9) for n in (1, 2, "VLSA"))
    for key in FACTORS:  # nothing is centred here: VLSA gets the last layer's states
        assert table["last word", "VLSA"][key] == pytest.approx(table["last word", 2][key], rel=1e-3)


def test_centring_takes_the_constant_and_balance_lets_images_and_positions_be_told_apart():
    rows = {}
    for name, changes in {"plain": {}, "repaired": {"centred_states": True, "token_length": 3.2}}.items():
        model = ULLSAM.from_preset("debug", **changes)
        with torch.no_grad():
            model.projection.mlp[-1].bias.fill_(10.0)  # a constant in all tokens, as training leaves one
            pixels = model.preprocess([image for row in IMAGES for image in row])[0]
            features = model.encode(pixels)
            for text in (None, "nucleus", "axon") * 2:
                model.train().knowledge(features, text)
        found = power_fractions(model.eval(), IMAGES, ["nucleus", "axon"], layers=(2,))
        rows[name] = {(row["states"], row["layer"]): row for row in found}
    before, after = rows["plain"], rows["repaired"]
    assert before["image tokens", 0]["constant"] > 0.99
    tokens = after["image tokens", 0]
    assert tokens["constant"] < 0.02 and tokens["set"] + tokens["image"] == pytest.approx(0.5, abs=0.1)
    assert before["image tokens", "VLSA"]["constant"] > 0.5 > 10 * after["image tokens", "VLSA"]["constant"]


# ---------------------------------------------------------------- a whole measurement


def test_own_knowledge_scores_as_evaluate_does(model, corpora, result):
    for row in result["per_image"]:
        corpus = next(c for c in corpora if c.folder.name == row["data"])
        index, record = next((i, r) for i, r in enumerate(corpus.records) if r.file == row["file"])
        scores = [
            score_image(Predictor(model), corpus.read(record), np.random.default_rng([0, index]), use_vlk=use)
            for use in (True, False)
        ]
        assert row["own"]["dice"] == pytest.approx(scores[0]["dice_instance"], abs=1e-6)
        assert row["none"]["dice"] == pytest.approx(scores[1]["dice_instance"], abs=1e-6)
        assert row["n_objects"] == scores[0]["n_instances"]


def test_result_is_complete_and_strict_json(result):
    json.dumps(result, allow_nan=False)
    assert result["n_images"] == 4 and result["data"] == ["a", "b"]
    assert set(result["masks"]) == {"own", *ARMS} - {"coarse"}  # the debug model has no finer maps
    assert list(result["probes"]) == ["dataset", "modality", "structure", "objects"]
    assert result["probes"]["dataset"]["chance"] == 0.5
    assert all(list(found["steps"]) == list(STEPS) for found in result["probes"].values())
    assert set(result["shares"]) == set(STEPS) and set(result["reading"]) == {"informative", "used", "size", "power"}
    assert [row["layer"] for row in result["power"]] == [0, 1, 2, "VLSA", 1, 2, "VLSA"]  # tokens, then words


def test_own_arm_changes_nothing_and_others_do(result):
    own = result["masks"]["own"]
    assert all(own[key]["mean"] == 0 for key in ("dice_change", "logit_change", "flipped", "moved"))
    assert all(result["masks"][arm]["logit_change"]["mean"] > 0 for arm in result["masks"] if arm != "own")


VARIANTS = ("tokens", "last_word", "film", "paper_film", "cross_attention", "residual", "class_id")


@pytest.mark.parametrize("name", VARIANTS)
def test_knowledge_of_any_variant_is_measured(corpora, name):
    model = ULLSAM.from_preset("debug", vlsa=name, vlsa_options={"gate": 0.5} if name == "residual" else {})
    result = measure_knowledge(model, corpora, "val", limit=1, fit_limit=1, most_objects=2)
    json.dumps(result, allow_nan=False)
    grid = name in ("residual", "paper_film")
    assert list(result["probes"]["objects"]["steps"]) == list(STEPS if grid else STEPS[:3])
    assert list(result["probes"]["dataset"]["steps"]) == list(STEPS)
    assert sum(x["mean"] for x in result["shares"]["knowledge"].values()) == pytest.approx(1)
    left_out = {"coarse", "places"} if name == "film" else {"coarse"}  # one vector has no positions
    assert {"own", *ARMS} - set(result["masks"]) == left_out
    sizes = result["sizes"]
    assert (sizes["tokens"]["mean"] > 0) == (name in ("tokens", "last_word", "cross_attention", "class_id"))
    assert (sizes["change"]["mean"] > 0) == (name in ("film", "paper_film", "residual"))
    assert ("prompt tokens by" in result["reading"]["size"]) == (sizes["tokens"]["mean"] > 0)
    assert result["masks"]["none"]["logit_change"]["mean"] > 0
    assert len(show_knowledge(result).axes) == 3 and summarise_knowledge([result])


def test_a_decoder_that_does_not_listen_is_found_out(corpora, monkeypatch):
    deaf = ULLSAM.from_preset("debug")
    monkeypatch.setattr(deaf.vlsa, "inject", lambda knowledge, sparse, dense: (sparse, dense))
    result = measure_knowledge(deaf, corpora, "val", fit_limit=1, most_objects=2)
    for arm, found in result["masks"].items():
        unchanged = arm not in ("points", "features")
        assert (found["logit_change"]["mean"] == 0) is unchanged, arm
    assert result["sizes"]["change"]["mean"] == 0 and result["sizes"]["ratio"]["mean"] == 0
    assert result["reading"]["used"].startswith("Masks hardly depend on whose knowledge it is")


def test_other_knowledge_is_that_of_the_other_corpus(model, corpora, monkeypatch):
    sample = corpora[1].read(next(r for r in corpora[1].records if r.split == "val"))
    expected, given_ = trace_image(model, sample).knowledge, []
    segment = model.segment
    monkeypatch.setattr(model, "segment", lambda f, p, k=None: (given_.append(k), segment(f, p, k))[1])
    measure_knowledge(model, corpora, "val", limit=1, fit_limit=1, most_objects=1)
    own, none, other, *_ = given_
    assert none is None and torch.equal(other, given_[len(given_) // 2])  # the other corpus's own one
    assert other.shape == expected.shape and not torch.equal(own, other)


# ---------------------------------------------------------------- sentences, table, figure, command


def _masks(low, high):
    some = {"mean": (low + high) / 2, "interval": [low, high], "n": 9}
    return {arm: {"dice_change": some, "moved": some} for arm in ("other", "none", "points", "coarse")}


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        (-0.004, 0.003, "hardly depend"),
        (-0.05, -0.02, "get worse"),
        (0.011, 0.02, "get better"),
        (-0.05, 0.02, "stays open"),
    ],
)
def test_sentence_follows_from_the_interval(result, low, high, sentence):
    text = read(result | {"masks": _masks(low, high)})["used"]
    assert sentence in text and ("hardly uses the coarse" in text) is (sentence == "hardly depend")


@pytest.mark.parametrize(("low", "sentence"), [(0.6, "states tell the dataset"), (0.4, "states do not tell the dataset")])
def test_states_tell_only_what_is_above_chance(result, low, sentence):
    steps = {step: {"mean": 0.8, "interval": [low, 0.9], "n": 9} for step in STEPS}
    drop = {"mean": -0.2, "interval": [-0.3, -0.1], "n": 9}
    found = {"chance": 0.5, "steps": steps, "changes": {"tokens": drop}}
    text = read(result | {"probes": {"dataset": found}})["informative"]
    assert sentence in text and "less from projection" in text


def test_table_and_figure(result, tmp_path):
    rows = summarise_knowledge([result])
    assert rows[0]["in place of own knowledge"] == "own knowledge" and rows[0]["dice_change"] == 0
    assert len(rows) == len(result["masks"])
    figure = show_knowledge(result)
    assert len(figure.axes) == 3
    figure.save(tmp_path / "figure.png")
    assert cv2.imread(str(tmp_path / "figure.png")).shape[1] > 1000


def test_command(corpora, tmp_path, capsys):
    model = ULLSAM.from_preset("debug")
    model.save_pretrained(tmp_path / "small")
    out, figure = tmp_path / "knowledge.json", tmp_path / "knowledge.png"
    words = [
        "knowledge",
        "--model",
        str(tmp_path / "small"),
        "--data",
        *(str(c.folder) for c in corpora),
        "--split",
        "val",
        "--limit",
        "1",
        "--fit-limit",
        "1",
        "--out",
        str(out),
    ]
    assert main([*words, "--figure", str(figure)]) == 0
    written = json.loads(out.read_text())
    assert written["command"].startswith("python -m ullsam knowledge --model small") and written["model"] == "small"
    assert written["n_images"] == 2 and figure.is_file() and str(tmp_path) not in out.read_text()
    assert written["reading"]["used"] in capsys.readouterr().out
    assert main([*words, "--figure", str(tmp_path / "knowledge.jpg")]) == 2
    assert main([*words, "--fit-split", "exam"]) == 2
    errors = capsys.readouterr().err
    assert "does not end in .png" in errors and "no split 'exam'" in errors


@pytest.mark.parametrize(
    ("changes", "sentence"), [({"vlsa": "none"}, "has no VLSA"), ({"llm": None, "vlsa": "none"}, "no language model")]
)
def test_models_without_knowledge(corpora, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        measure_knowledge(ULLSAM.from_preset("debug", **changes), corpora, "val")


def test_one_image_is_too_few(model, corpora):
    with pytest.raises(InputError, match="at least two images"):
        measure_knowledge(model, corpora[:1], "val", limit=1, fit_limit=1)
