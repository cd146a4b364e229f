"""Scores of masks and of instance label maps: Dice, IoU and the Segmentation Accuracy (SA) of micro-sam.

The paper names Dice and SA without a formula, so each definition is stated here. One prompt gives one mask;
masks are either scored against the instance of their prompt (`instance_scores`), or merged to a label map
(`merge_instances`) and matched with the true one (`label_map_scores`).
"""

import numpy as np

from ullsam.errors import InputError

# The ten thresholds of mSA, with their float error as in elf: the sixth is 0.7500000000000002, and an IoU of
# exactly 3/4 does not reach it.
THRESHOLDS = np.arange(0.5, 1.0, 0.05)


def dice(pred: np.ndarray, true: np.ndarray) -> float:
    """Return the Dice score 2 |pred and true| / (|pred| + |true|) of two masks; two empty masks give 1.

    Args:
        pred, true: bool masks of one shape, usually (H, W).
    Returns:
        Score from 0 to 1.
    Raises:
        InputError: if the shapes differ or a mask is not bool or integer.
    """
    overlap, n_pred, n_true = _overlap(pred, true)
    return 2 * overlap / (n_pred + n_true) if n_pred + n_true else 1.0


def iou(pred: np.ndarray, true: np.ndarray) -> float:
    """Return the intersection over union of two masks; arguments and errors as in `dice`; two empty masks give 1."""
    overlap, n_pred, n_true = _overlap(pred, true)
    return overlap / (n_pred + n_true - overlap) if n_pred + n_true else 1.0


def instance_scores(masks: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Score each mask against the instance that its prompt was made for.

    Args:
        masks: bool (I, H, W), one mask per prompt.
        labels: integer (H, W), the true label map.
        ids: integer (I,), the instance of each prompt.
    Returns:
        Dice and IoU, float64 (I,) each.
    Raises:
        InputError: if the shapes do not fit, or `labels` holds no pixel of an id.
    """
    masks, ids = _masks(masks), np.asarray(ids)
    if ids.shape != masks.shape[:1] or labels.shape != masks.shape[1:]:
        raise InputError(
            f"masks {masks.shape}, labels {labels.shape} and ids {ids.shape} do not fit; "
            "give masks (I, H, W), labels (H, W) and ids (I,)."
        )
    instances = [labels == i for i in ids]
    missing = [int(i) for i, instance in zip(ids, instances, strict=True) if not instance.any()]
    if missing:
        raise InputError(f"labels holds no pixel of the instances {missing}; give ids that occur in labels.")
    pairs = list(zip(masks, instances, strict=True))
    return np.array([dice(*pair) for pair in pairs], float), np.array([iou(*pair) for pair in pairs], float)


def hit_rate(ious: np.ndarray, threshold: float = 0.5) -> float:
    """Return the fraction r of prompted instances whose IoU reaches the threshold (inclusive); 0 for none.

    Args:
        ious: float (I,), IoU of each prompted instance.
        threshold: smallest IoU that counts.
    Returns:
        Fraction from 0 to 1. SA of the same prompts, were no mask to overlap another, is r / (2 - r).
    """
    return float(np.mean(np.asarray(ious) >= threshold)) if len(ious) else 0.0


def merge_instances(masks: np.ndarray) -> np.ndarray:
    """Merge the masks of one image to a label map as micro-sam does before it scores them.

    The largest mask comes first, a smaller one takes only pixels that are still empty, and then each
    connected piece (4 neighbours) becomes an instance of its own. A mask inside a larger one thus vanishes.

    Args:
        masks: bool (I, H, W); masks of equal area keep their order.
    Returns:
        int32 (H, W), 0 background, ids 1, 2, ...
    Raises:
        InputError: if `masks` is not bool or integer (I, H, W).
    Source: `mask_data_to_segmentation` of micro-sam with `merge_exclusively=True`.
    """
    merging = Merging(_masks(masks).shape[1:])
    merging.add(masks)
    return merging.pieces()


class Merging:
    """`merge_instances` of masks that come a few at a time and need not be in memory together; `size` is (H, W)."""

    def __init__(self, size: tuple[int, int]):
        self.count, self.owner, self.area = 0, np.zeros(size, np.int32), np.zeros(size, np.int64)  # the mask of each pixel

    def add(self, masks: np.ndarray) -> None:
        """Puts in further masks, bool (I, H, W): a pixel is the largest's of its masks, of equal ones the first's."""
        for mask in _masks(masks):
            area, self.count = np.count_nonzero(mask), self.count + 1
            wins = mask & (area > self.area)
            self.owner[wins], self.area[wins] = self.count, area

    def pieces(self) -> np.ndarray:
        """int32 (H, W), 0 background: connected pieces (4 neighbours) of each mask's pixels as 1, 2, ..."""
        from skimage.measure import label

        return label(self.owner, background=0, connectivity=1).astype(np.int32)


def iou_matrix(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return the IoU of every predicted with every true instance of two label maps.

    Args:
        pred, true: integer (H, W) label maps, 0 background.
    Returns:
        float64 (P, T) for P predicted and T true instances in ascending order of their ids.
    Raises:
        InputError: if the shapes differ or an array is no label map.
    Source: elf/evaluation/matching.py; the background leaves the table after the IoU is taken.
    """
    pred, true = _label_maps(pred, true)
    pred_ids, pred_index = np.unique(pred, return_inverse=True)
    true_ids, true_index = np.unique(true, return_inverse=True)
    pairs = (pred_index * len(true_ids) + true_index).ravel()  # (H * W,)
    shape = len(pred_ids), len(true_ids)
    counts = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)  # pixels that two labels have in common
    union = counts.sum(1, keepdims=True) + counts.sum(0, keepdims=True) - counts
    return (counts / union)[pred_ids != 0][:, true_ids != 0]


def match(ious: np.ndarray, threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Pair predicted with true instances: as many pairs as possible at the threshold, then the largest IoU.

    Args:
        ious: float (P, T) matrix of `iou_matrix`.
        threshold: smallest IoU that counts (inclusive).
    Returns:
        Row and column numbers of the pairs that reach the threshold (the true positives), equally long.
    Source: elf/evaluation/matching.py.
    """
    from scipy.optimize import linear_sum_assignment

    if not ious.size:
        return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp)
    cost = -(ious >= threshold).astype(float) - ious / (2 * min(ious.shape))
    rows, columns = linear_sum_assignment(cost)
    reached = ious[rows, columns] >= threshold
    return rows[reached], columns[reached]


def segmentation_accuracy(ious: np.ndarray, threshold: float = 0.5) -> float:
    """Return SA(t) = TP / (TP + FP + FN), and 0 if nothing matches, even where both label maps are empty.

    Args:
        ious: float (P, T) matrix of `iou_matrix`.
        threshold: smallest IoU t of a match (inclusive).
    Returns:
        Score from 0 to 1.
    Source: elf/evaluation/matching.py; "AP" of StarDist and of the Data Science Bowl 2018.
    """
    true_positives = len(match(ious, threshold)[0])
    return true_positives / (sum(ious.shape) - true_positives) if true_positives else 0.0


def label_map_scores(pred: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Score a predicted against a true label map with the Segmentation Accuracy and its relatives.

    Args:
        pred, true: integer (H, W) label maps, 0 background; the ids need not agree.
    Returns:
        sa50 and sa75: SA at the first and sixth of THRESHOLDS; msa: mean of SA over the ten THRESHOLDS;
        precision50 TP / (TP + FP), recall50 TP / (TP + FN) and f1_50 at 0.5. All 0 if nothing matches.
    Raises:
        InputError: if the shapes differ or an array is no label map.
    Source: elf/evaluation/matching.py, the protocol of micro-sam; average the result over images, unweighted.
    """
    ious = iou_matrix(pred, true)
    n_pred, n_true = ious.shape
    accuracies = [segmentation_accuracy(ious, threshold) for threshold in THRESHOLDS]
    true_positives = len(match(ious, THRESHOLDS[0])[0])
    return {
        "sa50": accuracies[0],
        "sa75": accuracies[5],
        "msa": float(np.mean(accuracies)),
        "precision50": true_positives / n_pred if n_pred else 0.0,
        "recall50": true_positives / n_true if n_true else 0.0,
        "f1_50": 2 * true_positives / (n_pred + n_true) if n_pred + n_true else 0.0,
    }


def _overlap(pred: np.ndarray, true: np.ndarray) -> tuple[int, int, int]:
    """Pixels of both masks, of `pred` and of `true`."""
    pred, true = np.asarray(pred), np.asarray(true)
    if pred.shape != true.shape or pred.dtype.kind not in "biu" or true.dtype.kind not in "biu":
        raise InputError(
            f"pred is {pred.dtype} {pred.shape} and true is {true.dtype} {true.shape}; give two bool masks of one shape."
        )
    pred, true = pred != 0, true != 0
    return tuple(int(np.count_nonzero(x)) for x in (pred & true, pred, true))


def _masks(masks: np.ndarray) -> np.ndarray:
    """Masks as bool (I, H, W), or an error."""
    masks = np.asarray(masks)
    if masks.ndim != 3 or masks.dtype.kind not in "biu":
        raise InputError(f"masks is {masks.dtype} {masks.shape}; give bool masks (I, H, W).")
    return masks != 0


def _label_maps(*maps: np.ndarray) -> list[np.ndarray]:
    """Both label maps, predicted and true, as arrays, or an error."""
    maps = [np.asarray(labels) for labels in maps]
    for name, labels in zip(("pred", "true"), maps, strict=True):
        if labels.ndim != 2 or labels.dtype.kind not in "biu" or not labels.size:
            raise InputError(f"The label map {name} is {labels.dtype} {labels.shape}; give integers (H, W).")
    if maps[0].shape != maps[1].shape:
        shapes = f"pred {maps[0].shape} and true {maps[1].shape}"
        raise InputError(f"The label maps differ in shape, {shapes}; bring the prediction to the size of the image first.")
    return maps
