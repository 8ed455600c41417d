"""The command line: ``yolox-loss VERB`` and ``python -m yolox_loss_patch VERB``.

Exit status: 0 only when the verb did what it says; 2 for a mistake that the message explains; 1 for a training that
broke off and for a crash; 130 after an interruption. ``--debug`` shows the traceback of an error.

A verb imports what it needs when it is called, so that ``--help`` does not wait for torch.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .errors import ConfigError, HostError, KitError, exit_status, in_words
from .printing import printable_lines

if TYPE_CHECKING:
    from .specs.catalogue import Loss

_DEVICE = "auto (CUDA, else MPS, else CPU), cpu, cuda or mps"
_PATIENCE = "end the training after N evaluations without a better AP (default: train to max_epoch)"
_TRAIN_SWITCHES = {
    "profile": "log the share of the loss stage in a step",
    "no-val-loss": "do not measure the losses on the validation images",
}

# Extra of the distribution -> the modules that it brings; a test holds this table and pyproject.toml together.
EXTRAS = {
    "train": ("PIL", "pycocotools", "tensorboard", "tqdm"),
    "compare": ("PIL", "hotcoco", "jinja2", "matplotlib", "scipy", "tabulate", "tqdm"),
    "sweep": ("cloudpickle", "submitit", "tabulate"),
}


class _Verb(NamedTuple):
    run: Callable[[list[str]], None]
    extras: tuple[str, ...]
    help: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    parser = argparse.ArgumentParser(
        prog="yolox-loss",
        description="Other losses for YOLOX, chosen in the experiment file.",
        epilog="Each verb explains itself: yolox-loss VERB --help. With --debug an error shows its traceback.",
    )
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        subparsers.add_parser(name, help=verb.help, add_help=False)
    name = parser.parse_args(words[:1]).verb
    try:
        if not {"-h", "--help"} & {*words}:
            _check_extras(name, VERBS[name].extras)
        VERBS[name].run(words[1:])
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough; nothing more can be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        is_explained = isinstance(error, (KitError, OSError))
        if debug:
            traceback.print_exc()
        hint = "" if is_explained or debug else " With --debug it shows where."
        print(f"error: {printable_lines(in_words(error))}{hint}", file=sys.stderr)
        return exit_status(error)
    return 0


def _check_extras(verb: str, extras: tuple[str, ...]) -> None:
    """Refuse a verb whose packages are not installed.

    Raises:
        ConfigError: the packages, and the command that installs their extra.
    """
    for extra in extras:
        missing = [module for module in EXTRAS[extra] if not _is_installed(module)]
        if missing:
            raise ConfigError(
                f"{verb} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed. Install the "
                f"extra [{extra}]: pip install 'yolox-loss-patch[{extra}]'"
            )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # ValueError: half imported, or put into sys.modules by hand
        return False


def _host_parser(tool: str, words: list[str], verb: str | None = None, **switches: str) -> argparse.Namespace:
    """YOLOX's own arguments of a tool, and the kit's: ``--device``, and switches by name with their help."""
    from .head import hosts

    parser = hosts.parser(tool)
    parser.prog = f"yolox-loss {verb or tool}"
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help=_DEVICE)
    for name, text in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    if tool == "train":
        parser.add_argument("--patience", type=int, metavar="N", help=_PATIENCE)
    return hosts.arguments(parser.parse_args(words))


def _run_train(words: list[str]) -> None:
    # Before the import below, which needs YOLOX.
    args = _host_parser("train", words, **_TRAIN_SWITCHES)
    from .compare.training import after_training
    from .train.start import run

    run(args, when_finished=after_training)


def _run_eval(words: list[str]) -> None:
    args = _host_parser("eval", words, save="keep the predictions in the folder of the checkpoint's run, for compare")
    from .train.evaluate import evaluate

    evaluate(args)


def _run_sweep(words: list[str]) -> None:
    from .head import hosts

    if hosts.has_config_classes():
        raise HostError(
            "sweep is for a YOLOX with experiment files. With config classes train each run by itself, yolox-loss train -c "
            "module:Class -n NAME -D loss_iou=ciou -D seed=0, then compare them."
        )
    from .sweep.plan import parser  # after the line above, which says it when there is no YOLOX
    from .sweep.schedule import sweep

    options, rest = parser().parse_known_args(words)
    args = _host_parser("train", rest, verb="sweep", **_TRAIN_SWITCHES)
    sweep(options, args, rest[: len(rest) - len(args.opts)])


def _run_compare(words: list[str]) -> None:
    from .compare.comparison import compare
    from .compare.statistics import MARGIN
    from .runs.record import AP_COLUMNS
    from .runs.selection import BY

    parser = argparse.ArgumentParser(prog="yolox-loss compare", description=(compare.__doc__ or "").splitlines()[0])
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folders of runs or globs: YOLOX_outputs/NAME, NAME, 'NAME-*'; with --truth groups of COCO result files of any "
        "detector: NAME=FILE,FILE, a file per seed, the first group is the baseline",
    )
    parser.add_argument(
        "--truth", metavar="FILE", help="annotations of the result files, such as instances_val2017.json"
    )
    parser.add_argument(
        "--baseline", help="the group, or a run in it, that the others are compared with (default: stock)"
    )
    parser.add_argument(
        "--by",
        default="loss",
        help=f"what makes a group: {', '.join(BY)} (default: loss, all four terms); or data: runs "
        "on several data sets, a column per set and a verdict over all",
    )
    parser.add_argument("--metric", default="AP", help=f"of the differences: {', '.join(AP_COLUMNS)} (default: AP)")
    parser.add_argument(
        "--margin", type=float, default=MARGIN, help=f"differences smaller than this are equal (default: {MARGIN})"
    )
    parser.add_argument("--classes", metavar="NAME,NAME", help="the metric of these classes only")
    parser.add_argument("--per-class", action="store_true", help="AP and a verdict for each class as well")
    parser.add_argument("--anyway", action="store_true", help="compare runs that differ in more than losses and seed")
    parser.add_argument("--plan", action="store_true", help="how many seeds and images find which difference")
    parser.add_argument("--latex", action="store_true", help="print the table of the verdicts for LaTeX (booktabs)")
    parser.add_argument("--out", help="folder for comparison.html, .md, .csv, .json and .png")
    args = parser.parse_args(words)
    classes = tuple(name.strip() for name in (args.classes or "").split(",") if name.strip())
    if args.by == "data":
        from .compare.datasets.table import by_data

        unfit = {"--truth": args.truth, "--plan": args.plan, "--latex": args.latex, "--per-class": args.per_class}
        if given := [flag for flag, value in unfit.items() if value]:
            raise ConfigError(f"--by data is for runs, and makes one table; leave out {', '.join(given)}.")
        print(by_data(args.runs, args.out, baseline=args.baseline, metric=args.metric, margin=args.margin, classes=classes,
                      anyway=args.anyway))  # fmt: skip
        return
    text = compare(
        args.runs, args.out, args.plan, args.latex, truth=args.truth, baseline=args.baseline, by=args.by, metric=args.metric,
        margin=args.margin, classes=classes, per_class=args.per_class, anyway=args.anyway,
    )  # fmt: skip
    print(text)


def _run_watch(words: list[str]) -> None:
    from .sweep.watch import watch

    parser = argparse.ArgumentParser(prog="yolox-loss watch", description=(watch.__doc__ or "").splitlines()[0])
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders, names or globs of runs, or of a sweep: NAME-sweep"
    )
    parser.add_argument("--once", action="store_true", help="show them once")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="between two looks (5)")
    args = parser.parse_args(words)
    watch(args.runs, once=args.once, every=args.every)


def _run_report(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="yolox-loss report",
        description="The page of a training, report.html, and its curves, results.png, into the folder of the run.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders of runs or globs: YOLOX_outputs/NAME, NAME, 'NAME-*'"
    )
    args = parser.parse_args(words)
    from .compare.training.page import report_all

    for page in report_all(args.runs):
        print(f"Written: {page}")


def _run_list(words: list[str]) -> None:
    from .specs.knobs import nearest
    from .specs.mmdet import MMDET, explain_mmdet
    from .specs.registry import LOSSES, TERMS
    from .specs.resolve import stage_knobs

    parser = argparse.ArgumentParser(prog="yolox-loss list", description="The losses that can stand in a spec.")
    parser.add_argument("name", nargs="?", help="one loss only, explained")
    parser.add_argument("-f", metavar="EXP_FILE", help="an experiment file, for the losses registered in it")
    args = parser.parse_args(words)
    _import_exp(args.f)
    name = args.name
    if name in MMDET:
        print(explain_mmdet(name))
        name = MMDET[name].name or None
        if name is None:
            return
    if name is not None and not any(name in LOSSES.names(term) for term in TERMS):
        every = sorted({known for term in TERMS for known in LOSSES.names(term)})
        raise ConfigError(f"There is no loss {name!r}.{nearest(name, every)} Choose one of: {', '.join(every)}.")
    for term in TERMS:
        names = [name] if name in LOSSES.names(term) else LOSSES.names(term) if name is None else []
        if names:
            print(f"loss_{term}")
        for entry in names:
            loss = LOSSES.get(term, entry)
            print(f"  {entry:<13} {loss.formula}" + (f"   [{loss.source}]" if loss.source else ""))
            if name is not None:
                _explain(term, entry, loss)
                continue
            knobs = ", ".join(f"{key}={knob.default!r} ({knob.allowed()})" for key, knob in loss.knobs.items())
            if knobs:
                print(f"  {'':<13} {knobs}")
            if term == "obj":
                target = stage_knobs(term, loss)["target"]
                print(f"  {'':<13} target={target.default!r} ({target.allowed()})")


def _explain(term: str, name: str, loss: Loss) -> None:
    """Explain a loss: the docstring, every knob of the loss and of the term, and what it was measured to do."""
    import inspect

    from .specs.labels import label_of
    from .specs.measured import measured_variants
    from .specs.resolve import COMMON, family_knobs, resolve, stage_knobs

    if loss.alias is not None:
        print(f"\n    {loss.alias.name} is {label_of(term, resolve(term, loss.alias.name))}.")
    print("\n    " + inspect.cleandoc(loss.kernel.__doc__ or "").replace("\n", "\n    ").replace("``", "") + "\n")
    common = {
        key: knob for key, knob in COMMON.items() if loss.from_kit or (key == "loss_weight" and key not in loss.knobs)
    }
    family = family_knobs(term, loss)
    for title, knobs in (
        ("knobs", loss.knobs),
        ("of its family", family),
        ("of every loss", {**common, **stage_knobs(term, loss)}),
    ):
        if knobs:
            print(f"    {title}:")
        for key, knob in knobs.items():
            print(f"      {key} = {knob.default!r}: {knob.allowed()}")
    found = measured_variants(term, name) if loss.from_kit else []
    if found:
        print("    measured:")
    for row in found:
        print(f"      {row.spec}: {row}")
    print()


def _run_plot(words: list[str]) -> None:
    if words[:1] == ["assign"]:
        _run_plot_assign(words[1:])
        return
    from .doctor.plot import plot

    also = "yolox-loss plot assign --help: which anchors each box gets in an experiment's images."
    parser = argparse.ArgumentParser(prog="yolox-loss plot", description=plot.__doc__, epilog=also)
    parser.add_argument(
        "losses", nargs="+", metavar="LOSS", help="names, or dicts such as \"{'type': 'focal', 'gamma': 1}\""
    )
    parser.add_argument("--out", required=True, help="the picture, FILE.png or FILE.svg")
    parser.add_argument("--regression", action="store_true", help="box losses: replay the simulation of the DIoU paper")
    parser.add_argument("--points", type=int, default=100, help="places of the simulation (the paper: 5000)")
    parser.add_argument("-f", metavar="EXP_FILE", help="an experiment file, for the losses registered in it")
    args = parser.parse_args(words)
    _import_exp(args.f)
    print(plot(args.losses, args.out, regression=args.regression, points=args.points))


def _run_plot_assign(words: list[str]) -> None:
    _check_extras("plot assign", ("train",))
    from .doctor.assignment import plot_assignment

    about = (plot_assignment.__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="yolox-loss plot assign", description=about)
    parser.add_argument("-f", "--exp_file", metavar="EXP_FILE", required=True, help="an experiment file")
    parser.add_argument("-n", "--images", type=int, default=4, metavar="IMAGES", help="how many images, 1 to 16 (4)")
    parser.add_argument("-c", "--ckpt", help="a checkpoint; else the model has its first weights")
    parser.add_argument(
        "--out", metavar="FILE.png", help="the picture (default: in the folder of the experiment's run)"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help=_DEVICE)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the experiment")
    args = parser.parse_args(words)
    print(
        plot_assignment(args.exp_file, args.opts, images=args.images, ckpt=args.ckpt, out=args.out, device=args.device)
    )


def _experiment_parser(
    verb: str, description: str | None, config: tuple[str, ...] = ("-c", "--config")
) -> argparse.ArgumentParser:
    """The flags that name an experiment, as YOLOX spells them, without asking YOLOX, which may be missing."""
    parser = argparse.ArgumentParser(prog=f"yolox-loss {verb}", description=description)
    parser.add_argument("-f", "--exp_file", metavar="EXP_FILE", help="an experiment file")
    # ``config`` is pixeltable-yolox's, where it may be module:Class.
    parser.add_argument("-n", "--name", *config, dest="name", help="one of YOLOX's models, such as yolox-s")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the experiment")
    return parser


def _parsed(parser: argparse.ArgumentParser, words: list[str], has_default: bool = False) -> argparse.Namespace:
    """The arguments of a command that starts from the experiment's own weights.

    Args:
        parser: of the command.
        words: of its command line.
        has_default: whether the command takes one of YOLOX's models where no experiment is named, so that overrides have a
            meaning without one.
    """
    args = parser.parse_args(words)
    is_override = has_default and args.opts and len(args.opts) % 2 == 0
    if args.opts and args.exp_file is None and args.name is None and not is_override:
        hint = f" Did you mean -f {args.opts[0]}?" if args.opts[0].endswith(".py") else ""
        raise ConfigError(
            f"{parser.prog} does not know {' '.join(args.opts)!r}: overrides belong to an experiment, named with -f or -n.{hint}"
        )
    if args.exp_file is not None and (args.name or "").endswith((".pth", ".pt", ".tar")):
        raise ConfigError(
            f"{parser.prog} takes no checkpoint (-c is pixeltable-yolox's --config here); leave out {args.name}."
        )
    return args


def _run_doctor(words: list[str]) -> None:
    from .doctor.checks import doctor
    from .doctor.report import report

    parser = _experiment_parser("doctor", "What is installed, the experiment and its data, and what to do about it.")
    parser.add_argument("--images", action="store_true", help="decode every image, which takes minutes on a large set")
    args = _parsed(parser, words)
    report(doctor(args.exp_file, args.name, args.opts, args.images))


def _run_verify(words: list[str]) -> None:
    from .doctor.report import report
    from .doctor.verify import verify

    parser = _experiment_parser(
        "verify", "Stock against kit with default losses: losses, gradients and training steps."
    )
    parser.add_argument("--steps", type=int, default=50, help="training steps (50)")
    parser.add_argument("-b", "--batch-size", type=int, default=2, help="images a step (2)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help=_DEVICE)
    args = _parsed(parser, words, has_default=True)
    report(
        verify(args.exp_file, args.name, args.opts, steps=args.steps, batch_size=args.batch_size, device=args.device)
    )


def _run_calibrate(words: list[str]) -> None:
    from .doctor.calibrate import calibrate

    parser = _experiment_parser("calibrate", (calibrate.__doc__ or "").splitlines()[0], config=("--config",))
    parser.add_argument("--steps", type=int, default=48, help="steps of each training (48)")
    parser.add_argument("-b", "--batch-size", type=int, default=8, help="images a step (8)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help=_DEVICE)
    parser.add_argument("-c", "--ckpt", help="a checkpoint to start from, as for fine-tuning")
    parser.add_argument(
        "--out", help="folder for calibration.png and .csv (default: the folder of the experiment's run)"
    )
    args = parser.parse_args(words)
    if args.exp_file is None and args.name is None:  # -c is YOLOX's checkpoint and pixeltable-yolox's experiment
        args.name, args.ckpt = args.ckpt, None
    print(calibrate(args.exp_file, args.name, args.opts, steps=args.steps, batch_size=args.batch_size, device=args.device,
                    ckpt=args.ckpt, out=args.out))  # fmt: skip


def _import_exp(exp_file: str | None) -> None:
    """Run an experiment file for what it registers."""
    if exp_file is not None:
        from .exp.loading import load_exp

        load_exp(exp_file)


VERBS = {
    "train": _Verb(_run_train, ("train",), "train an experiment; YOLOX's own flags, on any device"),
    "eval": _Verb(_run_eval, ("train",), "COCO metrics of a checkpoint"),
    "compare": _Verb(
        _run_compare, ("compare",), "runs with several seeds: what differs, how sure the difference is, why"
    ),
    "report": _Verb(_run_report, ("compare",), "a training in pictures: report.html and results.png in its folder"),
    "sweep": _Verb(
        _run_sweep,
        ("train", "compare", "sweep"),
        "train every combination of settings and seeds, here or on Slurm, then compare",
    ),
    "watch": _Verb(_run_watch, ("sweep",), "progress, time left and curves of runs that are trained elsewhere"),
    "list": _Verb(_run_list, (), "the losses, their formulas and knobs"),
    "doctor": _Verb(
        _run_doctor, (), "what is installed, the experiment and its data, and what to do about each finding"
    ),
    "verify": _Verb(_run_verify, ("train",), "stock against kit on this machine and experiment; difference expected 0"),
    "calibrate": _Verb(
        _run_calibrate,
        ("train", "compare"),
        "how hard each term pulls, stock against the chosen losses, and the knobs that fit",
    ),
    "plot": _Verb(_run_plot, ("compare",), "losses and their gradients as curves; box losses at work"),
}
