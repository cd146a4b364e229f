"""Speed and memory of the shipped tiny model on one core, beside segment_anything's predictor and transformers' SamModel.

Run from the repository's folder: OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_tiny
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import fields
from datetime import date
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch
from segment_anything import SamPredictor

import ullsam
from tests.benchmarks.processes import import_seconds, memory, shared_memory
from ullsam.config import SamConfig
from ullsam.files import write_json
from ullsam.tiny.config import TINY

SIZES = {"512x512": (512, 512), "1024x768": (768, 1024), "3000x2000": (2000, 3000)}  # (height, width)
AIMS = {"click_ms": 25, "ready_with_knowledge_s": 1.0, "resident_with_llm_mb": 1200, "import_s": 1.5}
WHO = {
    "ullsam": "ullsam.Predictor with the shipped uLLSAM-tiny and its knowledge",
    "ullsam_without_vlk": "the same without knowledge",
    "plain_ullsam": "ullsam.Predictor with a plain SAM of the same size: patch embedding, no finer maps, random weights",
    "segment_anything": "segment_anything.SamPredictor with the weights of plain_ullsam, since it does not know our stem",
    "transformers": "transformers.SamModel of the sizes of plain_ullsam, random weights, with SamProcessor",
}
KINDS = {"point": (1, 0), "four_points": (1, 3), "box": None}  # inside and outside points


class Ours:
    """Our predictor; `vlk`: with knowledge."""

    def __init__(self, model, vlk):
        self.predictor, self.vlk = ullsam.Predictor(model), vlk

    def set_image(self, image):
        self.predictor.set_image(image)
        if self.vlk:
            self.predictor.knowledge()

    def click(self, points, labels, box):
        return self.predictor.predict(points, labels, box, use_vlk=self.vlk).masks


class SegmentAnything:
    """segment_anything's own predictor, in batches as its documentation shows."""

    def __init__(self, sam):
        self.predictor = SamPredictor(sam)

    def set_image(self, image):
        self.predictor.set_image(image)

    def click(self, points, labels, box):
        p, size = self.predictor, self.predictor.original_size
        if box is None:
            points = p.transform.apply_coords_torch(torch.tensor(points), size)
            labels = torch.tensor(labels)
        else:
            box = p.transform.apply_boxes_torch(torch.tensor(box), size)
        return p.predict_torch(points, labels, box, multimask_output=False)[0][:, 0].numpy()


class Transformers:
    """transformers' SamModel with its processor."""

    def __init__(self, sam):
        from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

        vision = dict(
            hidden_size=sam.embed_dim,
            num_hidden_layers=sam.depth,
            num_attention_heads=sam.num_heads,
            image_size=sam.image_size,
            use_rel_pos=sam.use_rel_pos,
            window_size=sam.window_size,
            global_attn_indexes=list(sam.global_attn_indexes),
            mlp_dim=4 * sam.embed_dim,
        )
        decoder = dict(mlp_dim=sam.decoder_mlp_dim)
        prompts = dict(image_size=sam.image_size)
        config = SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
        self.model, side = SamModel(config).eval(), sam.image_size
        images = SamImageProcessor(size={"longest_edge": side}, pad_size={"height": side, "width": side})
        self.processor = SamProcessor(images)

    @torch.inference_mode()
    def set_image(self, image):
        self.sizes = self.processor(image, return_tensors="pt")
        self.embedding = self.model.get_image_embeddings(self.sizes.pop("pixel_values"))
        self.scale = self.model.config.vision_config.image_size / max(image.shape[:2])

    @torch.inference_mode()
    def click(self, points, labels, box):
        if box is None:
            prompts = dict(input_points=torch.tensor(points)[None] * self.scale, input_labels=torch.tensor(labels)[None])
        else:
            prompts = dict(input_boxes=torch.tensor(box)[None] * self.scale)
        low = self.model(image_embeddings=self.embedding, **prompts, multimask_output=False).pred_masks
        sizes = self.sizes["original_sizes"], self.sizes["reshaped_input_sizes"]
        return self.processor.image_processor.post_process_masks(low, *sizes)[0][:, 0].numpy()


def contestants():
    """All that are compared, by name."""
    plain_sam = SamConfig(**{f.name: getattr(TINY.sam, f.name) for f in fields(SamConfig)})
    plain_config = ullsam.ModelConfig("plain", plain_sam, None)
    tiny, plain = ullsam.load("tiny"), ullsam.ULLSAM.from_config(plain_config)
    return {
        "ullsam": Ours(tiny, True),
        "ullsam_without_vlk": Ours(tiny, False),
        "plain_ullsam": Ours(plain, False),
        "segment_anything": SegmentAnything(plain.sam),
        "transformers": Transformers(plain_config.sam),
    }


def prompts(kind, objects, size, rng):
    """Points (I, P, 2) and labels (I, P), or boxes (I, 4), of I objects at random places."""
    h, w = size
    places = (rng.random((objects, 1, 2)) * [w - 60, h - 60] + 30).astype(np.float32)
    if KINDS[kind] is None:
        return None, None, np.concatenate([places[:, 0] - 25, places[:, 0] + 25], axis=1)
    inside, outside = KINDS[kind]
    points = places + rng.uniform(-20, 20, (objects, inside + outside, 2)).astype(np.float32)
    return points, np.tile([1] * inside + [0] * outside, (objects, 1)), None


class Clock:
    """Wall-clock and processor seconds of named work."""

    def __init__(self):
        self.times = defaultdict(list)

    def time(self, name, call, *args):
        wall, cpu = time.perf_counter(), time.process_time()
        result = call(*args)
        self.times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        return result

    def summary(self, name):
        """Medians and lowest values; processor time says more than wall-clock time on a machine that does other things."""
        wall, cpu = zip(*self.times[name], strict=True)
        return {
            "median_s": round(statistics.median(wall), 5),
            "min_s": round(min(wall), 5),
            "cpu_median_s": round(statistics.median(cpu), 5),
            "cpu_min_s": round(min(cpu), 5),
            "n": len(wall),
        }


def measure(models, sizes, repeats):
    """Each round does all work of all contestants once, in turn, so that what the machine else does hits all alike."""
    clock, rng = Clock(), np.random.default_rng(0)
    for i in range(repeats + 1):
        clock = Clock() if i == 1 else clock  # the first round warms up
        for size_name, size in sizes.items():
            image = cv2.resize(ullsam.generate("fluorescence_nuclei", i, 512).image, size[::-1])
            for who, model in models.items():
                clock.time(("ready", size_name, 1, who), model.set_image, image)
            for kind in KINDS:
                for objects in (1, 16):
                    given = prompts(kind, objects, size, rng)
                    for who, model in models.items():
                        masks = clock.time((kind, size_name, objects, who), model.click, *given)
                        assert masks.shape == (objects, *size), (who, masks.shape)
        clock.time(("caption", "512x512", 1, "ullsam"), caption, models["ullsam"].predictor)
    return clock


def caption(predictor):
    """A description of the image that is set."""
    return predictor.describe(max_new_tokens=48)


def table(clock):
    """One row per kind of work, with each contestant's time as a multiple of ours."""
    rows = defaultdict(dict)
    for kind, size, objects, who in clock.times:
        rows[kind, size, objects][who] = clock.summary((kind, size, objects, who))
    out = []
    for (kind, size, objects), by in rows.items():
        ratios = {who: round(x["cpu_median_s"] / by["ullsam"]["cpu_median_s"], 2) for who, x in by.items()}
        out.append({"work": kind, "image": size, "objects": objects, "times": by, "cpu_ratio_to_ullsam": ratios})
    return out


def training_rate(steps):
    """Stage-3 steps per second of the tiny model with 8 crops of 256 px each: wall-clock and processor."""
    mixture = ullsam.Mixture([], ["fluorescence_nuclei"], 1.0)
    model, times = ullsam.load("tiny"), []
    for count in (1, 1 + steps):
        config = ullsam.TrainConfig(stage=3, steps=count, view=256, lr=1e-5, log_every=1000, save_every=1000)
        with tempfile.TemporaryDirectory() as folder:
            wall, cpu = time.perf_counter(), time.process_time()
            ullsam.fit(model, config, mixture, Path(folder) / "run", progress=False)
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = (round(steps / (b - a), 4) for a, b in zip(*times, strict=True))
    return {"steps_per_s": wall, "steps_per_cpu_s": cpu, "images_per_step": 8, "view_px": 256, "precision": "float32"}


def conditions(note):
    """The machine and the versions."""
    packages = ("torch", "transformers", "segment_anything", "peft", "numpy")
    return {
        "date": str(date.today()),
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 1),
        "note": note,
        "python": platform.python_version(),
        "versions": {p: version(p) for p in packages},
    }


def processor():
    """The processor's name where Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.processor())


def reached(rows, processes):
    """The numbers that have an aim, beside it."""
    ours = {(r["work"], r["image"], r["objects"]): r["times"]["ullsam"] for r in rows}
    clicks = [x["median_s"] for (work, _, objects), x in ours.items() if work in KINDS and objects == 1]
    ready = [x["median_s"] for (work, _, _), x in ours.items() if work == "ready"]
    measured = {
        "click_ms": round(1000 * max(clicks), 1),
        "ready_with_knowledge_s": round(max(ready), 2),
        "resident_with_llm_mb": processes["after_knowledge"]["resident_mb"],
        "import_s": processes["import"]["wall_s"],
    }
    return {k: {"measured": x, "aim": AIMS[k], "reached": x < AIMS[k]} for k, x in measured.items()}


def main():
    """Writes the result as JSON and prints what has an aim."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="training steps that are timed; 0 leaves training out")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--note", default="nothing else ran", help="what else the machine did")
    parser.add_argument("--out", default="data/results/bench_tiny.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    where = conditions(args.note)
    processes = {"import": import_seconds(), **memory(), "two_processes": shared_memory()}
    rows = table(measure(contestants(), {k: SIZES[k] for k in args.sizes}, args.repeats))
    result = {
        "what": "speed and memory of uLLSAM-tiny; times are medians over rounds in which all take turns, in seconds",
        "aims": reached(rows, processes),
        "processes": processes,
        "work": rows,
        "compared": WHO,
        "training": training_rate(args.steps) if args.steps else None,
        "conditions": where,
        "command": f"OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_tiny --repeats {args.repeats} --steps {args.steps}",
    }
    write_json(args.out, result)
    for name, x in result["aims"].items():
        print(f"{name:24} {x['measured']:8}   aim: under {x['aim']}{'' if x['reached'] else '   not reached'}")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
