"""What two run records disagree in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..specs.plain import plain

# Settings in which two trainings of a run may differ: none of them changes a weight.
_WITHOUT_EFFECT = ("output_dir", "exp_name", "print_interval", "eval_interval", "data_num_workers", "save_history_ckpt")


def training_sizes(exp: Mapping[str, Any]) -> list[int] | None:
    """Smallest and largest height of the images in training, in units of 32 px; None where a record does not tell.

    Where an experiment has no ``random_size`` YOLOX works it out on the way, so it stands in some records only.
    """
    sizes, span, height = exp.get("random_size"), exp.get("multiscale_range"), (exp.get("input_size") or [None])[0]
    if sizes is not None:  # text where a log was read that does not show a pair
        return plain(sizes) if isinstance(sizes, (list, tuple)) else None
    if not isinstance(span, int) or not isinstance(height, int):
        return None
    return [height // 32 - span, height // 32 + span]


def code_differences(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    """The methods, functions and classes whose code differs, of two tables of `yolox_loss_patch.exp.code.user_code`.

    A function or class that stands in a single table counts through the methods that use it.
    """
    return [
        name
        for name in sorted({*first, *second})
        if first.get(name) != second.get(name) and (name.endswith("()") or (name in first and name in second))
    ]


def record_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What two records of one folder disagree in, as text; of a resumed run what it cannot go on with."""
    lines = []
    exps = [{**exp, "random_size": training_sizes(exp)} for exp in (before.get("exp", {}), now["exp"])]
    pairs = [(exps[0], exps[1]), (before.get("resolved_losses", {}), now["resolved_losses"])]
    if not now["args"].get("resume"):
        arguments = ["batch_size", "fp16"]
        old, new = before.get("starting_weights"), now.get("starting_weights")
        if old is None or new is None:
            arguments.append("ckpt")
        elif old != new:
            lines.append(f"starting weights (sha256): {old} there, {new} now")
        pairs.append(tuple({key: side.get("args", {}).get(key) for key in arguments} for side in (before, now)))  # type: ignore[arg-type]
        if "code" in before:
            lines += [f"the code of {name}" for name in code_differences(before["code"], now["code"])]
    for old, new in pairs:
        for key in sorted({*old, *new} - {*_WITHOUT_EFFECT}):
            if plain(old.get(key)) != plain(new.get(key)):
                lines.append(f"{key}: {old.get(key)!r} there, {new.get(key)!r} now")
    return lines


def changed_since(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What a resumed run does otherwise than before, so that it is no longer the run that was never stopped."""

    def told(record: dict[str, Any]) -> dict[str, Any]:
        args = record.get("args", {})
        return {
            "max_epoch": record.get("exp", {}).get("max_epoch"),
            "-b": args.get("batch_size"),
            "--fp16": args.get("fp16"),
            "device": record.get("device"),
            "CPU": record.get("cpu"),
            "threads": record.get("threads"),
            **{name: record.get("versions", {}).get(name) for name in ("torch", "numpy", "opencv", "python")},
            **{name: record.get("determinism", {}).get(name) for name in now.get("determinism", {})},
            "YOLOX's get_losses": record.get("host", {}).get("get_losses"),
        }

    old, new = told(before), told(now)
    lines = [f"{key}: {old[key]!r} before, {new[key]!r} now" for key in old if old[key] != new[key]]
    code = code_differences(before["code"], now["code"]) if "code" in before else []
    return lines + [f"the code of {name}" for name in code]
