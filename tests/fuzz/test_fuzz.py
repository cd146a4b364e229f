"""Damaged and odd inputs: whatever is done to a file, it is used, or refused with one InputError sentence, in 20 s and 2 GB.

Each kind of input is made well once and then damaged again and again from seeds: bytes and texts are cut, flipped, doubled
and overwritten, values of JSON are replaced by ones that no program writes. ULLSAM_FUZZ sets the number of inputs in all.
"""

import copy
import io
import json
import os
import resource
import signal
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from ullsam.checkpoints import load_internlm2, load_official, load_sam, load_tokenizer
from ullsam.checkpoints.internlm2 import SIZES, from_llama
from ullsam.cli import parse
from ullsam.cli.options import check_numbers
from ullsam.config import DEBUG_SAM, ModelConfig
from ullsam.data.corpus import Corpus
from ullsam.data.io import read_image, read_labels, read_lines, write_labels
from ullsam.errors import InputError
from ullsam.files import write_safetensors
from ullsam.model import ULLSAM
from ullsam.predictor import Predictor
from ullsam.pretrained import debug_llm
from ullsam.sam import build_sam
from ullsam.widgets.instances import Instance, Region, State, label_map
from ullsam.widgets.pages import Pages
from ullsam.widgets.project import load_project, save_project

INPUTS = int(os.environ.get("ULLSAM_FUZZ", "300"))
SECONDS, GIGABYTES = 20, 2
SIZE = (48, 64)
ODD = [None, True, "", "2", "\udc80", "a" * 5000, -1, 0, 0.5, 10**6, 2**31, 2**63, 10**400, [], {}, [[]], {"a": 1}]
ODD += [float("nan"), float("inf"), -1e308, "../../etc/passwd", "/etc/passwd", "\u2028", "none", [1, 2, 3, 4, 5], "middle"]
NUMBERS = "0 -1 1 2 1.5 nan inf -inf 1e400 1e-400 007 0x10 99999999999 2147483648 1e9 one , -- 1_000 \u0663 None".split()


# ---------------------------------------------------------------- damage


def damaged_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes that were cut off, flipped, overwritten, left out or doubled in one to four places."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at, end = sorted(rng.integers(0, len(data) + 1, 2).tolist())
        end, how = min(end, at + int(rng.integers(1, 200))), rng.integers(7)
        if how == 0:
            del data[at:]
        elif how == 1 and at < len(data):
            data[at] ^= 1 << int(rng.integers(8))
        elif how == 2:
            data[at:end] = bytes(end - at)
        elif how == 3:
            data[at:end] = rng.bytes(end - at)
        elif how == 4:
            del data[at:end]
        elif how == 5:
            data[at:at] = data[at:end]
        else:  # early bytes are those of headers
            data[int(rng.integers(0, 64)) % max(1, len(data))] = int(rng.choice([0, 1, 127, 128, 255]))
        data = data or bytearray(b"x")
    return bytes(data)


def damaged_values(values, rng: np.random.Generator):
    """JSON values in which one to three are replaced, removed or added."""
    values = copy.deepcopy(values)
    for _ in range(rng.integers(1, 4)):
        part = values
        while True:
            keys = list(part) if isinstance(part, dict) else list(range(len(part)))
            if not keys:
                break
            key = keys[rng.integers(len(keys))]
            if isinstance(part[key], (dict, list)) and part[key] and rng.random() < 0.8:
                part = part[key]
                continue
            how = rng.integers(5)
            if how == 0:
                del part[key]
            elif how == 1 and isinstance(part, dict):
                part[str(rng.choice(["odd", "__class__", "name", ""]))] = copy.deepcopy(part[key])
            elif how == 2 and isinstance(part[key], (int, float)) and not isinstance(part[key], bool):
                part[key] = part[key] * int(rng.choice([-1, 2, 1000])) + int(rng.integers(-1, 2))
            else:
                part[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
            break
    return values


def damaged_json(values, rng: np.random.Generator) -> bytes:
    """A JSON file with damaged values, or a damaged text."""
    whole = rng.random() < 0.8
    text = json.dumps(damaged_values(values, rng) if whole else values, indent=int(rng.integers(2)))
    encoded = text.encode(str(rng.choice(["utf-8"] * 8 + ["utf-16", "latin-1"])))
    return encoded if whole else damaged_bytes(encoded, rng)


# ---------------------------------------------------------------- kinds of input, each (folder, rng) -> None


@cache
def encoded_images() -> list[bytes]:
    """One small picture in every format and layout that is read."""
    rng = np.random.default_rng(0)
    grey, rgb = rng.integers(0, 256, SIZE, np.uint8), rng.integers(0, 256, (*SIZE, 3), np.uint8)
    files = [cv2.imencode(suffix, image)[1].tobytes() for suffix in (".png", ".jpg", ".bmp") for image in (grey, rgb)]
    files.append(cv2.imencode(".png", grey.astype(np.uint16) * 200)[1].tobytes())
    indexed = io.BytesIO()
    Image.fromarray(rgb).quantize(16).save(indexed, "PNG")
    files.append(indexed.getvalue())
    ways = [
        (grey, {}),
        (rgb, {"compression": "zlib"}),
        (rgb, {"compression": "jpeg"}),
        (grey.astype(np.float32), {"bigtiff": True}),
        (grey.astype(np.uint16)[None].repeat(3, 0), {"imagej": True, "metadata": {"axes": "ZYX"}}),
        (np.stack([grey] * 6).reshape(3, 2, *SIZE), {"ome": True, "metadata": {"axes": "ZCYX", "PhysicalSizeX": 0.3}}),
        (grey, {"tile": (16, 16), "compression": "lzw", "predictor": True}),
        (grey > 128, {"photometric": "miniswhite"}),
        (grey, {"photometric": "palette", "colormap": rng.integers(0, 65536, (3, 256), np.uint16)}),
    ]
    for image, options in ways:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, image, **options)
        files.append(buffer.getvalue())
    return files


def fuzz_image(folder, rng):
    original = encoded_images()[rng.integers(len(encoded_images()))]
    (folder / "image").write_bytes(damaged_bytes(original, rng))
    image = read_image(folder / "image")
    assert image.ndim in (2, 3) and min(image.shape[:2]) >= 2 and np.isfinite(image).all()
    pages = Pages(folder / "image")
    assert pages.page(pages.count - 1).size and (pages.pixel_size is None or min(pages.pixel_size) > 0)


def fuzz_cut_off(folder, rng):
    """An image that was copied in part only is refused, or what is missing was none of its pixels."""
    original = encoded_images()[rng.integers(len(encoded_images()))]
    (folder / "whole").write_bytes(original)
    (folder / "part").write_bytes(original[: rng.integers(len(original))])
    part, pages = read_image(folder / "part"), Pages(folder / "part").count
    np.testing.assert_array_equal(part, read_image(folder / "whole"))
    assert pages == Pages(folder / "whole").count


def fuzz_labels(folder, rng):
    (folder / "labels").write_bytes(damaged_bytes(encoded_images()[rng.integers(len(encoded_images()))], rng))
    labels = read_labels(folder / "labels")
    assert labels.dtype == np.int32 and labels.ndim == 2 and labels.min() >= 0


def fuzz_project(folder, rng):
    pages, path = Pages(np.zeros((2, *SIZE), np.uint16), stack=True), folder / "work.json"
    regions = [Region(3, 4, np.ones((5, 6), bool)), Region(20, 9, np.eye(7, dtype=bool))]
    boxes, prompts = (None, (1.0, 2.0, 9.5, 9.0)), (((3.0, 4.0, 1), (40.0, 40.0, 0)), ())
    rows = zip((1, 7), ("cell", "nucleus"), prompts, boxes, ("m", ""), (0, 1), regions, strict=True)
    save_project(path, State("m", page=1, instances=tuple(Instance(*row) for row in rows)), pages.sha, "cells.tif")
    path.write_bytes(damaged_json(json.loads(path.read_text()), rng))
    state = load_project(path, pages)
    for page in range(pages.count):
        label_map(state.instances, page, SIZE)
    assert all(i.region.area > 0 for i in state.instances) and 0 <= state.page < pages.count
    save_project(path, state, pages.sha)
    again = load_project(path, pages)  # what was taken can be kept
    assert [(i.number, i.name, i.prompts, i.box) for i in again.instances] == [
        (i.number, i.name, i.prompts, i.box) for i in state.instances
    ]


@cache
def model_files() -> dict[str, bytes]:
    """A saved model's files by name."""
    with TemporaryDirectory() as folder:
        ULLSAM.from_preset("debug").save_pretrained(folder)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def opened(folder, **changed):
    """The model whose files are the saved one's but for those that changed."""
    for name, content in (model_files() | changed).items():
        (folder / name).write_bytes(content)
    return ULLSAM.from_pretrained(folder)


def use(model):
    """One click: what a model that was loaded must be able to do."""
    predictor = Predictor(model)
    predictor.set_image(np.arange(64 * 64).reshape(64, 64))
    found = predictor.predict([(20, 20)], [1])
    assert found.masks.shape == (1, 64, 64) and np.isfinite(found.logits).all()


def fuzz_config(folder, rng):
    use(opened(folder, **{"config.json": damaged_json(json.loads(model_files()["config.json"]), rng)}))


def fuzz_safetensors(folder, rng):
    content = bytearray(model_files()["model.safetensors"])
    start, how = 8 + int.from_bytes(content[:8], "little"), rng.integers(3)  # where the header ends
    if how == 0:
        at = start + 4 * int(rng.integers((len(content) - start) // 4))
        content[at : at + 4] = np.float32(rng.choice([np.nan, np.inf, -np.inf])).tobytes()
    elif how == 1:
        content[:start] = damaged_bytes(bytes(content[:start]), rng)
    model = opened(folder, **{"model.safetensors": damaged_bytes(bytes(content), rng) if how == 2 else bytes(content)})
    assert all(x.isfinite().all() for x in model.state_dict().values())
    use(model)


@cache
def foreign_files() -> tuple[dict[str, bytes], dict]:
    """An InternLM2 folder's files by name, and the weights of a SAM: what others give us."""
    lm, tokenizer = debug_llm()
    settings = {"model_type": "internlm2"} | {name: getattr(lm.config, name) for name in SIZES}
    settings |= {"rms_norm_eps": 1e-6, "rope_theta": 10000, "bias": False}
    with TemporaryDirectory() as folder:
        write_safetensors(folder, dict(from_llama(lm)))
        tokenizer.save_pretrained(folder)
        Path(folder, "config.json").write_text(json.dumps(settings))
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}, build_sam(DEBUG_SAM).state_dict()


def fuzz_internlm2(folder, rng):
    files = foreign_files()[0]
    name = str(rng.choice(["config.json", "config.json", "tokenizer_config.json", "tokenizer.json"]))
    for file, content in (files | {name: damaged_json(json.loads(files[name]), rng)}).items():
        (folder / file).write_bytes(content)
    lm, _ = load_internlm2(folder)
    assert lm(torch.ones(1, 3, dtype=torch.long)).logits.isfinite().all() and load_tokenizer(folder)("a b").input_ids


def fuzz_checkpoint(folder, rng):
    state, path, read = dict(foreign_files()[1]), folder / "sam.pt", [load_sam, load_official][rng.integers(2)]
    names = sorted(state)
    for _ in range(rng.integers(0, 3)):
        name, how = names[rng.integers(len(names))], rng.integers(4)
        if how == 0:
            state.pop(name, None)
        elif how == 1:
            key = str(rng.choice(["model", "model_state", "image_encoder.blocks.x", "preprocessing", ""]))
            state[key] = ODD[rng.integers(13)]
        elif how == 2:
            state[name] = torch.ones(rng.integers(0, 9, rng.integers(0, 5)).tolist())
        else:
            state[name] = [torch.tensor(float("nan")), torch.ones(3, dtype=torch.int64), "weights", None][rng.integers(4)]
    torch.save({"model": state} if rng.integers(2) else state, path)
    if rng.random() < 0.4:
        path.write_bytes(damaged_bytes(path.read_bytes(), rng))
    found = read(path)
    if read is load_sam:
        use(ULLSAM(ModelConfig(sam=found[1], llm=None), found[0]))


def fuzz_corpus(folder, rng):
    root = folder / "corpus"
    for part in ("images/a", "images/b", "masks/a", "masks/b"):
        (root / part).mkdir(parents=True)
    names = ["a/1.png", "b/1.png", "2.png"]
    for name in names:
        cv2.imwrite(str(root / "images" / name), np.arange(64, dtype=np.uint8).reshape(8, 8))
        write_labels(root / "masks" / name, np.eye(8, dtype=int))
    table = "file,source_id,split,n_instances\n" + "".join(f"{name},s,{split},1\n" for name in names for split in ("train",))
    captions = "".join(json.dumps({"file": name, "caption": f"A cell in {name}."}) + "\n" for name in names)
    meta = {"name": "n", "modality": "fluorescence", "structure": "nucleus", "pixel_size": "0.5 um", "skipped": []}
    texts = {"images.csv": table.encode(), "captions.jsonl": captions.encode(), "meta.json": json.dumps(meta).encode()}
    name = sorted(texts)[rng.integers(3)]
    damaged = damaged_json(meta, rng) if name == "meta.json" else damaged_bytes(texts[name], rng)
    for file, content in (texts | {name: damaged}).items():
        (root / file).write_bytes(content)
    corpus = Corpus(root)
    for record in corpus.records:
        sample = corpus.read(record)
        assert sample.labels.any() and record.image_path.resolve().is_relative_to(root.resolve())


def fuzz_lines(folder, rng):
    rows = [{"step": i, "loss": 0.5, "text": "a \u00b5m\u2028 line"} for i in range(4)]
    text = "".join(json.dumps(row, ensure_ascii=bool(rng.integers(2))) + "\n" for row in rows)
    path = folder / "log.jsonl"
    path.write_bytes(damaged_bytes(text.encode(str(rng.choice(["utf-8"] * 5 + ["utf-16", "latin-1"])), "replace"), rng))
    found = read_lines(path, mend=True)
    assert all(isinstance(row, dict) for row in found) and read_lines(path) == found
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(rows[0]) + "\n")  # the next row is not joined to a broken one
    assert read_lines(path)[-1] == rows[0]


COMMANDS = {
    "train --preset debug --stage 3 --synthetic": "steps batch-size accumulate lr warmup seed view save-every log-every "
    "workers lora stage synthetic-fraction",
    "evaluate --data a --out b": "seed limit points",
    "knowledge --data a --out b": "fit-limit seed",
    "microvqa --out b": "count seed limit max-new-tokens",
    "caption a --base-url http://localhost/v1": "workers timeout",
    "prepare-pairs --out p": "images",
    "app": "port sessions",
    "parity a": "tolerance",
}


def fuzz_numbers(folder, rng):
    line = list(COMMANDS)[rng.integers(len(COMMANDS))]
    option = str(rng.choice(COMMANDS[line].split()))
    values = [NUMBERS[i] for i in rng.integers(0, len(NUMBERS), 2 if option == "points" else 1)]
    try:
        command = parse([*line.split(), f"--{option}", *values])
    except SystemExit as stop:  # tyro has printed what is wrong
        raise InputError("no number") from stop
    check_numbers(**command.keywords)
    if line.startswith("train"):
        options = command.keywords
        config = options["settings"].config("debug", 3)
        assert config.steps >= 1 and 0 <= config.lr < 1e10 and config.log_every >= 1 and config.seed >= 0


KINDS = {name.removeprefix("fuzz_"): act for name, act in list(globals().items()) if name.startswith("fuzz_")}


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_is_used_or_refused_with_one_sentence(kind, tmp_path, record_property, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # for settings that name a model of the hub

    def too_slow(*_):
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_slow)
    count, refused, slowest, wrong = max(1, INPUTS // len(KINDS)), 0, 0.0, []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(count):
        folder, start = tmp_path / str(seed), time.monotonic()
        folder.mkdir()
        signal.alarm(SECONDS)
        try:
            KINDS[kind](folder, np.random.default_rng([seed, len(kind)]))
        except InputError as error:
            refused += 1
            if "\n" in str(error) or not str(error).strip():
                wrong.append(f"{seed}: not one sentence: {error}")
        except Exception as error:
            wrong.append(f"{seed}: {type(error).__name__}: {str(error).strip()[:200]}")
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.monotonic() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    row = {"kind": kind, "inputs": count, "used": count - refused - len(wrong), "refused": refused, "slowest": slowest}
    for name, value in row.items():
        record_property(name, value)
    capsys.readouterr()
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:20])
    assert grown < GIGABYTES, f"{grown:.1f} GB more memory"
