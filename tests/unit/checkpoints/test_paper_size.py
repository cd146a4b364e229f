"""A dry run of the preset `paper`: two steps of each stage on random weights, small in every run, full size when asked."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from ullsam import ULLSAM, Mixture, build_sam, fit, preset
from ullsam.checkpoints.internlm2 import llama_config
from ullsam.checkpoints.paper import add_adapters
from ullsam.config import INTERNVL, PAPER_TRAINING, ModelConfig, SamConfig
from ullsam.files import assign
from ullsam.llm import LanguageModel
from ullsam.pretrained import debug_llm, empty_lm

SMALL = {
    "model_type": "internlm2",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "vocab_size": 259,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FULL = SMALL | dict(
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=24,
    num_attention_heads=16,
    num_key_value_heads=8,
    vocab_size=92553,
)


def random_model(sam: SamConfig, sizes: dict) -> ULLSAM:
    """The paper's model with random weights: its language model in bfloat16 with adapters, all else float32."""
    lm = empty_lm(llama_config(sizes, "here"))
    weights = {name: torch.empty(x.shape, dtype=torch.bfloat16) for name, x in lm.state_dict().items()}
    for name, x in weights.items():
        x.fill_(1) if "norm" in name else x.normal_(std=0.02)
    assign(lm, weights, "random")
    language = LanguageModel(lm.requires_grad_(False), debug_llm()[1], INTERNVL)
    language = add_adapters(language, replace(INTERNVL, lora_rank=16))
    return ULLSAM(ModelConfig(sam=sam, llm=language.config), build_sam(sam), language)


def dry_run(model: ULLSAM, stage: int, folder: Path) -> list[dict]:
    """The log of two steps of a stage; one image per step, since more need time and not memory."""
    mixture = Mixture([], ["fluorescence_nuclei"], 1.0, synthetic_size=model.config.sam.image_size)
    config = replace(PAPER_TRAINING[stage], steps=2, warmup=1, batch_size=1, accumulate=1, log_every=1)
    return fit(model, config, mixture, folder / str(stage), progress=False)


def test_two_steps_of_each_stage_at_a_small_size(tmp_path):
    model = random_model(preset("debug").sam, SMALL)
    before = {name: x.clone() for name, x in model.llm.state_dict().items() if "lora_" not in name}
    logs = {stage: dry_run(model, stage, tmp_path) for stage in PAPER_TRAINING}
    assert {stage: [line["step"] for line in lines] for stage, lines in logs.items()} == {i: [1, 2] for i in (1, 2, 3)}
    model.llm.merge_lora(False)
    changes = [(x - before[name]).abs().max() for name, x in model.llm.state_dict().items() if name in before]
    assert max(changes) < 1e-3  # the language model keeps its weights, up to the rounding of a merge
    trained = [torch.load(tmp_path / str(stage) / "checkpoint.pt", weights_only=True)["model"] for stage in (1, 2, 3)]
    assert all(x.dtype == torch.float32 for part in trained for x in part.values())


@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().available < 16e9, reason="needs 16 GB of free memory")
def test_two_steps_of_each_stage_at_full_size(tmp_path):
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 16


if __name__ == "__main__":
    import resource

    whole = random_model(preset("paper").sam, FULL)
    for number in PAPER_TRAINING:
        seconds = dry_run(whole, number, Path(sys.argv[1]))[-1]["seconds"]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"stage {number}: two steps in {seconds:.0f} s, peak memory so far in GB: {peak:.2f}", flush=True)
