"""Other models behind our predictor: the same masks as from the model itself, prompts in their place, clear errors."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers as hf
from skimage.transform import resize
from torch.nn import functional as F

from ullsam import InputError, build_sam, generate, preset
from ullsam.cli import main
from ullsam.evaluation.protocol import SCORES
from ullsam.lab.baselines import MedSamPredictor, open_predictor

SIDE = 128
MODEL_TYPES = ("sam", "sam_hq", "sam2", "sam2_video")
VISION = dict(
    image_size=SIDE,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    output_channels=32,
    mlp_dim=64,
    window_size=2,
    global_attn_indexes=[1],
    num_pos_feats=16,
)
PROMPT = dict(image_size=SIDE, hidden_size=32, mask_input_channels=4)
DECODER = dict(hidden_size=32, mlp_dim=64, iou_head_hidden_dim=32, num_attention_heads=2)


def sam2_config(config_class):
    backbone = dict(
        hidden_size=16,
        image_size=[SIDE, SIDE],
        num_attention_heads=1,
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 4, 2],
        global_attention_blocks=[3],
    )
    vision = hf.Sam2VisionConfig(
        backbone_config=hf.Sam2HieraDetConfig(**backbone),
        backbone_channel_list=[128, 64, 32, 16],
        fpn_hidden_size=32,
        backbone_feature_sizes=[[SIDE // 4] * 2, [SIDE // 8] * 2, [SIDE // 16] * 2],
    )
    small = (
        {}
        if config_class is hf.Sam2Config
        else dict(
            image_size=SIDE,
            memory_attention_hidden_size=32,
            memory_attention_num_layers=1,
            memory_encoder_hidden_size=32,
            memory_encoder_output_channels=16,
            memory_attention_feed_forward_hidden_size=32,
            memory_attention_rope_feat_sizes=[8, 8],
            mask_downsampler_embed_dim=32,
            memory_fuser_embed_dim=32,
        )
    )
    return config_class(vision_config=vision, prompt_encoder_config=PROMPT, mask_decoder_config=DECODER, **small)


def random_model(kind):
    """A small model of transformers' own class whose masks vary over the image."""
    torch.manual_seed(3)
    parts = {"vision_config": VISION, "prompt_encoder_config": PROMPT, "mask_decoder_config": DECODER}
    if kind == "sam":
        net = hf.SamModel(hf.SamConfig(**parts))
    elif kind == "sam_hq":
        parts["mask_decoder_config"] = DECODER | {"vit_dim": 32}
        net = hf.SamHQModel(hf.SamHQConfig(**parts))
    elif kind == "sam2":
        net = hf.Sam2Model(sam2_config(hf.Sam2Config))
    else:
        net = hf.Sam2VideoModel(sam2_config(hf.Sam2VideoConfig))
    for name, parameter in net.named_parameters():
        torch.nn.init.normal_(parameter, std=0.4 if "mask_decoder" in name else 0.15)
    return net.eval()


def processor(kind):
    if kind.startswith("sam2"):
        return hf.Sam2Processor(hf.Sam2ImageProcessor(size={"height": SIDE, "width": SIDE}))
    image_processor = hf.SamImageProcessor(size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE})
    return {"sam": hf.SamProcessor, "sam_hq": hf.SamHQProcessor}[kind](image_processor)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder per kind, saved by transformers' own classes."""
    root = tmp_path_factory.mktemp("hub")
    for kind in MODEL_TYPES:
        random_model(kind).save_pretrained(root / kind)
        processor(kind).save_pretrained(root / kind)
    return root


IMAGE = generate("fluorescence_nuclei", 4, 96).image[:60]  # 60 x 96: neither square nor the model's size
POINTS = np.array([[[20.0, 10], [70, 50]], [[90, 5], [3, 58]], [[48, 30], [49, 31]]])
LABELS = np.array([[1, 0], [1, 0], [1, 1]])
BOXES = np.array([[5.0, 5, 40, 30], [50, 10, 95, 59]])


@torch.no_grad()
def direct(kind, folder, image, points=None, labels=None, boxes=None, multimask=False):
    """Masks and scores by transformers alone, as its documentation does it."""
    net_class = {"sam": hf.SamModel, "sam_hq": hf.SamHQModel}.get(kind, hf.Sam2Model)
    net, prepare = net_class.from_pretrained(folder), processor(kind)
    prompts = {"input_points": points, "input_labels": labels, "input_boxes": boxes}
    prompts = {k: [x.tolist()] for k, x in prompts.items() if x is not None}
    inputs = prepare(images=image, **prompts, return_tensors="pt")
    sizes = [inputs.pop("original_sizes"), *([inputs.pop("reshaped_input_sizes")] if not kind.startswith("sam2") else [])]
    inputs = {k: x.float() if x.dtype == torch.float64 else x for k, x in inputs.items()}
    out = net(**inputs, multimask_output=multimask)
    return prepare.post_process_masks(out.pred_masks, *sizes)[0].numpy(), out.iou_scores[0].numpy()


@pytest.mark.parametrize("kind", MODEL_TYPES)
@pytest.mark.parametrize("multimask", [False, True])
def test_same_masks_as_the_model_itself(folders, kind, multimask):
    predictor = open_predictor(folders / kind)
    predictor.set_image(IMAGE)
    found = predictor.predict(POINTS, LABELS, multimask=multimask)
    masks, scores = direct(kind, folders / kind, IMAGE, POINTS, LABELS, multimask=multimask)
    masks, scores = (masks, scores) if multimask else (masks[:, 0], scores[:, 0])
    assert found.masks.shape == masks.shape == (3, *([3] if multimask else []), 60, 96)
    assert np.array_equal(found.masks, masks) and 0.02 < masks.mean() < 0.98
    np.testing.assert_allclose(found.scores, scores, rtol=1e-4, atol=1e-5)
    assert len({logits.tobytes() for logits in found.logits}) == 3  # the prompts do make a difference


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_same_masks_for_boxes(folders, kind):
    predictor = open_predictor(folders / kind)
    predictor.set_image(IMAGE)
    assert np.array_equal(predictor.predict(box=BOXES).masks, direct(kind, folders / kind, IMAGE, boxes=BOXES)[0][:, 0])


def test_more_objects_than_fit_one_chunk(folders):
    predictor = open_predictor(folders / "sam2")
    predictor.set_image(IMAGE)
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 59, (40, 1, 2))
    masks = predictor.predict(points, np.ones((40, 1))).masks
    assert len(masks) == 40
    assert np.array_equal(masks[35], predictor.predict(points[35], np.ones(1)).masks[0])


@pytest.mark.parametrize("kind", MODEL_TYPES)
@pytest.mark.parametrize("size", [(60, 96), (96, 60), (200, 300)])
def test_points_land_on_what_they_point_at(folders, kind, size, monkeypatch):
    """A bright spot at (x, y) of the image is where the point (x, y) is in the model's input."""
    predictor, seen = open_predictor(folders / kind), {}
    net, encode = predictor.model.net, predictor.model.net.get_image_embeddings
    monkeypatch.setattr(net, "get_image_embeddings", lambda x, **k: seen.update(pixels=x) or encode(x, **k))
    net.register_forward_pre_hook(lambda m, a, k: seen.update(k), with_kwargs=True)
    image, (x, y) = np.zeros((*size, 3), np.uint8), (44, 21)
    image[y - 4 : y + 5, x - 4 : x + 5] = 255
    predictor.set_image(image)
    predictor.predict(points=[(x, y)], labels=[1])
    bright = seen["pixels"][0].mean(0)
    weight = (bright - bright.median()).clamp(min=0)  # the black of the image, whatever padding is
    weight[weight < 0.5 * weight.max()] = 0
    grid = torch.stack(torch.meshgrid(*[torch.arange(SIDE) + 0.5] * 2, indexing="xy"))  # (x, y) of the pixels' centres
    centre = (grid * weight).sum((1, 2)) / weight.sum()
    point = seen["input_points"].flatten() + 0.5  # the models add half a pixel themselves
    assert torch.equal(seen["input_labels"].flatten(), torch.tensor([1]))
    largest = max(SIDE / side for side in size) if kind.startswith("sam2") else SIDE / max(size)
    assert (centre - point).abs().max() < max(1, 0.6 * largest)


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_each_model_gets_its_own_normalisation_and_shape(folders, kind, monkeypatch):
    predictor, seen = open_predictor(folders / kind), []
    encode = predictor.model.net.get_image_embeddings
    monkeypatch.setattr(predictor.model.net, "get_image_embeddings", lambda x: seen.append(x) or encode(x))
    predictor.set_image(np.full((60, 96), 200, np.uint8))
    (pixels,) = seen
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    grey = ((200 / 255 - mean) / std)[:, None, None]
    rows = SIDE if kind == "sam2" else 80  # 60 x 96 becomes 80 x 128 and is padded, or is stretched to the square
    torch.testing.assert_close(pixels[0, :, :rows], grey.expand(3, rows, SIDE), atol=1e-4, rtol=1e-4)
    assert (pixels[0, :, rows:] == 0).all()


# ---------------------------------------------------------------- SAM's own files


@pytest.fixture(scope="module")
def sam_file(tmp_path_factory):
    torch.manual_seed(1)
    sam = build_sam(preset("debug").sam)
    for name, parameter in sam.named_parameters():
        torch.nn.init.normal_(parameter, std=0.4 if "mask_decoder" in name else 0.15)
    folder = tmp_path_factory.mktemp("files")
    for name in ("sam_vit_b.pth", "medsam_vit_b.pth"):
        torch.save(sam.state_dict(), folder / name)
    torch.save({"model_state": sam.state_dict()}, folder / "vit_b_lm.pt")
    return sam, folder


def test_medsam_as_its_authors_run_it(sam_file):
    sam, folder = sam_file
    predictor = open_predictor(folder / "medsam_vit_b.pth")
    predictor.set_image(IMAGE)
    found = predictor.predict(box=BOXES).masks
    small = resize(IMAGE, (64, 64), order=3, preserve_range=True, anti_aliasing=True).astype(np.uint8)
    small = (small - small.min()) / (small.max() - small.min())
    with torch.no_grad():
        features = sam.image_encoder(torch.tensor(small).float().permute(2, 0, 1)[None])
        boxes = torch.tensor(BOXES / np.array([96, 60, 96, 60]) * 64).float()
        sparse, dense = sam.prompt_encoder(points=None, boxes=boxes[:, None], masks=None)
        logits, _ = sam.mask_decoder(features, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=False)
    expected = F.interpolate(logits.sigmoid(), (60, 96), mode="bilinear", align_corners=False)[:, 0] > 0.5
    assert (found == expected.numpy()).mean() > 0.999 and 0.02 < found.mean() < 0.98


def test_sam_and_usam_files_are_fed_as_sam(sam_file):
    _, folder = sam_file
    masks = []
    for name in ("sam_vit_b.pth", "vit_b_lm.pt"):
        predictor = open_predictor(folder / name)
        assert not isinstance(predictor, MedSamPredictor) and predictor.model.config.sam.preprocessing == "sam"
        predictor.set_image(IMAGE)
        masks.append(predictor.predict(POINTS, LABELS).masks)
    assert np.array_equal(*masks)


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_corpus):
    return make_corpus(tmp_path_factory.mktemp("data") / "nuclei", 3)


def test_every_model_in_one_protocol(folders, sam_file, data, tmp_path, capsys):
    names = [*(folders / kind for kind in MODEL_TYPES), *(sam_file[1] / f for f in ("sam_vit_b.pth", "medsam_vit_b.pth"))]
    for name in names:
        for prompt in ([], ["--box"]):
            out = tmp_path / "result.json"
            command = ["evaluate", "--model", str(name), "--data", str(data), "--limit", "1", *prompt, "--out", str(out)]
            assert main(command) == 0
            result = json.loads(out.read_text())
            assert result["model"] == name.name and result["vlk"] is False
            assert all(0 <= result[score] <= 1 for score in SCORES)
    assert "sam2" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(folders, data, tmp_path):
    results = []
    for count in (1, 2):
        out = tmp_path / f"{count}.json"
        words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--standalone", "-m"]
        words += ["ullsam", "evaluate", "--model", str(folders / "sam"), "--data", str(data), "--out", str(out)]
        run = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("written to") == 1
        assert ("2/2" in run.stderr) is ("1/1" in run.stderr) is (count == 2)  # the bars: each process has its images
        results.append(json.loads(out.read_text()))
    for result in results:
        assert [row["file"] for row in result["per_image"]] == ["0.png", "1.png", "2.png"]
    for score in SCORES:
        assert results[0][score] == pytest.approx(results[1][score], abs=1e-9)


# ---------------------------------------------------------------- what is refused


def fails(name, words):
    with pytest.raises(InputError, match=words) as error:
        open_predictor(name)
    assert "\n" not in str(error.value)


def test_without_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fails("facebook/sam2-hiera-tiny", "could not be fetched from the Hugging Face hub.*give its folder")


def test_what_is_no_model(folders, tmp_path):
    fails("huge", "or tiny or usam-tiny")
    fails(tmp_path / "none.pth", "no file or folder")
    fails(tmp_path, "no model in")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    fails(tmp_path, "type bert; give one of sam, sam_hq, sam2")
    (tmp_path / "config.json").write_text((folders / "sam" / "config.json").read_text())
    fails(tmp_path, "could not be loaded")


def test_a_file_that_lacks_weights(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    hf.SamConfig.from_pretrained(folders / "sam").save_pretrained(tmp_path)
    processor("sam").save_pretrained(tmp_path)
    state = load_file(folders / "sam" / "model.safetensors")
    save_file({k: v for k, v in state.items() if "iou_token" not in k}, tmp_path / "model.safetensors", {"format": "pt"})
    fails(tmp_path, "is missing .*iou_token")


def test_prompts_that_make_no_sense(folders):
    predictor = open_predictor(folders / "sam2")
    with pytest.raises(InputError, match="set_image"):
        predictor.predict([(1, 1)], [1])
    predictor.set_image(IMAGE)
    with pytest.raises(InputError, match="outside the image of 96 x 60"):
        predictor.predict([(96, 61)], [1])
    with pytest.raises(InputError, match="give no mask"):
        predictor.predict(mask=np.zeros((32, 32)))
    with pytest.raises(InputError, match="no language model"):
        predictor.describe()
