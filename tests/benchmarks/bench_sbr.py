"""Time of SBR sampling on a 1024 px label map beside a whole-image implementation.

Run from the repository's folder: OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_sbr
"""

import time

import cv2
import numpy as np

from tests.unit.test_sbr import oracle_regions
from ullsam.sbr import instance_ids, sample_instances, sample_points


def cells(side=1024, count=80, seed=0):
    """A label map of ellipses with radii from 8 to 60 pixels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((side, side), np.int32)
    for i in range(1, count + 1):
        x, y, a, b = (int(v) for v in (*rng.integers(0, side, 2), *rng.integers(8, 60, 2)))
        cv2.ellipse(labels, (x, y), (a, b), float(rng.uniform(0, 180)), 0, 360, i, -1)
    return labels


def whole_image(labels, instance, rng):
    """Points of one instance from whole-image scipy transforms, without the fallbacks' dilation."""
    core, ring, _ = oracle_regions(labels == instance, dilation=0)
    positive, negative = np.argwhere(core), np.argwhere(ring)
    return rng.choice(positive, 1), rng.choice(negative, 3)


def milliseconds(call, arguments):
    """Mean time of a call over all arguments."""
    start = time.perf_counter()
    for argument in arguments:
        call(argument)
    return (time.perf_counter() - start) / len(arguments) * 1e3


def main():
    """Print one line per measurement."""
    cv2.setNumThreads(1)
    labels, rng = cells(), np.random.default_rng(0)
    ids = [int(i) for i in instance_ids(labels) if oracle_regions(labels == i)[0].any()]
    bounds = {i: cv2.boundingRect((labels == i).view(np.uint8)) for i in ids}
    few = ids[:15]
    ours = milliseconds(lambda i: sample_points(labels, i, rng), ids * 5)
    boxed = milliseconds(lambda i: sample_points(labels, i, rng, bounds=bounds[i]), ids * 5)
    oracle = milliseconds(lambda i: whole_image(labels, i, rng), few)
    four = milliseconds(lambda _: sample_instances(labels, rng), range(50))
    whole = np.ones_like(labels)
    whole[:40] = 0
    large = milliseconds(lambda _: sample_points(whole, 1, rng), range(10))
    print(f"{labels.shape[0]} px, {len(ids)} instances, ms per call")
    print(f"sample_points               {ours:8.3f}   {oracle / ours:7.1f} times faster than the whole image")
    print(f"sample_points with bounds   {boxed:8.3f}   {oracle / boxed:7.1f} times")
    print(f"whole image with scipy      {oracle:8.3f}")
    print(f"sample_instances, 4 of them {four:8.3f}")
    print(f"sample_points, instance that nearly fills the image {large:8.3f}")


if __name__ == "__main__":
    main()
