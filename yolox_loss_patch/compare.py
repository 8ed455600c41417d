"""Runs side by side: what differs between them, what came out, and a picture of both."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from .errors import RunError
from .record import LOSS_COLUMNS, predictions_file, read_metrics, read_predictions, read_run

# Where detections are drawn, so that the picture is not a wall of boxes that no evaluation would count as found.
_SHOWN_SCORE = 0.3
_SHOWN_IMAGES = 3


@dataclass(frozen=True)
class Run:
    """A run's folder with its record and the rows of its metrics."""

    folder: Path
    record: dict[str, Any]
    rows: list[dict[str, float | None]]

    @property
    def name(self) -> str:
        """The folder's name, by which the run is called."""
        return self.folder.name

    def evaluated(self) -> list[dict[str, float | None]]:
        """The epochs that were evaluated."""
        return [row for row in self.rows if row.get("AP") is not None]


def read(folder: str | Path) -> Run:
    """A run by its folder.

    Raises:
        RunError: no such folder, no record in it, no epoch finished yet.
    """
    path = Path(folder)
    if not path.is_dir():
        raise RunError(f"There is no folder {str(folder)!r}.")
    record = read_run(path)
    if record is None:
        raise RunError(
            f"{str(folder)!r} has no run.json: it is not the folder of a run made with this kit. A run's folder is "
            "YOLOX_outputs/<experiment name>."
        )
    return Run(path, record, read_metrics(path))


def compare(folders: list[str], out: str | None = None) -> str:
    """What differs between runs, best and last AP, and the losses; a figure and the text into a folder with --out."""
    runs = [read(folder) for folder in dict.fromkeys(str(Path(folder)) for folder in folders)]
    if len({run.name for run in runs}) < len(runs):
        raise RunError("Two of the folders have the same name; rename one, or the table could not tell them apart.")
    text = "\n\n".join((_differences(runs), _results(runs), _losses(runs)))
    if out is not None:
        target = Path(out)
        target.mkdir(parents=True, exist_ok=True)
        (target / "comparison.md").write_text(text + "\n")
        draw(runs, target / "comparison.png")
        text += f"\n\nWritten to {target}: comparison.md, comparison.png"
    return text


def _facts(run: Run) -> dict[str, str]:
    """What can make a run what it is, one line a fact."""
    record = run.record
    facts: dict[str, Any] = {}
    for term, spec in record.get("resolved_losses", {}).items():
        facts[f"loss_{term}"] = spec["type"]
        facts.update({f"loss_{term}.{key}": value for key, value in spec.items() if key != "type"})
    facts.update({key: value for key, value in record.get("exp", {}).items() if key not in ("exp_name", "output_dir")})
    facts.update({f"-{key}": record.get("args", {}).get(key) for key in ("batch_size", "fp16", "ckpt", "devices")})
    facts["seed"] = record.get("seed")
    facts["resumed"] = bool(record.get("resumed"))
    for split, data in record.get("data", {}).items():
        facts[f"{split} data"] = data.get("sha256", "")[:12]
    facts["host"] = record.get("host", {}).get("name")
    facts["device"] = record.get("device")
    facts.update({f"{key} version": value for key, value in record.get("versions", {}).items()})
    return {key: "" if value is None else str(value) for key, value in facts.items()}


def _differences(runs: list[Run]) -> str:
    facts = [_facts(run) for run in runs]
    keys = list(dict.fromkeys(key for fact in facts for key in fact))
    rows = [[key, *(fact.get(key, "-") for fact in facts)] for key in keys if len({fact.get(key) for fact in facts}) > 1]
    if not rows:
        return "What differs: nothing, as far as the records tell."
    lines = ["What differs:", "", tabulate(rows, ["", *(run.name for run in runs)], tablefmt="github")]
    other = [row[0] for row in rows if not row[0].startswith("loss_")]
    if other:
        lines += ["", f"Not the losses alone: {', '.join(other)}. The difference in AP is then not the losses' alone."]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _results(runs: list[Run]) -> str:
    header = ["run", "status", "epochs", "AP best (epoch)", "AP last", "AP50 best", "AP50 last", "AP75 best", "AP75 last"]
    table = []
    for run in runs:
        rows = run.evaluated()
        status = str(run.record["status"])
        epochs = f"{len(run.rows)}/{run.record.get('exp', {}).get('max_epoch', '?')}"
        if not rows:
            table.append([run.name, status, epochs, *["-"] * 6])
            continue
        best, last = max(rows, key=lambda row: row["AP"] or 0.0), rows[-1]
        cells = [f"{_number(best['AP'])} ({best['epoch']:.0f})", _number(last["AP"])]
        for name in ("AP50", "AP75"):
            cells += [_number(best[name]), _number(last[name])]
        table.append([run.name, status, epochs, *cells])
    note = (
        "'best' is the epoch with the best AP of all that were evaluated on this very data, so it is flattered; 'last' is "
        "not. One run a loss says little: seeds differ by more than most losses do."
    )
    return f"What came out:\n\n{tabulate(table, header, tablefmt='github', disable_numparse=True)}\n\n{note}"


def _losses(runs: list[Run]) -> str:
    header = ["run", *LOSS_COLUMNS, "fg IoU", "obj on fg", "obj on bg", "s/epoch"]
    table = []
    for run in runs:
        if run.rows:
            last = run.rows[-1]
            seconds = sorted(row["seconds"] or 0.0 for row in run.rows)[len(run.rows) // 2]
            cells = [_number(last.get(name)) for name in (*LOSS_COLUMNS, "fg_iou", "obj_fg", "obj_bg")]
            table.append([run.name, *cells, f"{seconds:.1f}"])
    note = "Loss values of different losses are different quantities and do not rank runs; IoU and objectness do compare."
    return (
        f"The last epoch's means (seconds: the median epoch):\n\n"
        f"{tabulate(table, header, tablefmt='github', disable_numparse=True)}\n\n{note}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# The figure.


def draw(runs: list[Run], path: Path) -> None:
    """Curves of AP, loss terms, foreground IoU and objectness, and detections beside the truth, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    pictures = _pictures(runs)
    rows = 2 + len(pictures)
    figure = plt.figure(figsize=(15, 3.6 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, 12)
    panels = (
        ("AP (IoU 0.50:0.95)", ("AP",), None),
        ("AP50", ("AP50",), None),
        ("mean IoU of the foreground", ("fg_iou",), None),
        ("box loss (times 5)", ("iou_loss",), "not comparable between losses"),
        ("objectness loss", ("conf_loss",), "not comparable between losses"),
        ("mean objectness", ("obj_fg", "obj_bg"), "solid: foreground, dashed: background"),
    )
    for number, (title, columns, note) in enumerate(panels):
        axes = figure.add_subplot(grid[number // 3, 4 * (number % 3) : 4 * (number % 3) + 4])
        for index, run in enumerate(runs):
            for column, style in zip(columns, ("-", "--"), strict=False):
                points = [(row["epoch"], row[column]) for row in run.rows if row.get(column) is not None]
                if points:
                    label = run.name if style == "-" else None
                    axes.plot(*zip(*points, strict=True), style, color=f"C{index}", label=label, marker=".", markersize=4)
        if columns == ("obj_fg", "obj_bg"):
            axes.set_yscale("log")
        axes.set_title(title if note is None else f"{title}\n({note})", fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if number == 0:
            axes.legend(fontsize=8)
    for row, (image, boxes) in enumerate(pictures, start=2):
        width = 12 // max(len(boxes), 1)
        for place, (title, shapes) in enumerate(boxes):
            axes = figure.add_subplot(grid[row, place * width : (place + 1) * width])
            axes.imshow(image)
            axes.set_title(title, fontsize=10)
            axes.set_axis_off()
            for (x, y, w, h), label, colour in shapes:
                axes.add_patch(plt.Rectangle((x, y), w, h, fill=False, edgecolor=colour, linewidth=1.4))
                axes.text(x, y - 1, label, fontsize=6, color="white", backgroundcolor=colour, clip_on=True,
                          bbox={"pad": 0.5, "linewidth": 0, "facecolor": colour})  # fmt: skip
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _predictions(run: Run) -> Path:
    return predictions_file(run.folder, int(run.evaluated()[-1]["epoch"] or 0))


def _pictures(runs: list[Run]) -> list[tuple[Any, list[tuple[str, list[Any]]]]]:
    """A few validation images, each with the truth and what the runs detect in it; at most three runs fit."""
    shown = [run for run in runs if run.evaluated() and _predictions(run).is_file()][:3]
    data = shown[0].record.get("data", {}).get("val") if shown else None
    if not data or not Path(data["file"]).is_file():
        return []
    import cv2  # comes with YOLOX

    coco = json.loads(Path(data["file"]).read_text())
    names = {item["id"]: item["name"] for item in coco["categories"]}
    truth: dict[int, list[Any]] = {}
    for item in coco["annotations"]:
        truth.setdefault(item["image_id"], []).append((item["bbox"], names[item["category_id"]], "#2a9d3f"))
    full = [item for item in coco["images"] if item["id"] in truth]
    step = max(len(full) // _SHOWN_IMAGES, 1)
    found = []
    for index, run in enumerate(shown):
        rows: dict[int, list[Any]] = {}
        for item in read_predictions(_predictions(run)):
            if item["score"] >= _SHOWN_SCORE:
                label = f"{names.get(item['category_id'], item['category_id'])} {item['score']:.2f}"
                rows.setdefault(item["image_id"], []).append((item["bbox"], label, f"C{index}"))
        found.append(rows)
    pictures = []
    for item in full[::step][:_SHOWN_IMAGES]:
        image = cv2.imread(str(Path(data["image_folder"]) / item["file_name"]))
        if image is None:
            continue
        boxes = [("truth", truth[item["id"]])]
        boxes += [
            (f"{run.name} (score at least {_SHOWN_SCORE})", rows.get(item["id"], []))
            for run, rows in zip(shown, found, strict=True)
        ]
        pictures.append((cv2.cvtColor(image, cv2.COLOR_BGR2RGB), boxes))
    return pictures
