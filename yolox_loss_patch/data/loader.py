"""Data in training: a loader that can be repeated and resumed, and checks that speak before an epoch is lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ..errors import DataError
from .images import image_fault


def seed_everything(*numbers: int) -> None:
    """Seed python, numpy and torch from a few whole numbers, so that each combination gives its own stream."""
    a, b, c = (int(word) for word in np.random.SeedSequence(numbers).generate_state(3))
    random.seed(a)
    np.random.seed(b)
    torch.manual_seed(c)


class _Seeded(Dataset[Any]):
    """A data set whose items depend on their place in the training, not on the worker that makes them.

    YOLOX's workers seed themselves from a random number, so no run can be repeated. Here every item has a seed of its
    place: with any number of workers, and after a resume, the same items come.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int, Any]) -> Any:
        position, index = key
        states = None
        if get_worker_info() is None:  # in the training process itself, whose random streams must not move
            states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        seed_everything(self.seed, 0, position)
        try:
            return self.dataset[index]
        except AssertionError as error:  # how YOLOX's data set says that an image cannot be read
            fault = image_fault(error)
            if fault is None:
                raise
            raise DataError(*fault) from None
        finally:
            if states is not None:
                random.setstate(states[0])
                np.random.set_state(states[1])
                torch.set_rng_state(states[2])


class _Positioned(Sampler[list[tuple[int, Any]]]):
    """YOLOX's batches with the position of every item, from a given batch on.

    Positions count the items of all ranks as YOLOX's sampler deals them out, one per rank in turn: however many ranks there
    are, an image is made from the same seed.

    Mosaic ends at a given batch, however far the workers have read ahead.
    """

    def __init__(self, batches: Any, rank: int, world: int, start: int, mosaic_until: int) -> None:
        self.batches, self.rank, self.world, self.start, self.mosaic_until = batches, rank, world, start, mosaic_until

    def __iter__(self) -> Iterator[list[tuple[int, Any]]]:
        stream = iter(self.batches)
        number = 0
        while True:
            if hasattr(self.batches, "mosaic"):
                self.batches.mosaic = number < self.mosaic_until
            try:
                batch = next(stream)
            except StopIteration:  # a finite sampler of the user: begin again
                stream = iter(self.batches)
                continue
            if number >= self.start:
                first = number * len(batch)
                yield [((first + place) * self.world + self.rank, index) for place, index in enumerate(batch)]
            number += 1


def training_loader(
    loader: Any, *, seed: int, rank: int, start: int, mosaic_until: int, pin_memory: bool, world: int = 1
) -> DataLoader[Any]:
    """The experiment's loader, made repeatable.

    Args:
        loader: what ``exp.get_data_loader`` returned.
        seed: of the run.
        rank: of this process.
        start: the number of batches already trained on.
        mosaic_until: the number of the first batch without mosaic.
        pin_memory: whether the batches go to a CUDA device.
        world: how many processes train together.

    Returns:
        An endless loader of ``(images, labels, info, ids)``.
    """
    workers = loader.num_workers
    return DataLoader(
        _Seeded(loader.dataset, seed),
        batch_sampler=_Positioned(loader.batch_sampler, rank, world, start, mosaic_until),
        num_workers=workers,
        collate_fn=loader.collate_fn,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread,
        prefetch_factor=loader.prefetch_factor if workers else None,
        multiprocessing_context=loader.multiprocessing_context if workers else None,
    )


def _one_thread(_: int) -> None:
    import cv2  # comes with YOLOX

    cv2.setNumThreads(0)  # the workers are the parallelism; threads in each would fight over the cores


def explained(loader: Any) -> Iterator[Any]:
    """The batches of a loader.

    Raises:
        DataError: an image that cannot be read, or a data worker that was killed.
    """
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            reason = _loader_error(error)
            if reason is None:
                raise
            raise reason from error
        yield batch


def _loader_error(error: Exception) -> DataError | None:
    """A sentence for what went wrong in a loader, None for an error of another kind."""
    text = str(error)
    if (fault := image_fault(error)) is not None:
        return DataError(*fault)
    if (
        isinstance(error, DataError) and "Original Traceback" in text
    ):  # of a worker, which hands on its traceback as text
        return DataError(text.rstrip().rpartition("\n")[2].partition("DataError: ")[2])
    if (
        isinstance(error, RuntimeError)
        and "DataLoader worker" in text
        and ("exited unexpectedly" in text or "killed" in text)
    ):
        return DataError(
            f"A process that loads the data was killed ({text.splitlines()[0]}); most often the memory ran out.",
            "Lower data_num_workers or -b, then go on with --resume.",
        )
    return None


class Prefetcher:
    """The next batch on the device, copied while the last one is trained on where the device can do that.

    Args:
        loader: endless, of ``(images, labels, info, ids)``.
        device: where the batches go.
    """

    def __init__(self, loader: Any, device: torch.device) -> None:
        self.batches = explained(loader)
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._load()

    def _load(self) -> None:
        images, labels, _, self._ids = next(self.batches)
        with torch.cuda.stream(self.stream):  # no stream: nothing happens here
            # Labels stay fp32 in half precision too: fp16 holds whole pixels only from 1024 on.
            self._images = images.to(self.device, torch.float32, non_blocking=True)
            self._labels = labels.to(self.device, torch.float32, non_blocking=True)

    def next(self) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Images ``(B, 3, H, W)``, labels ``(B, M, 5)``, and the images' ids."""
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            self._images.record_stream(current)
            self._labels.record_stream(current)
        images, labels, ids = self._images, self._labels, self._ids
        self._load()
        return images, labels, [int(i) for i in torch.as_tensor(np.asarray(ids)).flatten()]
