"""Rare classes: weights from counts, repeated images, what is counted and told."""

import json
import math
import random
from collections import Counter

import pytest
import torch
from conftest import EXP, cli, load_script, make_batch, make_head

import yolox_loss_patch as ylp
from yolox_loss_patch.data.checks import check_dataset, coco_dataset
from yolox_loss_patch.data.counts import class_counts, effective_number_weights, inverse_weights
from yolox_loss_patch.data.repeat import repeat_factors, repeated
from yolox_loss_patch.errors import ConfigError
from yolox_loss_patch.exp.loading import load_exp
from yolox_loss_patch.head.patch import stage_of
from yolox_loss_patch.runs.selection import loss_label
from yolox_loss_patch.specs.config import LossConfig


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    """A folder with an experiment ``tiny.py`` on digits of which two are rare, and the boxes per class by plain counting."""
    folder = tmp_path_factory.mktemp("rare")
    load_script("scripts/make_digits").make(folder / "data", train=60, val=4, size=96, seed=5, faults=("rare", "crowd"))
    (folder / "tiny.py").write_text(EXP.format(data=str(folder / "data")))
    coco = json.loads((folder / "data" / "annotations" / "instances_train2017.json").read_text())
    counts = Counter(item["category_id"] - 1 for item in coco["annotations"] if not item["iscrowd"])
    return folder, [counts[label] for label in range(10)]


def test_counts_are_those_of_the_boxes_that_are_trained_on(rare):
    folder, counts = rare
    assert class_counts(load_exp(str(folder / "tiny.py"))) == {str(label): count for label, count in enumerate(counts)}


def test_inverse_weights_have_mean_1_over_boxes():
    counts = [90, 9, 1, 0]
    weights = inverse_weights(counts)
    assert weights[3] == 1 and weights[2] == pytest.approx(100 / 3)
    assert sum(n * w for n, w in zip(counts, weights, strict=True)) / 100 == pytest.approx(1)


def test_effective_number_of_the_paper():
    counts, beta = [1000, 10, 1], 0.99
    weights = effective_number_weights(counts, beta)
    effective = [sum(beta**k for k in range(n)) for n in counts]  # E_n as a geometric series
    for a, b in ((0, 1), (1, 2)):
        assert weights[a] / weights[b] == pytest.approx(effective[b] / effective[a])
    assert sum(weights) == pytest.approx(3)
    assert effective_number_weights(counts, 0.0) == [1, 1, 1]


@pytest.mark.parametrize("loss", ["bce", "focal", "dice", "varifocal"])
@pytest.mark.parametrize("scheme", ["inverse", dict(type="effective_number", beta=0.9)])
def test_names_of_weights_become_numbers_of_the_experiment(rare, loss, scheme):
    folder, counts = rare
    exp = load_exp(str(folder / "tiny.py"))
    exp.loss_cls = dict(type=loss, class_weight=scheme)
    resolved = LossConfig.from_exp(exp).resolved()["cls"]
    expected = inverse_weights(counts) if scheme == "inverse" else effective_number_weights(counts, 0.9)
    assert list(resolved["class_weight"]) == pytest.approx(expected)
    assert stage_of(exp.get_model()).config == LossConfig.from_exp(exp)


def test_any_class_loss_takes_weights_by_name(rare):
    exp = load_exp(str(rare[0] / "tiny.py"))
    exp.loss_cls = dict(type="focal", class_weight={"7": 5.0})
    assert list(LossConfig.from_exp(exp).resolved()["cls"]["class_weight"]) == [1.0] * 7 + [5.0, 1.0, 1.0]


@pytest.mark.parametrize("loss", ["focal", "varifocal", "quality_focal", "bce"])
def test_a_class_weight_multiplies_the_gradient_of_its_class(loss):
    weights = [2.0, 1.0, 0.0]
    gradients = {}
    for name, knobs in (("plain", {}), ("weighed", {"class_weight": weights})):
        features, labels, images = make_batch(batch=2, empty_every=0)
        head = make_head()
        ylp.patch_model(head, {"loss_cls": dict(type=loss, **knobs)})
        stage, seen = stage_of(head), {}

        def spy(head, *args, stage=stage, seen=seen, get_losses=stage.get_losses, **kwargs):
            args = [*args[:5], args[5].detach().requires_grad_(), *args[6:]]
            seen["outputs"] = args[5]
            return get_losses(head, *args, **kwargs)

        stage.get_losses = spy
        head(features, labels, images)[3].backward()
        gradients[name] = seen["outputs"].grad[..., 5:].flatten(0, 1)
    for column, weight in enumerate(weights):
        assert torch.allclose(
            gradients["weighed"][:, column], weight * gradients["plain"][:, column], rtol=1e-5, atol=1e-9
        )
    assert gradients["plain"].any(0).all()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (dict(type="focal", class_weight="inverse"), "needs an experiment"),
        (dict(type="bce", class_weight="inverse"), "needs an experiment"),
        (dict(type="focal", class_weight=[1.0, 2.0]), "class_weight has 2 numbers, and the head has 3 classes"),
        (dict(type="focal", class_weight="inversed"), "'inverse', or dict"),
        (dict(type="focal", class_weight=dict(type="effective_number", beta=1.0)), "beta of effective_number"),
        (dict(type="focal", class_weight=dict(type="effective_number", gamma=1.0)), "no knob 'gamma'"),
    ],
)
def test_class_weights_that_cannot_be_are_told(spec, words):
    head = make_head()
    with pytest.raises(ConfigError, match=words):
        ylp.patch_model(head, {"loss_cls": spec})
        head(*make_batch(batch=2))


def test_repeat_factors_of_lvis():
    classes = [{0}] * 96 + [{0, 1}, {0, 1}, {0, 1}, {2}] + [set()]
    factors = repeat_factors(classes, threshold=0.25)
    n = len(classes)
    assert factors[0] == 1 and factors[-1] == 1
    assert factors[96] == pytest.approx(math.sqrt(0.25 * n / 3)) and factors[99] == pytest.approx(math.sqrt(0.25 * n))
    order = repeated(factors)
    assert len(order) == pytest.approx(factors.sum(), abs=1)
    count = Counter(order)
    assert all(abs(count[index] - factor) < 1 for index, factor in enumerate(factors))


def drawn(exp, count):
    loader = exp.get_data_loader(batch_size=4, is_distributed=False)
    batches = iter(loader.batch_sampler)
    places = [index[1] for _ in range(count // 4) for index in next(batches)]
    return loader, places


def test_images_with_rare_classes_are_drawn_more_often_and_an_epoch_is_as_long(rare):
    exp = load_exp(str(rare[0] / "tiny.py"))
    plain, _ = drawn(exp, 4)
    exp.merge(["repeat_factor", "0.5"])
    loader, places = drawn(exp, 4000)
    assert len(loader) == len(plain)
    inner, repeats = coco_dataset(loader.dataset), loader.dataset._dataset  # YOLOX's name for what a mosaic wraps
    order, factors = repeats.order, inner.repeat_factors
    seen = Counter(order[place] for place in places)
    mean = len(places) / len(order)
    for index, factor in enumerate(factors):
        assert seen[index] == pytest.approx(mean * factor, abs=mean * 1.05 + 2)
    rarest = [index for index, entry in enumerate(inner.annotations) if {0, 7} & {int(row[4]) for row in entry[0]}]
    assert rarest and min(factors[index] for index in rarest) > 1.5
    assert check_dataset(loader.dataset, 10, "train")["repeated_images"] == (factors > 1).sum()
    # the images that mosaic and mixup add follow the factors too
    random.seed(0)
    pulled = Counter()
    pull = inner.pull_item
    inner.pull_item = lambda index: pulled.update([index]) or pull(index)
    for place in range(60):
        assert loader.dataset[(True, place)][1].shape == (120, 5)
    share = sum(pulled[index] for index in rarest) / sum(pulled.values())
    assert share > 1.3 * len(rarest) / len(inner.annotations)


@pytest.mark.parametrize("value", [0, -1, 2, "much", True])
def test_a_repeat_factor_that_cannot_be_is_told(rare, value):
    exp = load_exp(str(rare[0] / "tiny.py"))
    exp.repeat_factor = value
    with pytest.raises(ConfigError, match=r"repeat_factor is a share of the images in \(0, 1\]"):
        exp.get_data_loader(batch_size=4, is_distributed=False)


@pytest.mark.slow
def test_doctor_and_the_record_tell_the_counts(rare):
    folder, counts = rare
    text = cli(folder, "doctor", "-f", "tiny.py", check=False).stdout
    assert ", ".join(f"{label} {count}" for label, count in enumerate(counts)) in text
    assert "classes have fewer than 20 boxes" in text and "crowds" in text and "small" in text
    words = ("max_epoch", "1", "loss_cls", "{'type': 'bce', 'class_weight': 'inverse'}", "repeat_factor", "0.5")
    done = cli(folder, "train", "-f", "tiny.py", "-b", "20", "--device", "cpu", *words)
    record = json.loads((folder / "YOLOX_outputs" / "tiny" / "run.json").read_text())
    assert record["data"]["train"]["boxes_per_category"] == counts and record["exp"]["repeat_factor"] == 0.5
    assert record["resolved_losses"]["cls"]["class_weight"] == pytest.approx(inverse_weights(counts))
    assert "boxes per class: 0 " in done.stdout + done.stderr
    # compare calls the loss as it was written
    assert loss_label(record, ["cls"], whole=True) == "cls bce(class_weight='inverse') + repeat_factor=0.5"
