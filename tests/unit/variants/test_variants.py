"""The variants: each learns, each part of it learns, words matter to those that read them, and nothing is mixed up."""

import math

import pytest
import torch
from torch.nn import functional as F

import ullsam.variants  # noqa: F401  makes the built-in ones known
from ullsam import ULLSAM, InputError, LanguageStates, Prompts, VlsaShape, build_vlsa, vlsa_names
from ullsam.variants.check import random_states

SHAPE = VlsaShape(llm_dim=48, sam_dim=32, grid=(8, 8), ratio=0.5)
TEXTS = ("nucleus", "cell membrane")
OPTIONS = {"class_id": {"classes": TEXTS}, "layers": {"layers": (1,)}}
NAMES = [name for name in vlsa_names() if name != "none"]
BY_WORDS = (
    "last_word",
    "layers",
    "film",
    "paper_film",
    "cross_attention",
    "class_id",
)  # what follows words behind the image


def built(name, **options):
    torch.manual_seed(0)
    return build_vlsa(name, SHAPE, **OPTIONS.get(name, {}), **options).eval()


def states_for(module, texts=TEXTS):
    torch.manual_seed(1)
    return random_states(SHAPE, module.layers, texts)


def model_with(name):
    return ULLSAM.from_preset("debug", vlsa=name, vlsa_options=OPTIONS.get(name, {}))


def features_of(model, count=2):
    return model.encode(torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0)))


# ---------------------------------------------------------------- by hand


def test_residual_starts_as_sam_and_adds():
    module, sparse, dense = built("residual"), torch.randn(2, 2, 32), torch.randn(2, 32, 8, 8)
    knowledge = module(states_for(module))
    assert torch.equal(module.inject(knowledge, sparse, dense)[1], dense)
    opened = built("residual", gate=0.5)
    torch.testing.assert_close(opened.inject(knowledge, sparse, dense)[1], dense + math.tanh(0.5) * knowledge)


def test_tokens_and_last_word_append_to_the_clicks():
    sparse, dense = torch.randn(2, 3, 32), torch.randn(2, 32, 8, 8)
    for module, count in ((built("tokens", count=5), 5), (built("last_word"), 1), (built("class_id"), 1)):
        knowledge = module(states_for(module))
        new, same = module.inject(knowledge, sparse, dense)
        assert torch.equal(new, torch.cat([sparse, knowledge], 1)) and knowledge.shape[1] == count and same is dense


def test_last_word_is_its_last_tokens_state():
    module = built("last_word")
    states = states_for(module)
    ends = torch.stack([states.words[0, 1], states.words[1, 2]])  # two words, three words
    torch.testing.assert_close(module(states)[:, 0], module.mlp(ends))


def test_layers_start_as_the_mean_of_normed_layers():
    module = built("layers")
    states = states_for(module)
    parts = [F.layer_norm(x.last, (48,)) for x in (states, states.layers[1])]
    torch.testing.assert_close(module(states)[:, 0], module.mlp((parts[0] + parts[1]) / 2))


def test_film_scales_and_shifts_channels():
    module, sparse, dense = built("film"), torch.randn(2, 3, 32), torch.randn(2, 32, 8, 8)
    states = states_for(module)
    means = torch.stack([states.words[0, :2].mean(0), states.words[1].mean(0)])
    knowledge = module(states)
    torch.testing.assert_close(knowledge, module.mlp(means))
    new = module.inject(knowledge, sparse, dense)[1]
    expected = dense * (1 + knowledge[:, :32, None, None]) + knowledge[:, 32:, None, None]
    torch.testing.assert_close(new, expected)


def test_cross_attention_sees_image_and_words_but_no_padding():
    module, sparse, dense = built("cross_attention"), torch.randn(1, 3, 32), torch.randn(1, 32, 8, 8)
    states = states_for(module)
    x = module.states(module.norm(torch.cat([states.image[:1], states.words[:1, :2]], 1)))  # its third word is padding
    found = module.attention(sparse, x, x)[0]
    new = module.inject(module(states)[:1], sparse, dense)[0]
    torch.testing.assert_close(new, sparse + math.tanh(0.5) * found, rtol=1e-4, atol=1e-5)


def test_class_id_knows_its_texts_alone():
    module = build_vlsa("class_id", SHAPE, classes=["nucleus", ["mitochondrion", "mito"]])
    none, nucleus, first, second = module(states_for(module, (None, "nucleus", "mitochondrion", "mito")))
    assert torch.equal(first, second) and not torch.equal(none, nucleus) and not torch.equal(nucleus, first)
    assert torch.equal(module(torch.randn(1, 16, 48))[0], none)
    with pytest.raises(InputError, match="does not know axon, cell; name them in its option classes"):
        module(states_for(module, ("cell", "axon")))


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", NAMES)
def test_one_image_in_a_batch_equals_it_alone(name):
    model = model_with(name)
    with torch.no_grad():
        features = features_of(model)
        prompts = Prompts(torch.full((2, 3, 1, 2), 20.0), torch.ones(2, 3, 1))
        together = model.segment(features, prompts, model.knowledge(features, TEXTS))[0]
        for i, text in enumerate(TEXTS):
            one = type(features)(features.embedding[i : i + 1])
            alone = model.segment(one, Prompts(*(x[:1] for x in prompts[:2])), model.knowledge(one, text))[0]
            torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("words", [None, list(TEXTS)])
def test_knowledge_is_float32_and_finite_with_and_without_words(name, words):
    model = model_with(name)
    with torch.no_grad():
        knowledge = model.knowledge(features_of(model), words)
    assert len(knowledge) == 2 and knowledge.dtype == torch.float32 and knowledge.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_words_change_knowledge(name):
    model = model_with(name)
    with torch.no_grad():
        features = features_of(model, 1)
        none, *named = (model.knowledge(features, text) for text in (None, *TEXTS))
    assert named[0].shape[2:] == named[1].shape[2:] or name == "cross_attention"  # which has as many states as words
    cut = [x[:, :4] for x in (none, *named)]  # image tokens, which words behind the image do not change
    same = [torch.equal(x, cut[0]) for x in cut[1:]]
    assert same == [name == "cross_attention"] * 2


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_reaches_every_part(name):
    module = built(name, **({"gate": 0.5} if name == "residual" else {}))
    sparse, dense = module.inject(module(states_for(module)), torch.randn(2, 3, 32), torch.randn(2, 32, 8, 8))
    (sparse.square().sum() + (dense * torch.randn_like(dense)).sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


def losses(name, texts, steps):
    """Training losses on two masks, the left and the right half, at the same click; by words, or by image without them."""
    model = model_with(name)
    with torch.no_grad():
        features = features_of(model)
        if texts:  # the same image twice: only words tell what is wanted
            features = type(features)(features.embedding[:1].repeat(2, 1, 1, 1))
        states = None if model.vlsa is None else model.states(features, texts)
    prompts = Prompts(torch.full((2, 1, 1, 2), 32.0), torch.ones(2, 1, 1))
    truth = torch.zeros(2, 16, 16)
    truth[0, :, :8] = truth[1, :, 8:] = 1
    parts = [(model.sam.mask_decoder, 1e-3), *([(model.vlsa, 1e-2)] if model.vlsa else [])]
    optimizer = torch.optim.Adam([{"params": part.parameters(), "lr": lr} for part, lr in parts])
    found = []
    for _ in range(steps):
        knowledge = None if states is None else model.vlsa(states)
        logits = model.segment(features, prompts, knowledge)[0][:, 0, 0]
        loss = F.binary_cross_entropy_with_logits(logits, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("name", BY_WORDS)
def test_two_words_at_one_click_learn_two_masks(name):
    found = losses(name, TEXTS, 70)
    assert found[0] == pytest.approx(math.log(2), abs=0.01) and found[-1] < 0.3


def test_without_knowledge_one_click_has_one_mask():
    """Half a chance for every pixel is all that SAM can say: log 2."""
    assert min(losses("none", TEXTS, 40)) > math.log(2) - 0.001


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(BY_WORDS)))
def test_what_reads_the_image_alone_learns_from_images(name):
    found = losses(name, None, 70)
    assert found[-1] < 0.7 * found[0]


def test_a_variant_of_version_one_still_runs():
    module, states = built("paper"), states_for(built("paper"))
    assert torch.equal(module(states.image), module(states)) and torch.equal(
        module(LanguageStates(states.image)), module(states)
    )
