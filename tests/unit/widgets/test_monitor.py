"""The monitor reads a run's folder while another process writes it, whatever state it finds."""

import asyncio
import json
import os
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ullsam import ULLSAM, InputError, Mixture, Predictor, TrainConfig, fit, generate
from ullsam.widgets.monitor import Example, RunFolder, TrainingMonitor, parse_log


def line(step, loss=0.5, **more):
    return json.dumps({"step": step, "seconds": 2.0 * step, "loss": loss, **more}) + "\n"


def write(folder, *lines, mode="w"):
    with (folder / "log.jsonl").open(mode) as file:
        file.writelines(lines)


def steps(monitor):
    return [x["step"] for x in monitor.run.lines]


def test_a_folder_that_is_not_there_yet(tmp_path):
    monitor = TrainingMonitor(tmp_path / "later")
    assert "waiting" in monitor.status and monitor.known == [] and not monitor.run.finished
    assert monitor.view is not None and monitor.figure() is not None
    monitor.refresh()
    (tmp_path / "later").mkdir()
    write(tmp_path / "later", line(10), line(20))
    monitor.refresh()
    assert steps(monitor) == [10, 20] and "Step 20; loss 0.5; 2 s per step" in monitor.status


def test_a_half_written_line_waits_for_its_end(tmp_path):
    write(tmp_path, line(10), line(20)[:17])
    monitor = TrainingMonitor(tmp_path)
    assert steps(monitor) == [10] and monitor.run.broken == 0
    write(tmp_path, line(20)[17:], mode="a")
    monitor.refresh()
    assert steps(monitor) == [10, 20]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9, unique=True).map(sorted), st.integers(0, 10_000))
def test_a_log_cut_anywhere_gives_its_complete_lines(numbers, cut):
    content = "".join(line(n) for n in numbers).encode()
    cut = cut % (len(content) + 1)
    lines, broken = parse_log(content[:cut])
    assert broken == 0 and [x["step"] for x in lines] == numbers[: content[:cut].count(b"\n")]


def test_broken_lines_are_counted_and_passed_over(tmp_path):
    wrong = ["\n", "not json\n", "[1]\n", '{"loss": 1}\n', '{"step": 15, "loss": "x"}\n', "\0\0\n"]
    write(tmp_path, line(10), *wrong, line(20))
    monitor = TrainingMonitor(tmp_path)
    assert steps(monitor) == [10, 20] and "5 unreadable" in monitor.status


def test_a_restart_drops_what_it_went_back_over(tmp_path):
    write(tmp_path, line(10, 1.0), line(20, 0.9), line(30, 0.8))
    monitor = TrainingMonitor(tmp_path)
    write(tmp_path, line(20, 0.7), mode="a")  # killed before its first checkpoint, begun again in the same log
    monitor.refresh()
    assert steps(monitor) == [10, 20] and monitor.run.lines[-1]["loss"] == 0.7
    write(tmp_path, line(10, 1.0), line(15, 0.6), line(25, 0.5), line(35, 0.4))  # rewritten, and longer than before
    monitor.refresh()
    assert steps(monitor) == [10, 15, 25, 35]
    (tmp_path / "log.jsonl").unlink()
    monitor.refresh()
    assert steps(monitor) == [] and "waiting" in monitor.status


def test_nothing_new_is_not_read_again(tmp_path, monkeypatch):
    write(tmp_path, line(10), line(20))
    run = RunFolder(tmp_path)
    assert run.refresh() is True
    monkeypatch.setattr("ullsam.widgets.monitor.parse_log", lambda content: pytest.fail("read again"))
    assert run.refresh() is False


def test_a_silent_run_is_named(tmp_path):
    write(tmp_path, line(10), line(20))
    old = time.time() - 3 * 3600
    os.utime(tmp_path / "log.jsonl", (old, old))
    assert "no new line for 3 h" in TrainingMonitor(tmp_path).status
    os.utime(tmp_path / "log.jsonl")
    assert "about 6 min left" in TrainingMonitor(tmp_path, steps=200).status


def test_curves_can_be_chosen(tmp_path):
    write(tmp_path, *(line(n, 1 / n, dice=0.5, spread=0.9) for n in range(1, 30)))
    monitor = TrainingMonitor(tmp_path)
    labels = lambda: [ax.get_ylabel() for ax in monitor.figure().axes]  # noqa: E731
    assert monitor.known == ["loss", "dice", "spread"] and labels() == ["loss", "spread"]
    monitor.view  # noqa: B018 builds the view
    before = monitor._curves.value
    monitor.choose(["dice"])
    assert labels() == ["dice"] and monitor._curves.value != before and monitor._keys.value == ("dice",)
    monitor._keys.value = ("loss", "dice")
    assert monitor.keys == ("loss", "dice")
    monitor._smooth.value = 3
    assert monitor.smooth == 3
    for wrong in (lambda: monitor.choose(["iou"]), lambda: monitor.set_smooth(0)):
        with pytest.raises(InputError):
            wrong()
    assert monitor.keys == ("loss", "dice") and monitor.smooth == 3
    monitor.choose(None)
    assert labels() == ["loss", "spread"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run watched from the start: its folder, the model before and after, and the monitor."""
    folder, model = tmp_path_factory.mktemp("run") / "x", ULLSAM.from_preset("debug")
    monitor = TrainingMonitor(folder, ULLSAM.from_preset("debug"), generate("fluorescence_nuclei", 1, 64))
    config = TrainConfig(steps=6, batch_size=1, warmup=1, instances=1, log_every=1, save_every=2)
    mixture = Mixture([], ["fluorescence_nuclei"], 1.0, synthetic_size=64)
    fit(model, config, mixture, folder, progress=False, on_log=lambda _: monitor.refresh())
    monitor.refresh()
    return folder, model, monitor


def test_masks_are_those_of_the_checkpoints(trained):
    _, model, monitor = trained
    example, last = monitor.example, monitor.examples[-1]
    assert [e.step for e in monitor.examples] == [2, 4, 6] and monitor.run.finished and "Step 6 of 6" in monitor.status
    predictor = Predictor(model)
    predictor.set_image(example.sample.image)
    np.testing.assert_array_equal(last.masks, predictor.predict(example.points, example.point_labels).masks)
    assert last.masks.shape == (len(example.ids), 64, 64) and 0 <= last.dice <= 1
    assert len(monitor.examples_figure().axes) == 4


def test_the_given_model_is_left_unchanged(trained):
    folder, _, monitor = trained
    fresh = ULLSAM.from_preset("debug").state_dict()
    assert all(torch.equal(v, fresh[k]) for k, v in monitor.example.model.state_dict().items())
    trained = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    assert not torch.equal(trained["vlsa.scale"], fresh["vlsa.scale"])


def test_a_checkpoint_of_another_kind_leaves_the_curves(trained, tmp_path):
    folder, _, monitor = trained
    sample = monitor.example.sample
    other = ULLSAM.from_preset("debug", vlsa="tokens")
    first = next(iter(other.parameters()))
    first.data = first.data.new_zeros(1)
    wrong = TrainingMonitor(folder, other, sample)
    assert "another model" in wrong.status and len(wrong.run.lines) == 6 and wrong.examples == []
    write(tmp_path, line(10), line(20))
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    broken = TrainingMonitor(tmp_path, monitor.example.model, sample)
    assert "cannot be read" in broken.status and steps(broken) == [10, 20]
    torch.save({"config": {"stage": 1, "steps": 9}, "step": 2, "model": {}}, tmp_path / "checkpoint.pt")
    broken.refresh()
    assert "stage 3" in broken.status and "of 9" in broken.status


def test_kept_masks_are_the_first_and_the_latest(trained):
    folder, _, monitor = trained
    fresh = TrainingMonitor(folder, monitor.example.model, monitor.example.sample)
    fresh.examples = []
    for step in (10, 20, 30, 40, 50, 60, 70):
        fresh._add(Example(step, np.zeros((1, 64, 64), bool), 0.0))
    assert [e.step for e in fresh.examples] == [10, 50, 60, 70]
    fresh._add(Example(55, np.zeros((1, 64, 64), bool), 0.0))  # the run was restarted
    assert [e.step for e in fresh.examples] == [10, 50, 55]


def test_it_looks_by_itself_until_stopped_or_finished(tmp_path):
    async def watch():
        write(tmp_path, line(10), line(20))
        monitor = TrainingMonitor(tmp_path)
        monitor.view  # noqa: B018 builds the view
        monitor.start(0.01)
        assert monitor.live and monitor._live.value is True
        write(tmp_path, line(30), mode="a")
        await asyncio.sleep(0.2)
        assert steps(monitor) == [10, 20, 30]
        monitor.stop()
        write(tmp_path, line(40), mode="a")
        await asyncio.sleep(0.1)
        assert steps(monitor) == [10, 20, 30] and monitor._live.value is False
        (tmp_path / "config.json").write_text("{}")
        monitor.start(0.01)
        await asyncio.sleep(0.3)
        assert monitor.run.finished and not monitor.live and monitor._live.value is False

    asyncio.run(watch())


def test_wrong_arguments(tmp_path):
    with pytest.raises(InputError, match="both or none"):
        TrainingMonitor(tmp_path, ULLSAM.from_preset("debug"))
    monitor = TrainingMonitor(tmp_path)
    with pytest.raises(InputError, match="refresh"):
        monitor.start()
    with pytest.raises(InputError, match="too short"):
        monitor.start(0)
