"""The three stages: what each trains, exact resume after SIGKILL, order of the data, and the schedule."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ullsam import STAGES, ULLSAM, Corpus, InputError, LlmConfig, Mixture, TrainConfig, fit
from ullsam.config import PAPER_TRAINING
from ullsam.data.batches import Batches
from ullsam.objectives import SegmentationObjective
from ullsam.tiny import TinyTrainConfig
from ullsam.train import build_optimizer, learning_rate, select_trained

SMALL = TrainConfig(steps=3, batch_size=2, warmup=1, instances=2, log_every=1, save_every=2)


def mixture():
    return Mixture([], ["fluorescence_nuclei", "em_mitochondria"], 1.0, synthetic_size=64)


def trained_parts(stage, **changes):
    model = ULLSAM.from_preset("debug", **changes)
    names = [n for n, _ in select_trained(model, STAGES[stage])]
    return {".".join(n.split(".")[: 2 if n.startswith("sam") else 1]) for n in names}, names


def test_what_each_stage_trains():
    sam = {"sam.image_encoder", "sam.prompt_encoder", "sam.mask_decoder"}
    assert trained_parts(1)[0] == {"projection"}
    assert trained_parts(2)[0] == {"projection", "llm"}
    assert trained_parts(3)[0] == sam | {"projection", "vlsa"}
    assert trained_parts(3, llm=None, vlsa="none")[0] == sam
    names = trained_parts(2, llm=LlmConfig(name="debug", lora_rank=2))[1]
    assert all(n.startswith("projection") or "lora_" in n for n in names) and any("lora_B" in n for n in names)
    with pytest.raises(InputError, match="nothing to train"):
        trained_parts(1, llm=None, vlsa="none")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_only_the_stages_parts_change(tmp_path, stage):
    model = ULLSAM.from_preset("debug")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    logs = fit(model, replace(SMALL, stage=stage), mixture(), tmp_path, progress=False)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith(STAGES[stage].trained) for k in changed)
    assert [line["step"] for line in logs] == [1, 2, 3] and all(np.isfinite(line["loss"]) for line in logs)
    assert [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()] == logs
    again = ULLSAM.from_pretrained(tmp_path)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_one_encoder_pass_per_step(monkeypatch):
    model, calls = ULLSAM.from_preset("debug"), []
    monkeypatch.setattr(model, "encode", lambda *a, f=model.encode: calls.append(1) or f(*a))
    SegmentationObjective(model, SMALL)(Batches(mixture(), SMALL, 64, 16, 1)[0])
    assert len(calls) == 1


def test_batches_are_a_pure_function_of_seed_and_index():
    config = replace(SMALL, view=32, prompts=((1, 3), (2, 0)))
    a, b = (Batches(mixture(), config, 64, 16, 9) for _ in range(2))
    for i in (7, 2, 7):
        x, y = a[i], b[i]
        assert torch.equal(x["image"], y["image"]) and torch.equal(x["truth"], y["truth"])
        assert x["origin"] == y["origin"]
    assert not torch.equal(a[0]["image"], a[1]["image"])
    assert {a[i]["origin"] for i in range(9)} == {(0, 0), (0, 2), (2, 0), (2, 2)}


def test_prompts_of_a_batch_fit_their_objects():
    batches = Batches(mixture(), replace(SMALL, batch_size=3, instances=4), 64, 16, 4)
    for i in range(4):
        batch = batches[i]
        points, truth, valid = batch["prompts"].points.long(), batch["truth"], batch["valid"]
        assert batch["prompts"].labels[0, 0].tolist() == [1, 0, 0, 0]
        for b, o in valid.nonzero().tolist():
            inside = [bool(truth[b, o, y, x]) for x, y in points[b, o].tolist()]
            assert inside[1:] == [False] * 3  # the positive may be a centroid outside a concave object


def test_schedule_counts_optimiser_steps():
    config = TrainConfig(steps=100, warmup=10, final_lr=0.1)
    rates = [learning_rate(s, config) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_the_papers_settings():
    assert [PAPER_TRAINING[i].lr for i in (1, 2, 3)] == [1e-4, 1e-6, 1e-3]
    third = PAPER_TRAINING[3]
    assert third.instances == 4 and third.prompts == ((1, 3),) and third.batch_size * third.accumulate == 8
    assert set(STAGES) == {1, 2, 3} and all(type(config) is TrainConfig for config in PAPER_TRAINING.values())


def test_decay_spares_norms_biases_and_scalars():
    model = ULLSAM.from_preset("debug")
    named = select_trained(model, STAGES[3])
    groups = build_optimizer(named, SMALL).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in named:
        matrix = parameter.ndim > 1 and "embed" not in name
        assert (id(parameter) in decayed) == matrix, name


def joined(first, second):
    """One batch of the images of two: tensors and lists one after the other, points and labels of prompts too."""
    batch = {}
    for key, a in first.items():
        b = second[key]
        if isinstance(a, torch.Tensor):
            batch[key] = torch.cat([a, b])
        elif hasattr(a, "_fields"):
            batch[key] = type(a)(*(None if x is None else torch.cat([x, y]) for x, y in zip(a, b, strict=True)))
        else:
            batch[key] = a + b if key == "caption" else a  # the origin: (0, 0) for all whole images
    return batch


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_accumulated_batches_equal_one_large_batch(tmp_path, monkeypatch):
    """The gradients of two micro-batches of two images, at each of two steps, are those of one batch of the same four."""
    config = replace(SMALL, steps=2, batch_size=2, accumulate=2, instances=1, clip=1e6, lr=1e-2)
    batches, steps, forward = [], [], SegmentationObjective.forward
    monkeypatch.setattr(SegmentationObjective, "forward", lambda self, batch: batches.append(batch) or forward(self, batch))
    model = ULLSAM.from_preset("debug")
    before_each_step = register_optimizer_step_pre_hook(
        lambda *_: steps.append(({k: v.clone() for k, v in model.state_dict().items()}, gradients(model)))
    )
    fit(model, config, mixture(), tmp_path, progress=False)
    before_each_step.remove()
    assert len(batches) == 4 and len(steps) == 2 and all(batch["valid"].all() for batch in batches)
    assert not torch.equal(batches[0]["image"], batches[1]["image"])
    for (weights, accumulated), first, second in zip(steps, batches[::2], batches[1::2], strict=True):
        whole = ULLSAM.from_preset("debug")
        whole.load_state_dict(weights)
        select_trained(whole, STAGES[3])
        forward(SegmentationObjective(whole, config).train(), joined(first, second))["loss"].backward()
        expected = gradients(whole)
        assert expected.keys() == accumulated.keys() and any(name.startswith("vlsa") for name in expected)
        noise = 1e-6 * max(gradient.abs().max().item() for gradient in expected.values())
        for name, gradient in expected.items():
            torch.testing.assert_close(accumulated[name], gradient, rtol=1e-3, atol=noise, msg=name)


SCRIPT = """
import sys
from dataclasses import replace
from ullsam import ULLSAM, Mixture, TrainConfig, fit
config = TrainConfig(steps=8, batch_size=2, warmup=1, instances=2, log_every=1, save_every=3, prompts=((1, 3), (2, 1)))
model = ULLSAM.from_preset("debug", vlsa_options={"dropout": 0.2})
fit(model, config, Mixture([], ["fluorescence_nuclei"], 1.0, synthetic_size=64), sys.argv[1], progress=False,
    on_log=lambda line: print("step", line["step"], flush=True))
"""


def run_script(folder, kill_at=None):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    for line in process.stdout:
        if kill_at and line.strip() == f"step {kill_at}":
            process.send_signal(signal.SIGKILL)
    return process.wait()


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    assert run_script(tmp_path / "whole") == 0
    assert run_script(tmp_path / "killed", kill_at=5) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert run_script(tmp_path / "killed") == 0
    whole, killed = (ULLSAM.from_pretrained(tmp_path / n).state_dict() for n in ("whole", "killed"))
    assert all(torch.equal(whole[k], killed[k]) for k in whole)
    for name in ("whole", "killed"):
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))


def test_a_finished_run_is_not_trained_again(tmp_path):
    model = ULLSAM.from_preset("debug")
    first = fit(model, SMALL, mixture(), tmp_path, progress=False)
    again = ULLSAM.from_preset("debug")
    assert fit(again, SMALL, mixture(), tmp_path, progress=False) == first
    assert torch.equal(again.vlsa.scale, model.vlsa.scale)
    assert fit(model, SMALL, mixture(), tmp_path, progress=False) == first  # the trained model itself, once more


STYLES = ["fluorescence_nuclei", "em_mitochondria"]
OTHER = {  # another model, settings or data than those of the run in the folder
    "settings": (dict(), dict(lr=1e-4, seed=3), STYLES, 64, "other lr, seed; use another folder or delete it"),
    "weights": (dict(seed=9), dict(), STYLES, 64, "other start; use another folder"),
    "a variant": (dict(vlsa="residual"), dict(), STYLES, 64, "other start; use another folder"),
    "a style": (dict(), dict(), STYLES[1:], 64, "other data; use another folder"),
    "a size": (dict(), dict(), STYLES, 32, "other data; use another folder"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("finished")
    fit(ULLSAM.from_preset("debug"), SMALL, mixture(), folder, progress=False)
    return folder


@pytest.mark.parametrize("case", OTHER)
def test_a_folder_of_another_run_is_refused(finished, case):
    model, settings, styles, size, sentence = OTHER[case]
    drawn = Mixture([], styles, 1.0, synthetic_size=size)
    with pytest.raises(InputError, match=f"checkpoint.pt belongs to a run with {sentence}"):
        fit(ULLSAM.from_preset("debug", **model), replace(SMALL, **settings), drawn, finished, progress=False)


def test_data_sets_are_told_apart_by_their_files_wherever_they_lie(tmp_path, make_corpus):
    a, b = (Corpus(make_corpus(tmp_path / x / "cells", 3)) for x in "ab")
    other = Corpus(make_corpus(tmp_path / "c" / "cells", 3, "other{}.png"))
    facts = [Mixture([(x, None)]).facts for x in (a, b, other)]
    assert facts[0] == facts[1] != facts[2]


def test_running_means_go_on_where_they_were(tmp_path):
    """An interrupted run ends with the same buffers, bit for bit, as one that was not interrupted."""
    changes, config = dict(centred_states=True, token_length=3.2), replace(SMALL, steps=5, save_every=2)

    def stop(line):
        if line["step"] == 3:
            raise KeyboardInterrupt

    whole, cut, again = (ULLSAM.from_preset("debug", **changes) for _ in range(3))
    fit(whole, config, mixture(), tmp_path / "whole", progress=False)
    with pytest.raises(KeyboardInterrupt):
        fit(cut, config, mixture(), tmp_path / "cut", progress=False, on_log=stop)
    fit(again, config, mixture(), tmp_path / "cut", progress=False)
    assert again.centre.means["image"].steps == 5 and again.projection.balance.common.steps == 5
    assert whole.centre.means["image"].mean.any() and (whole.projection.balance.power != 1).all()
    assert all(torch.equal(x, whole.state_dict()[k]) for k, x in again.state_dict().items())


@pytest.mark.parametrize("kind", [TrainConfig, TinyTrainConfig])
def test_vlsa_has_a_rate_of_its_own(kind):
    named = select_trained(ULLSAM.from_preset("debug"), STAGES[3])
    groups = build_optimizer(named, kind(vlsa_lr_scale=10)).param_groups
    factors = {id(p): group["factor"] for group in groups for p in group["params"]}
    assert {factors[id(p)] for n, p in named if n.startswith("vlsa")} == {10}
    assert {factors[id(p)] for n, p in named if not n.startswith("vlsa")} == {1}


def test_vlsa_moves_ten_times_as_far_in_a_first_step(tmp_path):
    """The first step of AdamW moves a scalar by its rate: 0.01 and 0.001, without decay."""
    for factor in (1, 10):
        model = ULLSAM.from_preset("debug")
        config = replace(SMALL, steps=1, warmup=1, lr=1e-3, final_lr=1.0, vlsa_lr_scale=factor)
        fit(model, config, mixture(), tmp_path / str(factor), progress=False)
        assert abs(model.vlsa.scale.item() - 0.1) == pytest.approx(factor * 1e-3, rel=1e-2)


def test_a_damaged_checkpoint_is_named(tmp_path):
    fit(ULLSAM.from_preset("debug"), SMALL, mixture(), tmp_path, progress=False)
    file = tmp_path / "checkpoint.pt"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="checkpoint.pt ends too early, it was cut off; delete it to start the run anew"):
        fit(ULLSAM.from_preset("debug"), SMALL, mixture(), tmp_path, progress=False)
    torch.save({"model": {}}, file)
    with pytest.raises(InputError, match="checkpoint.pt is not the checkpoint of a run"):
        fit(ULLSAM.from_preset("debug"), SMALL, mixture(), tmp_path, progress=False)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = ULLSAM.from_preset("debug")
    with torch.no_grad():
        model.sam.mask_decoder.iou_token.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="loss is not finite at step 1; lower the learning rate"):
        fit(model, SMALL, mixture(), tmp_path, progress=False)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on_from_it(tmp_path, monkeypatch):
    config = replace(SMALL, steps=4)
    saved, save = [], torch.save

    def fills_up(state, path):
        save(state, path)
        saved.append(state["step"])
        if len(saved) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("ullsam.train.torch.save", fills_up)
    with pytest.raises(InputError, match="checkpoint.pt could not be written .*No space left.*is the disk full"):
        fit(ULLSAM.from_preset("debug"), config, mixture(), tmp_path, progress=False)
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint.pt", "log.jsonl"}
    logs = fit(ULLSAM.from_preset("debug"), config, mixture(), tmp_path, progress=False)
    assert saved == [2, 4, 4] and logs[-1]["step"] == 4


class Halved(SegmentationObjective):
    """A student's objective: half of Dice beside BCE."""

    def forward(self, batch):
        losses = super().forward(batch)
        return losses | {"loss": losses["bce"] + 0.5 * losses["dice"]}


def test_an_objective_of_ones_own_takes_the_stages_place(tmp_path):
    fit(ULLSAM.from_preset("debug"), SMALL, mixture(), tmp_path / "plain", progress=False)
    logs = fit(ULLSAM.from_preset("debug"), SMALL, mixture(), tmp_path / "own", progress=False, objective=Halved)
    assert logs[0]["loss"] == pytest.approx(logs[0]["bce"] + 0.5 * logs[0]["dice"], abs=1e-4)
    with pytest.raises(InputError, match="run with other objective"):
        fit(ULLSAM.from_preset("debug"), SMALL, mixture(), tmp_path / "own", progress=False)
    with pytest.raises(InputError, match="no stage 0; choose one of 1, 2, 3"):
        fit(ULLSAM.from_preset("debug"), replace(SMALL, stage=0), mixture(), tmp_path / "none", progress=False)
