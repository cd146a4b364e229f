"""Image-text pairs for stage 1: microscopy figures of BIOMEDICA with their captions, streamed from webdataset shards.

The paper took about 80,000 pairs (section 3.3) and does not say which. Kept here are pictures with one panel whose primary
label is Microscopy, without flow cytometry plots, from articles that allow commercial use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from ullsam.data.io import append_line, need, read_lines, write_atomic
from ullsam.errors import InputError, reason
from ullsam.files import write_json

SHARDS = "hf://datasets/BIOMEDICA/biomedica_webdataset_24M/commercial/*.tar"
LEAST_SIDE = 20  # pixels; smaller pictures say nothing
NOT_MICROSCOPY = {"flowcytometry", "flow cytometry"}


def is_microscopy(facts: dict) -> bool:
    """Whether a sample's json describes one microscopy picture."""
    secondary = {str(label).lower() for label in facts.get("image_secondary_label") or ()}
    return (
        "Microscopy" in (facts.get("image_primary_label") or ())
        and facts.get("image_panel_type") == "single"
        and not secondary & NOT_MICROSCOPY
    )


class ShardStream:
    """Samples of webdataset shards in their order, pictures as bytes; it can be left and entered again.

    Args:
        shards: addresses or paths of tar files; patterns and hf:// addresses are allowed.

    Raises:
        InputError: `datasets` is not installed, or the shards cannot be reached, for example without accepted terms.
    """

    def __init__(self, shards: str | list[str]):
        self.shards = shards
        datasets = need("datasets", "stream image-text pairs")
        text = datasets.Value("string")
        facts = {name: text for name in ("image_panel_type", "article_accession_id", "article_license")}
        facts |= {name: datasets.List(text) for name in ("image_primary_label", "image_secondary_label")}
        columns = {"jpg": datasets.Image(decode=False), "txt": text, "json": facts, "__key__": text, "__url__": text}
        options = {"features": datasets.Features(columns), "streaming": True, "trust_remote_code": False}
        with self._explained():
            self.stream = datasets.load_dataset("webdataset", data_files={"train": shards}, split="train", **options)

    def __iter__(self) -> Iterator[dict]:
        with self._explained():
            yield from self.stream

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # datasets and the hub raise many kinds
            shards = self.shards if isinstance(self.shards, str) else ", ".join(self.shards)
            remedy = "accept the terms on the dataset's page, run `hf auth login`," if "://" in shards else "get them again"
            again = "and run the same command again: it goes on where it stopped"
            raise InputError(f"{shards} could not be read ({reason(error)}); {remedy} {again}.") from error


def save_pairs(
    samples: Iterable[dict], folder: Path, most: int = 80_000, say: Callable[[str], None] | None = None, every: int = 500
) -> int:
    """Writes the microscopy pairs of a stream as images/ and captions.jsonl, a folder for `ullsam.data.pairs.Pairs`.

    A folder that holds a part of them already is filled up: a `ShardStream` goes on where it was, and keys that are there
    are passed over. Returns the number of pairs in the folder.

    Args:
        samples: with __key__, jpg (bytes, or {"bytes": ...}), txt and json; folder: made if it is missing;
            most: where to stop; say: gets a line every 1000 pairs; every: samples after which the position is noted.

    Raises:
        InputError: the stream cannot be read, or has no such pair, or the disk is full.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    table, position = folder / "captions.jsonl", folder / "position.json"
    known = {row["key"] for row in read_lines(table, mend=True)}
    if len(known) >= most:
        return len(known)
    resumable = isinstance(samples, ShardStream)
    if resumable and position.is_file():
        samples.stream.load_state_dict(json.loads(position.read_text(encoding="utf-8")))
    with table.open("a", encoding="utf-8") as file:
        for number, sample in enumerate(samples, 1):
            row = None if sample["__key__"] in known else _pair(sample, folder / "images")
            if row is not None:
                append_line(file, row)
                known.add(row["key"])
                if say and len(known) % 1000 == 0:
                    say(f"{len(known)} of {most} pairs")
            if resumable and (number % every == 0 or len(known) >= most):
                write_json(position, samples.stream.state_dict())
            if len(known) >= most:
                break
    if not known:
        raise InputError(f"No microscopy picture with a caption came for {folder}; check the names of the shards.")
    return len(known)


def _pair(sample: dict, images: Path) -> dict | None:
    """Writes the picture of a sample that passes the filter; its row of captions.jsonl, or None."""
    facts, caption = (x.decode("utf-8", "replace") if isinstance(x, bytes) else x for x in map(sample.get, ("json", "txt")))
    facts = facts if isinstance(facts, dict) else json.loads((facts or "").strip() or "{}")
    caption = str(caption or "").strip()
    if not caption or not is_microscopy(facts):
        return None
    content = sample["jpg"]["bytes"] if isinstance(sample["jpg"], dict) else sample["jpg"]
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if picture is None or min(picture.shape[:2]) <= LEAST_SIDE:
        return None
    key = sample["__key__"]
    name = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in key) + ".jpg"
    write_atomic(images / name, content)
    source, licence = facts.get("article_accession_id"), facts.get("article_license")
    return {"file": name, "key": key, "caption": caption, "source_id": source, "licence": licence}
