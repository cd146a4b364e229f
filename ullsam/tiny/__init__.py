"""The tiny model: what is added to SAM so that it can be trained from scratch on a CPU; see README.md in this folder.

Importing this room makes its settings, its SAM, its language model and its training stages known to the core.
"""

from ullsam.tiny.config import TINY, USAM_TINY, TinySamConfig, TinyTrainConfig
from ullsam.tiny.objectives import DenseObjective, TinySegmentation
from ullsam.tiny.predictor import ScalePredictor
from ullsam.tiny.sam import FineFeatures, TinySAM
from ullsam.tiny.smollm2 import smollm2_folder
