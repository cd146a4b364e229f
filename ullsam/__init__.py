"""uLLSAM: Segment Anything in microscopy, guided by a language model. What notebooks need, under short names."""

from ullsam.compare import compare_vlsa
from ullsam.config import PRESETS, LlmConfig, ModelConfig, SamConfig, TrainConfig, fast, preset
from ullsam.data.corpus import Corpus, Sample, data_root, find_corpora
from ullsam.data.io import Square, from_square, read_image, read_labels, to_rgb8, to_square, write_labels
from ullsam.data.mixture import Mixture
from ullsam.data.synthetic import STYLES, generate
from ullsam.errors import InputError
from ullsam.evaluate import evaluate, format_table
from ullsam.model import ULLSAM, load, shipped
from ullsam.predictor import Prediction, Predictor
from ullsam.sam import ImageFeatures, Prompts, build_sam, decode_masks, encode_image, encode_prompts
from ullsam.sbr import SbrConfig, SbrPoints, sample_instances, sample_points, sbr_regions
from ullsam.train import STAGES, fit
from ullsam.vlsa import (
    VLSA,
    VisionProjection,
    VlsaShape,
    build_vlsa,
    check_vlsa,
    pixel_shuffle,
    pixel_unshuffle,
    register_vlsa,
    vlsa_names,
)

__version__ = "0.1.0"


def show(thing) -> None:
    """Prints the source code of a function, class or method, so that a notebook hides nothing behind an import."""
    import inspect

    print(inspect.getsource(thing))


__all__ = [
    "PRESETS", "STAGES", "STYLES", "ULLSAM", "VLSA", "Corpus", "ImageFeatures", "InputError", "LlmConfig",
    "Mixture", "ModelConfig", "Prediction", "Predictor", "Prompts", "SamConfig", "Sample", "SbrConfig",
    "SbrPoints", "Square", "TrainConfig", "VisionProjection", "VlsaShape", "build_sam", "build_vlsa", "check_vlsa",
    "compare_vlsa", "data_root", "decode_masks", "encode_image", "encode_prompts", "evaluate", "fast",
    "find_corpora", "fit", "format_table", "from_square", "generate", "load", "pixel_shuffle", "pixel_unshuffle",
    "preset", "read_image", "read_labels", "register_vlsa", "sample_instances", "sample_points", "sbr_regions",
    "shipped", "show", "to_rgb8", "to_square", "vlsa_names", "write_labels",
]  # fmt: skip
