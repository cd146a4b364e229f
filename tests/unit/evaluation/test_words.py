from dataclasses import replace

import numpy as np
import pytest
import torch

from ullsam.data.referring import synthetic_scenes
from ullsam.evaluation.words import TRAIN, Arm, Request, Scenes, Trained, score_arm, train_arm
from ullsam.evaluation.words import test_requests as requests_of
from ullsam.model import ULLSAM

SHORT = replace(TRAIN, steps=2, batch_size=2, log_every=1)


@pytest.fixture(scope="module")
def data():
    return Scenes(ULLSAM.from_preset("debug"), synthetic_scenes(8, seed=0, size=64), count=4)


def test_kept_states_are_those_of_the_language_model(data):
    model, scene = data.model, data.scenes[1]
    with torch.no_grad():
        features = model.encode(model.preprocess([scene.image])[0])
        for (index, place, text), kept in list(data.states.items()):
            if index == 1:
                read = model.llm.read(model.image_tokens(features), [text], place)
                torch.testing.assert_close(kept.image.float(), read.image, rtol=0.01, atol=0.02)
                torch.testing.assert_close(kept.words.float(), read.words, rtol=0.01, atol=0.02)


def test_requests_ask_what_is_there_or_what_is_not(data):
    found = requests_of(data, per_image=2)
    assert {r.task for r in found} == {"click", "words", "absent"}
    for r in found:
        assert r.referral.mask.any() == (r.task != "absent")
        assert (r.referral.point is None) == (r.task == "words") or r.task == "absent"


def test_a_window_shows_the_same_as_the_whole(data):
    rng, click = np.random.default_rng(0), next(r for r in requests_of(data) if r.task == "click")
    features, prompts, _, truth = data.batch([click], [None], "after")
    for _ in range(10):
        cut, moved, states, part = data.batch([click], [None], "after", rng)
        x, y = moved.points[0, 0, 0].round().int().tolist()
        assert part.shape[-1] == truth.shape[-1] // 2 and 0 <= min(x, y) and max(x, y) < part.shape[-1]
        assert part[0, y, x] == 1 and cut.embedding.shape[-1] == features.embedding.shape[-1] // 2
        assert states.image.shape[1] == data.states[click.scene, "after", None].image.shape[1] // 4


@pytest.mark.parametrize("arm", [Arm("none"), Arm("last_word"), Arm("paper", centred=False), Arm("film", words="shuffled")])
def test_arms_train_the_decoder_and_the_variant_alone(data, arm):
    before = {k: v.clone() for k, v in data.model.state_dict().items()}
    logs = []
    net = train_arm(data, arm, 0, SHORT, logs.append)
    assert all(torch.equal(v, before[k]) for k, v in data.model.state_dict().items())
    start = Trained(data.model, arm, 0)
    changed = {
        k.split(".")[0] + "." + k.split(".")[1]
        for k, v in net.named_parameters()
        if not torch.equal(v, start.state_dict()[k])
    }
    assert {x.split(".")[0] for x in changed} == {"sam", "vlsa"} - ({"vlsa"} if arm.variant == "none" else set())
    assert "sam.mask_decoder" in changed and "sam.image_encoder" not in changed and len(logs) == 2


def test_the_same_seed_gives_the_same_arm(data):
    a, b = (train_arm(data, Arm("last_word"), 1, SHORT).state_dict() for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_rows_hold_every_condition(data):
    asked = requests_of(data, per_image=1)
    rows = score_arm(data, Trained(data.model, Arm("last_word"), 0).eval(), asked)
    assert len(rows) == len(asked)
    for row, request in zip(rows, asked, strict=True):
        assert {"right", "none"} <= set(row) and 0 <= row["right"] <= 1 and 0 <= row["presence_right"] <= 1
        assert ("other" in row) == (request.referral.other is not None)
    assert isinstance(asked[0], Request)
