"""Tries a VLSA variant on random input and names the first mistake, before a student trains it for nothing.

Letters: B images, I objects, P prompt tokens, N image tokens, T words' tokens, D LLM width, C SAM width, h w feature grid.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice

import torch
from torch import Tensor, nn

from ullsam.errors import InputError
from ullsam.types import LanguageStates
from ullsam.vlsa import VLSA, VlsaShape, build_vlsa, vlsa_names

TEXTS = ("cell membrane", "nucleus")  # one for each of B = 2 images, of different lengths
OWNERS = (0, 0, 0, 1, 1)  # the image of each of I = 5 objects
HINTS = {  # what an exception says: what the student should do; {0} and {1} stand for the pattern's groups
    r"before Module.__init__": "write super().__init__(shape) first in __init__",
    r"'Tensor' object has no attribute '(image|words|valid|texts|layers|last)'": "only an argument named states has {0}: "
    "write forward(self, states); under another name it is the tensor (B, N, D) at the image tokens",
    r"LanguageStates|'Tensor' object is not callable": "states holds several tensors: take states.image (B, N, D), "
    "states.words (B, T, D), states.last or states.mean (B, D)",
    r"cannot be multiplied \(\d+x(\d+) and (\d+)x": "a Linear layer made for {1} numbers gets {0}; states are shape.llm_dim "
    "wide, prompts shape.sam_dim",
    r"unexpected keyword argument '(\w+)'": "it has no option {0}",
    r"positional argument": "write __init__(self, shape), forward(self, states), inject(self, knowledge, sparse, dense)",
    r"is invalid for input of size": "view and reshape keep the number of values; ullsam.vlsa.to_grid makes a grid of N"
    " image tokens",
    r"must match the size|Sizes of tensors must match": "beside dense (I, C, h, w) knowledge needs the axes (I, C, h, w) or "
    "(I, C, 1, 1), beside sparse (I, P, C) the axes (I, any, C)",
}


def random_states(shape: VlsaShape, layers: Sequence[int] = (), texts: Sequence[str | None] = TEXTS) -> LanguageStates:
    """Random states of B images, with words of 2, 3, ... B + 1 tokens about them, padded with zeros.

    Args:
        shape: sizes of the models; layers: numbers of further layers; texts: one for each image.
    """
    count, n = len(texts), round(shape.grid[0] * shape.grid[1] * shape.ratio**2)
    valid = torch.arange(count + 1) < torch.arange(2, count + 2)[:, None]  # (B, T)

    def layer() -> LanguageStates:
        words = torch.randn(count, count + 1, shape.llm_dim) * valid[..., None]
        return LanguageStates(torch.randn(count, n, shape.llm_dim), words, valid, tuple(texts))

    return replace(layer(), layers={number: layer() for number in layers})


def check_vlsa(name: str, shape: VlsaShape | None = None, **options) -> dict:
    """Tries a variant on random input and names the first mistake, from misspelt names to gradients that are always 0.

    Args:
        name: of a registered variant; options: of its constructor.
        shape: sizes of the models that it joins; None: those of the debug model with an 8 x 8 grid.

    Returns:
        {"variant", "parameters", "knowledge": shape for one image, "sparse": shape for 5 objects of 3 prompt tokens}.

    Raises:
        InputError: what is wrong with the variant and what to write instead.
    """
    shape = shape or VlsaShape(llm_dim=48, sam_dim=32, grid=(8, 8), ratio=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        remedy = f'write @ullsam.register_vlsa("{name}") above its class, name and brackets included, and run its cell'
        _expect(name in vlsa_names()[1:], f"there is no variant {name!r}; {remedy}")
        module = _attempt("__init__", build_vlsa, name, shape, **options).eval()
        _check_class(module)
        known = getattr(module, "index", None)  # a variant that knows certain texts alone: text -> number
        texts = tuple(islice(cycle(known if known and isinstance(known, dict) else TEXTS), len(TEXTS)))
        states = random_states(shape, module.layers, texts)
        knowledge, sparse, _ = _check_forms(module, states, shape.grid, 3)
        _check_forms(module, _row(states, 0), shape.grid, 2)
        block = round(1 / shape.ratio)
        window = tuple(max(block, side // 2 // block * block) for side in shape.grid)
        where = f" on a window of {window[0]} x {window[1]} patches, as in training; take sizes from the tensors"
        _check_forms(module, random_states(replace(shape, grid=window), module.layers, texts), window, 3, where)
        opened = _moved(module, 0.2)
        _check_independence(opened, states)
        _check_gradients((module, _moved(module, -0.2), opened), states)
    sizes = {"knowledge": tuple(knowledge.shape[1:]), "sparse": tuple(sparse.shape)}
    return {"variant": name, "parameters": sum(p.numel() for p in module.parameters()), **sizes}


def _check_class(module: VLSA) -> None:
    """Names and attributes that never do what they are meant to."""
    own = vars(type(module))
    for name in own.keys() - set(dir(VLSA)):
        wanted = {"forward", "inject"} if callable(own[name]) else {"reads", "layers"}
        close = difflib.get_close_matches(name, wanted - own.keys(), 1, cutoff=0.8)
        _expect(not close, f"nothing uses {name}; did you mean {close and close[0]}?")
    _expect(module.reads in ("before", "after"), f"reads is {module.reads!r}; write 'before' or 'after', the image")
    for part in (x for x in module.modules() if not type(x).__module__.startswith("torch.")):
        hidden = [x for x in (*part._modules, *part._parameters, *part._buffers) if hasattr(type(part), x)]
        _expect(not hidden, f"self.{hidden and hidden[0]} is a name that VLSA itself uses; choose another")
        for key, value in vars(part).items():
            values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            lost = not key.startswith("_") and any(isinstance(x, nn.Module | Tensor) for x in values)
            remedy = "write nn.Parameter(...), self.register_buffer(...) or nn.ModuleList(...)"
            _expect(not lost, f"self.{key} is neither trained nor saved; {remedy}")
    numbers = isinstance(module.layers, tuple) and all(type(n) is int and n > 0 for n in module.layers)
    _expect(numbers, f"layers is {module.layers!r}; write numbers of layers from 1 on, such as (10, 20)")


def _check_forms(module: VLSA, states: LanguageStates, grid: tuple[int, int], count: int, where: str = "") -> tuple:
    """Knowledge, sparse and dense for objects of `count` prompt tokens, after a look at shapes, types and values."""
    images, c = len(states.image), module.shape.sam_dim
    owners = list(OWNERS) if images > 1 else [0]
    objects, before = len(owners), _flat(states)
    knowledge = _attempt("forward", module, states, where=where)
    _expect(isinstance(knowledge, Tensor), f"forward returns a {type(knowledge).__name__}, it must return a tensor")
    entries = len(knowledge) if knowledge.ndim else "one number"
    _expect(entries == images, f"forward turns {images} images into {entries}; keep the batch axis first")
    inputs = {"sparse": torch.randn(objects, count, c), "dense": torch.randn(objects, c, *grid)}
    inputs = {"knowledge": knowledge[owners].detach(), **inputs}
    copies = {part: x.clone() for part, x in inputs.items()}
    result = _attempt("inject", module.inject, *inputs.values(), where=where)
    _expect(isinstance(result, tuple) and len(result) == 2, "inject must return two tensors: sparse, dense")
    for part, x, form in zip(("sparse", "dense"), result, ((objects, "any", c), (objects, c, *grid)), strict=True):
        _expect(isinstance(x, Tensor), f"inject returns a {type(x).__name__} as {part}, it must be a tensor")
        fits = len(form) == x.ndim and all(b in ("any", a) for a, b in zip(x.shape, form, strict=True))
        wanted = f"({', '.join(map(str, form))})"
        _expect(fits, f"for {objects} objects inject returns {part} {tuple(x.shape)}, expected {wanted}{where}")
        _expect(x.dtype == torch.float32, f"inject returns {part} as {x.dtype}; keep torch.float32")
        _expect(x.isfinite().all(), f"{part} has NaN or infinite values; look for divisions, roots and logarithms")
    edited = [part for part, x in copies.items() if not torch.equal(x, inputs[part])]
    edited += [] if torch.equal(before, _flat(states)) else ["states"]
    _expect(not edited, f"{', '.join(edited)} changed in place, which others use too; write x = x + y, not x += y")
    return knowledge, *result


@torch.no_grad()
def _check_independence(module: VLSA, states: LanguageStates) -> None:
    """The same input gives the same prompts, whatever stands in padding, beside an image or beside an object."""
    c = module.shape.sam_dim
    sparse, dense = torch.randn(5, 3, c), torch.randn(5, c, *module.shape.grid)
    found, again = (_prompts(module, states, sparse, dense) for _ in range(2))
    same = all(map(torch.equal, again, found))
    _expect(same, "two calls with the same input differ; F.dropout needs training=self.training, and use no noise")
    noise = states.map(lambda name, x: x if "image" in name else x.where(states.valid[..., None], torch.randn_like(x)))
    kept = _close(_prompts(module, noise, sparse, dense), found)
    _expect(kept, "padding behind short words changes the result; use states.last, states.mean or the mask states.valid")
    together, alone = module(states), [module(_row(states, i)) for i in range(len(TEXTS))]
    for i, owner in enumerate(OWNERS):
        one, mine = slice(i, i + 1), [x[i : i + 1] for x in found]
        kept = _close(module.inject(together[owner : owner + 1], sparse[one], dense[one]), mine)
        _expect(kept, "one object changes the prompts of another; inject must treat each row of axis 0 by itself")
        kept = _close(module.inject(alone[owner], sparse[one], dense[one]), mine)
        _expect(kept, "one image of a batch changes another's knowledge; never average, normalise or mix over axis 0")


def _check_gradients(modules: Sequence[VLSA], states: LanguageStates) -> None:
    """Every parameter learns, at the start or after a random step, and states and clicks matter."""
    c, trained = modules[0].shape.sam_dim, {n: [] for n, p in modules[0].named_parameters() if p.requires_grad}
    sparse, dense = torch.randn(5, 3, c, requires_grad=True), torch.randn(5, c, *modules[0].shape.grid)
    for module in modules:
        out = torch.cat([x.flatten() for x in _prompts(module, states, sparse, dense)])
        (out * torch.randn_like(out) + 0 * sparse.sum()).sum().backward()
        for name in trained:
            trained[name] += [x for x in [module.get_parameter(name).grad] if x is not None]
        wild = [n for n, grads in trained.items() if not all(x.isfinite().all() for x in grads)]
        _expect(not wild, f"the gradient of {', '.join(wild)} is infinite or NaN; look for roots and divisions at 0")
    idle = [n for n, grads in trained.items() if not grads]
    _expect(not idle, f"no gradient reaches {', '.join(idle)}; use every parameter in forward or inject")
    zero = [n for n, grads in trained.items() if not any(x.any() for x in grads)]
    _expect(not zero, f"the gradient of {', '.join(zero)} is always 0; look for a factor 0 or a clamp")
    remedy = "return sparse itself, or torch.cat([sparse, new], 1)"
    _expect(sparse.grad.any(-1).all(), f"inject drops the clicks' tokens; {remedy}")
    texts = tuple(reversed(states.texts)) if len(set(states.texts)) > 1 else (None,) * len(states.texts)
    others = states.map(lambda _, x: torch.randn_like(x)), replace(states, texts=texts)
    found = [torch.cat([x.flatten() for x in _prompts(module, other, sparse, dense)]) for other in others]
    heard = not all(torch.equal(x, out) for x in found)
    _expect(heard, "the result is the same for all states and words; use them in forward, and knowledge in inject")


def _prompts(module: VLSA, states: LanguageStates, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    return module.inject(module(states)[list(OWNERS)], sparse, dense)


@torch.no_grad()
def _moved(module: VLSA, step: float) -> VLSA:
    """A copy whose parameters have all gone up, or down, at random: what starts closed is open in it."""
    moved = copy.deepcopy(module)
    for p in moved.parameters():
        p += step * torch.rand_like(p)
    return moved


def _row(states: LanguageStates, i: int) -> LanguageStates:
    """The states of image i alone, without padding."""
    end, layers = int(states.valid[i].sum()), {n: _row(x, i) for n, x in states.layers.items()}
    words, valid = (x[i : i + 1, :end] for x in (states.words, states.valid))
    return LanguageStates(states.image[i : i + 1], words, valid, states.texts[i : i + 1], layers)


def _flat(states: LanguageStates) -> Tensor:
    """A copy of all numbers in states."""
    return torch.cat([x.flatten() for s in (states, *states.layers.values()) for x in (s.image, s.words)])


def _close(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return all(torch.allclose(x, y, rtol=1e-3, atol=1e-4) for x, y in zip(found, wanted, strict=True))


def _attempt(name: str, method: Callable, *inputs, where: str = "", **options):
    """The method's result; whatever it raises becomes one sentence, with what to do where that is known."""
    try:
        return method(*inputs, **options)
    except Exception as error:
        found = ((re.search(pattern, str(error)), hint) for pattern, hint in HINTS.items())
        advice = next((f": {hint.format(*match.groups())}" for match, hint in found if match), "")
        raise InputError(f"VLSA check: {name} fails{where}{advice} ({type(error).__name__}: {error}).") from error


def _expect(condition, mistake: str) -> None:
    if not condition:
        raise InputError(f"VLSA check: {mistake}.")
