"""Real checkpoints: SAM, uSAM, InternVL2.5 and the official uLLSAM files, read strictly and without running code in them.

Every loader tells the sizes from the file, builds the model without memory (on PyTorch's meta device) and hands it the
file's own tensors, so that no second copy is ever made. Names that are missing or left over are an error that lists them.
"""

from ullsam.checkpoints.internlm2 import load_internlm2, load_tokenizer
from ullsam.checkpoints.loading import load, shipped
from ullsam.checkpoints.official import load_official, save_official
from ullsam.checkpoints.paper import load_paper
from ullsam.checkpoints.parity import check_parity
from ullsam.checkpoints.sam import load_sam, read_sam
