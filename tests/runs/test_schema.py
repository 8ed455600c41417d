"""The files of a run are checked before they are believed: damaged, edited and hostile ones are one sentence each."""

import contextlib
import copy
import gzip
import json
import os
import random

import pytest
from made_runs import make_data, make_run

from yolox_loss_patch.compare.detections import Truth
from yolox_loss_patch.errors import RunError
from yolox_loss_patch.runs import predictions
from yolox_loss_patch.runs.predictions import read_predictions, write_predictions
from yolox_loss_patch.runs.record import RunRecord, read_metrics, read_run
from yolox_loss_patch.runs.selection import differing, facts, group, read, select, surroundings, unknown

EXAMPLES = int(os.environ.get("EXAMPLES", "300"))  # 10000 were run by hand


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), images=3)


@pytest.fixture
def run(tmp_path, data):
    """A run as the kit writes it: every file with its hash."""
    made = make_run(tmp_path / "made", data, losses={"loss_iou": "ciou"})
    facts_of_run = json.loads((made / "run.json").read_text())
    record = RunRecord(tmp_path / "run", {**facts_of_run, "status": "running", "epochs_done": 0})
    for row in read_metrics(made):
        epoch = int(row["epoch"])
        if row["AP"] is not None:
            rows = read_predictions(made / "predictions" / f"epoch_{epoch}.json.gz")
            path = predictions.predictions_file(tmp_path / "run", epoch)
            write_predictions(path, rows, record.note_file)
        record.add_epoch(row)
        record.update(epochs_done=epoch)
    record.finish("finished")
    return tmp_path / "run"


def all_that_is_read(folder, data):
    """What a comparison takes from a run."""
    found = read(folder)
    (alone,) = group([found])
    detected = Truth(data).read(found.predictions()).tolist()
    return [found.record, found.rows, alone.label, facts(found), surroundings(found), detected]


def damaged(content, rng):
    """The content with some bytes changed, cut out or repeated."""
    content = bytearray(content)
    first = rng.randrange(len(content))
    last = min(len(content), first + rng.choice([1, 1, 1, 8, 200, 10**9]))
    content[first:last] = rng.choice([b"", bytes(content[first:last]) * 2, rng.randbytes(min(last - first, 400))])
    return bytes(content)


def test_a_damaged_file_is_refused_or_gives_what_was_written(run, data):
    """Never a traceback, never a silent difference."""
    names = ("run.json", "metrics.csv", "predictions/epoch_4.json.gz")
    whole = {name: (run / name).read_bytes() for name in names}
    expected = all_that_is_read(run, data)
    rng = random.Random(0)
    refused = 0
    for _ in range(EXAMPLES):
        name = rng.choice(names)
        (run / name).write_bytes(damaged(whole[name], rng))
        try:
            record, *rest = all_that_is_read(run, data)
            # Where the name of the checksum was hit, it stands there as a name that means nothing.
            assert {key: record.get(key) for key in expected[0]} == expected[0] and rest == expected[1:]
        except RunError as error:
            refused += 1
            assert str(run) in str(error) and "\n" not in str(error)
        (run / name).write_bytes(whole[name])
    assert refused > 0.9 * EXAMPLES


JUNK = (None, True, 0, -1, 2.5, 1e999, float("nan"), 10**30, "", "x", "\x1b[2J\n", [], [None], {}, {"a": [1]}, [[{}]])


def edited(record, rng):
    """A record in which one value, at any depth, is something else, or is gone."""
    record = copy.deepcopy(record)
    place = record
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        inner = place[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.7:
            place = inner
        elif rng.random() < 0.2:
            del place[key]
            return record
        else:
            place[key] = rng.choice(JUNK)
            return record


def test_an_edited_record_is_left_out_by_a_glob_or_serves(run, data):
    """Its checksum is taken out: somebody may do so who wants it believed. Whatever it says, there is no traceback."""
    record = read_run(run)
    rng = random.Random(1)
    left_out = 0
    for _ in range(EXAMPLES):
        (run / "run.json").write_text(json.dumps(edited(record, rng)))
        found = select([str(run.parent / "ru*")])
        left_out += len(found.left_out)
        for one in found.runs:
            group([one])
            assert isinstance(differing([one, one], facts), dict) and isinstance(differing([one], surroundings), dict)
            unknown([one])
            with contextlib.suppress(RunError):
                Truth(one.record.get("data", {}).get("val", {})).read(one.predictions())
    assert left_out > 0.1 * EXAMPLES


@pytest.mark.parametrize(
    "name,value,words",
    [
        ("status", "done", "'status' is 'done', and it can only be one of running, finished"),
        ("seed", "0", "'seed' is '0', and it can only be a whole number or null"),
        ("epochs_done", -1, "'epochs_done' is -1, and it can only be a whole number from 0 on"),
        ("exp", {"max_epoch": 0}, "'exp.max_epoch' is 0, and it can only be a whole number from 1 on"),
        ("versions", {"torch": 2}, "'versions' is .*a table of texts"),
        ("files", {"metrics.csv": "ab"}, "'files' is .*a table of lists of texts"),
    ],
)
def test_a_value_that_cannot_be_is_named(run, name, value, words):
    record = json.loads((run / "run.json").read_text())
    del record["sha256"]
    (run / "run.json").write_text(json.dumps({**record, name: value}))
    with pytest.raises(RunError, match=rf"run\.json is damaged or was edited: {words}"):
        read_run(run)


def test_an_edit_is_told_and_may_be_kept(run):
    path = run / "run.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(RunError, match=r"does not fit the 'sha256' in it.*take the line 'sha256' out"):
        read_run(run)
    record = json.loads(path.read_text())
    del record["sha256"]
    path.write_text(json.dumps(record))
    assert read_run(run)["seed"] == 1


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda text: text[: len(text) // 2], "cut off"),
        (lambda text: text[:-4], "cut off"),
        (lambda text: "".join(text.splitlines(keepends=True)[:-1]), "3 rows.*4 epochs"),
        (lambda text: text + text.splitlines(keepends=True)[-1], "line 6 should be epoch 5"),
        (lambda text: text.replace("\n2,", "\n3,"), "line 3 should be epoch 2"),
        (lambda text: text.replace("0.01", "O.01", 1), "line 2: could not convert"),
        (lambda text: "", "no table of a run"),
    ],
)
def test_a_table_that_is_not_whole_is_told(run, change, words):
    """Without the hash in run.json as well: the rows are those of epochs 1, 2, ... to the last."""
    record = json.loads((run / "run.json").read_text())
    del record["sha256"], record["files"]
    (run / "run.json").write_text(json.dumps(record))
    path = run / "metrics.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(RunError, match=words):
        read(run)


@pytest.mark.parametrize(
    "rows,words",
    [
        ({"image_id": 1}, "holds no list of detections"),
        ([1], "entry 1, is no detection"),
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}], "entry 1, is no detection"),
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3], "score": 0.5}], r"entry 1: 'bbox' is .* \[x, y, w, h\]"),
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 1e999], "score": 0.5}], "entry 1: 'bbox'"),
        ([{"image_id": "1", "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}], "'image_id' is '1'"),
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 7}], "'score' is 7"),
    ],
)
def test_detections_of_another_shape_are_named(tmp_path, rows, words):
    path = tmp_path / "predictions" / "epoch_1.json.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    with pytest.raises(RunError, match=words):
        read_predictions(path)


def test_a_file_that_inflates_without_end_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "epoch_1.json.gz"
    path.write_bytes(gzip.compress(b" " * 2**24))
    monkeypatch.setattr(predictions, "MOST_BYTES", 2**20)
    with pytest.raises(RunError, match="inflates to more than"):
        read_predictions(path)


def test_the_rows_are_read_as_they_were_written(run):
    """Against the file's own text: every number, and nothing where a cell is empty."""
    header, *lines = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    for row, line in zip(read_metrics(run), lines, strict=True):
        assert {name: None if value is None else repr(value) for name, value in row.items() if name != "epoch"} == {
            name: cell or None for name, cell in zip(header, line, strict=True) if name != "epoch"
        }
