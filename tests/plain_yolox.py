"""Runs a tool of YOLOX as it is, without the kit, on a machine without CUDA:  plain_yolox.py yolox.tools.train -f ...

YOLOX's trainer and evaluator ask for CUDA by name. Here those calls find the CPU; nothing else of YOLOX is touched, so the
log, the TensorBoard events and the checkpoints are the ones that YOLOX writes.
"""

import contextlib
import runpy
import signal
import sys
from unittest import mock

import torch


def _cpu(function):
    """The function with every device that names CUDA replaced."""

    def call(*args, **kwargs):
        def replace(value):
            return "cpu" if str(value).startswith("cuda") else value

        args = [replace(value) if isinstance(value, (str, torch.device)) else value for value in args]
        kwargs = {key: replace(value) if key in ("device", "map_location") else value for key, value in kwargs.items()}
        return function(*args, **kwargs)

    return call


def _load(*args, _load=torch.load, **kwargs):
    # YOLOX resumes with the torch of its day, which loaded numpy's scalars.
    return _cpu(_load)(*args, **{**kwargs, "weights_only": False})


# Ctrl-C works also where the tests run in the background of a shell, which ignores it there.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.load = _load
torch.nn.Module.to = _cpu(torch.nn.Module.to)
torch.Tensor.to = _cpu(torch.Tensor.to)
torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *args, **kwargs: self
torch.Tensor.record_stream = lambda self, stream: None
torch.cuda.Stream = torch.cuda.current_stream = mock.MagicMock
torch.cuda.stream = lambda stream: contextlib.nullcontext()
torch.cuda.set_device = lambda device: None
torch.cuda.device_count = lambda: 1
torch.cuda.FloatTensor, torch.cuda.HalfTensor = torch.FloatTensor, torch.HalfTensor

if __name__ == "__main__":
    tool = sys.argv.pop(1)
    runpy.run_module(tool, run_name="__main__", alter_sys=True)
