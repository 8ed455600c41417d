"""Noisy labels: a box's confidence weighs all terms of the anchors that learn it."""

import json

import numpy as np
import pytest
import torch
from conftest import EXP, load_script, make_batch, make_head

import yolox_loss_patch as ylp
from yolox_loss_patch.data.checks import check_dataset
from yolox_loss_patch.errors import ConfigError, DataError
from yolox_loss_patch.exp.loading import load_exp
from yolox_loss_patch.head.patch import stage_of
from yolox_loss_patch.head.weights import split_scores


def gradient(labels, reads, use_l1=True):
    """The six outputs, the gradient at the raw outputs and at the offsets, and the assignment."""
    features, _, images = make_batch(batch=2, empty_every=0)
    head = make_head(use_l1=use_l1)
    ylp.patch_model(head, {})
    stage, seen = stage_of(head), {}
    stage.reads_scores = reads

    def spy(head, *args, get_losses=stage.get_losses, **kwargs):
        args = list(args)
        args[5] = seen["outputs"] = args[5].detach().requires_grad_()
        args[6] = seen["offsets"] = [part.detach().requires_grad_() for part in args[6]]
        return get_losses(head, *args, **kwargs)

    stage.get_losses = spy
    stage.element_weights = lambda found, classes: seen.update(found=found) or {}
    results = head(features, labels, images)
    results[0].backward()
    offsets = torch.cat([part.grad for part in seen["offsets"]], 1)
    return results, torch.cat([seen["outputs"].grad, offsets], 2).flatten(0, 1), seen["found"]


def test_every_term_of_an_anchor_is_weighed_by_the_confidence_of_its_box():
    labels = make_batch(batch=2, empty_every=0)[1]
    stock, before, found = gradient(labels, reads=False)
    scores = torch.tensor([1.0, 0.25, 0.0, 0.5, 0.75])
    noisy = labels.clone()
    noisy[:, :5, 0] += (1 - scores) / 2
    results, after, now = gradient(noisy, reads=True)
    assert torch.equal(now.fg_mask, found.fg_mask) and torch.equal(now.classes, found.classes)
    weight = torch.ones(len(before))
    weight[found.fg_mask] = scores[found.matched_gt]
    assert torch.allclose(after, before * weight.unsqueeze(1), rtol=1e-5, atol=1e-9)
    assert torch.equal(now.scores, scores[found.matched_gt]) and float(results[5]) == float(stock[5])
    assert not after[weight == 0].any() and before[weight == 0].any()


def test_a_score_of_1_changes_no_bit():
    labels = make_batch(batch=2, empty_every=0)[1]
    stock, before, _ = gradient(labels, reads=False)
    results, after, _ = gradient(labels, reads=True)
    assert torch.equal(before, after) and torch.equal(results[0], stock[0])


def test_scores_split_from_classes():
    labels = torch.tensor([[[3.25, 1, 2, 3, 4], [79.5, 1, 2, 3, 4], [-1.0, 1, 2, 3, 4], [0, 0, 0, 0, 0]]])
    whole, scores = split_scores(labels)
    assert whole[0, :, 0].tolist() == [3, 79, -1, 0] and scores[0].tolist() == [0.5, 0, 1, 1]
    assert torch.equal(whole[..., 1:], labels[..., 1:])


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noisy")
    load_script("scripts/make_digits").make(
        folder / "data", train=12, val=4, size=96, seed=5, faults=("noisy", "crowd")
    )
    (folder / "tiny.py").write_text(EXP.format(data=str(folder / "data")))
    return folder


@pytest.mark.parametrize("mosaic", [True, False])
def test_scores_go_through_the_data_pipeline(noisy, mosaic):
    exp = load_exp(str(noisy / "tiny.py"))
    exp.merge(["gt_score", "True", "ignore_crowd", "True"])
    dataset = exp.get_data_loader(batch_size=2, is_distributed=False, no_aug=not mosaic).dataset
    items = json.loads((noisy / "data" / "annotations" / "instances_train2017.json").read_text())["annotations"]
    known = {(item["category_id"] - 1, item["score"]) for item in items if not item["iscrowd"]}
    assert check_dataset(dataset, 10, "train")["scored_boxes"] == sum(not item["iscrowd"] for item in items)
    seen = set()
    for index in range(12):
        whole, scores = split_scores(torch.as_tensor(dataset[(mosaic, index)][1])[None])
        for row, score in zip(whole[0], scores[0], strict=True):
            if row[3] > 0 and row[0] >= 0:
                seen.add((int(row[0]), round(float(score), 3)))
    assert seen <= known and len(seen) > 15
    model = exp.get_model()
    assert stage_of(model).reads_scores and stage_of(model).ignores_regions


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            lambda item: item.update(score=1.5),
            DataError,
            r"the score of annotation \d+ is 1.5; gt_score asks for a number",
        ),
        (lambda item: item.pop("score", None), ConfigError, "no annotation of .* has a score or a weight"),
    ],
)
def test_scores_that_cannot_be_are_told(noisy, tmp_path, change, error, words):
    exp = load_exp(str(noisy / "tiny.py"))
    exp.gt_score = True
    path = noisy / "data" / "annotations" / "instances_train2017.json"
    coco = json.loads(path.read_text())
    for item in coco["annotations"]:
        change(item)
    (path.parent / "changed.json").write_text(json.dumps(coco))
    exp.train_ann = "changed.json"
    with pytest.raises(error, match=words):
        exp.get_data_loader(batch_size=2, is_distributed=False)


def test_gt_score_is_a_flag(noisy):
    exp = load_exp(str(noisy / "tiny.py"))
    assert not stage_of(exp.get_model()).reads_scores and np.isscalar(exp.seed)
    exp.gt_score = 0.5
    with pytest.raises(ConfigError, match=r"gt_score is True or False; got 0\.5"):
        exp.get_model()
