"""Prompts as people give them: numbers of any kind that numpy takes, and one sentence for everything else."""

import numpy as np
import pytest

from ullsam.data.prompts import check_prompts
from ullsam.errors import InputError

SIZE, SIDE = (40, 50), 16  # rows and columns of the image, side of mask logits


def check(points=None, labels=None, box=None, mask=None):
    return check_prompts(points, labels, box, mask, SIZE, SIDE)


def test_one_object_and_several():
    given = check([[1, 2], [3, 4]], [1, 0], [5, 6, 7, 8])
    assert given["points"].tolist() == [[[1, 2], [3, 4]]] and given["labels"].tolist() == [[1, 0]]
    assert given["boxes"].tolist() == [[5, 6, 7, 8]]
    assert check(np.ones((3, 1, 2)), np.ones((3, 1), bool))["points"].shape == (3, 1, 2)
    assert check(mask=np.zeros((SIDE, SIDE)))["masks"].shape == (1, SIDE, SIDE)


NOT_NUMBERS = [1 + 2j, np.complex64(1), None, "3", b"3", {}, [1], 10**400, np.datetime64("2020-01-01")]


@pytest.mark.parametrize("value", [*NOT_NUMBERS, np.nan, np.inf, -np.inf, 1e300], ids=repr)
@pytest.mark.parametrize("name", ["points", "labels", "boxes", "mask logits"])
def test_what_is_no_finite_real_number_is_one_sentence(name, value):
    prompts = {
        "points": dict(points=[[value, 2]], labels=[1]),
        "labels": dict(points=[[1, 2]], labels=[value]),
        "boxes": dict(box=[1, 2, 3, value]),
        "mask logits": dict(mask=[[value] * SIDE] * SIDE),
    }[name]
    with pytest.raises(InputError, match="(?i)^(the )?(labels|points|boxes|mask logits|mask prompts)") as caught:
        check(**prompts)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize("points", [5, [], [[]], [1, 2, 3], [[1, 2], [3]], np.ones((1, 1, 1, 2)), np.ones((2, 2), complex)])
def test_points_of_other_shapes_are_one_sentence(points):
    with pytest.raises(InputError, match="(?i)points"):
        check(points, [1])
