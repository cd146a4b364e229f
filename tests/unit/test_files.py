"""Reading and writing weight files: every damage gets its sentence, nothing is executed, nothing is left half-written."""

import argparse
import json
import os
import pickle
import re
import stat
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ullsam import InputError
from ullsam.files import (
    assign,
    cast,
    local_folder,
    read_json,
    read_safetensors,
    read_torch,
    whole,
    write_json,
    write_safetensors,
)

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4), "c.weight": torch.zeros(2, 2)}


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_torch_file_is_mapped_from_the_disk(tmp_path):
    args = argparse.Namespace(lr=1e-3, device=torch.device("cpu"))
    torch.save({"model": STATE, "args": args}, tmp_path / "new.pt")
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    content = read_torch(tmp_path / "new.pt")
    assert content["args"].lr == 1e-3
    if sys.platform == "linux":
        assert str(tmp_path / "new.pt") in Path("/proc/self/maps").read_text()
    for state in (content["model"], read_torch(tmp_path / "old.pth")):
        assert all(torch.equal(state[k], STATE[k]) for k in STATE)


def test_nothing_in_a_torch_file_is_executed(tmp_path, capsys):
    torch.save({"model": STATE, "extra": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match=r"evil.pt holds Python objects \(\S*print\) that could run code"):
        read_torch(tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="plain.pt is a pickle, which could run code, .*; save the weights alone"):
        read_torch(tmp_path / "plain.pt")
    assert "executed" not in capsys.readouterr().out


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def test_damaged_torch_files_are_named(tmp_path):
    torch.save(STATE, tmp_path / "cut.pt")
    cut(tmp_path / "cut.pt", 0.7)
    torch.save(STATE, tmp_path / "oldcut.pt", _use_new_zipfile_serialization=False)
    cut(tmp_path / "oldcut.pt", 0.9)
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "page.pt").write_text("<html>log in first</html>")
    (tmp_path / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    sentences = {
        "cut.pt": "cut.pt ends too early",
        "oldcut.pt": "oldcut.pt is not a readable PyTorch checkpoint",
        "list.pt": "holds a list, not a dictionary",
        "page.pt": "page.pt is not a readable PyTorch checkpoint",
        "pointer.pt": "only a pointer.*git lfs pull",
        "absent.pt": "There is no file .*absent.pt",
    }
    for name, sentence in sentences.items():
        with pytest.raises(InputError, match=sentence):
            read_torch(tmp_path / name)


def test_shards_are_written_and_read_as_one(tmp_path):
    write_safetensors(tmp_path / "whole", STATE)
    write_safetensors(tmp_path / "shards", STATE, shard_bytes=30)
    assert [p.name for p in (tmp_path / "whole").iterdir()] == ["model.safetensors"]
    assert len(list((tmp_path / "shards").glob("model-0000?-of-00003.safetensors"))) == 3
    for folder in ("whole", "shards"):
        state = read_safetensors(tmp_path / folder)
        assert set(state) == set(STATE) and all(torch.equal(state[k], STATE[k]) for k in STATE)
    assert oct((tmp_path / "whole" / "model.safetensors").stat().st_mode)[-3:] == "644"


def test_fewer_shards_later_do_not_leave_an_old_index(tmp_path):
    write_safetensors(tmp_path, STATE, shard_bytes=30)
    write_safetensors(tmp_path, {"d": torch.ones(1)})
    assert set(read_safetensors(tmp_path)) == {"d"}


def test_what_was_read_can_be_written_over_itself(tmp_path):
    write_safetensors(tmp_path, STATE)
    write_safetensors(tmp_path, read_safetensors(tmp_path))
    assert all(torch.equal(x, STATE[k]) for k, x in read_safetensors(tmp_path).items())


@pytest.fixture
def shards(tmp_path):
    write_safetensors(tmp_path / "m", STATE, shard_bytes=30)
    return tmp_path / "m"


def test_a_missing_shard_is_named(shards):
    (shards / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match="lacks model-00002-of-00003.safetensors of 3 shards; download"):
        read_safetensors(shards)


def test_a_shard_that_is_cut_off_is_named(shards):
    cut(shards / "model-00001-of-00003.safetensors", 0.8)
    with pytest.raises(InputError, match="model-00001-of-00003.safetensors is damaged or cut off"):
        read_safetensors(shards)


def test_a_shard_must_hold_what_the_index_says(shards):
    save_file({"z": torch.ones(1)}, shards / "model-00001-of-00003.safetensors")
    with pytest.raises(InputError, match="is missing a.weight"):
        read_safetensors(shards)


@pytest.mark.parametrize("content", ['{"weight_map": {"a": "../other.safetensors"}}', '{"weights": {}}'])
def test_an_index_that_points_elsewhere_is_refused(shards, content):
    (shards / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match="does not say which file holds which weight"):
        read_safetensors(shards)


def test_damaged_json_is_named(tmp_path):
    with pytest.raises(InputError, match="config.json is missing"):
        read_json(tmp_path / "config.json")
    for content, sentence in (
        ("{", "is not JSON"),
        ("[1]", "holds a list"),
        ("[" * 10**5, "is not JSON"),
        ("\0", "not text"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(InputError, match=sentence):
            read_json(tmp_path / "config.json")
    with pytest.raises(InputError, match="model.safetensors is missing in .*download one"):
        read_safetensors(tmp_path)


def test_assign_takes_the_tensors_themselves():
    with torch.device("meta"):
        module = torch.nn.Linear(3, 2)
    state = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    assign(module, state, "here")
    assert module.weight.data_ptr() == state["weight"].data_ptr() and module.weight.requires_grad


def test_assign_names_what_does_not_fit():
    module = torch.nn.Linear(3, 2)
    state = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    with pytest.raises(InputError, match="here is missing bias; it was made for another"):
        assign(module, {"weight": state["weight"]}, "here")
    assign(module, {"weight": state["weight"]}, "here", ignore=("bias",))
    with pytest.raises(InputError, match="here has unexpected colour"):
        assign(module, state | {"colour": torch.ones(1)}, "here")
    with pytest.raises(InputError, match=re.escape("shapes that do not fit: bias (3,) instead of (2,)")):
        assign(module, state | {"bias": torch.ones(3)}, "here")


def test_cast_changes_floats_only():
    state = cast({"x": torch.ones(2), "n": torch.ones(2, dtype=torch.long)}.items(), torch.bfloat16, "cpu")
    assert state["x"].dtype == torch.bfloat16 and state["n"].dtype == torch.long


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    write_safetensors(tmp_path, STATE)
    with pytest.raises(InputError, match="out.pt could not be written .*No space left.*is the disk full"):
        with whole(tmp_path / "out.pt") as part:
            part.write_bytes(b"half")
            full()
    monkeypatch.setattr("ullsam.files.save_file", full)
    with pytest.raises(InputError, match="could not be written"):
        write_safetensors(tmp_path, {"d": torch.ones(1)})
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert set(read_safetensors(tmp_path)) == set(STATE)  # what was there is untouched


def test_a_disk_that_fills_up_between_shards_leaves_the_old_model(tmp_path, monkeypatch):
    def fills_up(tensors, path, metadata):
        save_file(tensors, path, metadata)
        if "00002" in str(path):
            raise OSError(28, "No space left on device")

    write_safetensors(tmp_path, STATE, shard_bytes=30)
    before = {p.name for p in tmp_path.iterdir()}
    monkeypatch.setattr("ullsam.files.save_file", fills_up)
    with pytest.raises(InputError, match="model-00002-of-00003.safetensors could not be written"):
        write_safetensors(tmp_path, {k: x + 1 for k, x in STATE.items()}, shard_bytes=30)
    assert {p.name for p in tmp_path.iterdir()} == before
    assert all(torch.equal(x, STATE[k]) for k, x in read_safetensors(tmp_path).items())


def test_folders_are_made_and_files_in_their_place_are_named(tmp_path):
    with whole(tmp_path / "a" / "b" / "c.txt") as part:
        part.write_text("x")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["c.txt"]
    with pytest.raises(InputError, match="model.safetensors could not be written .*File exists"):
        write_safetensors(tmp_path / "a" / "b" / "c.txt", STATE)
    with pytest.raises(InputError, match="There is no file .*absent.safetensors"):
        read_safetensors(tmp_path / "absent.safetensors")
    with pytest.raises(InputError, match="c.txt is a file where a folder is needed; give the model's folder"):
        local_folder(tmp_path / "a" / "b" / "c.txt")


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    for name, target in (("a.json", "disk/a.json"), ("new.json", "disk/new.json")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "disk" / "a.json").write_text("old")
    for name in ("a.json", "new.json"):
        write_json(tmp_path / name, {"a": 1})
        assert (tmp_path / name).is_symlink() and read_json(tmp_path / "disk" / name) == {"a": 1}
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["a.json", "new.json"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_device_or_a_pipe_is_written_in_place(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        write_json(tmp_path / name, {"a": 1})
        assert json.loads(os.read(reader, 100)) == {"a": 1}
        os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and (tmp_path / "link").is_symlink()
    write_json("/dev/null", {"a": 1})
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode) and not Path("/dev/null.part").exists()


def test_a_name_that_no_disk_takes_is_one_sentence(tmp_path):
    for name in ("a" * 300, "a" * 253):
        with pytest.raises(InputError, match="could not be written .*File name too long"):
            write_json(tmp_path / name, {})
    assert not list(tmp_path.iterdir())


def test_hub_names_are_fetched_without_code_or_pickles(tmp_path, monkeypatch):
    asked = {}

    def snapshot(name, allow_patterns):
        asked[name] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert local_folder(tmp_path) == tmp_path and not asked
    assert local_folder("facebook/sam-vit-base") == tmp_path
    assert not [p for p in asked["facebook/sam-vit-base"] if p.endswith((".py", ".bin", ".pt", "*"))]


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    def offline(*_, **__):
        raise OSError("connection refused\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(InputError, match=r"could not be fetched .*\(connection refused\); download it elsewhere"):
        local_folder("facebook/sam-vit-base")
    for name in ("no/such/folder", "weights/sam.pth", "folder"):
        with pytest.raises(InputError, match=f"no file or folder {name}"):
            local_folder(name)


def test_json_index_is_plain(shards):
    assert set(json.loads((shards / "model.safetensors.index.json").read_text())["weight_map"]) == set(STATE)
