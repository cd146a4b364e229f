"""Training on several processes: the weights of one process, different data for each, and one that writes."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file

from ullsam import ULLSAM, InputError, LlmConfig, Mixture, TrainConfig, fit
from ullsam.cli import main
from ullsam.tiny import TinyTrainConfig
from ullsam.tiny.objectives import TinyBatches
from ullsam.train import _loader

STYLES = ["fluorescence_nuclei", "em_mitochondria"]
BASE = TinyTrainConfig(
    steps=4, batch_size=2, warmup=1, instances=2, log_every=1, save_every=2, box_fraction=0.5, prompts=((1, 3), (1, 0))
)
RUNS = {
    "dense": replace(BASE, stage=0),
    "align": replace(BASE, stage=1),
    "full": replace(BASE, stage=2, recompute="cheap"),
    "lora": replace(BASE, stage=2),
    "masks": replace(BASE, stage=3, caption_weight=0.1, dense_weight=0.5, accumulate=2),
}


def train_all(folder, names, accumulate=1):
    """These kinds of training, for a few steps on the debug preset."""
    for name, config in [(name, RUNS[name]) for name in names]:
        llm = {"llm": LlmConfig(name="debug", lora_rank=2)} if name == "lora" else {}
        config = replace(config, accumulate=config.accumulate * accumulate)
        mixture = Mixture([], STYLES, 1.0, synthetic_size=64)
        fit(ULLSAM.from_preset("debug", **llm), config, mixture, folder / name, progress=False)


def launch(count, *words):
    """Starts `count` processes that train, as accelerate launch does on a machine without GPUs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def kill_all(process):
    """Ends a launcher and everything that it started as a power cut would; its processes are no group."""
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in everyone:
        member.kill()
    process.wait()
    assert not psutil.wait_procs(everyone, timeout=30)[1]


def finish(process):
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    return out


def distance(one, two, start):
    """How far two results are apart, as a share of how far training moved the first.

    Single weights may differ more: where a gradient is nearly 0, AdamW makes a full step out of rounding.
    """
    apart = sum(((one[k] - two[k]).double() ** 2).sum() for k in one)
    moved = sum(((one[k] - start[k]).double() ** 2).sum() for k in one)
    assert one.keys() == two.keys() and moved > 0
    return float((apart / moved).sqrt())


def test_each_process_sees_other_data():
    config = replace(BASE, accumulate=2)
    batches = TinyBatches(Mixture([], STYLES, 1.0, synthetic_size=64), config, 64, 16, 4 * 2 * 3)
    teams = [SimpleNamespace(num_processes=3, process_index=i) for i in range(3)]
    seen = [list(_loader(batches, 2, 0, member).sampler) for member in teams]
    assert all(len(part) == 6 for part in seen)
    assert sorted(sum(seen, [])) == list(range(6, 24))  # after two micro-steps of each, every batch is taken once
    alone = list(_loader(batches, 6, 0, SimpleNamespace(num_processes=1, process_index=0)).sampler)
    assert [index for step in zip(*seen, strict=True) for index in step] == alone


@pytest.mark.parametrize("names", [["masks"], pytest.param(sorted(RUNS.keys() - {"masks"}), marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_learns_from_the_double_batch(names, tmp_path):
    finish(launch(2, __file__, str(tmp_path / "two"), *names))
    train_all(tmp_path / "one", names, accumulate=2)
    train_all(tmp_path / "half", names)
    for name in names:
        one, two, half = (load_file(tmp_path / x / name / "model.safetensors") for x in ("one", "two", "half"))
        llm = {"llm": LlmConfig(name="debug", lora_rank=2)} if name == "lora" else {}
        start = ULLSAM.from_preset("debug", **llm).state_dict()
        assert distance(one, two, start) < 1e-3 < 0.1 < distance(one, half, start)
        logs = [json.loads(line) for line in (tmp_path / "two" / name / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in logs] == [1, 2, 3, 4]  # one process alone writes
        files = {"checkpoint.pt", "config.json", "log.jsonl", "model.safetensors"}
        assert {p.name for p in (tmp_path / "two" / name).iterdir()} == files


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "options"), [(3, ["--recompute", "cheap"]), (2, ["--lora", "2"])])
def test_divided_weights_are_written_as_by_one_process(stage, options, tmp_path):
    common = [
        "--preset",
        "debug",
        "--stage",
        str(stage),
        "--synthetic",
        "--batch-size",
        "1",
        "--warmup",
        "1",
        *options,
        "--steps",
        "4",
        "--save-every",
        "2",
        "--log-every",
        "1",
    ]
    start = [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--num_processes", "2", "-m", "ullsam"]
    command = [*start, "train", *common, "--out", str(tmp_path / "two")]
    env, folder = os.environ | {"OMP_NUM_THREADS": "1"}, tmp_path / "two" / f"debug-stage{stage}"
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (folder / "checkpoint.pt").is_file():
        time.sleep(0.02)
    kill_all(process)  # after two steps: the rest starts from the checkpoint, whose tensors are whole
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert main(["train", *common, "--accumulate", "2", "--out", str(tmp_path / "one")]) == 0
    one, two = (load_file(tmp_path / x / folder.name / "model.safetensors") for x in ("one", "two"))
    llm = {"llm": LlmConfig(name="debug", lora_rank=2)} if "--lora" in options else {}
    assert distance(one, two, ULLSAM.from_preset("debug", **llm).state_dict()) < 1e-2
    one, two = (torch.load(tmp_path / x / folder.name / "checkpoint.pt", weights_only=True) for x in ("one", "two"))
    assert [(k, x.shape) for k, x in one["model"].items()] == [(k, x.shape) for k, x in two["model"].items()]
    one, two = (x["optimizer"]["state"] for x in (one, two))
    assert all(torch.allclose(one[i]["exp_avg"], two[i]["exp_avg"], atol=1e-6) for i in one) and one.keys() == two.keys()
    assert {p.name for p in folder.iterdir()} == {"checkpoint.pt", "config.json", "log.jsonl", "model.safetensors"}


def test_divided_weights_need_batches_that_use_the_same_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("ullsam.train.wants_shards", lambda: True)
    with pytest.raises(InputError, match="set box_fraction to 0 or 1, or leave --use_fsdp out"):
        fit(ULLSAM.from_preset("debug"), RUNS["masks"], Mixture([], STYLES, 1.0), tmp_path, progress=False)


@pytest.mark.slow
def test_the_command_on_two_processes_goes_on_after_a_stop(tmp_path):
    words = [
        "--preset",
        "debug",
        "--stage",
        "3",
        "--synthetic",
        "--steps",
        "24",
        "--batch-size",
        "1",
        "--save-every",
        "5",
        "--log-every",
        "1",
        "--warmup",
        "2",
    ]
    command = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m", "ullsam", "train", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", *command, "--out", str(tmp_path / "two")]
    process = subprocess.Popen(start, env=env, stderr=subprocess.DEVNULL)
    log = tmp_path / "two" / "debug-stage3" / "log.jsonl"
    while process.poll() is None and not (log.is_file() and len(log.read_text().splitlines()) >= 8):
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be stopped"
    kill_all(process)
    done = subprocess.run(start, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Finished; the model is in") == 1
    assert main(["train", *words, "--accumulate", "2", "--out", str(tmp_path / "one")]) == 0
    one, two = (load_file(tmp_path / x / "debug-stage3" / "model.safetensors") for x in ("one", "two"))
    assert distance(one, two, ULLSAM.from_preset("debug").state_dict()) < 1e-2
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(1, 25))
    with pytest.raises(InputError, match="2 processes"):
        config = TrainConfig(stage=3, steps=24, batch_size=1, save_every=5, log_every=1, warmup=2)
        fit(ULLSAM.from_preset("debug"), config, Mixture([], STYLES, 1.0, synthetic_size=64), log.parent, progress=False)


if __name__ == "__main__":
    from pathlib import Path

    train_all(Path(sys.argv[1]), sys.argv[2:])
