"""Export the model of a run to ONNX, and check that ONNX Runtime computes what PyTorch does.

    python scripts/export_onnx.py -f my_exp.py                       # YOLOX_outputs/my_exp/best_ckpt.pth -> yolox.onnx
    python scripts/export_onnx.py -f my_exp.py -c CKPT -o my.onnx --decode

YOLOX's own tool calls torch.onnx._export, which current torch has no more. The result is what that tool made: input
"images" (1, 3, H, W) in 0..255, output "output" (1, A, 5 + C). Without --decode the boxes are offsets, as YOLOX's ONNX demo
expects them; with it (cx, cy, w, h) in px. Needs: pip install onnx onnxruntime
"""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

from yolox_loss_patch.errors import KitError
from yolox_loss_patch.exp.loading import load_exp
from yolox_loss_patch.runs.checkpoint import load_checkpoint
from yolox_loss_patch.train.checkpoints import load_weights


def export(exp, ckpt, out, decode, opset):
    """Write the model; returns the largest difference between ONNX Runtime and PyTorch, relative to the largest output."""
    import onnx
    import onnxruntime

    model = exp.get_model().eval()
    load_weights(model, load_checkpoint(ckpt)["model"], ckpt, strict=True)
    model.head.decode_in_inference = decode
    image = torch.rand(1, 3, *exp.test_size, generator=torch.Generator().manual_seed(0)) * 255
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without onnxscript says that it is the old one
        expected = model(image).numpy()
        # The shapes are constants on purpose, as in YOLOX's own export: one model for one size of image.
        torch.onnx.export(
            model,
            (image,),
            str(out),
            input_names=["images"],
            output_names=["output"],
            opset_version=opset,
            dynamo=False,
        )
    onnx.checker.check_model(str(out))
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"images": image.numpy()})
    if got.shape != expected.shape:
        raise RuntimeError(f"ONNX Runtime gives {got.shape}, PyTorch {expected.shape}")
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def main():
    parser = argparse.ArgumentParser(description="Export the model of a run to ONNX.")
    parser.add_argument("-f", "--exp-file", help="experiment file")
    parser.add_argument("-n", "--name", help="or a model of YOLOX's, such as yolox-s")
    parser.add_argument("-c", "--ckpt", type=Path, help="checkpoint [best_ckpt.pth of the run's folder]")
    parser.add_argument("-o", "--out", type=Path, default=Path("yolox.onnx"), help="[%(default)s]")
    parser.add_argument("--decode", action="store_true", help="boxes in px, not offsets")
    parser.add_argument("--opset", type=int, default=11, help="[%(default)s, as YOLOX's tool]")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="key value ...: settings of the experiment")
    args = parser.parse_args()
    try:
        exp = load_exp(args.exp_file, args.name)
        exp.merge(args.opts)
        ckpt = args.ckpt or Path(exp.output_dir) / exp.exp_name / "best_ckpt.pth"
        difference = export(exp, ckpt, args.out, args.decode, args.opset)
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed; pip install onnx onnxruntime", file=sys.stderr)
        return 2
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{ckpt} -> {args.out}; ONNX Runtime differs from PyTorch by {difference:.1e} of the largest output")
    if not difference < 1e-4:
        print("error: the exported model does not compute what PyTorch does", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
