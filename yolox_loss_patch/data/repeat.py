"""Repeat-factor sampling: images with rare classes are shown more often. LVIS, arXiv 1908.03195.

With f(c) the share of images that have class c, and a threshold t, a class has the factor ``r(c) = max(1, sqrt(t / f(c)))``
and an image that of its rarest class. Mosaic and mixup draw their other images by the same factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .checks import coco_dataset


def repeat_factors(classes: Sequence[set[int]], threshold: float) -> NDArray[np.float64]:
    """The factor of each image, at least 1.

    Args:
        classes: the classes that each image has.
        threshold: t, a share of the images.
    """
    names, counts = np.unique([number for found in classes for number in found], return_counts=True)
    factor = {
        int(number): max(1.0, float(np.sqrt(threshold * len(classes) / count)))
        for number, count in zip(names, counts, strict=True)
    }
    return np.array([max((factor[number] for number in found), default=1.0) for found in classes])


def repeated(factors: NDArray[np.float64]) -> list[int]:
    """The numbers of the images, each as often as its factor says; fractions are carried over to the next image."""
    ends = np.floor(np.cumsum(factors) + 1e-9).astype(int)
    return np.repeat(np.arange(len(factors)), np.diff(ends, prepend=0)).tolist()


class RepeatedImages:
    """A data set of YOLOX in which some images stand more than once. It stands between the data set and its mosaics.

    Args:
        dataset: YOLOX's COCO data set.
        order: the number of the image at each place.
    """

    def __init__(self, dataset: Any, order: list[int]) -> None:
        self._dataset = dataset
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: Any) -> Any:
        """YOLOX's item: ``index`` is a place, or ``(mosaic, place)``."""
        if isinstance(index, tuple):
            mosaic, place = index
            return self._dataset[mosaic, self.order[place]]
        return self._dataset[self.order[index]]

    @property
    def input_dim(self) -> Any:
        """Height and width of the images."""
        return self._dataset.input_dim

    @property
    def _input_dim(self) -> Any:
        return self._dataset._input_dim

    @_input_dim.setter
    def _input_dim(self, size: Any) -> None:  # YOLOX's mosaic sets it on the data set that it wraps
        self._dataset._input_dim = size

    def pull_item(self, index: int) -> Any:
        """Image and boxes as the data set has them."""
        return self._dataset.pull_item(self.order[index])

    def load_anno(self, index: int) -> Any:
        """The boxes of an image."""
        return self._dataset.load_anno(self.order[index])


def repeat_images(loader: Any, threshold: float) -> None:
    """Let a training loader draw its images by their repeat factors, in place.

    An epoch has as many images as before, so that it takes as long and has as many steps.

    Args:
        loader: YOLOX's training loader.
        threshold: t, a share of the images, in (0, 1].

    Raises:
        ConfigError: no mosaic data set over a COCO data set, or a sampler that is not YOLOX's.
    """
    outer = loader.dataset
    inner = coco_dataset(outer)
    sampler = getattr(loader.batch_sampler, "sampler", None)
    known = getattr(outer, "_dataset", None) is inner and hasattr(sampler, "_infinite_indices")
    if inner is None or sampler is None or not known:
        raise ConfigError(
            f"repeat_factor works on YOLOX's mosaic over its COCO data set and with YOLOX's sampler; here are a "
            f"{type(outer).__name__} and a {type(sampler).__name__}. Leave repeat_factor out."
        )
    classes = [{int(row[4]) for row in entry[0] if row[4] >= 0} for entry in inner.annotations]
    factors = repeat_factors(classes, threshold)
    order = repeated(factors)
    outer._dataset = RepeatedImages(inner, order)
    inner.repeat_factors = factors
    images_per_epoch = len(sampler)
    kind = type(sampler)
    sampler._size = len(order)
    # The length of an epoch is the sampler's length, which would grow with the repeated images.
    sampler.__class__ = type(kind.__name__, (kind,), {"__len__": lambda self: images_per_epoch})


def check_repeat_factor(value: Any) -> float | None:
    """The setting ``repeat_factor`` of an experiment.

    Raises:
        ConfigError: no number in (0, 1].
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ConfigError(
            f"repeat_factor is a share of the images in (0, 1], below which a class counts as rare, such as 0.01; or None. "
            f"Got {value!r}."
        )
    return float(value)
