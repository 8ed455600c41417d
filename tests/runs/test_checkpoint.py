"""Checkpoints are checked before they are believed, and no code from them runs."""

import json
import random

import numpy as np
import pytest
import torch

from yolox_loss_patch.errors import RunError
from yolox_loss_patch.runs.checkpoint import load_checkpoint
from yolox_loss_patch.runs.files import save_atomically


class Rogue:
    def __reduce__(self):
        return print, ("code of somebody else runs",)


@pytest.fixture
def path(tmp_path):
    generator = torch.Generator().manual_seed(0)
    state = {"start_epoch": 2, "model": {"w": torch.randn(50, 20, generator=generator)}, "best_ap": 0.25}
    save_atomically(state, tmp_path / "latest_ckpt.pth")
    return tmp_path / "latest_ckpt.pth"


def test_a_checkpoint_as_yolox_writes_it_is_read(tmp_path):
    """With the best AP as a numpy scalar, which torch's safe loading refuses."""
    path = tmp_path / "stock_ckpt.pth"
    torch.save({"start_epoch": 2, "model": {"w": torch.ones(1)}, "best_ap": np.float64(0.25)}, path)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        torch.load(path, weights_only=True)
    assert load_checkpoint(path)["best_ap"] == 0.25
    torch.save({"w": torch.ones(1)}, path)
    with pytest.raises(RunError, match="no 'model'"):
        load_checkpoint(path)


# what is in the file, and words of the answer
NO_CHECKPOINTS = [
    (b"", "cannot be read as a checkpoint: it is empty"),
    (b"<!DOCTYPE html>\n<html>", "it is a web page, as a failed download leaves it"),
    (b"not a checkpoint", "cannot be read as a checkpoint"),
    (b"PK\x03\x04 cut off", "is damaged and cannot be read as a checkpoint"),
]


@pytest.mark.parametrize("data,answer", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_one_sentence(tmp_path, data, answer):
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(RunError, match=answer) as error:
        load_checkpoint(tmp_path / "x.pth")
    assert "weights_only" not in str(error.value) and "\n" not in str(error.value)


def test_code_in_a_checkpoint_is_named_and_not_run(tmp_path, capsys):
    """torch's own words advise to load it without the check; ours do not."""
    torch.save({"model": {}, "more": Rogue()}, tmp_path / "x.pth")
    with pytest.raises(
        RunError, match=r"it holds a Python object \(.*print\) besides weights.*Save the weights alone"
    ) as error:
        load_checkpoint(tmp_path / "x.pth")
    assert "weights_only" not in str(error.value) and "somebody else runs" not in capsys.readouterr().out


def test_a_flipped_bit_is_told(path):
    data = bytearray(path.read_bytes())
    place = data.index(torch.load(path)["model"]["w"].numpy().tobytes()[:64])
    data[place + 10] ^= 1
    path.write_bytes(data)
    assert not torch.isnan(torch.load(path)["model"]["w"]).any()  # torch says nothing
    with pytest.raises(RunError, match=r"is damaged: the checksum of '.*data/0' in it is wrong"):
        load_checkpoint(path)


def test_a_checkpoint_that_is_not_what_the_run_wrote_is_told(path):
    hashes = []
    state = torch.load(path)
    save_atomically(state, path, hashes.append)
    (path.parent / "run.json").write_text(json.dumps({"status": "finished", "files": {path.name: hashes}}))
    assert load_checkpoint(path)["start_epoch"] == 2
    state["model"]["w"][0, 0] += 1
    torch.save(state, path)  # whole, but another
    with pytest.raises(
        RunError, match=rf"is damaged or was replaced: its sha256 is \w+, and the run wrote {hashes[0][:16]}"
    ):
        load_checkpoint(path)


def test_a_damaged_checkpoint_is_refused_or_gives_what_was_written(path):
    """Bytes changed, cut out or repeated at random: never a traceback, never other weights."""
    whole, expected = path.read_bytes(), torch.load(path)
    rng = random.Random(0)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        first = rng.randrange(len(data))
        last = min(len(data), first + rng.choice([1, 1, 1, 8, 200]))
        data[first:last] = rng.choice([b"", bytes(data[first:last]) * 2, rng.randbytes(last - first)])
        path.write_bytes(data)
        try:
            found = load_checkpoint(path)
        except RunError:
            refused += 1
            continue
        assert found.keys() == expected.keys() and torch.equal(found["model"]["w"], expected["model"]["w"])
        assert {key: value for key, value in found.items() if key != "model"} == {"start_epoch": 2, "best_ap": 0.25}
    assert refused > 250
