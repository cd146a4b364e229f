"""A session of clicks on one image: all state and all logic of the click widget, without a browser.

Everything that a gesture can change is one frozen `State`; a gesture makes a new one, and undo goes back to an old one.
So a gesture that fails changes nothing, and two sessions share nothing but the models.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from ullsam.data.io import to_rgb8
from ullsam.errors import InputError
from ullsam.model import ULLSAM, check_words
from ullsam.predictor import Predictor
from ullsam.sbr import sample_points
from ullsam.widgets.export import export, stack_axes
from ullsam.widgets.instances import (
    PLAIN_NAME,
    Annotations,
    Instance,
    Region,
    State,
    file_name,
    free_numbers,
    from_labels,
    label_map,
)
from ullsam.widgets.pages import Display, Pages, display, is_index
from ullsam.widgets.project import Autosave
from ullsam.widgets.words import bare, unknown

GRAB = 0.01  # a click this near to a point, as a fraction of the image's longer side, takes the point away
STEPS = 200  # changes that can be taken back
NEGATIVES = 3  # automatic points around the mask, as many as the paper trains with
PRESENT = 0.5  # presence from which the model is taken to see what the words name
ENCODED = 8  # encoded images (of models, pages and channels) that are kept at hand


class ClickSession:
    """Prompts of the object being segmented, its mask, and the instances saved so far, all of one image or stack.

    Points are (x, y) in pixels of the image as given. Arrays are replaced, never changed in place. The image is encoded
    when a mask is first needed, or by `encode`. What a gesture can change is read from `state`, see `State`.

    Args:
        models: a ULLSAM or Predictor, or a dict of them by name, the first being the current one. Only the network is
            shared with other sessions.
        image: (H, W) or (H, W, C), see `Predictor.set_image`; with `stack` (Z, H, W) or (Z, H, W, C); or a path.
        vlk: with vision-language knowledge; a model without VLSA has none.
        project: file that keeps the work and from which it is continued if it exists. None: beside an image given as a
            path, `<file name>.ullsam.json`, and no file for an array. False: no file.

    Raises:
        InputError: the image or a model is not usable, or the project is of another image or a newer version.
    """

    def __init__(self, models, image, vlk: bool = True, project: str | Path | bool | None = None, stack: bool = False):
        self.pages = Pages(image, stack)
        to_rgb8(self.pages.page(0))  # an unusable image is refused at once
        self.segmenter = Segmenter(models, self.pages)
        self.contrast = Display()  # on the screen, see `set_display`
        self.mask: np.ndarray | None = None  # bool (H, W) of the current object; None without prompts
        self._descriptions: dict[tuple, str] = {}  # by State.encoding
        self._past: tuple[State, ...] = ()
        self._future: tuple[State, ...] = ()
        self._selected: int | None = None
        self._autosave = Autosave(self.pages, project)
        self.state = self._autosave.continued(State(self.models[0], bool(vlk)), self.models)
        self.labels = self._label_map(self.state)  # int32 (H, W), saved instances of the current page, 0 background

    def click(self, x: float, y: float, positive: bool = True, grab: float | None = None) -> None:
        """Adds a point inside (or outside) the object; a click on an existing point takes that point away.

        Args:
            grab: distance in pixels that still counts as on the point; by default `self.grab`.
        """
        x, y = _numbers(x, y)
        prompts = self.state.prompts
        away = [np.hypot(p[0] - x, p[1] - y) for p in prompts]
        if min(away, default=np.inf) <= (self.grab if grab is None else grab):
            near = int(np.argmin(away))
            self._prompt(prompts=prompts[:near] + prompts[near + 1 :])
        else:
            self._prompt(prompts=(*prompts, (x, y, int(bool(positive)))))

    def move_point(self, index: int, x: float, y: float) -> None:
        """Puts the point of this index (from 0) elsewhere."""
        prompts = self.state.prompts
        if not is_index(index, len(prompts)):
            raise InputError(f"There is no point {index}; there are {len(prompts)}, numbered from 0.")
        moved = (*_numbers(x, y), prompts[index][2])
        self._prompt(prompts=(*prompts[:index], moved, *prompts[index + 1 :]))

    def set_box(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Draws a box around the object, from any corner to the opposite one; it replaces an earlier box."""
        (x0, x1), (y0, y1) = sorted(_numbers(x0, x1)), sorted(_numbers(y0, y1))
        height, width = self.size
        box = np.clip((x0, y0, x1, y1), 0, (width - 1, height - 1, width - 1, height - 1))
        self._prompt(box=tuple(box.tolist()))

    def clear_box(self) -> None:
        """Removes the box; points stay."""
        if self.state.box is not None:
            self._prompt(box=None)

    def set_words(self, words: str | None) -> None:
        """Says in words what to segment, such as "nuclei", and segments the current object again; empty: without words."""
        words = self._text(words) if str(words or "").strip() else ""
        if words != self.state.words:
            self._prompt(words=words)

    def segment_words(self, words: str | None = None) -> None:
        """Segments all that words name, without points and box.

        Args:
            words: instead of those that are set.
        """
        self._prompt(words=self._text(self.state.words if words is None else words), alone=True, prompts=(), box=None)

    def clear(self) -> None:
        """Removes the prompts of the current object; saved instances stay, also the one that was being edited."""
        if not self.state.empty:
            self._change(self.state.without_object())

    def undo(self) -> None:
        """Takes back the last change."""
        if not self._past:
            raise InputError("There is nothing to undo; click on an object first.")
        (*past, state), future = self._past, (self.state, *self._future)
        self._show(state)
        self._past, self._future = tuple(past), future

    def redo(self) -> None:
        """Does again what was undone last."""
        if not self._future:
            raise InputError("There is nothing to redo; undo a change first.")
        (state, *future), past = self._future, (*self._past, self.state)
        self._show(state)
        self._past, self._future = past, tuple(future)

    def toggle_vlk(self) -> None:
        """Switches vision-language knowledge on or off and segments again."""
        if not self.has_vlk:
            raise InputError("This model has no vision-language knowledge to switch; load 'tiny', which has it.")
        self._prompt(vlk=not self.state.vlk)

    def toggle_negatives(self) -> None:
        """Switches the automatic points on or off: three of SBR's ring around the mask, all outside."""
        self._prompt(negatives=not self.state.negatives)

    def set_candidate(self, k: int) -> None:
        """Chooses the single mask (0) or one of SAM's three candidates (1..3) for an ambiguous click."""
        if not is_index(k, 4):
            raise InputError(f"There is no mask {k}; choose 0 for the single mask, or a candidate from 1 to 3.")
        self._prompt(candidate=int(k))

    def set_model(self, name: str) -> None:
        """Changes to another of the models and segments again."""
        if name not in self.models:
            raise InputError(f"There is no model {name!r} here; choose one of {', '.join(self.models)}.")
        self._prompt(model=name)

    def encode(self) -> None:
        """Encodes the current page for the current model now, so that the first click need not wait."""
        self.segmenter.predictor(self.state)

    def set_page(self, z: int) -> None:
        """Goes to another page of a stack (from 0); the points of an unsaved object are left, and undo returns to them."""
        to_rgb8(self.pages.page(z), f"page {z}")
        if int(z) == self.state.page:
            return
        channel = self.state.channel
        if channel is not None and channel >= len(self.pages.channels(z)):
            channel = None  # the page lacks it
        state = self.state.without_object(page=int(z), channel=channel)
        self._show(state) if self.state.empty else self._change(state)

    def set_channel(self, channel: int | None) -> None:
        """Shows one channel (from 0) to the model and the screen, or all together (None), and segments again."""
        self.pages.view(self.state.page, channel)
        self._prompt(channel=channel)

    def set_display(self, low: float = 0.0, high: float = 100.0, gamma: float = 1.0) -> None:
        """Changes contrast (percentiles that become black and white) and gamma on the screen only."""
        self.contrast = Display(low, high, gamma)

    def display_image(self) -> np.ndarray:
        """uint8 RGB (H, W, 3) of the current page and channel with the contrast chosen."""
        return display(self.pages.view(self.state.page, self.state.channel), self.contrast)

    def describe(self, on_text: Callable[[str], None] | None = None) -> str:
        """What the language model says about the image; kept in `description`.

        Args:
            on_text: called with the text so far while it grows.
        """
        encoding, predictor = self.state.encoding, self.segmenter.predictor(self.state)
        self._descriptions[encoding] = predictor.describe(on_text=on_text)
        return self._descriptions[encoding]

    def save_instance(self) -> int:
        """Keeps the current mask as an instance and returns its number; earlier instances keep their pixels."""
        state = self.state
        if state.region is None:
            raise InputError("There is no mask to save; click on an object first.")
        free = self.mask & ((self.labels == 0) | (self.labels == (state.editing or 0)))
        if not free.any():
            raise InputError("The mask has no pixel that is not saved already; add a point or clear the points.")
        number, name, words = next(free_numbers(state.instances)), PLAIN_NAME, self.words
        if state.editing is not None:
            old = state.find(state.editing)
            number, name = old.number, PLAIN_NAME if old.name == old.words else old.name
            words = old.words if state.region is old.region else words  # as it was segmented, whatever the model is now
        name = words or name if name == PLAIN_NAME else name  # its class, until a person says otherwise
        new = Instance(number, name, state.prompts, state.box, state.model, state.page, Region.of(free), words)
        self._change(state.without_object(instances=state.put(new)))
        return number

    def select(self, number: int | None) -> None:
        """Marks an instance and goes to its page; None marks none."""
        if number is not None:
            self.set_page(self.state.find(number).page)
        self._selected = number

    def rename(self, number: int, name: str) -> None:
        """Gives an instance another name, for example its class."""
        name = " ".join(str(name).split())
        if not name:
            raise InputError("An instance needs a name; give at least one letter.")
        new = replace(self.state.find(number), name=name)
        self._change(replace(self.state, instances=self.state.put(new)))

    def delete(self, number: int) -> None:
        """Removes an instance; the others keep their numbers."""
        state, gone = self.state, self.state.find(number)
        state = state.without_object() if state.editing == number else state
        self._change(replace(state, instances=tuple(i for i in state.instances if i is not gone)))

    def edit(self, number: int) -> None:
        """Makes an instance the current object again, with its prompts and pixels; it stays saved until it is replaced."""
        chosen = self.state.find(number)
        state, prompts = self.state.without_object(page=chosen.page), {"prompts": chosen.prompts, "box": chosen.box}
        alone = not chosen.prompts and chosen.box is None
        self._change(replace(state, **prompts, words=chosen.words, alone=alone, region=chosen.region, editing=number))
        self._selected = number

    def import_labels(self, source: np.ndarray | str | Path) -> int:
        """Takes the objects of a label image over as instances of the current page, to correct them.

        Args:
            source: integers (H, W), a stack of them for all pages, or a path; 0 is background.

        Returns:
            Number of instances added.
        """
        found = self.state.instances
        for page, labels in self.pages.read_labels(source, self.state.page).items():
            found += from_labels(labels, page, found, PLAIN_NAME)
        added = len(found) - len(self.state.instances)
        if not added:
            raise InputError("The label image has no object on free pixels; nothing was imported.")
        self._change(replace(self.state, instances=found))
        return added

    def export(self, folder: str | Path, kinds: Iterable[str]) -> dict[str, Path]:
        """Writes the instances in the formats asked for, see `ullsam.widgets.export`; returns the path of each."""
        instances, pages = self.state.instances, self.pages
        views = {z: pages.view(z, None) for z in sorted({i.page for i in instances})}
        labels = {z: label_map(instances, z, view.shape[:2]) for z, view in views.items()}
        annotations = Annotations(
            file_name(pages.name),
            images=views,
            labels=labels,
            names={i.number: i.name for i in instances},
            pictures={z: display(view, self.contrast) for z, view in views.items()},
            values={z: pages.values(z) for z in views},
            count=pages.count,
            pixel_size=pages.pixel_size,
            file=pages.file,
            sha=pages.sha,
            axes=stack_axes(pages.path),
            words={i.number: i.words for i in instances if i.words},
        )
        return export(annotations, folder, kinds)

    instances = property(lambda self: list(self.state.instances), doc="Saved instances of all pages, list of Instance.")
    project = property(lambda self: self._autosave.path, doc="The file that keeps the work, or None.")
    size = property(lambda self: self.pages.page(self.state.page).shape[:2], doc="(H, W) of the current page.")
    channels = property(lambda self: self.pages.channels(self.state.page), doc="Names of channels, () for a grey image.")
    models = property(lambda self: list(self.segmenter.models), doc="Names of the models.")
    network = property(lambda self: self.segmenter.models[self.state.model].model, doc="The current model.")
    has_vlk = property(lambda self: self.network.vlsa is not None, doc="The model has knowledge to switch.")
    vlk = property(lambda self: self.state.vlk and self.has_vlk, doc="With vision-language knowledge.")
    words = property(lambda self: self.segmenter.words(self.state), doc="Words that the mask follows; '' for none.")
    hint = property(lambda self: unknown(self.words), doc="One sentence on words that training never saw, or ''.")
    encoded = property(lambda self: self.state.encoding in self.segmenter.predictors, doc="The next click need not wait.")
    description = property(lambda self: self._descriptions.get(self.state.encoding, ""), doc="The language model's words.")
    can_undo = property(lambda self: bool(self._past), doc="There is a change to take back.")
    can_redo = property(lambda self: bool(self._future), doc="There is a change to do again.")
    grab = property(lambda self: max(1.0, GRAB * max(self.size)), doc="Pixels within which a click means a point there.")

    @property
    def no_words(self) -> str:
        """One sentence why words cannot be used now, or ''."""
        if self.segmenter.follows_words(self.state.model):
            return "" if self.vlk else "Words need vision-language knowledge (VLK); switch it on."
        able = [name for name in self.models if self.segmenter.follows_words(name)]
        remedy = f"choose {able[0]}" if able else "load a model that was trained with words"
        problem = "was not trained with words" if self.has_vlk else "works without a language model"
        return f"{self.state.model} {problem} and cannot follow words; {remedy}."

    @property
    def absence(self) -> str:
        """One sentence that what the words name is not here, as far as the model can tell, or ''."""
        presence = self.state.presence
        return f"I see no {bare(self.words)} here." if presence is not None and presence < PRESENT else ""

    selected = property(
        lambda self: next((i.number for i in self.state.instances if i.number == self._selected), None),
        doc="Number of the instance that is marked, or None.",
    )

    def _text(self, words: str) -> str:
        if self.no_words:
            raise InputError(self.no_words)
        return check_words(str(words).encode(errors="ignore").decode(), 1)[0]  # a browser can send half a letter

    def _prompt(self, **changes) -> None:
        """Changes what the mask depends on; taken over only when the mask could be computed."""
        self._change(self.segmenter.segmented(replace(self.state, **changes)))

    def _change(self, state: State) -> None:
        past = (*self._past, self.state)[-STEPS:]
        self._show(state)
        self._past, self._future = past, ()

    def _show(self, state: State) -> None:
        """Makes a state the current one, after its instances are safe on disk."""
        if state.instances is not self.state.instances:
            self._autosave.write(state)
        if state.instances is not self.state.instances or state.page != self.state.page:
            self.labels = self._label_map(state)
        self.state = state
        self.mask = None if state.region is None else state.region.mask(self.size)

    def _label_map(self, state: State) -> np.ndarray:
        return label_map(state.instances, state.page, self.pages.page(state.page).shape[:2])


def _numbers(*values) -> tuple[float, ...]:
    try:
        return tuple(float(v) for v in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{values} are not numbers; give x and y in image pixels.") from error


class Segmenter:
    """Models by name, see `ClickSession`, and what they make of the pages of one image."""

    def __init__(self, models, pages: Pages):
        models = models if isinstance(models, Mapping) else {None: models}
        given = {name: Predictor(model) if isinstance(model, ULLSAM) else model for name, model in models.items()}
        if not given:
            raise InputError("There is no model; give one, for example ullsam.load('tiny').")
        for model in given.values():
            if not hasattr(model, "set_image"):
                raise InputError(f"{model!r} is no model; give a ULLSAM, as from ullsam.load('tiny'), or a Predictor.")
        self.models = {str(p.model.config.name if name is None else name): p for name, p in given.items()}
        self.pages = pages
        self.predictors: dict[tuple, Predictor] = {}  # by State.encoding, the one used last at the end

    def predictor(self, state: State) -> Predictor:
        """A predictor that no one else uses and that has encoded the page."""
        predictor = self.predictors.pop(state.encoding, None)
        if predictor is None:
            predictor = copy.copy(self.models[state.model])  # the network is shared, the image is not
            predictor.set_image(self.pages.view(state.page, state.channel))
        self.predictors = dict([*self.predictors.items(), (state.encoding, predictor)][-ENCODED:])
        return predictor

    def words(self, state: State) -> str:
        """The words that the mask of a state follows; '' for none."""
        return state.words if state.vlk and self.follows_words(state.model) else ""

    def follows_words(self, name: str) -> bool:
        """Masks of this model depend on words."""
        network = self.models[name].model
        return network.vlsa is not None and network.config.trained_with_words

    def segmented(self, state: State) -> State:
        """The state with the mask of its prompts or words, and with automatic points if they are wished for."""
        prompted, alone = bool(state.prompts) or state.box is not None, state.alone and bool(self.words(state))
        state = replace(state, alone=alone and not prompted, suggested=(), region=None, presence=None)
        if not prompted and not alone:
            return state
        mask, presence = self._mask(state)
        if state.negatives and prompted and (ring := _negative_ring(mask, state.prompts)):
            state = replace(state, suggested=ring)
            mask, presence = self._mask(state)
        return replace(state, region=Region.of(mask), presence=presence)

    def _mask(self, state: State) -> tuple[np.ndarray, float | None]:
        """Mask bool (H, W), and how sure the model is that what the words name is there."""
        predictor, words = self.predictor(state), self.words(state)
        if state.alone:
            found = predictor.segment(words)
            return found.masks[0], float(found.presence[0])
        table = np.array(state.prompts + state.suggested).reshape(-1, 3)  # (P, 3), also for P = 0
        points = {"points": table[:, :2], "labels": table[:, 2]} if len(table) else {}
        several, asked = state.candidate > 0, {"words": words} if words else {}
        found = predictor.predict(**points, **asked, box=state.box, use_vlk=state.vlk, multimask=several)
        mask = found.masks[0, state.candidate - 1] if several else found.masks[0]
        return mask, float(found.presence[0]) if words else None


def _negative_ring(mask: np.ndarray, prompts: tuple) -> tuple:
    """Three points outside an object, from the ring that SBR trains with, the same ones for the same mask bool (H, W).

    Points inside count as the object too, so that the ring never lies on them. Source: paper, section 3.2.2.
    """
    inside = mask.astype(np.uint8)
    for x, y, label in prompts:
        if label:
            cv2.circle(inside, (round(x), round(y)), max(1, round(max(mask.shape) / 100)), 1, cv2.FILLED)
    if not inside.any() or inside.all():
        return ()
    points = sample_points(inside, 1, np.random.default_rng(0), n_pos=0, n_neg=NEGATIVES).points
    return tuple((float(x), float(y), 0) for x, y in points)
