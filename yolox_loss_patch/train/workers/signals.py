"""Signals that stop a training."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], None]]:
    """SIGTERM and SIGHUP stop as Ctrl-C does. Later signals of these kinds are ignored, so that the end can be recorded.

    Yields:
        A function to call when the end has another reason: from then on all are ignored.
    """
    stopped = False

    def ignore_signals() -> None:
        nonlocal stopped
        stopped = True

    def stop(number: int, _: Any) -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            raise KeyboardInterrupt(*([f"stopped by {signal.Signals(number).name}"] if number != signal.SIGINT else []))

    numbers = [signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up is not None and signal.getsignal(hang_up) is signal.SIG_DFL:  # nohup ignores it
        numbers.append(hang_up)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup and notebooks have their own
        numbers.append(signal.SIGINT)
    before: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):  # not in the main thread
        before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield ignore_signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
