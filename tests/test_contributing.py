"""The loss that CONTRIBUTING.md adds as an example works as the page says."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
# What the two edits do to the files, without the files.
ADD = """
import sys
sys.path[:0] = [{tests!r}, {tests!r} + "/losses"]
kernel, reference_function, row = {blocks!r}

from yolox_loss_patch.losses import l1
exec(kernel, vars(l1))
import reference
exec(reference_function, vars(reference))

import test_reference
import test_robust
import yolox_loss_patch as ylp
from yolox_loss_patch.cli import main
from yolox_loss_patch.doctor.conformance import check_loss

rows = eval("[" + row + "]", vars(test_reference))
assert [row.knobs for row in rows] == [{{}}, {{"c": 0.5}}]
for row in rows:
    test_reference.test_offset_loss("l1", row)
check_loss("l1", "charbonnier")
test_robust.check_finite(ylp.build_loss("l1", "charbonnier"), *test_robust.hostile("l1", 1000, test_robust.torch.float32))
try:
    ylp.LossConfig(loss_l1=dict(type="charbonnier", c=0))
except ylp.ConfigError:
    pass
else:
    raise AssertionError("c = 0 is below its limit")
sys.exit(main(["list", "charbonnier"]))
"""


@pytest.mark.slow
def test_the_example_of_a_loss_runs():
    blocks = re.findall(r"```(?:python|text)\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 3
    code = ADD.format(tests=str(ROOT / "tests"), blocks=blocks)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sqrt((d/c)2 + 1) - 1" in done.stdout and "1701.03077" in done.stdout and "c = 1.0" in done.stdout


def test_the_rooms_are_those_of_the_layout():
    from test_layout import ARROWS

    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*)\|$", TEXT, re.MULTILINE)
    found = {room: set(re.findall(r"`(\w+)`", uses)) for room, uses in rows}
    assert found == {**ARROWS, "doctor": set()} and ARROWS["doctor"] == set(ARROWS) - {"doctor"}
