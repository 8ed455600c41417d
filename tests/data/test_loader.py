"""Data: items that depend on their place only, and clear words for data that cannot be trained on."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import cli as run_cli
from conftest import load_script

from yolox_loss_patch import cli
from yolox_loss_patch.data.loader import training_loader
from yolox_loss_patch.exp.loading import load_exp


def loader_of(work, **kwargs):
    exp = load_exp(str(work / "tiny.py"))
    exp.merge(["data_num_workers", str(kwargs.pop("workers", 0))])
    loader = exp.get_data_loader(batch_size=kwargs.pop("batch", 8), is_distributed=False)
    options = {"seed": 1, "rank": 0, "world": 1, "start": 0, "mosaic_until": 100, "pin_memory": False}
    sampler = loader.batch_sampler.sampler
    # YOLOX's sampler takes both from the process group, which a test has not.
    sampler._rank, sampler._world_size = kwargs.get("rank", 0), kwargs.get("world", 1)
    return training_loader(loader, **{**options, **kwargs})


def take(loader, count):
    batches = iter(loader)
    return [next(batches) for _ in range(count)]


def same(one, other):
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(one[:2], other[:2], strict=True))


def test_batches_repeat_with_any_number_of_workers_and_from_any_start(work):
    first = take(loader_of(work), 6)
    assert not same(first[0], first[3])
    assert all(map(same, first, take(loader_of(work, workers=2), 6)))
    assert all(map(same, first[4:], take(loader_of(work, start=4, workers=1), 2)))
    assert not same(first[0], take(loader_of(work, seed=2), 1)[0])


def test_ranks_share_out_the_batches_of_one_process(work):
    """The same images, made from the same random numbers, an image a rank in turn."""
    alone = take(loader_of(work), 3)
    ranks = [take(loader_of(work, rank=rank, world=2, batch=4), 3) for rank in range(2)]
    for number, whole in enumerate(alone):
        for rank in range(2):
            part = ranks[rank][number]
            assert torch.equal(whole[0][rank::2], part[0]) and torch.equal(whole[1][rank::2], part[1])
    later = take(loader_of(work, rank=1, world=2, batch=4, start=2), 1)
    assert same(ranks[1][2], later[0])


def test_making_items_leaves_the_process_own_streams_alone(work):
    def draws():
        return random.random(), np.random.rand(), float(torch.rand(()))

    batches = iter(loader_of(work))
    next(batches)
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(5)
    expected = draws()
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(5)
    next(batches)
    assert draws() == expected


def test_mosaic_ends_at_its_batch_however_far_the_workers_read_ahead(work):
    """A mosaic of 96 px pictures of a few digits shows the seams' grey; without it an image is its file."""
    exp = load_exp(str(work / "tiny.py"))
    exp.merge(["mosaic_prob", "1.0", "hsv_prob", "0.0", "flip_prob", "0.0"])
    loader = exp.get_data_loader(batch_size=8, is_distributed=False)
    batches = training_loader(loader, seed=1, rank=0, world=1, start=0, mosaic_until=3, pin_memory=False)
    from cv2 import imread

    coco = loader.dataset._dataset.coco  # YOLOX's mosaic gives no other way to the images it draws from
    folder = f"{exp.data_dir}/train2017/"
    for number, (images, _, _, ids) in enumerate(take(batches, 5)):
        file = imread(folder + coco.imgs[int(ids[0])]["file_name"]).transpose(2, 0, 1).astype(np.float32)
        assert np.array_equal(images[0].numpy(), file) == (number >= 3)


# ---------------------------------------------------------------------------------------------------------------------


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def train(*words):
    return cli.main(["train", "-f", "tiny.py", "-b", "8", "--device", "cpu", *map(str, words)])


def annotations(data):
    return data / "annotations" / "instances_train2017.json"


def first_image(data):
    return sorted((data / "train2017").glob("*.jpg"))[0]


# what is done to the data, overrides, words of the answer
BAD = {
    "no folder": (lambda data: shutil.rmtree(data), [], ["data folder", "does not exist", "self.data_dir"]),
    "no annotation file": (
        lambda data: annotations(data).unlink(),
        [],
        ["annotation file", "self.train_ann", "instances_val2017"],
    ),
    "no json": (lambda data: annotations(data).write_text("{"), [], ["not readable JSON"]),
    "no coco": (lambda data: annotations(data).write_text('{"images": []}'), [], ["no 'annotations'"]),
    "no image": (lambda data: first_image(data).unlink(), [], ["image", "does not exist", "000000000001.jpg"]),
    "unreadable image": (
        lambda data: first_image(data).write_bytes(b"no image"),
        [],
        ["not an image that OpenCV can read", "000000000001.jpg"],
    ),
    "classes": (
        lambda data: None,
        ["num_classes", 3],
        ["10 categories", "num_classes = 3", "Set self.num_classes = 10"],
    ),
    "class id": (
        lambda data: edit(annotations(data), lambda coco: coco["annotations"][0].update(category_id=77)),
        [],
        ["category 77"],
    ),
    "no area": (
        lambda data: edit(annotations(data), lambda coco: coco["annotations"][3].pop("area")),
        [],
        ["has no 'area'"],
    ),
    "no crowd": (
        lambda data: edit(annotations(data), lambda coco: [item.pop("iscrowd") for item in coco["annotations"]]),
        [],
        ["number 0 of 'annotations' (id ", "has no 'iscrowd'. Write 0 for a single object"],
    ),
    "no id": (
        lambda data: edit(annotations(data), lambda coco: coco["annotations"][2].pop("id")),
        [],
        ["number 2", "no 'id'"],
    ),
    "no width": (lambda data: edit(annotations(data), lambda coco: coco["images"][0].pop("width")), [], ["no 'width'"]),
    "no name": (
        lambda data: edit(annotations(data), lambda coco: coco["categories"][0].pop("name")),
        [],
        ["no 'name'"],
    ),
    "three sides": (
        lambda data: edit(annotations(data), lambda coco: coco["annotations"][0].update(bbox=[1, 2, 3])),
        [],
        ["the bbox of annotation", "[x, y, width, height]", "[1, 2, 3]"],
    ),
    "no bbox": (
        lambda data: edit(annotations(data), lambda coco: coco["annotations"][0].update(bbox=None)),
        [],
        ["got None"],
    ),
    "image id": (
        lambda data: edit(annotations(data), lambda coco: coco["images"][0].update(id="one")),
        [],
        ["'images' (id one) has an id that is no whole number"],
    ),
    "no box": (
        lambda data: edit(annotations(data), lambda coco: coco.update(annotations=[])),
        [],
        ["nothing to learn"],
    ),
    "batch": (lambda data: None, ["max_epoch", 0], ["max_epoch", "at least 1"]),
    "size": (lambda data: None, ["input_size", "100,96"], ["multiples of 32"]),
    "seed": (lambda data: None, ["seed", "1.5"], ["seed is a whole number, at least 0; got 1.5"]),
    "negative seed": (lambda data: None, ["seed", "-1"], ["at least 0; got -1"]),
    "workers": (lambda data: None, ["data_num_workers", 1.5], ["data_num_workers is a whole number"]),
    "half a class": (lambda data: None, ["num_classes", 10.5], ["num_classes is a whole number"]),
    "sizes": (lambda data: None, ["random_size", "3,0"], ["random_size is (smallest, largest)", "(3, 0)"]),
    "key": (lambda data: None, ["max_epohc", 3], ["Did you mean 'max_epoch'"]),
    "loss": (lambda data: None, ["loss_iou", "coiu"], ["Did you mean 'ciou'"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_message(work, digits, monkeypatch, capsys, case):
    damage, words, answers = BAD[case]
    shutil.copytree(digits, work / "data")
    damage(work / "data")
    monkeypatch.chdir(work)
    assert train("data_dir", work / "data", *words) == 2
    error = capsys.readouterr().err
    for answer in answers:
        assert answer in error, error
    assert "Traceback" not in error
    assert error.rstrip().splitlines()[-1].startswith("error: ")


@pytest.mark.slow
def test_the_message_is_the_last_word(work):
    """Not YOLOX's half-made data set, complaining while it is thrown away."""
    done = run_cli(work, "train", "-f", "tiny.py", "-b", "8", "data_dir", "nowhere", check=False)
    assert done.returncode == 2
    assert done.stderr.rstrip().splitlines()[-1].startswith("error: The data folder 'nowhere'"), done.stderr[-500:]
    assert "ignored" not in done.stderr


@pytest.mark.slow
def test_a_mistake_does_not_keep_the_folder(work, digits, monkeypatch):
    """A run that failed before its first checkpoint leaves nothing to protect."""
    monkeypatch.chdir(work)
    assert train("data_dir", work / "nowhere") == 2
    assert json.loads((work / "YOLOX_outputs/tiny/run.json").read_text())["status"] == "failed"
    assert train("max_epoch", 1) == 0
    assert json.loads((work / "YOLOX_outputs/tiny/run.json").read_text())["status"] == "finished"


def test_a_truncated_image_stops_the_run_with_its_name(work, digits, monkeypatch, capsys):
    """Its first bytes are an image's, so that only decoding it tells."""
    shutil.copytree(digits, work / "data")
    image = first_image(work / "data")
    image.write_bytes(image.read_bytes()[:40])
    monkeypatch.chdir(work)
    for workers in (0, 1):
        words = ["-expn", f"run{workers}", "data_dir", work / "data", "data_num_workers", workers]
        assert train(*words) == 1
        error = capsys.readouterr().err
        assert image.name in error and "cannot be read" in error and "Traceback" not in error.splitlines()[-1]


def test_odd_boxes_train_fine_and_are_counted(work, digits, monkeypatch, capsys):
    """Boxes of zero size, with the centre outside, and images without any."""
    shutil.copytree(digits, work / "data")

    def damage(coco):
        coco["annotations"][0]["bbox"][2:] = [0, 0]
        coco["annotations"][1]["bbox"][:2] = [500, 500]
        coco["annotations"][2]["bbox"][2:] = [0, 9]
        gone = coco["images"][5]["id"]
        coco["annotations"] = [item for item in coco["annotations"] if item["image_id"] != gone]

    edit(annotations(work / "data"), damage)
    empty = {item["id"] for item in json.loads(annotations(work / "data").read_text())["images"]} - {
        item["image_id"] for item in json.loads(annotations(work / "data").read_text())["annotations"]
    }
    monkeypatch.chdir(work)
    assert train("data_dir", work / "data", "max_epoch", 1) == 0
    log = capsys.readouterr().err
    assert "2 of zero size, 1 with the centre outside" in log
    facts = json.loads((work / "YOLOX_outputs/tiny/run.json").read_text())["data"]["train"]
    assert facts["boxes_of_zero_size"] == 2 and facts["boxes_with_centre_outside"] == 1
    assert facts["images_without_boxes"] >= len(empty) >= 1


def test_the_digits_are_the_same_bytes_again(tmp_path):
    digits = load_script("scripts/make_digits")
    prints = []
    for name in ("a", "b"):
        digits.make(tmp_path / name, train=6, val=4, size=96, seed=2)
        prints.append(digits.fingerprint(tmp_path / name))
    digits.make(tmp_path / "c", train=6, val=4, size=96, seed=3)
    assert prints[0] == prints[1] != digits.fingerprint(tmp_path / "c")


def test_all_classes_as_one_keeps_images_and_boxes(digits, tmp_path):
    merge = load_script("benchmarks/merge_classes").main
    assert merge([str(digits), str(tmp_path / "one"), "--name", "digit"]) == 0
    for split in ("train", "val"):
        file = f"annotations/instances_{split}2017.json"
        old, new = (json.loads((folder / file).read_text()) for folder in (digits, tmp_path / "one"))
        assert new["categories"] == [{"id": 1, "name": "digit"}] and len(old["categories"]) == 10
        assert new["images"] == old["images"] and {box["category_id"] for box in new["annotations"]} == {1}
        assert [box["bbox"] for box in new["annotations"]] == [box["bbox"] for box in old["annotations"]]
        for image in old["images"]:
            assert (tmp_path / "one" / f"{split}2017" / image["file_name"]).read_bytes() == (
                digits / f"{split}2017" / image["file_name"]
            ).read_bytes()


def test_a_set_that_cannot_be_merged_is_told(digits, tmp_path, capsys):
    merge = load_script("benchmarks/merge_classes").main
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "bad" / "annotations").mkdir(parents=True)
    (tmp_path / "bad" / "annotations" / "instances_val2017.json").write_text("[]")
    for source, out, words in (
        (tmp_path / "none", tmp_path / "a", "has no annotations/instances_"),
        (digits, tmp_path / "full", "is not empty"),
        (digits, digits / "one", "lies in"),
        (tmp_path / "bad", tmp_path / "b", "is not a COCO annotation file"),
    ):
        assert merge([str(source), str(out)]) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "b").exists() and not (digits / "one").exists()


def test_batch_norm_is_taken_from_the_images_of_one_size_and_the_weights_stay(work, capsys):
    script = load_script("benchmarks/batchnorm_sizes")
    exp = load_exp(str(work / "tiny.py"))
    model = exp.get_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    for size in (64, 96):
        hook = model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
        script.refresh(model, exp, size)
        hook.remove()
        assert set(seen) == {(size, size)} and len(seen) == 24 // script.BATCH
        seen.clear()
        after = model.state_dict()
        moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert moved and all("running_" in name or name.endswith("num_batches_tracked") for name in moved)
        before.update({name: value.clone() for name, value in after.items()})


@pytest.mark.slow
@pytest.mark.parametrize("name,flags", [("batchnorm_sizes", ["--sizes", "96", "-c"]), ("score_power", [])])
def test_a_script_on_checkpoints_prints_its_table_or_says_what_is_wrong(name, flags, work, capsys, monkeypatch):
    monkeypatch.chdir(work)
    script = load_script(f"benchmarks/{name}")
    Path("nine.py").write_text(Path("tiny.py").read_text() + "        self.num_classes = 9\n")
    for stem in ("tiny", "nine"):
        torch.save({"model": load_exp(f"{stem}.py").get_model().state_dict()}, f"{stem}.pth")
    assert script.main(["-f", "tiny.py", *flags, "tiny.pth"]) == 0
    assert capsys.readouterr().out.count("tiny.pth") == (2 if name == "batchnorm_sizes" else len(script.POWERS))
    Path("nodata.py").write_text(Path("tiny.py").read_text() + "        self.data_dir = 'nowhere'\n")
    for exp_file, ckpt, words in (
        ("missing.py", "tiny.pth", "no experiment file"),
        ("tiny.py", "missing.pth", "no checkpoint 'missing.pth'"),
        ("tiny.py", "nine.pth", "is of another model"),
        ("tiny.py", "tiny.py", "cannot be read as a checkpoint"),
        ("nodata.py", "tiny.pth", "'nowhere' does not exist"),
        ("nine.py", "nine.pth", "Set self.num_classes = 10"),
    ):
        assert script.main(["-f", exp_file, *flags, ckpt]) == 2
        assert words in capsys.readouterr().err
