"""The check of a student's variant: what is right passes, and every mistake is named in one sentence."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ullsam.variants  # noqa: F401  makes the built-in ones known
from ullsam import VLSA, InputError, VlsaShape, check_vlsa, register_vlsa, vlsa_names
from ullsam.variants.check import TEXTS, random_states
from ullsam.vlsa import _REGISTERED

SHAPE = VlsaShape(llm_dim=48, sam_dim=32, grid=(8, 8), ratio=0.5)
OPTIONS = {"class_id": {"classes": ["nucleus", ["mitochondrion", "mito"]]}}


@pytest.fixture(autouse=True)
def _own_names():
    yield
    _REGISTERED.clear()


def variant(**changes):
    """Registers a variant that is right but for the given methods and class attributes; None takes one away."""

    class Mine(VLSA):
        def __init__(self, shape):
            super().__init__(shape)
            self.proj = nn.Linear(shape.llm_dim, shape.sam_dim)

        def forward(self, hidden):
            return self.proj(hidden.mean(1))[..., None, None]  # (B, N, D) -> (B, C, 1, 1)

        def inject(self, knowledge, sparse, dense):
            return sparse, dense + knowledge

    for name, method in changes.items():
        delattr(Mine, name) if method is None else setattr(Mine, name, method)
    return register_vlsa("mine")(Mine)


def built_with(**parts):
    """A constructor that sets further attributes: name=function of the shape."""

    def __init__(self, shape):
        VLSA.__init__(self, shape)
        self.proj = nn.Linear(shape.llm_dim, shape.sam_dim)
        for name, make in parts.items():
            setattr(self, name, make(shape))

    return __init__


def right(self, hidden):
    return self.proj(hidden.mean(1))[..., None, None]


def edited(x, y):
    x += y
    return x


def reads_words(pick):
    """A forward(self, states) that takes (B, D) from the states by `pick`."""
    return lambda self, states: self.proj(pick(states))[..., None, None]


# ---------------------------------------------------------------- what is right


@pytest.mark.parametrize("shape", [None, VlsaShape(24, 16, (16, 16), 0.25)])
@pytest.mark.parametrize("name", [n for n in vlsa_names() if n != "none"])
def test_built_in_variants_pass(name, shape):
    report = check_vlsa(name, shape, **OPTIONS.get(name, {}))
    assert report["variant"] == name and report["parameters"] > 0


def test_a_students_variant_passes_and_is_described():
    variant()
    assert check_vlsa("mine") == {
        "variant": "mine",
        "parameters": 48 * 32 + 32,
        "knowledge": (32, 1, 1),
        "sparse": (5, 3, 32),
    }
    gate = {"gate": lambda shape: nn.Parameter(torch.zeros(1))}
    variant(__init__=built_with(**gate), inject=lambda self, k, s, d: (s, d + self.gate.tanh() * k))
    assert (
        check_vlsa("mine")["parameters"] == 48 * 32 + 33
    )  # running the cell again replaced it; a closed gate is no mistake


RIGHT = {
    "last state": dict(forward=reads_words(lambda x: x.last)),
    "mean of the words": dict(forward=reads_words(lambda x: x.mean)),
    "words before the image": dict(forward=reads_words(lambda x: x.last), reads="before"),
    "a further layer": dict(forward=reads_words(lambda x: x.layers[2].image.mean(1)), layers=(2,)),
    "a buffer": dict(__init__=built_with(), forward=lambda self, h: right(self, h) * self.shape.ratio),
    "dropout that knows when it trains": dict(forward=lambda self, h: right(self, F.dropout(h, 0.5, self.training))),
    "dense replaced": dict(inject=lambda self, k, s, d: (s, k.expand_as(d))),
    "a frozen part": dict(
        __init__=built_with(fixed=lambda s: nn.Linear(s.llm_dim, s.llm_dim).requires_grad_(False)),
        forward=lambda self, h: right(self, self.fixed(h)),
    ),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_no_mistake_passes(case):
    variant(**RIGHT[case])
    assert check_vlsa("mine")["variant"] == "mine"


def test_nothing_random_outside_is_touched():
    variant()
    torch.manual_seed(3)
    check_vlsa("mine")
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))


# ---------------------------------------------------------------- mistakes

FORWARD = [  # a faulty forward, and what the check says
    (lambda self, h: None, "forward returns a NoneType, it must return a tensor"),
    (lambda self, h: (h, h), "forward returns a tuple, it must return a tensor"),
    (lambda self, h: self.proj(h.mean((0, 1))), "forward turns 2 images into 32; keep the batch axis first"),
    (lambda self, h: self.proj(h).sum(), "forward turns 2 images into one number"),
    (lambda self, h: right(self, h - h.mean(0)), "one image of a batch changes another's knowledge; never average"),
    (lambda self, h: right(self, edited(h, 1)), r"states changed in place, which others use too; write x = x \+ y"),
    (lambda self, h: right(self, F.dropout(h, 0.1)), "two calls with the same input differ; F.dropout needs training=self"),
    (
        lambda self, h: right(self, torch.ones_like(h)),
        "the result is the same for all states and words; use them in forward",
    ),
    # exceptions, with what to do
    (lambda self, h: self.proj(h[..., :7]), "a Linear layer made for 48 numbers gets 7; states are shape.llm_dim wide"),
    (lambda self, h: self.proj(h).view(2, 32, 9, 9), "view and reshape keep the number of values; .*to_grid"),
    (lambda self, h: self.proj(h), r"inject fails: beside dense \(I, C, h, w\) knowledge needs the axes"),
    (lambda self: None, r"write __init__\(self, shape\), forward\(self, states\), inject\(self, knowledge, sparse, dense\)"),
    (lambda self, h: {}["key"], r"forward fails \(KeyError: 'key'\)"),
    # the grid
    (
        lambda self, h: self.proj(h).mT.reshape(-1, 32, 4, 4).repeat(1, 1, 2, 2),
        "forward fails on a window of 4 x 4 patches, as in training; take sizes from the tensors: view and reshape",
    ),
    (lambda self, h: right(self, h).expand(-1, -1, *self.shape.grid), r"inject fails on a window of 4 x 4 patches"),
    # words
    (
        lambda self, hidden: self.proj(hidden.words),
        r"only an argument named states has words: write forward\(self, states\)",
    ),
    (lambda self, states: self.proj(states), r"states holds several tensors: take states.image \(B, N, D\)"),
    (lambda self, states: self.proj(states.mean(1)), r"states holds several tensors: take states.image \(B, N, D\)"),
    (reads_words(lambda x: x.words.max(1)[0]), "padding behind short words changes the result; use states.last"),
    (reads_words(lambda x: x.words[:, -1]), "padding behind short words changes the result; use states.last"),
]
INJECT = [
    (lambda self, k, s, d: d, "inject must return two tensors: sparse, dense"),
    (lambda self, k, s, d: (None, d + k), "inject returns a NoneType as sparse, it must be a tensor"),
    (lambda self, k, s, d: (d + k, s), r"inject returns sparse \(5, 32, 8, 8\), expected \(5, any, 32\)"),
    (lambda self, k, s, d: (s[:1], d + k), r"for 5 objects inject returns sparse \(1, 3, 32\)"),
    (lambda self, k, s, d: (s, k[..., 0, 0]), r"inject returns dense \(5, 32\), expected \(5, 32, 8, 8\)"),
    (lambda self, k, s, d: (s, d + k.log()), "dense has NaN or infinite values; look for divisions, roots and logarithms"),
    (lambda self, k, s, d: (s, d + k.double()), "inject returns dense as torch.float64; keep torch.float32"),
    (lambda self, k, s, d: (s, d), "no gradient reaches proj.weight, proj.bias; use every parameter in forward or inject"),
    (lambda self, k, s, d: (s, d + k.detach()), "no gradient reaches proj.weight, proj.bias"),
    (lambda self, k, s, d: (s, d + 0 * k), "the gradient of proj.weight, proj.bias is always 0; look for a factor 0"),
    (lambda self, k, s, d: (s, d + (k - k).abs().sqrt()), "the gradient of proj.weight, proj.bias is infinite or NaN"),
    (lambda self, k, s, d: (s, edited(d, k)), r"dense changed in place, which others use too; write x = x \+ y"),
    (lambda self, k, s, d: (edited(s, k[..., 0].mean(1, True)), d + k), "sparse changed in place"),
    (lambda self, k, s, d: (s, d + edited(k, 1)), "knowledge changed in place"),
    (lambda self, k, s, d: (k[..., 0].mT, d), r"inject drops the clicks' tokens; return sparse itself, or torch.cat\(\[sp"),
    (lambda self, k, s, d: (s[:, :1], d + k), "inject drops the clicks' tokens"),
    (lambda self, k, s, d: (s - s.mean(0), d + k), "one object changes the prompts of another; inject must treat each row"),
    (lambda self, k, s, d: (s, d + k[:1]), "one object changes the prompts of another"),
    (lambda self, k, s, d: (torch.cat([s, k[..., 0]], 1), d), r"beside sparse \(I, P, C\) the axes \(I, any, C\)"),
    (lambda self, k, s, d: (s, d @ k.width), r"inject fails \(AttributeError: 'Tensor' object has no attribute 'width'"),
]
PARTS = [  # what the constructor sets beside proj
    ({"gate": lambda s: nn.Parameter(torch.ones(1))}, "no gradient reaches gate; use every parameter in forward or inject"),
    ({"gate": lambda s: torch.ones(1)}, r"self.gate is neither trained nor saved; write nn.Parameter\(...\)"),
    ({"parts": lambda s: [nn.Linear(2, 2)]}, r"self.parts is neither trained nor saved; .* or nn.ModuleList\(...\)"),
    ({"to": lambda s: nn.Linear(48, 32)}, "self.to is a name that VLSA itself uses; choose another"),
    ({"layers": lambda s: nn.ModuleList([nn.Linear(2, 2)])}, "self.layers is a name that VLSA itself uses"),
]
CLASS = [  # other methods, and attributes of the class
    (
        dict(__init__=lambda self, s: setattr(self, "p", nn.Linear(2, 2))),
        r"write super\(\).__init__\(shape\) first in __init",
    ),
    (dict(__init__=lambda self: VLSA.__init__(self, None)), r"__init__ fails: write __init__\(self, shape\)"),
    (dict(injekt=lambda self, k, s, d: (s, d), inject=None), "nothing uses injekt; did you mean inject?"),
    (
        dict(
            __init__=built_with(gate=lambda s: nn.Parameter(torch.zeros(1))),
            inject=lambda self, k, s, d: (s, d + self.gate.sqrt() * k),
        ),
        "the gradient of gate is infinite or NaN; look for roots and divisions at 0",
    ),
    (dict(fowrard=right, forward=None), "nothing uses fowrard; did you mean forward?"),
    (dict(read="after"), "nothing uses read; did you mean reads?"),
    (dict(reads="behind"), "reads is 'behind'; write 'before' or 'after', the image"),
    (dict(layers=10), r"layers is 10; write numbers of layers from 1 on, such as \(10, 20\)"),
    (dict(layers=[10]), r"layers is \[10\]; write numbers of layers"),
    (dict(layers=(0,)), r"layers is \(0,\); write numbers of layers"),
]
MISTAKES = [(dict(forward=method), sentence) for method, sentence in FORWARD]
MISTAKES += [(dict(inject=method), sentence) for method, sentence in INJECT]
MISTAKES += [(dict(__init__=built_with(**parts)), sentence) for parts, sentence in PARTS] + CLASS


@pytest.mark.parametrize(("changes", "sentence"), MISTAKES)
def test_a_mistake_is_named(changes, sentence):
    variant(**changes)
    with pytest.raises(InputError, match=f"^VLSA check: .*({sentence})"):
        check_vlsa("mine")


def test_a_batch_norm_of_objects_is_named():
    norm = {"norm": lambda s: nn.BatchNorm1d(s.sam_dim, track_running_stats=False)}
    variant(__init__=built_with(**norm), inject=lambda self, k, s, d: (self.norm(s.mT).mT, d + k))
    with pytest.raises(InputError, match="one object changes the prompts of another"):
        check_vlsa("mine")


def test_a_decorator_without_a_name_and_other_names():
    class Mine(VLSA):
        pass

    register_vlsa(Mine)  # @register_vlsa, without brackets
    with pytest.raises(InputError, match=r'no variant \'mine\'; write @ullsam.register_vlsa\("mine"\) above its class'):
        check_vlsa("mine")
    with pytest.raises(InputError, match="no variant 'none'"):
        check_vlsa("none")
    with pytest.raises(InputError, match="__init__ fails: it has no option colour"):
        check_vlsa("tokens", colour=1)
    with pytest.raises(InputError, match="does not know cell membrane, nucleus; name them in its option classes"):
        check_vlsa("class_id")


# ---------------------------------------------------------------- random states


def test_random_states_have_words_of_different_lengths():
    states = random_states(SHAPE, (2, 5))
    assert states.image.shape == (2, 16, 48) and states.words.shape == (2, 3, 48) and states.texts == TEXTS
    assert states.valid.tolist() == [[True, True, False], [True, True, True]]
    assert list(states.layers) == [2, 5] and not torch.equal(states.layers[2].image, states.layers[5].image)
    assert not states.words[0, 2].any() and torch.equal(states.last[0], states.words[0, 1])
    torch.testing.assert_close(states.mean[0], states.words[0, :2].mean(0))
    assert random_states(replace(SHAPE, grid=(4, 4)), (), [None] * 3).image.shape == (3, 4, 48)
