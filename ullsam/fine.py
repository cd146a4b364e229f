"""What the tiny preset adds to SAM so that it learns from few images and sees small objects: finer maps, click maps.

SAM's grid has one place per 16 pixels, and many objects are smaller than that. A convolutional stem takes the place of
the patch embedding, its finer maps are refined once per image and handed to the mask decoder, and the decoder is told
where the clicks are at a quarter of the image's resolution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from ullsam.sam import Prompts

STRIDE = 4  # pixels per place of the finest map
REACHES = (4.0, 16.0, 64.0)  # how far a click is felt, pixels
CLICK_CHANNELS = 2 * len(REACHES) + 1  # inside and outside points at each reach, and the box


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
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width),
        )  # fmt: skip

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
    """What kind of image it is, said at every place: mean and spread of the stem's maps, through a small MLP.

    `instance_norm` leaves no trace of the whole image in the features; this brings it back where a language model needs
    it. Texture statistics tell kinds of microscopy apart. Adds nothing before training.
    Source: the global vector of squeeze and excitation (Hu et al. 2018), added instead of multiplied.
    """

    def __init__(self, widths: tuple[int, int], channels: int):
        super().__init__()
        inputs = 2 * sum(widths)
        self.mlp = nn.Sequential(
            nn.LayerNorm(inputs), nn.Linear(inputs, channels), nn.GELU(), nn.Linear(channels, channels)
        )
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

    def upscale(self, src: Tensor, skips: tuple[Tensor, Tensor], clicks: Tensor) -> Tensor:
        """Mask embedding (B*I, C/8, 4h, 4w) of the attended src (B*I, C, h, w), the finer maps of B images, and the
        click maps (B*I, 7, 4h, 4w)."""
        enlarge, norm, act, enlarge_again, _ = self.output_upscaling
        quarter, eighth = (per_instance(x, len(src)) for x in (self.skip_quarter(skips[0]), self.skip_eighth(skips[1])))
        x = act(norm(enlarge(src) + eighth) + self.click_eighth(F.avg_pool2d(clicks, 2)))  # (B*I, C/4, 2h, 2w)
        for refine in self.refine_eighth:
            x = x + act(refine(x))
        x = act(enlarge_again(x) + quarter + self.click_quarter(clicks))  # (B*I, C/8, 4h, 4w)
        return x + act(self.refine_quarter(x))


def per_instance(x: Tensor, total: int) -> Tensor:
    """Repeats the entries of x (B, ...) to (total, ...), where total = B * I; one image is expanded without a copy."""
    if len(x) == total:
        return x
    return x.expand(total, *x.shape[1:]) if len(x) == 1 else x.repeat_interleave(total // len(x), dim=0)


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
    device = next(x.device for x in prompts if x is not None)
    ys, xs = (STRIDE * (torch.arange(n, device=device) + 0.5) for n in size)  # centres, pixel edges at whole numbers
    maps = torch.zeros(shape.numel(), CLICK_CHANNELS, *size, device=device)
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
