"""Other people's models behind our `Predictor`: SAM, SAM-HQ, SAM 2, MedSAM and uSAM, each fed as its authors feed it.

Letters: I objects, K masks per object, h w a model's low-resolution masks, H W the image.
Source: paper, Table 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ullsam.checkpoints import load_sam
from ullsam.checkpoints.loading import SHIPPED, load
from ullsam.config import ModelConfig
from ullsam.data.prompts import prompts_on
from ullsam.errors import InputError, reason
from ullsam.files import local_folder, read_json
from ullsam.model import ULLSAM
from ullsam.predictor import Predictor, View
from ullsam.pretrained import load_strictly
from ullsam.types import Prompts

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


class BaselinePredictor(Predictor):
    """`Predictor` for a network of others: prompts are checked and cut into chunks as for our own models.

    A subclass gives `encode` and `run`; only this class knows how `Predictor` calls them.
    """

    def __init__(self, net: nn.Module, name: str):
        super().__init__(Baseline(net, name))

    def encode(self, image: np.ndarray, side: None = None) -> View:
        """A uint8 RGB image (H, W, 3), prepared and encoded as the model's authors do it; its square is a Stretch."""
        raise NotImplementedError

    def run(self, view: View, prompts: Prompts, multimask: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Masks bool (I, K, H, W), scores (I, K) and logits (I, K, h, w) for prompts in pixels of the model's input."""
        raise NotImplementedError

    def knowledge(self, words: str | None = None) -> None:
        """None: only uLLSAM has knowledge, and none of the others follows words."""
        if words is not None:
            raise InputError("This model follows no words; leave them out, or load 'tiny'.")

    def check_prompts(self, points, labels, box, mask) -> dict[str, np.ndarray]:
        """See `Predictor.check_prompts`."""
        if mask is not None:
            raise InputError(f"Model {self.model.config.name} is compared on points and boxes; give no mask.")
        return super().check_prompts(points, labels, box, None)

    def decode(self, given: dict[str, np.ndarray], knowledge: None, candidates: slice) -> tuple[np.ndarray, ...]:
        """See `Predictor.decode`."""
        found = self.run(self.view, prompts_on(self.view.square, given, self.model.device), candidates.start > 0)
        return tuple(x.cpu().numpy() for x in found)


class HubPredictor(BaselinePredictor):
    """SAM, SAM-HQ or SAM 2 of transformers, with the resizing and normalisation of its own processor."""

    def __init__(self, net: nn.Module, processor, name: str):
        super().__init__(net, name)
        self.processor = processor

    def encode(self, image: np.ndarray, side: None = None) -> View:
        """See `BaselinePredictor.encode`."""
        batch = self.processor(images=image, input_data_format="channels_last", return_tensors="pt")
        pixels = batch["pixel_values"].to(self.model.device)  # (1, 3, S, S)
        inner = batch["reshaped_input_sizes"][0].tolist() if "reshaped_input_sizes" in batch else pixels.shape[-2:]
        features = self.model.net.get_image_embeddings(pixels)
        names = ("image_embeddings", "intermediate_embeddings")  # SAM-HQ's decoder reads early layers, too
        features = dict(zip(names, features if isinstance(features, tuple) else (features,), strict=False))
        return View(Stretch(*image.shape[:2], tuple(inner)), features)

    def run(self, view: View, prompts: Prompts, multimask: bool) -> tuple[Tensor, Tensor, Tensor]:
        """See `BaselinePredictor.run`."""
        labels = None if prompts.labels is None else prompts.labels.long()
        given = {"input_points": prompts.points, "input_labels": labels, "input_boxes": prompts.boxes}
        given = {name: x for name, x in given.items() if x is not None}
        out = self.model.net(**view.features, **given, multimask_output=multimask)
        logits, scores = out.pred_masks[0], out.iou_scores[0]  # (1, I, K, h, w) -> (I, K, h, w)
        sizes = [[[view.square.height, view.square.width]], [list(view.square.inner)]]  # SAM 2 wants only the first
        sizes = sizes[:1] if "Sam2" in type(self.processor).__name__ else sizes
        return self.processor.post_process_masks([logits], *sizes)[0], scores, logits


class MedSamPredictor(BaselinePredictor):
    """MedSAM: a SAM that sees the image squashed to a square, its values stretched to 0..1, without pixel mean.

    It was trained on boxes alone: with points it is out of its domain.
    Source: MedSAM's inference script.
    """

    def encode(self, image: np.ndarray, side: None = None) -> View:
        """See `BaselinePredictor.encode`."""
        from skimage.transform import resize

        size = self.model.net.config.sam.image_size
        squashed = resize(image, (size, size), order=3, preserve_range=True, anti_aliasing=True).astype(np.uint8)
        low, high = int(squashed.min()), int(squashed.max())
        pixels = torch.from_numpy((squashed - np.float32(low)) / max(high - low, 1e-8)).to(self.model.device)
        pixels = pixels.float().permute(2, 0, 1)[None]  # (S, S, 3) -> (1, 3, S, S)
        return View(Stretch(*image.shape[:2], (size, size)), self.model.net.encode(pixels))

    def run(self, view: View, prompts: Prompts, multimask: bool) -> tuple[Tensor, Tensor, Tensor]:
        """See `BaselinePredictor.run`."""
        candidates = slice(1, None) if multimask else slice(0, 1)
        logits, scores = (x[0, :, candidates] for x in self.model.net.segment(view.features, prompts))  # (I, K, ..)
        chances = F.interpolate(logits.sigmoid(), (view.square.height, view.square.width), mode="bilinear")
        return chances > 0.5, scores, logits


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
    path = Path(name)
    medsam = "medsam" in path.name.lower()
    if str(name) not in SHIPPED and (medsam or path.is_file()):  # a checkpoint of a SAM, without language
        sam, config = load_sam(name, device=device)
        model = ULLSAM(ModelConfig(name=path.stem, sam=config, llm=None, vlsa="none"), sam).eval()
        return MedSamPredictor(model, path.stem) if medsam else Predictor(model)
    if len(path.parts) == 1 and not path.is_dir() and not path.suffix:
        return Predictor(load(name, device=device))  # a shipped model, or a sentence on what names there are
    folder = local_folder(name)
    if not (folder / "config.json").is_file() or "model_type" not in read_json(folder / "config.json"):
        return Predictor(load(folder, device=device))
    import transformers

    model_type = read_json(folder / "config.json")["model_type"]
    if model_type not in CLASSES:
        raise InputError(f"{folder} holds a model of type {model_type}; give one of {', '.join(CLASSES)}, or one of ours.")
    net_class, processor_class = (getattr(transformers, x) for x in CLASSES[model_type])
    try:
        processor = processor_class.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{folder} could not be loaded ({reason(error)}); download its config.json, "
            "preprocessor_config.json and model.safetensors again."
        ) from error
    return HubPredictor(load_strictly(net_class, folder, partial=True, dtype=torch.float32).to(device), processor, path.name)
