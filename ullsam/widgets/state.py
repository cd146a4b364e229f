"""What gestures of a click session change, in one frozen value: a new one for each change, an old one for undo."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ullsam.widgets.instances import Box, Instance, Point, Region


@dataclass(frozen=True, eq=False)
class State:
    """The object being segmented, how it is segmented, and the instances saved so far."""

    model: str
    vlk: bool = True  # wished for; a model without VLSA has none
    negatives: bool = False  # with automatic points around the mask
    candidate: int = 0  # 0 the single mask, 1..3 SAM's candidates
    page: int = 0
    channel: int | None = None
    prompts: tuple[Point, ...] = ()
    box: Box | None = None
    suggested: tuple[Point, ...] = ()  # the automatic points
    region: Region | None = None  # pixels of the current object
    editing: int | None = None  # number of the instance that is the current object
    instances: tuple[Instance, ...] = ()

    @property
    def empty(self) -> bool:
        """There is no current object."""
        return not self.prompts and self.box is None and self.editing is None

    @property
    def encoding(self) -> tuple:
        """What the features of the image depend on."""
        return self.model, self.page, self.channel

    def without_object(self, **changes) -> State:
        """The same without a current object."""
        return replace(self, prompts=(), box=None, suggested=(), region=None, editing=None, **changes)

    def on_page(self, page: int, channels: int) -> State:
        """Another page without a current object; a channel that the page lacks is given up."""
        channel = self.channel if self.channel is not None and self.channel < channels else None
        return self.without_object(page=page, channel=channel)
