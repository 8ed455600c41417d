"""The house: ten rooms, and the arrows between them. Every import counts, also inside a function or as a string."""

import ast
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from conftest import ROOT

NAME = "yolox_loss_patch"
PACKAGE = ROOT / NAME
# Room -> the rooms that it may import.
ARROWS = {
    "losses": set(),
    "data": set(),
    "specs": {"losses", "data"},
    "head": {"specs", "losses"},
    "exp": {"head", "specs", "data"},
    "runs": {"specs"},
    "train": {"exp", "head", "data", "runs"},
    "compare": {"runs", "specs"},
    "sweep": {"runs", "compare", "exp"},
    "doctor": {"losses", "data", "specs", "head", "exp", "runs", "train", "compare", "sweep"},
}
# Modules outside the rooms -> who may import them: rooms, or other modules outside the rooms.
EVERY_ROOM_BUT_LOSSES = set(ARROWS) - {"losses"}
OUTSIDE = {
    "errors": {*EVERY_ROOM_BUT_LOSSES, "cli", "__init__"},
    "version": {"compare", "doctor", "runs", "__init__", "cli"},
    "printing": {*EVERY_ROOM_BUT_LOSSES, "cli"},
    "wiring": {"exp", "__init__"},
    "cli": {"__main__"},
    "__init__": set(),
    "__main__": set(),
}
HOST_ROOMS = {"head", "exp", "train", "data"}  # the rooms that may import YOLOX
# Imports whose name is not known before they are made: the host's modules, and modules of the user.
BY_NAME = {"__init__": 1, "head.hosts": 2, "exp.loading": 3}


def modules(package):
    """Dotted name within the package -> file."""
    return {".".join(path.relative_to(package).with_suffix("").parts): path for path in sorted(package.rglob("*.py"))}


def written(node):
    """The text of a string argument; holes of an f-string that are known names are filled in, None where they are not."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
        return parts[0] if parts and parts[0] and "." in parts[0] else None  # enough to know the room
    return None


def imports(module, tree):
    """Every imported name of a module as an absolute dotted name; None for one that only running the code would tell."""
    package = [NAME, *module.split(".")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield written(node.args[0])


def owner(dotted, known):
    """The module of the package behind ``yolox_loss_patch.x.y.name``."""
    words = dotted.split(".")[1:]
    while words:
        for candidate in (".".join(words), ".".join([*words, "__init__"])):
            if candidate in known:
                return candidate
        words = words[:-1]
    return "__init__"


def place(module):
    """The room of a module, or the module itself where it stands outside the rooms."""
    return module.split(".")[0]


def faults(imported):
    """What is against the house's rules, in words; ``imported`` has for each module the names that it imports."""
    found, graph = [], {}
    for module, names in imported.items():
        unknown = names.count(None)
        if unknown > BY_NAME.get(module, 0):
            found.append(f"{module}: {unknown} imports of a name that is not written there")
        graph[module] = set()
        for name in filter(None, names):
            top = name.split(".")[0]
            if top == "yolox" and place(module) not in HOST_ROOMS:
                found.append(f"{module} imports YOLOX ({name})")
            if place(module) == "losses" and top not in {NAME, "torch", *sys.stdlib_module_names}:
                found.append(f"{module} imports {name}: losses import torch only")
            if top == NAME:
                graph[module].add(owner(name, imported))
        graph[module].discard(module)
        for target in sorted(graph[module]):
            here, there = place(module), place(target)
            if here == there or (here in ("cli", "__init__") and there in ARROWS):
                continue
            allowed = here in OUTSIDE[there] if there in OUTSIDE else there in ARROWS.get(here, ())
            if not allowed:
                found.append(f"{module} imports {target}: no arrow leads from {here} to {there}")
    # The root's names are loaded when they are asked for; below it the order must be clean.
    try:
        tuple(TopologicalSorter({key: value - {"__init__"} for key, value in graph.items()}).static_order())
    except CycleError as error:
        found.append(f"imports in a circle: {' -> '.join(error.args[1])}")
    return found


@pytest.fixture(scope="module")
def parsed():
    return {module: ast.parse(path.read_text()) for module, path in modules(PACKAGE).items()}


@pytest.fixture(scope="module")
def imported(parsed):
    return {module: list(imports(module, tree)) for module, tree in parsed.items()}


def test_every_import_follows_an_arrow(imported):
    assert faults(imported) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("losses/iou.py", "from ..specs import knobs"),
        ("losses/iou.py", "import numpy"),
        ("losses/iou.py", "from ..errors import ConfigError"),
        ("data/loader.py", "def late():\n    from ..specs.knobs import Knob"),
        ("specs/config.py", "def late():\n    import yolox_loss_patch.head.hosts"),
        ("head/hosts.py", "import importlib\nimportlib.import_module('yolox_loss_patch.exp.mixin')"),
        ("exp/mixin.py", "def late():\n    from ..train.trainer import Trainer"),
        ("exp/mixin.py", "late = __import__('yolox_loss_patch.train.trainer')"),
        ("exp/mixin.py", "import importlib\nlate = importlib.import_module(f'yolox_loss_patch.train.{LossExp}')"),
        (
            "exp/mixin.py",
            "import importlib\nname = 'yolox_loss_patch.train.trainer'\nlate = importlib.import_module(name)",
        ),
        ("exp/mixin.py", "from .. import LossConfig"),
        ("runs/record.py", "from ..head import hosts"),
        ("runs/record.py", "import yolox"),
        ("compare/tables.py", "from ..train import trainer"),
        ("sweep/schedule.py", "class Late:\n    def late(self):\n        from ..train.trainer import Trainer"),
        ("errors.py", "from .losses import iou"),
        ("train/trainer.py", "from ..cli import main"),
        ("losses/boxes.py", "from . import iou"),
    ],
)
def test_an_import_against_the_arrows_is_found(imported, file, line):
    module = file.removesuffix(".py").replace("/", ".")
    assert faults({**imported, module: [*imported[module], *imports(module, ast.parse(line))]}), line


@pytest.mark.parametrize("room", ARROWS)
def test_each_room_says_in_three_lines_what_it_is_for(room):
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
    assert len(text.splitlines()) == 3, text


@pytest.mark.parametrize("room", [*ARROWS, "head/assign"])
def test_a_room_fits_on_one_screen(room):
    assert len(list((PACKAGE / room).glob("*.py"))) <= 13


def test_nothing_stands_outside_the_rooms_but_what_is_named_here():
    outside = {name for name in modules(PACKAGE) if "." not in name}
    assert outside == set(OUTSIDE)
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} == set(ARROWS)


def test_every_public_name_is_documented(parsed):
    for module, tree in parsed.items():
        for node in (*tree.body, *(item for cls in tree.body if _is_public_class(cls) for item in cls.body)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{module}: {node.name}"


def _is_public_class(node):
    return isinstance(node, ast.ClassDef) and not node.name.startswith("_")


def test_a_wheel_has_the_files_that_are_not_python(monkeypatch):
    from setuptools import Distribution

    monkeypatch.chdir(ROOT)
    distribution = Distribution()
    distribution.parse_config_files(["pyproject.toml"])
    packed = {
        path
        for package, patterns in distribution.package_data.items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files and files == packed


TESTS = ROOT / "tests"
BY_TEXT = ("setattr", "getattr", "hasattr", "delattr")


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_names(text):
    """The names with an underscore that a test takes from elsewhere, unless a comment in its line or the one before says why."""
    lines = ["", *text.splitlines()]
    found = []
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            names = [node.attr]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in BY_TEXT:
            texts = [word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
            names = [word.split(".")[-1] for word in texts]
        explained = any("# " in line for line in lines[max(node.lineno - 1, 0) : node.lineno + 1]) if names else True
        found += [] if explained else filter(is_private, names)
    return found


def test_a_test_uses_public_names_or_says_why():
    found = {str(path.relative_to(TESTS)): len(private_names(path.read_text())) for path in TESTS.rglob("*.py")}
    private = {path: count for path, count in found.items() if count}
    assert not private, (
        f"names with an underscore of another module; use public ones, or say why in a comment: {private}"
    )


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from yolox_loss_patch.doctor.plot import _simulate", ["_simulate"]),
        ("trainer._resume(path)", ["_resume"]),
        ("monkeypatch.setattr(doctor, '_version', None)", ["_version"]),
        ("monkeypatch.setattr('yolox_loss_patch.doctor.checks._version', None)", ["_version"]),
        ("trainer._resume(path)  # no public way leads here", []),
        ("# no public way leads here\ntrainer._resume(path)", []),
        ("self._seen = trainer.__class__", []),
    ],
)
def test_a_private_name_is_found(line, found):
    assert private_names(line) == found


def test_test_files_have_different_names():
    """Pytest imports them by their bare names, and two of one name only fail where both are collected."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert len(names) == len(set(names))
