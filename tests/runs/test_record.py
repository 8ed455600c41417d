"""What a run record holds: plain data that is the same in every process, and processes that are not mistaken for others."""

import os

import numpy as np
import pytest

from yolox_loss_patch.runs.differences import code_differences
from yolox_loss_patch.runs.process import birth, is_alive
from yolox_loss_patch.specs.plain import plain


class Augmentation:
    pass


@pytest.mark.parametrize(
    "one,two",
    [
        (Augmentation(), Augmentation()),  # its repr has an address
        ([lambda x: x], [lambda x: x]),
        ({"cow", "cat", "dog"}, {"dog", "cow", "cat"}),
        (np.int64(3), 3),
        (np.arange(3), [0, 1, 2]),
        ({"sizes": (1, 2.5, None, True)}, {"sizes": [1, 2.5, None, True]}),
    ],
    ids=["object", "function", "set", "number", "array", "containers"],
)
def test_plain_data_are_the_same_in_every_process(one, two):
    assert plain(one) == plain(two)
    assert "0x" not in str(plain(one))


def test_plain_data_of_other_values_differ():
    assert plain({"cow"}) != plain({"cat"}) and plain(Augmentation()) != plain(object())


def test_a_process_that_took_an_old_number_is_not_the_old_one():
    assert is_alive(os.getpid()) and is_alive(os.getpid(), birth(os.getpid()))
    assert not is_alive(2**22 + 1) and not is_alive(None)
    if birth(os.getpid()) is None:
        pytest.skip("this system does not say when a process began")
    assert not is_alive(os.getpid(), "another boot 77")
    assert is_alive(1, birth(1)) and not is_alive(1, birth(os.getpid()))


@pytest.mark.parametrize(
    "one,two,names",
    [
        ({"f()": "a", "Loss": "b"}, {"f()": "a", "Loss": "b"}, []),
        ({"f()": "a"}, {"f()": "c"}, ["f()"]),
        ({"f()": "a"}, {}, ["f()"]),  # a method that one lacks is YOLOX's there
        ({"Loss": "a"}, {"Loss": "b"}, ["Loss"]),
        ({"Loss": "a"}, {}, []),  # what one lacks, it does not need
    ],
)
def test_code_that_differs(one, two, names):
    assert code_differences(one, two) == names == code_differences(two, one)
