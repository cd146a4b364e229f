"""What the decoder is told of the clicks, by hand."""

import numpy as np
import pytest
import torch

from ullsam import Prompts
from ullsam.tiny.clicks import click_maps, click_offsets, features_at_clicks, read_clicks


def test_click_maps_by_hand():
    points = torch.tensor([[[[1.5, 1.5], [13.5, 5.5], [0.0, 0.0]]]])  # at the centres of two places, and one unused
    maps = click_maps(Prompts(points, torch.tensor([[[1.0, 0.0, -1.0]]])), (4, 4))
    assert maps.shape == (1, 7, 4, 4) and maps[0, 6].eq(0).all()
    assert maps[0, :3, 0, 0].tolist() == [1, 1, 1] and maps[0, 3:6, 1, 3].tolist() == [1, 1, 1]
    assert maps[0, :3, 0, 1].tolist() == pytest.approx(np.exp([-1, -0.25, -0.0625]).tolist())  # 4 pixels away
    boxes = click_maps(Prompts(boxes=torch.tensor([[[4.0, 0.0, 12.0, 4.0]]])), (4, 4))
    assert boxes[0, 6].tolist() == [[0, 1, 1, 0]] + [[0] * 4] * 3 and boxes[0, :6].eq(0).all()


def test_click_offsets_point_away_from_the_middle_of_the_inside_points():
    points = torch.tensor([[[[0.5, 5.5], [2.5, 5.5], [12.0, 12.0]]]])  # the middle of the first two: (2, 6) in pixel edges
    offsets = click_offsets(Prompts(points, torch.tensor([[[1.0, 1.0, 0.0]]])), (4, 4))
    assert offsets.shape == (1, 2, 4, 4) and offsets[0, 0, 0, 0] == 0 and offsets[0, 1, 1, 0] == 0
    assert offsets[0, :, 3, 2].tolist() == pytest.approx(np.tanh([8 / 64, 8 / 64]).tolist())
    box = click_offsets(Prompts(boxes=torch.tensor([[[0.0, 4.0, 4.0, 8.0]]])), (4, 4))
    torch.testing.assert_close(box, offsets)


def test_features_at_clicks_are_read_where_the_clicks_are():
    quarter, eighth = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 2, 2)  # of an image of 16 px
    quarter[1, 0, 1, 2], eighth[1, 0, 0, 1] = 3.0, 5.0  # second image: x 8 to 12, y 4 to 8; x 8 to 16, y 0 to 8
    points = torch.tensor([[[9.5, 5.5], [1.5, 13.5]], [[11.5, 3.5], [0.0, 0.0]]])  # centres in quarter, then in eighth
    labels = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    prompts = Prompts(points.expand(2, 2, 2, 2), labels.expand(2, 2, 2))
    found = features_at_clicks(prompts, (quarter, eighth))  # inside quarter, inside eighth, outside quarter, outside eighth
    assert found.shape == (4, 4) and found[:2].eq(0).all()
    assert found[2, 0] == 3 and found[2, 2:].eq(0).all() and found[3, :2].eq(0).all() and found[3, 3] == 5
    boxes = Prompts(boxes=torch.tensor([[[8.0, 4.0, 12.0, 8.0]]] * 2))
    assert features_at_clicks(boxes, (quarter, eighth))[1].tolist() == [3.0, found[2, 1].item(), 0.0, 0.0]
    nothing = read_clicks(Prompts(masks=torch.zeros(2, 1, 4, 4)), (quarter, eighth))
    assert nothing.found.eq(0).all() and nothing.near.eq(0).all()
