"""What is installed, which YOLOX it is, what the experiment resolves to and how its data is: a line a check, with a remedy."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import platform
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger

from ..data.annotations import default_data_dir
from ..data.checks import check_dataset, coco_dataset, open_data
from ..errors import DataError, KitError
from ..exp.loading import load_exp
from ..head import hosts
from ..head.patch import patch_model, stage_with, unpatch_model
from ..specs.config import LossConfig

OK, WARNING, ERROR = "ok", "warning", "error"
_OPENCV = ("opencv-python", "opencv-contrib-python", "opencv-python-headless", "opencv-contrib-python-headless")
#: Images decoded to compare their size with the annotation's; a full read of a large set takes minutes.
_SAMPLE = 50


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        level: ``ok``, ``warning`` or ``error``.
        check: what was looked at, a word or two.
        text: what was found.
        remedy: what to do about it; empty where nothing is to be done.
    """

    level: str
    check: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"  What to do: {self.remedy}" if self.remedy else ""
        return " ".join(f"{self.level:<8} {self.check:<12} {self.text}{remedy}".split("\n"))


def report(findings: Iterable[Finding]) -> None:
    """Print findings, a line each as they come, and how many of each level there are.

    Raises:
        KitError: one of them is an error.
    """
    seen = []
    for finding in findings:
        print(finding, flush=True)
        seen.append(finding)
    counts = Counter(finding.level for finding in seen)
    print(f"{len(seen)} lines: {counts[OK]} ok, {_count(counts[WARNING], WARNING)}, {_count(counts[ERROR], ERROR)}")
    failed = list(dict.fromkeys(finding.check for finding in seen if finding.level == ERROR))
    if failed:
        raise KitError(f"{_count(counts[ERROR], ERROR)} found: {', '.join(failed)}. What to do stands above.")


def doctor(exp_file: str | None = None, name: str | None = None, opts: Sequence[str] = ()) -> Iterator[Finding]:
    """Look at the environment, at YOLOX and, where one is named, at an experiment and its data.

    Args:
        exp_file: an experiment file.
        name: or one of YOLOX's models.
        opts: overrides of the experiment, ``["max_epoch", "50", ...]``.

    Returns:
        The findings, as they are made. Nothing is raised: a check that cannot go on is a finding.
    """
    for check, look in (
        ("python", _python),
        ("torch", _torch),
        ("torchvision", _torchvision),
        ("pycocotools", _pycocotools),
        ("opencv", _opencv),
        ("device", _device),
    ):
        yield from guarded(check, look)
    host = list(guarded("yolox", _host))
    yield from host
    if any(finding.level == ERROR for finding in host):
        if exp_file or name:
            yield Finding(WARNING, "experiment", "not looked at, because it needs YOLOX", "Mend YOLOX first.")
        return
    yield from guarded("trainer", trainer)
    if exp_file or name:
        yield from guarded("experiment", lambda: _experiment(exp_file, name, opts))
    else:
        yield Finding(
            OK, "experiment", "none named; -f EXP_FILE or -n NAME has its settings, losses, model and data checked"
        )


def guarded(check: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a check; an exception in it is one more of them."""
    try:
        yield from look()
    except (Exception, SystemExit) as error:  # an experiment file may call sys.exit
        yield Finding(ERROR, check, in_words(error))


def in_words(error: BaseException) -> str:
    """An exception as a user reads it: the kit's own messages explain themselves, others go with their kind."""
    text = str(error)
    return text if isinstance(error, KitError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _some(items: Sequence[Any], most: int = 5) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what YOLOX, pycocotools and the kit's own log say on the screen meanwhile."""
    packages = ("yolox", "yolox_loss_patch")
    for package in packages:
        logger.disable(package)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for package in packages:
            logger.enable(package)


# ---------------------------------------------------------------------------------------------------------------------
# The environment. Each package is put to work: a version that fits on paper may still be a broken build.


def _python() -> Iterator[Finding]:
    from ..version import __version__

    yield Finding(
        OK,
        "python",
        f"{platform.python_version()}, {platform.system()} {platform.machine()}; yolox-loss-patch {__version__}",
    )


def _torch() -> Iterator[Finding]:
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
        OK, "torch", f"{torch.__version__}, {_count(torch.get_num_threads(), 'thread')}; numpy {np.__version__}"
    )


def _torchvision() -> Iterator[Finding]:
    """Its operators are compiled for one version of torch, and for the CPU only or for CUDA too; YOLOX needs its NMS."""
    try:
        version = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        yield Finding(
            ERROR, "torchvision", "not installed; YOLOX's NMS is its", f"pip install {_matching_torchvision()}"
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


def _pycocotools() -> Iterator[Finding]:
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


def _opencv() -> Iterator[Finding]:
    installed = [name for name in _OPENCV if _version(name)]
    named = ", ".join(f"{name} {_version(name)}" for name in installed)
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


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _device() -> Iterator[Finding]:
    """CUDA where it works, and why not where it might."""
    has_driver = os.path.exists("/proc/driver/nvidia/version") or shutil.which("nvidia-smi") is not None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available:
        for index in range(torch.cuda.device_count()):
            yield _cuda_device(index)
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


def _cuda_device(index: int) -> Finding:
    facts = torch.cuda.get_device_properties(index)
    what = f"cuda:{index} {facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    try:
        total = float(torch.ones(8, device=f"cuda:{index}").sum())
    except Exception as error:
        return Finding(
            ERROR,
            "device",
            f"{what} does not run with torch {torch.__version__} (CUDA {torch.version.cuda}): {str(error).splitlines()[0]}",
            f"The device is sm_{facts.major}{facts.minor} and this torch is built for {', '.join(torch.cuda.get_arch_list())}; "
            "install a torch that is built for it.",
        )
    assert total == 8
    return Finding(OK, "device", f"{what}; torch's CUDA {torch.version.cuda} runs on it")


# ---------------------------------------------------------------------------------------------------------------------
# YOLOX.


def _host() -> Iterator[Finding]:
    try:
        with quiet():
            host = hosts.describe()
    except Exception as error:
        remedy = "" if isinstance(error, KitError) else f"The kit cannot use this YOLOX. {hosts.INSTALL}"
        yield Finding(ERROR, "yolox", in_words(error), remedy)
        return
    text = f"{host['name']}, version {host['version']}, in {host['path']}; get_losses {host['get_losses'] or 'without source'}"
    try:
        # A head of its own, so that what is true of this host is tried and not told.
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


def trainer() -> Iterator[Finding]:
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


# ---------------------------------------------------------------------------------------------------------------------
# The experiment and its data.


def _experiment(exp_file: str | None, name: str | None, opts: Sequence[str]) -> Iterator[Finding]:
    try:
        exp = load_exp(exp_file, name)
        exp.merge(list(opts))
    except KitError as error:
        yield Finding(ERROR, "experiment", str(error))
        return
    keys = ("num_classes", "input_size", "test_size", "max_epoch", "basic_lr_per_img", "ema", "seed", "data_dir")
    named = ", ".join(f"{key}={getattr(exp, key)!r}" for key in keys if hasattr(exp, key))
    yield Finding(OK, "experiment", f"{exp_file or name} as {exp.exp_name}: {named}")
    yield from guarded("losses", lambda: [Finding(OK, "losses", str(LossConfig.from_exp(exp)))])
    yield from guarded("model", lambda: _model(exp))
    classes: dict[str, list[str]] = {}
    for split, annotation, make in (
        ("train", "train_ann", lambda: exp.get_data_loader(batch_size=1, is_distributed=False, no_aug=True).dataset),
        ("val", "val_ann", lambda: exp.get_evaluator(batch_size=1, is_distributed=False).dataloader.dataset),
    ):
        yield from guarded(split, functools.partial(_data, exp, split, annotation, make, classes))
    if len(classes) == 2 and classes["train"] != classes["val"]:
        yield Finding(
            ERROR,
            "classes",
            f"YOLOX numbers the categories of each file by their ids, and that gives train {classes['train']} but val "
            f"{classes['val']}",
            "Give both annotation files the same categories with the same ids.",
        )


def _model(exp: Any) -> Iterator[Finding]:
    with quiet():
        model = exp.get_model()
    stage_with(model, LossConfig.from_exp(exp))
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    yield Finding(OK, "model", f"{type(model).__name__} with {size:.2f} M parameters, has the losses of the experiment")
    head_classes = getattr(model.head, "num_classes", exp.num_classes)
    if head_classes != exp.num_classes:
        yield Finding(
            ERROR,
            "model",
            f"its head has {head_classes} classes, and the experiment has num_classes = {exp.num_classes}",
            "Build the head with self.num_classes.",
        )
    for key in ("input_size", "test_size"):
        if any(side % 32 for side in getattr(exp, key)):
            yield Finding(
                ERROR,
                "model",
                f"{key} = {getattr(exp, key)!r} is not in multiples of 32, the largest stride",
                f"Set self.{key} to multiples of 32.",
            )


def _data(
    exp: Any, split: str, annotation: str, make: Callable[[], Any], classes: dict[str, list[str]]
) -> Iterator[Finding]:
    layout = (
        f"YOLOX expects DATA_DIR/annotations/{exp.train_ann} and {exp.val_ann}, and the images in DATA_DIR/train2017 and "
        "DATA_DIR/val2017; set self.data_dir, self.train_ann and self.val_ann in the experiment."
    )
    try:
        with quiet():
            dataset = coco_dataset(open_data(make, exp.data_dir, getattr(exp, annotation), annotation))
    except DataError as error:
        yield Finding(ERROR, split, str(error), layout)
        return
    except Exception as error:  # whatever YOLOX stumbles over in a file that is JSON and not quite COCO
        path = Path(exp.data_dir or default_data_dir()) / "annotations" / str(getattr(exp, annotation))
        yield Finding(
            ERROR,
            split,
            f"YOLOX cannot make a data set of {path}: {in_words(error)}",
            "Bring the file into COCO's format, or mend what the experiment does with it.",
        )
        if path.is_file():
            yield from _health(path, split)
        return
    if dataset is None:
        yield Finding(WARNING, split, "is not a COCO data set of YOLOX's, so it was not looked at")
        return
    names = [dataset.coco.cats[number]["name"] for number in dataset.class_ids]
    classes[split] = names
    path = Path(dataset.data_dir) / "annotations" / dataset.json_file
    if len(names) != exp.num_classes:
        too_many = len(names) > exp.num_classes
        yield Finding(
            ERROR if too_many else WARNING,
            split,
            f"{path} has {len(names)} categories ({_some(names, 20)}), and the experiment has num_classes = {exp.num_classes}"
            + ("" if too_many else "; the classes without a category are never learned"),
            f"Set self.num_classes = {len(names)}.",
        )
    yield from _images(dataset, split, max(len(names), exp.num_classes), layout)
    yield from _health(path, split)


def _images(dataset: Any, split: str, num_classes: int, layout: str) -> Iterator[Finding]:
    """The images: there, readable, and of the size that the annotations say."""
    import cv2  # comes with YOLOX

    folder = Path(dataset.data_dir) / dataset.name
    if not folder.is_dir():
        yield Finding(ERROR, split, f"the image folder {str(folder)!r} does not exist", layout)
        return
    try:
        with quiet():
            facts = check_dataset(dataset, num_classes, split, may_be_empty=split != "train")
    except DataError as error:
        yield Finding(
            ERROR,
            split,
            str(error),
            "Put the images there under the names in the annotation file, or take them out of it.",
        )
        return
    yield Finding(
        OK,
        split,
        f"{facts['images']} images in {facts['image_folder']}, {facts['boxes']} boxes of {len(facts['categories'])} categories",
    )
    other = []
    for entry in dataset.annotations[:: max(1, len(dataset.annotations) // _SAMPLE)]:
        picture = cv2.imread(str(folder / entry[3]))
        if picture is not None and picture.shape[:2] != tuple(entry[1]):
            other.append(f"{entry[3]} (is {picture.shape[:2]}, annotated {tuple(entry[1])})")
    if other:
        yield Finding(
            ERROR,
            split,
            f"images are not of the (height, width) in the annotation file, so their boxes are off: {_some(other, 3)}",
            "Correct width and height there, or the images (OpenCV turns them as their EXIF data says).",
        )


# What YOLOX does with what hotcoco's health check finds, and what to do about it.
_HEALTH = {
    "duplicate_image_id": "Give every image an id of its own; YOLOX sees the last one only.",
    "duplicate_ann_id": "Number the annotations anew; YOLOX takes the last one's box for all of one id.",
    "duplicate_category_id": "Give every category an id of its own.",
    "orphan_image_id": "Add the images or take the annotations out; YOLOX ignores them.",
    "orphan_category_id": "Add the categories or take the annotations out.",
    "missing_geometry": "Give every annotation a bbox [x, y, width, height].",
    "zero_dimensions": "Write each image's width and height in pixels; YOLOX scales the boxes by them.",
    "degenerate_bbox": "Correct them or take them out; YOLOX does not train on them.",
    "zero_area": "Write the area (width x height); YOLOX does not train on boxes whose area is 0.",
    "bbox_out_of_bounds": "Correct them if they are wrong; YOLOX cuts them at the image's border in training, not in evaluation.",
    "extreme_aspect_ratio": "Look whether they are drawn right.",
    "near_duplicate": "Take the doubles out; one object is counted twice.",
    "near_duplicate_check_skipped": "Nothing, if crowded images are what you have.",
    "zero_instance_category": "Take the categories out or annotate them; a class without boxes is never learned.",
    "low_instance_category": "Annotate more; the AP of these classes is mostly chance.",
}


def _health(path: Path, split: str) -> Iterator[Finding]:
    """Hotcoco's health check of an annotation file."""
    try:
        import hotcoco
    except ImportError as error:
        yield Finding(WARNING, split, f"no health check of {path}: {error}", "pip install hotcoco")
        return
    try:
        found = hotcoco.COCO(str(path)).healthcheck()
    except ValueError as error:
        yield Finding(
            WARNING,
            split,
            f"{path} is not in COCO format to the letter: {error}",
            "Correct what stands at that place of the file; ids are whole numbers from 0 on.",
        )
        return
    if not found["summary"]["num_images"]:
        yield Finding(ERROR, split, f"{path} lists no image", "Write the file anew.")
    for level, part in ((ERROR, "errors"), (WARNING, "warnings")):
        for entry in found[part]:
            ids = f" Ids: {_some(entry['affected_ids'])}." if entry["affected_ids"] else ""
            yield Finding(level, split, f"{entry['message']}{ids}", _HEALTH.get(entry["code"], ""))
    empty = found["summary"]["images_without_annotations"]
    if empty:
        yield Finding(
            WARNING,
            split,
            f"{empty} of {found['summary']['num_images']} images have no annotation; YOLOX takes them as background",
            "Nothing, if they really show no object; else annotate them or take them out.",
        )
