"""Segmentation by words: images in which several structures can be named, and requests for one of them.

A click on a mitochondrion may mean the mitochondrion or the neurite around it; only words tell which. Phrases, and what
images certainly do not hold, are in referring.toml. Scenes come from data sets, of which those that share images become one
(`paired_with` in meta.json), and from `ullsam.data.synthetic.named`. Letters: H, W height and width of an image in pixels.
"""

import difflib
import itertools
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from weakref import WeakKeyDictionary

import cv2
import numpy as np

from ullsam.data.corpus import Corpus, Record, find_corpora, spaced
from ullsam.data.io import renumbered
from ullsam.data.synthetic.named import NamedScene, synthetic_scenes, with_attributes
from ullsam.errors import InputError

__all__ = ["NamedScene", "Referral", "ambiguous", "draw_absent", "draw_ambiguous", "draw_union", "keys", "nearest_phrases"]
__all__ += ["phrases", "real_scenes", "synthetic_scenes"]

TABLES = tomllib.loads(Path(__file__).with_name("referring.toml").read_text(encoding="utf-8"))
STRUCTURES, SETS = TABLES["structures"], TABLES["sets"]
MARGIN = 3  # pixels that a click keeps from the edges where there is room
FEWEST = 12  # pixels in which a click must be able to lie
INSIDE = 0.8  # the fraction of an instance that must lie in a larger one for a click to mean either
ALIKE = 0.8  # ratio of areas from which two nested instances have nearly the same mask: words cannot choose between them
TRAINED = ("train", "described", "click")  # lists of referring.toml; absent words come from the first, words alone from two
Rng = np.random.Generator


@dataclass(frozen=True)
class Referral:
    """One request: a click (or none), words, and the mask that they mean together."""

    key: str  # the structure that the words name
    words: str
    point: tuple[float, float] | None  # (x, y) in pixels, inside the object that is meant; None: all objects of the key
    mask: np.ndarray  # bool (H, W); all False where the words name nothing that is here
    other: str | None = None  # another key that the same click could mean; without a click, another key of the scene


def _expanded(patterns: Sequence[str]) -> tuple[str, ...]:
    """The texts that patterns with alternatives such as "nucle(us|i)" stand for."""
    found = []
    for pattern in patterns:
        pieces = [piece.split("|") for piece in re.split(r"[()]", pattern)]  # every second one stood in brackets
        found += [" ".join("".join(some).split()) for some in itertools.product(*pieces)]
    return tuple(dict.fromkeys(found))


@cache
def _vocabulary() -> dict[str, dict[str, tuple[str, ...]]]:
    """Key -> its phrases of each part (TRAINED and "held_out"); a composed key has only the latter."""
    patterns = dict(STRUCTURES)
    for (noun, forms), (attribute, row) in itertools.product(TABLES["nouns"].items(), TABLES["attributes"].items()):
        forms = {"many": f"({forms['many']})", "any": f"({forms['one']}|{forms['many']})"}
        patterns[f"{attribute} {noun}"] = {k: [p.format(**forms) for p in v] for k, v in row.items()}
    found = {key: {part: _expanded(rows) for part, rows in parts.items()} for key, parts in patterns.items()}
    for key in TABLES["composed"]["keys"]:
        found[key] = {"held_out": tuple(spaced(found[key]["train"], 12))}
    return found


def keys(held_out: bool = False) -> tuple[str, ...]:
    """The names of all structures that have training phrases; or all that have held-out ones, which are a few more."""
    return tuple(key for key in _vocabulary() if phrases(key, held_out))


def phrases(key: str, held_out: bool = False, parts: Sequence[str] = TRAINED) -> tuple[str, ...]:
    """The phrases that name one structure: those to train with, or those kept back.

    Args:
        key: a structure of referring.toml, such as "nucleus", or an attribute and a noun, such as "bright nucleus".
        held_out: the phrases that training never sees; the keys of `composed` have no others.
        parts: of the training phrases, those that referring.toml lists as these.

    Raises:
        InputError: an unknown key.
    """
    if key not in _vocabulary():
        raise InputError(f"there is no structure {key!r} in the vocabulary; use one of {', '.join(_vocabulary())}.")
    return sum((_vocabulary()[key].get(part, ()) for part in (["held_out"] if held_out else parts)), ())


def nearest_phrases(text: str, count: int = 3) -> list[str]:
    """The training phrases most like an unknown text, best first; none where nothing is alike."""
    known = [phrase for key in keys() for phrase in phrases(key)]
    text = re.sub(r"^(the|an?|all|each|every)\s+", "", text.lower().strip())
    return difflib.get_close_matches(text[:100], known, count, cutoff=0.5)


def real_scenes(
    root: str | Path, split: str, names: Sequence[str] | None = None, limit: int | None = None
) -> list[NamedScene]:
    """The images of the data sets under root/in_domain whose structure is in the vocabulary.

    Data sets that name one another in meta.json's `paired_with` become one scene per image with the structures of all.

    Args:
        root: the folder of all data sets, see `corpus.data_root`.
        split: "train", "val" or "test"; a data set without images of it adds none.
        names: only these data sets (folders) and their partners; None: all, which takes about 1 GB in "train".
        limit: at most so many images of each data set, evenly spaced.

    Raises:
        InputError: an unknown name, a partner that is missing, or one whose image has another size or another split.
    """
    corpora, scenes, done = {corpus.folder.name: corpus for corpus in find_corpora(root)}, [], set()
    for name in names or corpora:
        if name not in corpora:
            raise InputError(f"{Path(root) / 'in_domain'} has no data set {name}; name one of {', '.join(corpora)}.")
        partners = [] if name in done else _with_partners(name, corpora)
        done |= set(partners)
        named = {key: corpora[x] for x in partners if (key := _key_of(corpora[x]))}
        records = [x for corpus in reversed(named.values()) for x in corpus.records if x.split == split]
        records = {record.file: record for record in records}  # those of the first data set, and what only others have
        scenes += [_real_scene(records[file], named) for file in spaced(sorted(records), limit)]
    return [scene for scene in scenes if scene.structures]


def _with_partners(name: str, corpora: dict[str, Corpus]) -> list[str]:
    """A data set and all that its `paired_with` leads to."""
    found = [name]
    for name in found:  # the list grows while it is read
        file, partners = corpora[name].folder / "meta.json", corpora[name].meta.get("paired_with", [])
        if not isinstance(partners, list):
            raise InputError(f"{file} has {partners!r} as paired_with; write a list of the names of data sets.")
        for partner in partners:
            if partner not in corpora:
                remedy = "add that data set or take its name out of paired_with"
                raise InputError(f"{file} names the partner {partner}, which {file.parents[1]} does not hold; {remedy}.")
        found += [partner for partner in partners if partner not in found]
    return found


def _key_of(corpus: Corpus) -> str | None:
    structure = str(corpus.meta.get("structure", ""))
    return next((key for pattern, key in SETS["structures"] if re.search(pattern, structure)), None)


def _real_scene(record: Record, named: dict[str, Corpus]) -> NamedScene:
    """The scene of one image from the data sets (key -> data set) that share it."""
    first = next(iter(named.values()))
    image, maps = first.read(record).image, {}
    for key, corpus in named.items():
        for partner in (x for x in corpus.records if x.file == record.file):
            sample = corpus.read(partner)
            if sample.image.shape != image.shape:
                size, other = (f"{x.shape[1]} x {x.shape[0]}" for x in (image, sample.image))
                remedy = "give partners the same images or take the name out of paired_with"
                raise InputError(f"{partner.image_path} has {other} pixels but {record.image_path} has {size}; {remedy}.")
            if partner.split != record.split:
                where, remedy = corpus.folder / "images.csv", f"give it the split that {first.name} gives it"
                raise InputError(f"{where} has {record.file} in {partner.split}, not in {record.split}; {remedy}.")
            maps[key] = sample.labels
    facts = "; ".join(str(first.meta.get(name, "")) for name in ("modality", "specimen", "structure"))
    absent = with_attributes(next((names for pattern, names in SETS["absent"] if re.search(pattern, facts)), []))
    structures = {key: labels for key, labels in _derived(maps).items() if labels.any()}
    name, source = f"{first.folder.name}/{record.file}", record.source_id or f"{first.name}/{record.file}"
    return NamedScene(image, structures, absent, name, source, record.split)


def _derived(maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The maps and those that follow from them: axons of all types, and axons with the myelin of the same id."""
    inside, bare, myelin = (maps.get(key) for key in ("myelinated axon", "unmyelinated axon", "myelin"))
    if inside is None:
        return maps
    maps = maps | {"axon": inside if bare is None else np.where(bare > 0, bare + inside.max(), inside)}
    if myelin is not None:
        whole = np.where(inside > 0, inside, myelin)
        both = np.intersect1d(inside, myelin)
        maps["myelinated fibre"] = np.where(np.isin(whole, both), whole, 0)
    return maps


Meanings = list[tuple[dict[str, int], np.ndarray]]
_MEANINGS: WeakKeyDictionary[NamedScene, Meanings] = WeakKeyDictionary()  # of `_meanings` with MARGIN


def ambiguous(scene: NamedScene, margin: int = MARGIN) -> Meanings:
    """The groups of objects that one and the same click can mean, such as a mitochondrion and the neurite around it.

    Attributes ("bright nucleus") take no part: they name some of the objects, not another object at the click.

    Args:
        scene: an image and its objects; margin: pixels that a click keeps from their edges where there is room.

    Returns:
        For each group its {key: instance id}, at least two, and a mask bool (H, W): where a click means these and no other.
    """
    groups = []
    for ids, spots in _meanings(scene, margin):
        mask = np.zeros(scene.image.shape[:2], bool)
        mask.flat[spots] = True
        groups.append((ids, mask))
    return groups


def _meanings(scene: NamedScene, margin: int) -> Meanings:
    """As `ambiguous`, with flat indices of pixels for the masks."""
    from scipy import ndimage

    names = [key for key in scene.structures if key in STRUCTURES]
    code = np.zeros(scene.image.shape[:2], np.int64)  # a number for each combination of instances that share pixels, 0 none
    for name in names:
        code = renumbered(code * (int(scene.structures[name].max()) + 1) + scene.structures[name])
    sizes, somewhere = np.bincount(code.ravel()), np.zeros(code.max() + 1, np.int64)
    somewhere[code.ravel()] = np.arange(code.size)  # a pixel of each combination
    ids = np.array([scene.structures[name].flat[somewhere] for name in names]).reshape(len(names), -1).T
    groups = []
    for number, box in enumerate(ndimage.find_objects(code), 1):
        levels = _levels(ids, sizes, number) if sizes[number] >= FEWEST else []
        if len(levels) > 1:
            top, left = (max(side.start - 1, 0) for side in box)  # one pixel more, but the image's border is no edge
            y, x = _inmost(code[top : box[0].stop + 1, left : box[1].stop + 1] == number, margin)
            spots = ((y + top) * code.shape[1] + x + left).astype(np.int32)
            groups += [({names[k]: int(ids[number, k]) for k in some}, spots) for some in itertools.product(*levels)]
    return groups


def _levels(ids: np.ndarray, sizes: np.ndarray, number: int) -> list[list[int]]:
    """The structures of one combination from its smallest instance to its largest, those with like masks in one level.

    ids: (combinations, structures) instance ids, 0 without; sizes: pixels of the combinations. Empty: not nested.
    """
    same = (ids == ids[number]) & (ids > 0)
    area = {k: int(sizes[same[:, k]].sum()) for k in np.flatnonzero(ids[number])}
    order, levels = sorted(area, key=lambda k: area[k]), []
    if any(sizes[same[:, k] & same[:, larger]].sum() < INSIDE * area[k] for k, larger in itertools.combinations(order, 2)):
        return []
    for k in order:
        if levels and area[levels[-1][0]] > ALIKE * area[k]:
            levels[-1].append(k)
        else:
            levels.append([k])
    return levels


def _inmost(mask: np.ndarray, margin: int = MARGIN) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels of a mask that lie `margin` pixels inside; where these are too few, of its middle."""
    edge = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    return np.nonzero(edge > margin if (edge > margin).sum() >= FEWEST else (edge > 0) & (edge >= 0.7 * edge.max()))


def draw_ambiguous(scene: NamedScene, rng: Rng, key: str | None = None, held_out: bool = False) -> Referral | None:
    """One click that can mean at least two objects, and words for one of them.

    Args:
        scene: where to click; rng: numpy random generator, the only source of randomness.
        key: the structure to name; None: any that shares a click, all equally likely.
        held_out: use the phrases that training never sees.

    Returns:
        Referral with `other`, or None where no click is ambiguous (for this key).
    """
    groups = _MEANINGS[scene] if scene in _MEANINGS else _MEANINGS.setdefault(scene, _meanings(scene, MARGIN))
    options = list(dict.fromkeys(k for ids, _ in groups for k in ids if key in (None, k)))
    if not options:
        return None
    key = _pick(rng, options)
    ids, spots = _pick(rng, [group for group in groups if key in group[0]])
    y, x = divmod(int(_pick(rng, spots)), scene.image.shape[1])
    words, other = _pick(rng, phrases(key, held_out)), _pick(rng, [k for k in ids if k != key])
    return Referral(key, words, (float(x), float(y)), scene.structures[key] == ids[key], other)


def draw_union(scene: NamedScene, rng: Rng, key: str | None = None, held_out: bool = False) -> Referral:
    """Words alone, which mean all objects of a structure; arguments as of `draw_ambiguous`.

    Raises:
        InputError: the scene has no structure of this key.
    """
    named = [k for k in scene.structures if phrases(k, held_out)]
    key = key or _pick(rng, named)
    if key not in scene.structures:
        raise InputError(f"{scene.name} has no {key!r}; name one of {', '.join(scene.structures)}.")
    mask = scene.structures[key] > 0
    others = [k for k in named if ((scene.structures[k] > 0) != mask).any()]
    return Referral(key, _pick(rng, phrases(key, held_out, TRAINED[:2])), None, mask, _pick(rng, others) if others else None)


def draw_absent(scene: NamedScene, rng: Rng, click: bool, held_out: bool = False) -> Referral | None:
    """Words for a structure that is not in the scene, so that the mask is empty; None where none is known to be absent.

    Args:
        scene, rng, held_out: as of `draw_ambiguous`; click: with a point in an object of another structure.
    """
    absent, point = [key for key in scene.absent if phrases(key, held_out)], None
    if not absent:
        return None
    key = _pick(rng, absent)
    if click:
        labels = scene.structures[_pick(rng, list(scene.structures))]
        y, x = _inmost(labels == _pick(rng, np.unique(labels[labels > 0])))
        at = rng.integers(len(x))
        point = float(x[at]), float(y[at])
    words = _pick(rng, phrases(key, held_out, TRAINED[:1]))
    return Referral(key, words, point, np.zeros(scene.image.shape[:2], bool))


def _pick(rng: Rng, items: Sequence):
    return items[rng.integers(len(items))]
