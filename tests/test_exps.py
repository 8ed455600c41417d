"""The experiment files of exps/ load, and build the model they describe."""

import pytest
from conftest import ROOT

import yolox_loss_patch as ylp
from yolox_loss_patch.exp.loading import load_exp
from yolox_loss_patch.head.patch import stage_of

STOCK = {"template", "bccd_nano", "bccd_finetune", "digits_stock", "digits_finetune"}


@pytest.mark.parametrize("path", sorted((ROOT / "exps").glob("*.py")), ids=lambda path: path.stem)
def test_an_experiment_file_loads_and_builds(path):
    exp = load_exp(str(path))
    exp.depth, exp.width = 0.33, 0.125
    config = ylp.LossConfig.from_exp(exp)
    assert stage_of(exp.get_model()).config == config
    assert (config == ylp.LossConfig()) == (path.stem in STOCK), (
        "an example of a swap must swap a loss, the others none"
    )
    assert exp.exp_name == path.stem or path.stem == "template"
