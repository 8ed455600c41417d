"""Count what the loss stage asks of an accelerator: operators and waits of ``get_losses``, forward and backward.

    python benchmarks/launches.py                          # stock and the kit on the installed YOLOX
    PYTHONPATH=.hosts/NAME python benchmarks/launches.py   # another YOLOX that is found first

Appends to benchmarks/launches.csv a row per code, batch and number of boxes. It needs no accelerator: it runs on a CPU, the
kit with what it does on an accelerator, and looks at the operators as PyTorch dispatches them. An operator that gives a view
starts nothing and is not counted. A wait is where Python needs a number that the device computes: a value or a mask that
decides a shape. Not seen are waits inside one operator: the gradient of ``torch.prod``, which stock's box loss has twice
and the kit on an accelerator not at all. ``peak_mib`` is the most memory that was held at a time beyond the inputs.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import subprocess
import warnings
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import yolox_loss_patch as ylp
from yolox_loss_patch.head import hosts
from yolox_loss_patch.losses import boxes

ROOT = Path(__file__).resolve().parent.parent
CSV = Path(__file__).with_suffix(".csv")
COLUMNS = ("commit", "torch", "host", "code", "batch", "size", "classes", "boxes", "operators", "waits", "peak_mib")
# Operators whose result has a shape that the values decide, or that hand a value to Python.
WAITING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim"),
    *("_unique2", "unique_consecutive", "repeat_interleave"),
}
BY_MASK = {"index", "index_put", "index_put_", "_index_put_impl_"}
# Methods of a tensor that copy it to the host; on a CPU they dispatch nothing.
TO_HOST = {"tolist", "cpu", "numpy", "__array__"}


class Counting(TorchDispatchMode):
    """Counts the operators, the waits and the memory of what runs inside.

    Attributes:
        operators: name -> how often, of those that give no view.
        waits: name -> how often.
        peak: bytes held at most at a time, of what was allocated inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.held = self.peak = 0
        self._storages: dict[int, Any] = {}
        self._methods = _Methods(self.waits)

    def __enter__(self) -> Counting:
        self._methods.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._methods.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        result = func(*args, **(kwargs or {}))
        is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)
        if not is_view:
            self.operators[name] += 1
            for value in result if isinstance(result, tuple | list) else (result,):
                if isinstance(value, Tensor):
                    self._hold(value)
        if name in WAITING or (name in BY_MASK and any(_is_mask(index) for index in args[1])):
            self.waits[name] += 1
        return result

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        known = {key for key, reference in self._storages.items() if reference.expired()}
        for key in known:
            del self._storages[key]
        self._storages.setdefault(storage._cdata, _StorageReference(storage))
        self.held = sum(reference.size for reference in self._storages.values())
        self.peak = max(self.peak, self.held)


class _StorageReference:
    """A weak reference to the memory of a tensor."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.size = storage.nbytes()
        self._weak = storage._weak_ref()

    def expired(self) -> bool:
        return torch.UntypedStorage._expired(self._weak)

    def __del__(self) -> None:
        torch.UntypedStorage._free_weak_ref(self._weak)


class _Methods(TorchFunctionMode):
    """Counts the calls of methods that copy a tensor to the host."""

    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in TO_HOST:
            self.waits[name] += 1
        return func(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def as_on_an_accelerator() -> ExitStack:
    """Inside, the kit does on a CPU what it does on an accelerator."""
    stack = ExitStack()
    stack.enter_context(mock.patch("yolox_loss_patch.head.assign.fast.find_levels", lambda scene: None))
    stack.enter_context(mock.patch("yolox_loss_patch.head.stage.is_accelerator", lambda device: True))
    stack.enter_context(mock.patch("yolox_loss_patch.losses.boxes.product", boxes.plain_product))
    return stack


def count(head: Any, arguments: tuple[Any, ...]) -> Counting:
    """One forward and backward of ``get_losses`` with all terms."""
    outputs = arguments[5].detach().requires_grad_()
    offsets = torch.zeros(*outputs.shape[:2], 4, requires_grad=True)
    head.use_l1 = True
    with Counting() as counting:
        head.get_losses(*arguments[:5], outputs, [offsets], arguments[7])[0].backward()
    return counting


def stage_benchmark() -> Any:
    """benchmarks/stage.py, whose random batches serve here as well."""
    spec = importlib.util.spec_from_file_location("stage_benchmark", ROOT / "benchmarks" / "stage.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Count, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--boxes", type=int, nargs="*", default=[0, 5, 20, 100])
    parser.add_argument("--crowd", type=int, nargs=2, default=[16, 300], help="batch and boxes of one more row")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    make = stage_benchmark().scene
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    fixed = {"commit": commit, "torch": torch.__version__, "host": hosts.describe()["name"]}
    rows = []
    for batch, number in [*((args.batch, number) for number in args.boxes), tuple(args.crowd)]:
        arguments = make(batch, args.size, args.classes, number, torch.device("cpu"))
        for code in ("stock", "kit"):
            head = hosts.head_class()(args.classes, width=0.25).train()
            with ExitStack() as stack:
                if code == "kit":
                    ylp.patch_model(head, {"loss_assign": "fast"})
                    stack.enter_context(as_on_an_accelerator())
                counting = count(head, arguments)
            row = {
                **fixed,
                "code": code,
                "batch": batch,
                "size": args.size,
                "classes": args.classes,
                "boxes": number,
                "operators": counting.operators.total(),
                "waits": counting.waits.total(),
                "peak_mib": round(counting.peak / 2**20, 1),
            }
            print(", ".join(f"{key} {row[key]}" for key in COLUMNS[2:]), flush=True)
            rows.append(row)
    new = not CSV.exists()
    with CSV.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
