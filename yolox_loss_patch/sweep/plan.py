"""The plan of a sweep: what the words of the command line mean, and the trainings that they ask for."""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, RunError
from ..exp.code import user_code
from ..exp.data import preflight
from ..exp.loading import load_exp
from ..exp.overrides import override_value, setting_name
from ..exp.settings import check_settings, loss_config, settings
from ..runs.checkpoint import starting_weights
from ..runs.differences import record_differences
from ..runs.record import read_run
from .training import PlannedTraining

_DATA = ("data_dir", "train_ann", "val_ann", "num_classes", "input_size", "test_size")
_LABEL_LENGTH = 80  # of 255 that a folder's name may have
_CLUSTER_OPTIONS = ("partition", "gpus_per_node", "time", "cpus_per_task", "mem")


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb that are not YOLOX's."""
    result = argparse.ArgumentParser(
        prog="yolox-loss sweep",
        usage="yolox-loss sweep -f EXP [--set KEY=VALUE,VALUE,...]... [--seeds 0,1,2] [train's flags] [key value]...",
        description="Train every combination of the --set values with every seed, each in a folder of its own, then compare. "
        "Finished runs are skipped and runs that were cut off are resumed, so the same command goes on where it stopped.",
        epilog="All flags of yolox-loss train and its trailing overrides are for every run. Slurm's further settings are "
        "read by sbatch from its own environment variables, such as SBATCH_ACCOUNT; the folder of the runs must be on a "
        "file system that every node has.",
        allow_abbrev=False,
    )
    result.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUES", dest="sets",
        help="a setting and its values, as in loss_obj=bce,focal or \"loss_obj=bce,{'type':'focal','alpha':0.75}\"; "
        "can be given several times",
    )  # fmt: skip
    result.add_argument("--seeds", help="the seeds of each combination (default: 0,1,2; of a race 0 to 11)")
    result.add_argument(
        "--race",
        action="store_true",
        help="look at the verdicts after the numbers of seeds in --looks; what is settled gets no further seeds",
    )
    result.add_argument(
        "--looks", metavar="3,5,8", help="of a race (default: 3, 5, 8 and 12, up to the number of seeds)"
    )
    result.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="trainings at a time (default: one per GPU, one on CPU; on Slurm as many as it starts)",
    )
    result.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")
    result.add_argument(
        "--cluster", choices=("local", "slurm"), default="local", help="where to train (default: local)"
    )
    slurm = result.add_argument_group("with --cluster slurm, each job")
    slurm.add_argument("--partition", help="runs in this partition (default: the cluster's)")
    slurm.add_argument("--gpus-per-node", type=int, metavar="N", help="has so many GPUs (default: none)")
    slurm.add_argument(
        "--time", type=int, metavar="MIN", help="has so many minutes; then it is queued again and resumes (1440)"
    )
    slurm.add_argument("--cpus-per-task", type=int, metavar="N", help="has so many cores (default: the cluster's)")
    slurm.add_argument("--mem", type=float, metavar="GB", help="has so much memory (default: the cluster's)")
    return result


def check_options(options: argparse.Namespace) -> None:
    """Refuse numbers that cannot be, and a cluster's options without a cluster; fill in the seeds.

    Raises:
        ConfigError: the option, its value and what is allowed.
    """
    if options.looks is not None and not options.race:
        raise ConfigError(f"--looks {options.looks} is for a race; add --race, or leave it out.")
    if options.seeds is None:
        options.seeds = "0,1,2,3,4,5,6,7,8,9,10,11" if options.race else "0,1,2"
    for key in ("jobs", *_CLUSTER_OPTIONS):
        value, flag = getattr(options, key), f"--{key.replace('_', '-')}"
        if isinstance(value, (int, float)) and value <= 0:
            raise ConfigError(f"{flag} is a number above 0; got {value}.")
        if value is not None and key in _CLUSTER_OPTIONS and options.cluster != "slurm":
            raise ConfigError(f"{flag} is for a cluster; add --cluster slurm, or leave it out.")


def split_values(text: str) -> list[str]:
    """The values between the commas; a comma inside ``{} [] ()`` or quotes belongs to its value.

    Raises:
        ConfigError: a bracket or quote without its other half, an empty value.
    """
    values, start, closing, quote = [], 0, "", ""
    for place, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "{[(":
            closing = {"{": "}", "[": "]", "(": ")"}[char] + closing
        elif char in "}])":
            if not closing.startswith(char):
                raise ConfigError(f"--set: {char!r} without its other half in {text!r}.")
            closing = closing[1:]
        elif char == "," and not closing:
            values.append(text[start:place])
            start = place + 1
    if closing or quote:
        raise ConfigError(f"--set: {quote or closing[0]!r} is missing in {text!r}.")
    values = [value.strip() for value in (*values, text[start:])]
    if "" in values:
        raise ConfigError(f"--set: an empty value in {text!r}; write KEY=VALUE,VALUE.")
    return values


def _refuse_twins(values: Sequence[Any], flag: str) -> None:
    seen: list[Any] = []
    for value in values:
        if value in seen:
            raise ConfigError(f"{flag} has {value!r} twice; each would train the same run again.")
        seen.append(value)


def settings_to_try(sets: Sequence[str]) -> list[tuple[str, list[str]]]:
    """``["loss_obj=bce,focal", ...]`` as (key, values).

    Raises:
        ConfigError: no key, no value, a key or value twice, a key that is not for ``--set``.
    """
    found: list[tuple[str, list[str]]] = []
    for text in sets:
        key, is_there, values = text.partition("=")
        key = key.strip()
        if not is_there or not key:
            raise ConfigError(f"--set is KEY=VALUE,VALUE,... as in loss_obj=bce,focal; got {text!r}.")
        if key == "seed":
            raise ConfigError("--set seed=...: the seeds of a sweep are given with --seeds 0,1,2.")
        if key in ("exp_name", "output_dir"):
            raise ConfigError(f"--set {key}=...: a sweep names its folders itself. Begin their names with -expn NAME, or "
                              "put them elsewhere with the trailing override output_dir FOLDER.")  # fmt: skip
        split = split_values(values)
        _refuse_twins([override_value(value) for value in split], f"--set {key}")
        found.append((key, split))
    _refuse_twins([setting_name(key) for key, _ in found], "--set")
    return found


def seeds_to_try(text: str) -> list[int]:
    """``0,1,2`` as numbers.

    Raises:
        ConfigError: not whole numbers from 0 on, a seed twice.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[0-9]+", word) for word in words):
        raise ConfigError(f"--seeds is whole numbers from 0 on, separated by commas, as in 0,1,2; got {text!r}.")
    seeds = [int(word) for word in words]
    _refuse_twins(seeds, "--seeds")
    return seeds


def label(key: str, value: str) -> str:
    """A setting as a part of a folder's name: ``loss_obj``, ``focal`` -> ``obj_focal``."""
    text = f"{_slug(key.removeprefix('loss_'))}_{_slug(override_value(value) if value[0] in '{[(' else value)}"
    if len(text) > _LABEL_LENGTH:
        text = f"{text[: _LABEL_LENGTH - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return text


def _slug(value: Any) -> str:
    if isinstance(value, dict):
        knobs = [f"{_slug(key)}{_slug(item)}" for key, item in value.items() if key != "type"]
        return "_".join([*([_slug(value["type"])] if "type" in value else []), *knobs])
    if isinstance(value, (list, tuple)):
        return "_".join(map(_slug, value))
    return re.sub(r"[^A-Za-z0-9._-]+", "_", str(value)).strip("_")


def planned_trainings(
    options: argparse.Namespace, args: argparse.Namespace, flags: Sequence[str]
) -> tuple[list[PlannedTraining], Path]:
    """The trainings of a sweep and the folder of the sweep; every combination is checked.

    Args:
        options: of `parser`.
        args: the same flags as YOLOX's own parser reads them.
        flags: words of ``yolox-loss train`` before the trailing overrides.

    Raises:
        ConfigError: a combination that cannot be trained, or two of one name.
        DataError: data that cannot be trained on.
        RunError: a folder holds another run.
    """
    if args.resume or args.start_epoch is not None:
        raise ConfigError("A sweep resumes by itself what was cut off; leave --resume and -e out.")
    if args.num_machines != 1:
        raise ConfigError("A sweep trains each run on one machine; leave --num_machines out.")
    tries, seeds = settings_to_try(options.sets), seeds_to_try(options.seeds)
    given = [setting_name(key) for key in args.opts[::2]]
    for key in ("seed", *(key for key, _ in tries)):
        if setting_name(key) in given:
            where = "--seeds" if key == "seed" else "--set"
            raise ConfigError(f"{key} stands in {where} and in the trailing overrides; keep one of them.")
    base = load_exp(args.exp_file, args.name)
    common = copy.copy(base)  # nothing is built on it yet, so overrides replace values and change none
    common.merge(args.opts)
    stem = args.experiment_name or common.exp_name
    flags = _without_name(flags)
    common_facts = {"code": user_code(base), "starting_weights": starting_weights(args)}
    runs: list[PlannedTraining] = []
    wrong: list[str] = []
    data_sets: dict[tuple[str, ...], Any] = {}
    for values in itertools.product(*(values for _, values in tries)):
        chosen = list(zip((key for key, _ in tries), values, strict=True))
        for seed in seeds:
            setting = "-".join([stem, *(label(key, value) for key, value in chosen)])
            name = f"{setting}-seed{seed}"
            pairs = [*zip(args.opts[::2], args.opts[1::2], strict=True), *chosen, ("seed", str(seed))]
            overrides = list(itertools.chain(*pairs))
            exp = copy.copy(base)
            try:
                exp.merge(overrides)
                check_settings(exp, args)
                losses = loss_config(exp)
            except ConfigError as error:
                text = ", ".join(f"{key}={value}" for key, value in chosen)
                raise ConfigError(f"With {text}: {error}" if chosen else str(error)) from error
            words = [*flags, "-expn", name, *overrides]
            run = PlannedTraining(name, Path(exp.output_dir) / name, words, exp.max_epoch, setting)
            if name in (other.name for other in runs):
                raise ConfigError(f"Two combinations would train in one folder, {name}; the second has {dict(chosen)}.")
            facts = {"exp": settings(exp), "resolved_losses": losses.resolved(), "args": vars(args), **common_facts}
            wrong += _conflict(run, facts)
            runs.append(run)
            data_sets.setdefault(tuple(str(getattr(exp, key, None)) for key in _DATA), exp)
    if wrong:
        raise RunError("\n  ".join([
            "These folders hold other runs. Choose other names with -expn NAME, or remove the folders.", *wrong
        ]))  # fmt: skip
    if not options.dry_run:  # the commands may be for another machine, where the data are
        # pycocotools tells of each file that it reads, between the lines that are for the user.
        with contextlib.redirect_stdout(io.StringIO()):
            for exp in data_sets.values():
                preflight(copy.copy(exp))
    return runs, Path(common.output_dir) / f"{stem}-sweep"


def _without_name(flags: Sequence[str]) -> list[str]:
    words = list(flags)
    for flag in ("-expn", "--experiment-name"):
        if flag in words:
            del words[words.index(flag) : words.index(flag) + 2]
    return words


def _conflict(run: PlannedTraining, facts: dict[str, Any]) -> list[str]:
    """Why the run cannot be made in its folder, as lines."""
    record = read_run(run.folder)
    holds_weights = any(run.folder.glob("*_ckpt.pth"))
    if record is None:
        return [f"{run.folder}: checkpoints of a run without a record"] if holds_weights else []
    if record["status"] != "finished" and not holds_weights:
        return []
    found = record_differences(record, facts)
    return [f"{run.folder} ({record['status']}): {'; '.join(found)}"] if found else []
