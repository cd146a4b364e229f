"""The parts of the benchmark: each runs in a process of its own and returns its times, FLOPs and peak memory."""

import resource
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks import bench_paper_models as models
from ullsam import ULLSAM, LlmConfig, ModelConfig, Predictor, Prompts, TrainConfig
from ullsam.accel.checkpointing import less_memory
from ullsam.objectives import SegmentationObjective
from ullsam.sam import normalise
from ullsam.train import STAGES, build_optimizer, select_trained

BF16 = dict(device_type="cpu", dtype=torch.bfloat16)


class Clock:
    """Seconds on the wall and of the processor, by name, of repeated runs; and the FLOPs of one run."""

    def __init__(self):
        self.wall, self.cpu, self.flops, self.counts = {}, {}, {}, False

    @contextmanager
    def __call__(self, name: str):
        counts, start, used = {}, time.perf_counter(), time.process_time()
        if self.counts:
            with models.counting(counts):
                yield
            self.flops[name] = counts["flops"]
        else:
            yield
        self.wall.setdefault(name, []).append(time.perf_counter() - start)
        self.cpu.setdefault(name, []).append(time.process_time() - used)

    def repeat(self, call: Callable, runs: int, warm: bool = True) -> dict:
        """Runs once to count and warm up, then `runs` times; without `warm` the first one is the measured one."""
        self.counts = True
        call()
        self.counts = False
        if warm:
            self.wall, self.cpu = {}, {}
            for _ in range(runs):
                call()
        return self.result()

    def result(self) -> dict:
        """All of it as plain values."""
        return {"seconds": self.wall, "cpu_seconds": self.cpu, "flops": self.flops}


def gemm(size: models.Size, keep: Path) -> dict:
    """The machine's own rate: products of large square matrices."""
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(size.gemm, size.gemm).to(dtype)
        clock = Clock()
        for _ in range(4):
            with clock("gemm"):
                a @ a
        rates[name] = 2 * size.gemm**3 / min(clock.wall["gemm"])
    return {"flops_per_second": rates}


def encoder(size: models.Size, keep: Path, ours: bool, bf16: bool) -> dict:
    """The image encoder on one image; its output is kept, to be compared."""
    net, pixels = (models.our_encoder if ours else models.their_encoder)(size), torch.from_numpy(models.picture(size))
    pixels, clock = normalise(pixels[None], "sam"), Clock()
    if bf16 and not ours:  # it does not run in autocast
        net, pixels = net.bfloat16(), pixels.bfloat16()

    @torch.inference_mode()
    def run():
        with clock("encoder"), torch.autocast(**BF16, enabled=bf16 and ours):
            run.out = net(pixels)

    result = clock.repeat(run, 1)
    np.save(keep / f"encoder_{'ours' if ours else 'theirs'}_{'bf16' if bf16 else 'fp32'}.npy", run.out.float().numpy())
    return result


def inference(size: models.Size, keep: Path) -> dict:
    """Image -> features -> knowledge -> mask of one click, as `Predictor` does it, with its precision "bf16"."""
    predictor, image, clock = Predictor(models.our_model(size), "bf16"), models.picture(size), Clock()
    middle = size.sam.image_size / 2

    def run():
        with clock("encoder"):
            predictor.set_image(image)
        with clock("language model"):
            predictor.knowledge()
        with clock("mask"):
            predictor.predict([[middle, middle]], [1])

    return clock.repeat(run, 1)


def official_inference(size: models.Size, keep: Path) -> dict:
    """The same image through the official code's costs."""
    from tests.benchmarks.bench_paper_official import Official

    model, batch, clock = Official(size).eval(), models.training_batch(size), Clock()
    one = Prompts(batch["prompts"].points[:, :1], batch["prompts"].labels[:, :1])

    @torch.inference_mode()
    def run():
        pixels = (batch["image"].permute(0, 3, 1, 2) / 255).bfloat16()
        with clock("encoder and language model"):
            states, _ = model.words(pixels)
        with clock("encoder again and mask"):
            model.masks(pixels, states, one)

    return clock.repeat(run, 0, warm=False)


def training(size: models.Size, keep: Path, recompute: str) -> dict:
    """A step of stage 3 as `fit` takes it: one image, four objects, AdamW, bfloat16 autocast."""
    model, clock = models.our_model(size), Clock()
    config = TrainConfig(stage=3, batch_size=1, lr=1e-3, precision="bf16")
    optimizer = build_optimizer(select_trained(model, STAGES[3]), config)
    objective, batch = SegmentationObjective(model, config).train(), models.training_batch(size)

    def run():
        with clock("forward"), torch.autocast(**BF16):
            loss = objective(batch)["loss"]
        with clock("backward"):
            loss.backward()
        with clock("optimiser"):
            torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
            optimizer.step()
            optimizer.zero_grad()

    with less_memory(model.layers(), recompute):
        return clock.repeat(run, 1)


def official_training(size: models.Size, keep: Path) -> dict:
    """The same step with the official code's costs."""
    from tests.benchmarks.bench_paper_official import Official

    model, batch, clock = Official(size).train(), models.training_batch(size), Clock()
    optimizer = torch.optim.AdamW(model.trained(), lr=1e-3)

    def run():
        with clock("forward"):
            loss = model.loss(batch)
        with clock("backward"):
            loss.backward()
        with clock("optimiser"):
            optimizer.step()
            optimizer.zero_grad()

    return clock.repeat(run, 0, warm=False)


def click(size: models.Size, keep: Path) -> dict:
    """A further click after `set_image`, all of `predict`, and segment_anything's mask decoder alone, in turn."""
    predictor = Predictor(ULLSAM.from_config(ModelConfig(sam=size.sam, llm=LlmConfig(name="debug"))))
    clock, middle = Clock(), size.sam.image_size / 2
    predictor.set_image(models.picture(size))
    predictor.knowledge()
    sam, point = predictor.model.sam, torch.tensor([[[middle, middle]]])
    sparse, dense = (x.detach() for x in sam.prompt_encoder((point, torch.ones(1, 1)), None, None))
    features, pe = predictor.view.features.embedding, sam.prompt_encoder.get_dense_pe().detach()

    @torch.inference_mode()
    def run():
        with clock("click"):
            predictor.predict([[middle, middle]], [1])
        with clock("bare decoder"):
            sam.mask_decoder(features, pe, sparse, dense, multimask_output=False)

    return clock.repeat(run, 15)


PARTS = {
    "gemm": gemm,
    "click": click,
    "inference": inference,
    "official inference": official_inference,
    "training": lambda size, keep: training(size, keep, "cheap"),
    "training, least memory": lambda size, keep: training(size, keep, "all"),
    "official training": official_training,
    "encoder ours fp32": lambda size, keep: encoder(size, keep, ours=True, bf16=False),
    "encoder ours bf16": lambda size, keep: encoder(size, keep, ours=True, bf16=True),
    "encoder segment_anything fp32": lambda size, keep: encoder(size, keep, ours=False, bf16=False),
    "encoder segment_anything bf16": lambda size, keep: encoder(size, keep, ours=False, bf16=True),
}


def run_part(name: str, size: str, threads: int, keep: Path) -> dict:
    """One part, with the peak memory of this process in GB (of 1e9 bytes)."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    result = PARTS[name](models.SIZES[size], keep)
    return result | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}
