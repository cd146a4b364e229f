"""What the tiny preset adds to SAM so that it learns from few images and sees small objects: finer maps, click maps.

SAM's grid has one place per 16 pixels, and many objects are smaller than that. A convolutional stem takes the place of
the patch embedding, its finer maps are refined once per image and handed to the mask decoder, and the decoder is told
where the clicks are, and what is there, at a quarter of the image's resolution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from ullsam.sam import Prompts

STRIDE = 4  # pixels per place of the finest map
REACHES = (4.0, 16.0, 64.0)  # how far a click is felt, pixels
CLICK_CHANNELS = 2 * len(REACHES) + 1  # inside and outside points at each reach, and the box


class Clicks(NamedTuple):
    """What the clicks on B*I objects say beside SAM's tokens."""

    near: Tensor  # (B*I, 7, 4h, 4w), see `click_maps`
    offset: Tensor  # (B*I, 2, 4h, 4w), see `click_offsets`
    found: Tensor  # (B*I, 2 * (b + c)), see `features_at_clicks`


def instance_norm(width: int, scale: float = 1.0) -> nn.GroupNorm:
    """Takes each channel's mean over the image away, so that features must differ between places to say anything.

    Without it, training from scratch makes the features of all images equal: a constant is what a decoder learns to
    use first, and with Adam's equal steps it drowns the rest. A small `scale` lets a point's place count for more than
    the features around it while the decoder learns what points are.
    """
    norm = nn.GroupNorm(width, width)
    nn.init.constant_(norm.weight, scale)
    return norm


class ConvBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.layers(x))


def _down(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(8, outputs), nn.GELU())


class ConvStem(nn.Module):
    """Takes the place of SAM's patch embedding: strided convolutions, which learn faster from few images.

    Source: "Early convolutions help transformers see better" (Xiao et al. 2021).
    """

    def __init__(self, widths: tuple[int, int, int], embed_dim: int):
        super().__init__()
        a, b, c = widths
        self.quarter = nn.Sequential(_down(3, a), _down(a, b), ConvBlock(b))
        self.eighth = nn.Sequential(_down(b, c), ConvBlock(c))
        self.sixteenth = nn.Sequential(_down(c, embed_dim), ConvBlock(embed_dim), ConvBlock(embed_dim))

    def forward(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        quarter = self.quarter(pixels)  # (B, b, S/4, S/4)
        eighth = self.eighth(quarter)  # (B, c, S/8, S/8)
        return self.sixteenth(eighth).permute(0, 2, 3, 1), (quarter, eighth)  # (B, h, w, D)


class Summary(nn.Module):
    """What kind of image it is, for the language model: mean and spread of the stem's maps, through a small MLP.

    `instance_norm` leaves no trace of the whole image in the features; this brings it back where a language model needs
    it, and only there: beside it, what differs between places would be lost on the mask decoder. Texture statistics
    tell kinds of microscopy apart. Says nothing before training.
    Source: the global vector of squeeze and excitation (Hu et al. 2018), added instead of multiplied.
    """

    def __init__(self, widths: tuple[int, int], channels: int):
        super().__init__()
        inputs = 2 * sum(widths)
        self.mlp = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, channels), nn.GELU(), nn.Linear(channels, channels))
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.zeros_(self.mlp[-1].bias)

    def forward(self, skips: tuple[Tensor, Tensor]) -> Tensor:
        """Maps (B, b, 4h, 4w) and (B, c, 2h, 2w) -> (B, C, 1, 1)."""
        flat = [x.flatten(2).float() for x in skips]
        statistics = [y for x in flat for y in (x.mean(2), x.std(2))]  # each (B, b) or (B, c)
        return self.mlp(torch.cat(statistics, dim=1))[..., None, None]


class FinePath(nn.Module):
    """Refines the stem's finer maps with what the transformer found, once per image.

    Source: the top-down path of U-Net (Ronneberger et al. 2015); HQ-SAM (Ke et al. 2023) has the same place for it.
    """

    def __init__(self, widths: tuple[int, int], channels: int):
        super().__init__()
        b, c = widths
        self.to_eighth, self.eighth = nn.Conv2d(channels, c, 1), ConvBlock(c)
        self.to_quarter, self.quarter = nn.Conv2d(c, b, 1), ConvBlock(b)

    def forward(self, embedding: Tensor, skips: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        quarter, eighth = skips
        eighth = self.eighth(F.gelu(_double(self.to_eighth(embedding)) + eighth))  # (B, c, 2h, 2w)
        return self.quarter(F.gelu(_double(self.to_quarter(eighth)) + quarter)), eighth  # (B, b, 4h, 4w)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class FineMaskDecoder(MaskDecoder):
    """SAM's mask decoder; while the mask embedding is enlarged, the image's finer maps and the click maps are added."""

    def __init__(self, widths: tuple[int, int], transformer_dim: int, **kwargs):
        super().__init__(transformer_dim=transformer_dim, **kwargs)
        fine, coarse = transformer_dim // 8, transformer_dim // 4
        self.skip_quarter = nn.Sequential(nn.Conv2d(widths[0], fine, 1), instance_norm(fine))
        self.skip_eighth = nn.Sequential(nn.Conv2d(widths[1], coarse, 1), instance_norm(coarse))
        self.click_quarter, self.click_eighth = (nn.Conv2d(CLICK_CHANNELS, n, 1) for n in (fine, coarse))
        self.refine_eighth = nn.ModuleList(nn.Conv2d(coarse, coarse, 3, padding=n, dilation=n) for n in (1, 2))
        self.refine_quarter = nn.Conv2d(fine, fine, 3, padding=1)
        self.offset_quarter, self.offset_eighth = (nn.Conv2d(2, n, 1, bias=False) for n in (fine, coarse))
        self.anchor = nn.Linear(2 * sum(widths), transformer_dim)  # the object's looks, for its mask tokens
        for layer in (self.offset_quarter, self.offset_eighth, self.anchor):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)  # the decoder learns without them first

    def upscale(self, src: Tensor, skips: tuple[Tensor, Tensor], clicks: Clicks) -> Tensor:
        """Mask embedding (B*I, C/8, 4h, 4w) of the attended src (B*I, C, h, w), the finer maps of B images, and what
        their clicks say."""
        enlarge, norm, act, enlarge_again, _ = self.output_upscaling
        quarter, eighth = (per_instance(x, len(src)) for x in (self.skip_quarter(skips[0]), self.skip_eighth(skips[1])))
        near, offset = (F.avg_pool2d(x, 2) for x in clicks[:2])  # (B*I, 7, 2h, 2w) and (B*I, 2, 2h, 2w)
        x = act(norm(enlarge(src) + eighth) + self.click_eighth(near) + self.offset_eighth(offset))  # (B*I, C/4, 2h, 2w)
        for refine in self.refine_eighth:
            x = x + act(refine(x))
        x = enlarge_again(x) + quarter + self.click_quarter(clicks.near) + self.offset_quarter(clicks.offset)
        x = act(x)  # (B*I, C/8, 4h, 4w)
        return x + act(self.refine_quarter(x))


def per_instance(x: Tensor, total: int) -> Tensor:
    """Repeats the entries of x (B, ...) to (total, ...), where total = B * I; one image is expanded without a copy."""
    if len(x) == total:
        return x
    return x.expand(total, *x.shape[1:]) if len(x) == 1 else x.repeat_interleave(total // len(x), dim=0)


def read_clicks(prompts: Prompts, skips: tuple[Tensor, Tensor]) -> Clicks:
    """All that the decoder is told of the clicks; `skips` are the finer maps of the B images."""
    size = skips[0].shape[2:]
    return Clicks(click_maps(prompts, size), click_offsets(prompts, size), features_at_clicks(prompts, skips))


def click_maps(prompts: Prompts, size: tuple[int, int]) -> Tensor:
    """How near the clicks are, for every place of the finest map.

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
    """In which direction the clicked object lies from every place, (B*I, 2, 4h, 4w) in -1..1, x first.

    tanh(distance / 64 px) to the middle of the inside points, or of the box where there are none. Together with the
    encoder's guess of where each place's own object has its centre, this tells one object from its neighbours.
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
