"""Half precision (``--fp16``): what must not be rounded to it.

The network computes in fp16 on CUDA and in bf16 elsewhere. Labels, decoded boxes, targets and the loss maths stay in
fp32: fp16 holds whole pixels only from 1024 px on, bf16 every eighth.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor


def half_dtype(device: torch.device) -> torch.dtype:
    """The dtype of ``--fp16``: fp16 on CUDA; elsewhere bf16, which has fp32's range and needs no loss scaling."""
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def decode_in_fp32(head: Any) -> None:
    """Let this head decode its predictions in fp32 in training, whatever the dtype of its features.

    YOLOX decodes in the dtype of the features. The network's outputs are taken as they are, in half; the decoding no
    longer rounds on top. On fp32 features nothing changes.

    Args:
        head: a YOLOX head. A copy of it (EMA) decodes in fp32 too.
    """
    head.get_output_and_grid = MethodType(_output_and_grid, head)


def _output_and_grid(head: Any, output: Tensor, k: int, stride: int, dtype: str) -> Any:
    """The head's own ``get_output_and_grid`` on fp32; ``dtype`` is the features', as ``torch.cuda.HalfTensor``."""
    output = output.float()
    return type(head).get_output_and_grid(head, output, k, stride, output.type())
