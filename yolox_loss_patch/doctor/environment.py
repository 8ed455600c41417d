"""The environment: every package is put to work, as a version that fits on paper may still be a broken build."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from importlib import metadata

import numpy as np
import torch

from ..data.findings import ERROR, OK, WARNING, Finding, counted
from ..errors import KitError, in_words
from ..head import hosts
from ..head.patch import patch_model, unpatch_model
from .report import quiet

_OPENCV = ("opencv-python", "opencv-contrib-python", "opencv-python-headless", "opencv-contrib-python-headless")


def check_python() -> Iterator[Finding]:
    """Which Python, system and kit."""
    from ..version import __version__

    yield Finding(
        OK,
        "python",
        f"{platform.python_version()}, {platform.system()} {platform.machine()}; yolox-loss-patch {__version__}",
    )


def check_torch() -> Iterator[Finding]:
    """Whether torch works with the installed numpy."""
    try:
        total = float(torch.from_numpy(np.ones(3)).sum())
    except RuntimeError as error:
        yield Finding(
            ERROR,
            "torch",
            f"torch {torch.__version__} does not work with numpy {np.__version__}: {error}",
            "pip install 'numpy<2' for a torch before 2.3, or install a newer torch.",
        )
        return
    assert total == 3
    yield Finding(
        OK, "torch", f"{torch.__version__}, {counted(torch.get_num_threads(), 'thread')}; numpy {np.__version__}"
    )


def check_torchvision() -> Iterator[Finding]:
    """Whether NMS runs: the operators are compiled for one version of torch, and for the CPU only or for CUDA too."""
    try:
        version = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        yield Finding(
            ERROR,
            "torchvision",
            "not installed; YOLOX takes its NMS from there",
            f"pip install {_matching_torchvision()}",
        )
        return
    remedy = f"pip install --force-reinstall --no-deps {_matching_torchvision()}, from where torch {torch.__version__} came from."
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        try:
            nms = importlib.import_module("torchvision.ops").nms
            boxes = torch.tensor(
                [[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]], device=device
            )
            kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5).tolist()
        except Exception as error:
            text = str(error).splitlines()[0] if str(error) else ""
            yield Finding(
                ERROR,
                "torchvision",
                f"{version} does not run with torch {torch.__version__} on {device}: {type(error).__name__}: {text}",
                remedy,
            )
            return
        if kept != [0, 2]:
            yield Finding(
                ERROR, "torchvision", f"{version}: NMS of three boxes on {device} kept {kept}, not [0, 2]", remedy
            )
            return
    yield Finding(OK, "torchvision", f"{version}; its NMS runs")


def _matching_torchvision() -> str:
    """The requirement that fits torch: torchvision 0.(n + 15) belongs to torch 2.n."""
    major, minor = torch.__version__.split(".")[:2]
    return f"'torchvision==0.{int(minor) + 15}.*'" if major == "2" else "torchvision"


def check_pycocotools() -> Iterator[Finding]:
    """Whether a perfect detection has AP 1."""
    remedy = "pip install --upgrade --force-reinstall --no-cache-dir pycocotools"
    try:
        from pycocotools.coco import COCO

        from ..train.evaluator import coco_metrics

        truth = COCO()
        box = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40]}
        truth.dataset = {
            "images": [{"id": 1, "width": 100, "height": 100}],
            "annotations": [{**box, "id": 1, "area": 1600, "iscrowd": 0}],
            "categories": [{"id": 1, "name": "thing"}],
        }
        with quiet():
            truth.createIndex()
            ap = coco_metrics(truth, [{**box, "score": 0.9}])[0]["AP"]
    except Exception as error:
        text = f"does not work with numpy {np.__version__}: {type(error).__name__}: {error}"
        yield Finding(ERROR, "pycocotools", text, remedy)
        return
    version = metadata.version("pycocotools")
    if abs(ap - 1) > 1e-6:
        yield Finding(ERROR, "pycocotools", f"{version}: a perfect detection has AP {ap}, not 1", remedy)
        return
    yield Finding(OK, "pycocotools", f"{version}; evaluates with numpy {np.__version__}")


def check_opencv() -> Iterator[Finding]:
    """Whether OpenCV reads and writes a JPEG, and is installed once."""
    installed = [name for name in _OPENCV if version_of(name)]
    named = ", ".join(f"{name} {version_of(name)}" for name in installed)
    try:
        import cv2

        picture = np.full((8, 8, 3), 128, np.uint8)
        back = cv2.imdecode(cv2.imencode(".jpg", picture)[1], cv2.IMREAD_COLOR)
        worked = back is not None and back.shape == picture.shape
        version = cv2.__version__
    except Exception as error:
        remedy = "pip install opencv-python-headless (it needs no screen libraries such as libGL)"
        if installed:
            remedy = f"pip uninstall -y {' '.join(installed)}, then {remedy}"
        yield Finding(ERROR, "opencv", f"cannot be used: {type(error).__name__}: {error}", remedy)
        return
    if len(installed) > 1:
        yield Finding(
            WARNING,
            "opencv",
            f"{named} are installed together; they write the same files, and what runs ({version}) is a mixture",
            f"pip uninstall -y {' '.join(installed)}, then install the one you need.",
        )
    elif worked:
        yield Finding(OK, "opencv", f"{named or version}; reads and writes JPEG")
    if not worked:
        yield Finding(
            ERROR, "opencv", f"{version} cannot read a JPEG that it wrote", "Install opencv-python-headless anew."
        )


def version_of(distribution: str) -> str:
    """The version of an installed distribution, empty where there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def check_device() -> Iterator[Finding]:
    """CUDA where it works, and why not where it might."""
    has_driver = os.path.exists("/proc/driver/nvidia/version") or shutil.which("nvidia-smi") is not None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available:
        for index in range(torch.cuda.device_count()):
            yield check_cuda_device(index)
        return
    if torch.backends.mps.is_available():
        yield Finding(OK, "device", "mps (Apple); training runs there, bit-exact repeats are promised for the CPU only")
        return
    if not has_driver:
        yield Finding(OK, "device", "cpu; no NVIDIA driver and no MPS found, so training runs on the CPU")
        return
    if torch.version.cuda is None:
        yield Finding(
            WARNING,
            "device",
            f"there is an NVIDIA driver, but torch {torch.__version__} is built without CUDA; training runs on the CPU",
            "Install a CUDA build of torch and torchvision together: https://pytorch.org/get-started/locally",
        )
        return
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        yield Finding(
            WARNING,
            "device",
            f"cpu: CUDA_VISIBLE_DEVICES is {hidden!r}, which hides the GPUs",
            "Unset it to train on them.",
        )
        return
    reason = "; ".join(str(warning.message).splitlines()[0] for warning in said)
    if not reason:
        try:
            torch.cuda.init()
        except Exception as error:
            reason = str(error).splitlines()[0]
    yield Finding(
        WARNING,
        "device",
        f"there is an NVIDIA driver, but torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use it: {reason}",
        f"Update the driver to one for CUDA {torch.version.cuda}, or install a torch built for an older CUDA; nvidia-smi "
        "shows what the driver can do.",
    )


def check_cuda_device(index: int) -> Finding:
    """Whether this torch runs on a CUDA device."""
    facts = torch.cuda.get_device_properties(index)
    device = f"cuda:{index} {facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    try:
        total = float(torch.ones(8, device=f"cuda:{index}").sum())
    except Exception as error:
        return Finding(
            ERROR,
            "device",
            f"{device} does not run with torch {torch.__version__} (CUDA {torch.version.cuda}): {str(error).splitlines()[0]}",
            f"The device is sm_{facts.major}{facts.minor} and this torch is built for {', '.join(torch.cuda.get_arch_list())}; "
            "install a torch that is built for it.",
        )
    assert total == 8
    return Finding(OK, "device", f"{device}; torch's CUDA {torch.version.cuda} runs on it")


def check_host() -> Iterator[Finding]:
    """Which YOLOX is installed, and whether its head can be patched."""
    try:
        with quiet():
            host = hosts.describe()
    except Exception as error:
        remedy = "" if isinstance(error, KitError) else f"The kit cannot use this YOLOX. {hosts.INSTALL}"
        yield Finding(ERROR, "yolox", in_words(error), remedy)
        return
    text = f"{host['name']}, version {host['version']}, in {host['path']}; get_losses {host['get_losses'] or 'without source'}"
    try:
        # A new head, patched and restored: whether the kit can use this host is tried and not concluded from its name.
        head = hosts.head_class()(1, width=0.25)
        unpatch_model(patch_model(head))
    except Exception as error:
        yield Finding(ERROR, "yolox", f"{text}: {in_words(error)}")
        return
    if host["name"] == "unknown":
        yield Finding(
            WARNING,
            "yolox",
            f"{text}, which is not a fingerprint that the kit knows",
            "Run yolox-loss verify with your experiment before you train.",
        )
    else:
        yield Finding(OK, "yolox", f"{text} (known)")
    makers = sorted(set(metadata.packages_distributions().get("yolox", [])))
    if len(makers) > 1:
        yield Finding(
            WARNING,
            "yolox",
            f"{' and '.join(makers)} all install a folder 'yolox' and overwrite each other's files",
            f"pip uninstall -y {' '.join(makers)}, then install the one you need.",
        )


def check_trainer() -> Iterator[Finding]:
    """Whether everything that training imports is there: one finding."""
    try:
        with quiet():
            importlib.import_module("yolox_loss_patch.train.trainer")
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.split(".")[0] == "yolox":
            text, remedy = f"this YOLOX has no {missing!r}, which training and experiment files need", hosts.INSTALL
        else:
            text, remedy = f"training needs {missing!r}, which is not installed", f"pip install {missing.split('.')[0]}"
        yield Finding(ERROR, "trainer", text, remedy)
        return
    yield Finding(OK, "trainer", "everything that training imports is there")
