"""What the tiny preset adds to SAM so that it learns from few images and sees small objects: finer maps, click maps.

SAM's grid has one position per 16 pixels, and many objects are smaller than that. A convolutional stem takes the place of
the patch embedding, its finer maps are refined once per image and handed to the mask decoder, and the decoder is told
where the clicks are, and what is there, at a quarter of the image's resolution.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from ullsam.sam import per_instance
from ullsam.tiny.clicks import CLICK_CHANNELS, Clicks


def instance_norm(width: int, scale: float = 1.0) -> nn.GroupNorm:
    """Takes each channel's mean over the image away, so that features must differ between positions to say anything.

    Without it, training from scratch makes the features of all images equal: a constant is what a decoder learns to
    use first, and with Adam's equal steps it drowns the rest. A small `scale` lets a point's position count for more than
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
    it, and only there: beside it, what differs between positions would be lost on the mask decoder. Texture statistics
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
