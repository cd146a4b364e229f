"""Other people's models behind our `Predictor`: SAM, SAM-HQ, SAM 2, MedSAM and uSAM, each fed as its authors feed it.

Letters: I objects, K masks per object, h w a model's low-resolution masks, H W the image.
Source: paper, Table 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ullsam.checkpoints import load_sam
from ullsam.checkpoints.hub import load_model, local_folder
from ullsam.config import ModelConfig
from ullsam.data.io import to_rgb8
from ullsam.errors import InputError, reason
from ullsam.files import read_json
from ullsam.model import SHIPPED, ULLSAM, load
from ullsam.predictor import Predictor, prompts_on
from ullsam.sam import encode_image

# model_type in config.json -> transformers' classes; SAM 2's folders hold the video model, whose image part we use
CLASSES = {
    "sam": ("SamModel", "SamProcessor"),
    "sam_hq": ("SamHQModel", "SamHQProcessor"),
    "sam2": ("Sam2Model", "Sam2Processor"),
    "sam2_video": ("Sam2Model", "Sam2Processor"),
}


@dataclass(frozen=True)
class Stretch:
    """How an image of height x width pixels lies in a model's input: stretched to `inner` (h, w), from the top left."""

    height: int
    width: int
    inner: tuple[int, int]

    def points_in(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2) points from image pixels to model pixels, float32, as these models' own code scales them."""
        h, w = self.inner
        return (np.asarray(xy, np.float64) * (w / self.width, h / self.height)).astype(np.float32)

    def boxes_in(self, xyxy: np.ndarray) -> np.ndarray:
        """(..., 4) boxes (x0, y0, x1, y1) from image pixels to model pixels, float32."""
        boxes = np.asarray(xyxy)
        return self.points_in(boxes.reshape(*boxes.shape[:-1], 2, 2)).reshape(boxes.shape)  # (..., 4) -> (..., 2, 2)


class Baseline(nn.Module):
    """A network without language: what `Predictor` and `evaluate` ask of a model."""

    vlsa = llm = None
    device, llm_or_raise = ULLSAM.device, ULLSAM.llm_or_raise

    def __init__(self, net: nn.Module, name: str):
        super().__init__()
        self.net, self.config = net, SimpleNamespace(name=name)

    def image_tokens(self, features):
        """There are none: one sentence says so."""
        self.llm_or_raise()


class Encoded(NamedTuple):
    """An image as a baseline sees it."""

    square: Stretch  # how it lies in the model's input
    features: object  # what the model's decoder takes


class BaselinePredictor(Predictor):
    """`Predictor` for a `Baseline`; points and boxes are checked and cut into chunks as for our own models."""

    def knowledge(self) -> None:
        """None: only uLLSAM has knowledge."""

    def _given(self, points, labels, box, mask) -> dict[str, np.ndarray]:
        if mask is not None:
            raise InputError(f"Model {self.model.config.name} is compared on points and boxes; give no mask.")
        return super()._given(points, labels, box, None)


class HubPredictor(BaselinePredictor):
    """SAM, SAM-HQ or SAM 2 of transformers, with the resizing and normalisation of its own processor."""

    def __init__(self, net: nn.Module, processor, name: str):
        super().__init__(Baseline(net, name))
        self.processor = processor

    @torch.inference_mode()
    def set_image(self, image: np.ndarray) -> None:
        """Encodes an image, see `Predictor.set_image`."""
        rgb = to_rgb8(image)
        batch = self.processor(images=rgb, input_data_format="channels_last", return_tensors="pt")
        pixels = batch["pixel_values"].to(self.model.device)  # (1, 3, S, S)
        inner = batch["reshaped_input_sizes"][0].tolist() if "reshaped_input_sizes" in batch else pixels.shape[-2:]
        features = self.model.net.get_image_embeddings(pixels)
        names = ("image_embeddings", "intermediate_embeddings")  # SAM-HQ's decoder looks at early layers, too
        features = dict(zip(names, features if isinstance(features, tuple) else (features,), strict=False))
        self._views = (Encoded(Stretch(*rgb.shape[:2], tuple(inner)), features),)

    def _decode(self, given: dict[str, np.ndarray], views: tuple[Encoded], use_vlk: bool, kinds: slice):
        (view,) = views
        prompts = prompts_on(view.square, given, self.model.device)
        named = {"input_points": prompts.points, "input_labels": prompts.labels, "input_boxes": prompts.boxes}
        named = {k: x.long() if k == "input_labels" else x for k, x in named.items() if x is not None}
        out = self.model.net(**view.features, **named, multimask_output=kinds.start > 0)
        logits, scores = out.pred_masks[0], out.iou_scores[0]  # (1, I, K, h, w) -> (I, K, h, w)
        return self._masks(logits, view.square).cpu().numpy(), scores.cpu().numpy(), logits.cpu().numpy()

    def _masks(self, logits: Tensor, square: Stretch) -> Tensor:
        """(I, K, h, w) logits -> bool (I, K, H, W)."""
        sizes = [[square.height, square.width]]
        if "Sam2" in type(self.processor).__name__:
            return self.processor.post_process_masks([logits], sizes)[0]
        return self.processor.post_process_masks([logits], sizes, [list(square.inner)])[0]


class MedSamPredictor(BaselinePredictor):
    """MedSAM: a SAM that sees the image squashed to a square, its values stretched to 0..1, without pixel mean.

    It was trained on boxes alone: with points it is out of its domain.
    Source: MedSAM's inference script.
    """

    def __init__(self, model: ULLSAM):
        super().__init__(Baseline(model, model.config.name))

    @torch.inference_mode()
    def set_image(self, image: np.ndarray) -> None:
        """Encodes an image, see `Predictor.set_image`."""
        from skimage.transform import resize

        rgb, size = to_rgb8(image), self.model.net.config.sam.image_size
        squashed = resize(rgb, (size, size), order=3, preserve_range=True, anti_aliasing=True).astype(np.uint8)
        low, high = int(squashed.min()), int(squashed.max())
        pixels = torch.from_numpy((squashed - np.float32(low)) / max(high - low, 1e-8)).to(self.model.device)
        pixels = pixels.float().permute(2, 0, 1)[None]  # (S, S, 3) -> (1, 3, S, S)
        features = encode_image(self.model.net.sam.image_encoder, pixels)
        self._views = (Encoded(Stretch(*rgb.shape[:2], (size, size)), features),)

    def _decode(self, given: dict[str, np.ndarray], views: tuple[Encoded], use_vlk: bool, kinds: slice):
        (view,) = views
        logits, scores = self.model.net.segment(view.features, prompts_on(view.square, given, self.model.device))
        logits, scores = logits[0, :, kinds], scores[0, :, kinds]  # (1, I, 4, h, w) -> (I, K, h, w)
        shares = F.interpolate(logits.sigmoid(), (view.square.height, view.square.width), mode="bilinear")
        return (shares > 0.5).cpu().numpy(), scores.cpu().numpy(), logits.cpu().numpy()


def open_predictor(name: str | Path, device: str | torch.device = "cpu") -> Predictor:
    """A predictor for any model of the comparison.

    Args:
        name: "tiny" or "usam-tiny"; a folder of ours; a SAM or uSAM file; a folder or hub name in transformers' layout,
            such as facebook/sam-vit-base, syscv-community/sam-hq-vit-base or facebook/sam2-hiera-tiny. A name that
            has "medsam" in its last part is MedSAM's, whose images are prepared in another way than SAM's.
        device: where it computes.

    Raises:
        InputError: no such file, folder or repository, no network, or a model of another kind.
    """
    if str(name) in SHIPPED:
        return Predictor(load(name, device=device))
    if "medsam" in Path(name).name.lower():
        return MedSamPredictor(_plain_sam(name, device))
    if Path(name).is_file():
        return Predictor(_plain_sam(name, device))
    if len(Path(name).parts) == 1 and not Path(name).is_dir() and not Path(name).suffix:
        return Predictor(load(name, device=device))  # which says what names there are
    folder = local_folder(name)
    if not (folder / "config.json").is_file() or "model_type" not in read_json(folder / "config.json"):
        return Predictor(load(folder, device=device))
    return _open_transformers(folder, Path(name).name, device)


def _plain_sam(name: str | Path, device) -> ULLSAM:
    """A SAM or uSAM checkpoint as a model of ours without language."""
    sam, config = load_sam(name, device=device)
    return ULLSAM(ModelConfig(name=Path(name).stem, sam=config, llm=None, vlsa="none"), sam).eval()


def _open_transformers(folder: Path, name: str, device) -> HubPredictor:
    import transformers

    kind = read_json(folder / "config.json")["model_type"]
    if kind not in CLASSES:
        raise InputError(f"{folder} holds a model of type {kind}; give one of {', '.join(CLASSES)}, or a model of ours.")
    net_class, processor_class = (getattr(transformers, x) for x in CLASSES[kind])
    try:
        processor = processor_class.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{folder} could not be loaded ({reason(error)}); download its config.json, "
            "preprocessor_config.json and model.safetensors again."
        ) from error
    net = load_model(net_class, folder, partial=True, dtype=torch.float32)
    return HubPredictor(net.to(device), processor, name)
