"""What the clicks say beside SAM's tokens: maps of where they are, the direction to them, and what the image holds there.

Letters: B images, I objects of one image, P points, b and c channels of the finer maps at stride 4 and 8, h w feature grid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ullsam.types import Prompts

STRIDE = 4  # pixels per position of the finest map
REACHES = (4.0, 16.0, 64.0)  # how far a click is felt, pixels
CLICK_CHANNELS = 2 * len(REACHES) + 1  # inside and outside points at each reach, and the box


class Clicks(NamedTuple):
    """What the clicks on B*I objects say beside SAM's tokens."""

    near: Tensor  # (B*I, 7, 4h, 4w), see `click_maps`
    offset: Tensor  # (B*I, 2, 4h, 4w), see `click_offsets`
    found: Tensor  # (B*I, 2 * (b + c)), see `features_at_clicks`


def read_clicks(prompts: Prompts, skips: tuple[Tensor, Tensor]) -> Clicks:
    """All that the decoder is told of the clicks; `skips` are the finer maps of the B images."""
    size = skips[0].shape[2:]
    return Clicks(click_maps(prompts, size), click_offsets(prompts, size), features_at_clicks(prompts, skips))


def click_maps(prompts: Prompts, size: tuple[int, int]) -> Tensor:
    """How near the clicks are, for every position of the finest map.

    Args:
        prompts: of I objects in each of B images, in pixels of the encoded square or window.
        size: (4h, 4w) of the finest map.

    Returns:
        (B*I, 7, 4h, 4w) in 0..1: exp(-distance / reach) to the nearest inside point and to the nearest outside point for
        three reaches, then 1 inside the box; 0 for what is not prompted. Source: the click maps of RITM (Sofiiuk et al.
        2022), with SAM's points.
    """
    shape = next(x.shape[:2] for x in prompts if x is not None)
    ys, xs = _centres(prompts, size)
    maps = torch.zeros(shape.numel(), CLICK_CHANNELS, *size, device=xs.device)
    if prompts.points is not None:
        points, labels = prompts.points.flatten(0, 1) + 0.5, prompts.labels.flatten(0, 1)  # (B*I, P, 2), (B*I, P)
        x, y = points[..., 0, None], points[..., 1, None]  # (B*I, P, 1)
        distance = ((xs - x)[:, :, None] ** 2 + (ys - y)[..., None] ** 2).sqrt()  # (B*I, P, 4h, 4w)
        for first, kind in ((0, 1), (len(REACHES), 0)):
            far = torch.where(labels == kind, 0.0, torch.inf)[..., None, None]
            nearest = (distance + far).amin(1)  # (B*I, 4h, 4w)
            for i, reach in enumerate(REACHES):
                maps[:, first + i] = torch.exp(-nearest / reach)
    if prompts.boxes is not None:
        x0, y0, x1, y1 = prompts.boxes.flatten(0, 1)[..., None].unbind(1)  # each (B*I, 1)
        inside = ((xs > x0) & (xs < x1))[:, None] & ((ys > y0) & (ys < y1))[..., None]  # (B*I, 4h, 4w)
        maps[:, -1] = inside.float()
    return maps


def click_offsets(prompts: Prompts, size: tuple[int, int]) -> Tensor:
    """In which direction the clicked object lies from every position, (B*I, 2, 4h, 4w) in -1..1, x first.

    tanh(distance / 64 px) to the middle of the inside points, or of the box where there are none. Together with the
    encoder's guess of where each position's own object has its centre, this tells one object from its neighbours.
    """
    points, labels = _as_points(prompts)
    x, y = _mean(points, labels == 1).unbind(1)  # each (B*I,)
    ys, xs = _centres(prompts, size)
    right, down = torch.tanh((xs - x[:, None]) / REACHES[-1]), torch.tanh((ys - y[:, None]) / REACHES[-1])
    return torch.stack([right[:, None].expand(-1, size[0], -1), down[:, :, None].expand(-1, -1, size[1])], dim=1)


def features_at_clicks(prompts: Prompts, skips: tuple[Tensor, Tensor]) -> Tensor:
    """What the finer maps (B, b, 4h, 4w) and (B, c, 2h, 2w) hold at the inside points of each object, then at its outside
    points, on average: (B*I, 2 * (b + c)); 0 where there are none."""
    points, labels = _as_points(prompts)
    grid = points.unflatten(0, (len(skips[0]), -1))  # (B, I, P, 2)
    side = points.new_tensor(skips[0].shape[:1:-1]) * STRIDE  # width and height, pixels
    maps = [F.grid_sample(x.float(), 2 * grid / side - 1, align_corners=False) for x in skips]  # (B, b, I, P)
    found = torch.cat(maps, dim=1).permute(0, 2, 3, 1).flatten(0, 1)  # (B, b + c, I, P) -> (B*I, P, b + c)
    return torch.cat([_mean(found, labels == kind) for kind in (1, 0)], dim=1)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen (B*I, P) of the values (B*I, P, n), 0 where none is: (B*I, n)."""
    weights = chosen[..., None].to(values.dtype)
    return (values * weights).sum(1) / weights.sum(1).clamp(min=1)


def _as_points(prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Points (B*I, P, 2), whole numbers being pixel edges, and their labels (B*I, P); a box is its middle, inside."""
    if prompts.points is not None:
        return prompts.points.flatten(0, 1) + 0.5, prompts.labels.flatten(0, 1)
    if prompts.boxes is not None:
        middle = prompts.boxes.flatten(0, 1).unflatten(1, (2, 2)).mean(1, keepdim=True)  # (B*I, 1, 2)
        return middle, torch.ones_like(middle[..., 0])
    none = prompts.masks.new_zeros(prompts.masks.shape[:2].numel(), 1, 2)
    return none, none[..., 0] - 1


def _centres(prompts: Prompts, size: tuple[int, int]) -> list[Tensor]:
    """Centres of the rows and of the columns of the finest map, whole numbers being pixel edges."""
    device = next(x.device for x in prompts if x is not None)
    return [STRIDE * (torch.arange(n, device=device) + 0.5) for n in size]
