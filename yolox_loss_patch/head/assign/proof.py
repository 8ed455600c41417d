"""How ``loss_assign="auto"`` comes to the fast assignment on an accelerator: it is held against the host's first."""

from __future__ import annotations

from typing import Any

import torch
from loguru import logger
from torch import Tensor

from .fast import fast_assign, make_scene
from .host import host_assign
from .rounding import within_rounding
from .rule import Assignment, Rule

BATCHES = 20  # with boxes; at the multi-scale training of YOLOX, a new size every ten


def is_accelerator(device: torch.device) -> bool:
    """Whether Python waits for this device when it asks for a number, and matches on it are to be proven."""
    return device.type != "cpu"


class AssignmentProof:
    """Matches the first batches of a training both ways; the fast way goes on alone if it gave the host's answer.

    Two answers are the same where every anchor has the same box, or where both boxes are what rounding may make of the
    rule (`within_rounding`). While the proof runs, the training gets the host's matches. It is about a device, not about a
    model: a copy of the model (EMA) shares it.

    Attributes:
        device: the name of the device, empty before the first batch.
        answer: ``fast`` or ``host``; None while the proof runs.
        batches, images, boxes, foreground: how many were compared.
        near_ties: anchors with another box than the host's, for rounding.
        sizes: how many numbers of anchors per image there were.
        reason: why the answer is ``host``, in words.
    """

    def __init__(self) -> None:
        self._place: torch.device | None = None
        self._start("")

    def _start(self, device: str) -> None:
        self.device = device
        self.answer: str | None = None
        self.reason = ""
        self.batches = self.images = self.boxes = self.foreground = self.near_ties = 0
        self._anchors: set[int] = set()

    def __deepcopy__(self, memo: Any) -> AssignmentProof:
        return self

    @property
    def sizes(self) -> int:
        """How many numbers of anchors per image were compared, one per image size."""
        return len(self._anchors)

    def assign(self, head: Any, rule: Rule, imgs: Tensor, scene: dict[str, Any]) -> Assignment:
        """The matches of a batch.

        Args:
            head: the host's head.
            rule: its rule.
            imgs: (B, 3, H, W) the images.
            scene: the other arguments of `host_assign`, which `fast_assign` shares.

        Raises:
            RuntimeError, IndexError: raised by the host while the proof runs or after it failed.
        """
        place = scene["bbox_preds"].device
        if place != self._place:
            self._place = place
            name = _name(place)
            if name != self.device:
                self._start(name)
        if self.answer == "fast":
            return fast_assign(rule=rule, **scene)
        expected = host_assign(head, imgs=imgs, **scene)
        if self.answer is None and expected.num_gt:
            self._compare(expected, rule, scene)
        return expected

    def _compare(self, expected: Assignment, rule: Rule, scene: dict[str, Any]) -> None:
        try:
            found = fast_assign(rule=rule, **scene)
        except (RuntimeError, TypeError) as error:  # an operator that the device lacks, or its memory
            self._end("host", f"the fast one failed: {type(error).__name__}: {str(error).splitlines()[0]}")
            return
        batch, anchors = scene["bbox_preds"].shape[:2]
        theirs, ours = (_owners(assignment, batch, anchors) for assignment in (expected, found))
        different = theirs != ours
        for image in different.any(1).nonzero().flatten().tolist():
            inputs = make_scene(**scene, rule=rule)
            explained = within_rounding(inputs, image, ours[image]) & within_rounding(inputs, image, theirs[image])
            wrong = (different[image] & ~explained).sum().item()
            if wrong:
                self._end("host", f"{wrong} anchors of an image got another box in batch {self.batches + 1}")
                return
        same = ~different.flatten()
        both = same[expected.rows], same[found.rows]
        if not torch.allclose(found.ious[both[1]].double(), expected.ious[both[0]].double(), rtol=1e-4, atol=1e-6):
            self._end("host", f"the IoUs of the matched boxes differ in batch {self.batches + 1}")
            return
        self.batches += 1
        self.images += batch
        self.boxes += expected.num_gt
        self.foreground += expected.num_fg
        self.near_ties += int(different.sum())
        self._anchors.add(anchors)
        if self.batches == BATCHES:
            self._end("fast", "")

    def _end(self, answer: str, reason: str) -> None:
        self.answer, self.reason = answer, reason
        seen = f"{self.batches} batches ({self.images} images, {self.boxes} boxes, {self.foreground} matched anchors)"
        if answer == "fast":
            ties = f" but for {self.near_ties} near ties" if self.near_ties else ""
            logger.info(
                f"Label assignment: the fast one gave the host's matches on {self.device} in {seen}{ties}; it goes on."
            )
        else:
            logger.warning(
                f"Label assignment: the host's, which is slower, stays on {self.device}: {reason}, after {seen}."
            )

    def to_dict(self) -> dict[str, Any]:
        """The answer with its counts as plain data, for a run's record and its resume file; empty before any batch."""
        if not self.device:
            return {}
        names = ("device", "answer", "reason", "batches", "images", "boxes", "foreground", "near_ties")
        return {name: getattr(self, name) for name in names} | {"anchors": sorted(self._anchors)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `to_dict`; on another device the proof starts again with the first batch."""
        values = dict(state)
        self._anchors = set(values.pop("anchors"))
        for name, value in values.items():
            setattr(self, name, value)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _owners(assignment: Assignment, batch: int, anchors: int) -> Tensor:
    """(B, A) the box of each anchor, -1 for background."""
    owners = torch.full((batch * anchors,), -1, device=assignment.rows.device)
    owners[assignment.rows] = assignment.matched_gt
    return owners.view(batch, anchors)
