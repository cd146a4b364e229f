"""Settings refuse, where they are made, what no model and no training can have, in one sentence that names the setting."""

import json
from dataclasses import dataclass, replace

import pytest

from ullsam.config import DEBUG, PAPER_TRAINING, PRESETS, LlmConfig, ModelConfig, TrainConfig
from ullsam.errors import InputError
from ullsam.tiny.config import TINY, TinyTrainConfig

NAN, INF = float("nan"), float("inf")
TRAINING = [
    *(("steps", x, "steps is .*; give a whole number from 1 to 2147483647") for x in (0, -1, 1.5, "3", None, True, 2**31)),
    *(
        (name, 0, f"{name} is 0; give a whole number from 1")
        for name in ("batch_size", "log_every", "save_every", "accumulate")
    ),
    *((name, -1, f"{name} is -1; give a whole number from 0") for name in ("seed", "workers", "view", "warmup")),
    *(("lr", x, "lr is .*; give a number from 0") for x in (NAN, INF, -0.1, "1e-3", None)),
    *(("prompts", x, "prompts is") for x in ((), ((1,),), ((1, -3),), [[1, 3]], ((1, 3.5),), None)),
    ("final_lr", 1.5, "final_lr is 1.5; give a number from 0 to 1"),
    ("clip", 0, "clip is 0; give a number from 1e-06"),
    ("precision", "fp16", "precision is 'fp16'; give no or bf16"),
    ("recompute", None, "recompute is None; give no or cheap or all"),
    ("box_fraction", 2, "box_fraction is 2; give a number from 0 to 1"),
    ("balance", 1, "balance is 1; give true or false"),
]
SAM = [
    *(("depth", x, "depth is .*; give a whole number from 1 to 1000") for x in ("2", 0, 10**9, None, [2])),
    *(("placement", x, "placement is .*; give corner or center") for x in ("middle", None, ["corner"])),
    ("preprocessing", "Official", "preprocessing is 'Official'; give sam or official"),
    ("image_size", 500, "image_size is 500; give a multiple of 16"),
    ("embed_dim", 255, "embed_dim is 255; give a multiple of 8"),
    ("num_heads", 0, "num_heads is 0"),
    ("out_chans", 40, "out_chans is 40; give a multiple of 16"),
    ("global_attn_indexes", (2, -1), "global_attn_indexes is"),
    ("scales", (1.0, 2.0), "scales is"),
    ("use_rel_pos", "no", "use_rel_pos is 'no'; give true or false"),
]


@pytest.mark.parametrize(("name", "value", "words"), TRAINING)
def test_no_training_has_these_settings(name, value, words):
    with pytest.raises(InputError, match=words) as error:
        replace(TinyTrainConfig(), **{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "value", "words"), SAM)
def test_no_sam_has_these_settings(name, value, words):
    with pytest.raises(InputError, match=words):
        replace(TINY.sam, **{name: value})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"shuffle_ratio": 0.3}, "shuffle_ratio is 0.3; give 1 or 0.5 or 0.25"),
        ({"vlsa": None}, "vlsa is None; give a text"),
        ({"vlsa_options": []}, "vlsa_options is"),
        ({"name": 3}, "name is 3; give a text"),
        ({"llm": {"lora_rank": -1}}, "lora_rank is -1; give a whole number from 0 to 4096"),
        ({"llm": {"name": ["debug"]}}, "name is"),
        ({"sam": {"depth": "2"}}, "depth is '2'"),
        ({"colour": 1}, "has no field colour"),
    ],
)
def test_no_model_has_these_settings(values, words):
    with pytest.raises(InputError, match=words):
        ModelConfig.from_dict(DEBUG.to_dict() | values)


def test_every_preset_survives_its_file():
    for config in PRESETS.values():
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert all(replace(config, lr=0) for config in PAPER_TRAINING.values()) and LlmConfig(lora_rank=4096)


def test_settings_of_a_students_own_are_checked_too():
    @dataclass(frozen=True)
    class Own(TrainConfig):
        depth_weight: float = 0.5
        colours: list | None = None

    assert Own(colours=[1]).depth_weight == 0.5
    with pytest.raises(InputError, match="depth_weight is -1; give a number from 0"):
        Own(depth_weight=-1)
