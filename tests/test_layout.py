"""The architecture: who may import what, and no arrow back."""

import ast

import pytest
from conftest import ROOT

PACKAGE = ROOT / "yolox_loss_patch"
HOST = {"hosts", "stage", "assign", "exp", "train"}
# exp file -> config -> registry -> losses -> stage -> trainer -> record -> compare: each may import what stands before it
ORDER = ["errors", "losses", "knobs", "catalogue", "registry", "testing", "assign", "hosts", "config", "stage", "fork", "patch",
         "exp", "record", "checkpoint", "plainrun", "workers", "half", "data", "evaluator", "train", "evaluate", "doctor",
         "verify", "calibrate", "runs", "statistics", "detections", "results", "tables", "figures", "report", "compare", "jobs",
         "sweep", "plot", "cli", "__main__", "__init__"]  # fmt: skip


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """(level, name) of every import in a file, and strings handed to import_module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module is None:
                yield from ((node.level, alias.name) for alias in node.names)
            else:
                yield node.level, node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            text = ast.unparse(node.args[0]).lstrip("f").strip("'\"")
            yield 0, text


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_only_these_import_yolox(path):
    if path.stem in HOST or path.stem == "cli":  # cli asks YOLOX's tools for their arguments
        return
    assert not [name for level, name in imports(path) if level == 0 and name.split(".")[0] == "yolox"]


def test_the_losses_import_torch_only():
    import sys

    for path in (PACKAGE / "losses").glob("*.py"):
        for level, name in imports(path):
            assert level == 1 or name.split(".")[0] in {"torch", *sys.stdlib_module_names}, (path.name, name)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_no_arrow_points_back(path):
    assert path.stem in ORDER, f"{path.name} has no place in the order"
    later = ORDER[ORDER.index(path.stem) + 1 :]
    tree = ast.parse(path.read_text())
    top = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level == 1]
    for node in top:
        names = [node.module] if node.module else [alias.name for alias in node.names]
        for name in names:
            assert name.split(".")[0] not in later, f"{path.stem} imports {name}"


def test_every_public_name_is_documented():
    for path in modules():
        body = ast.parse(path.read_text()).body
        for node in (*body, *(item for cls in body if _is_public_class(cls) for item in cls.body)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def _is_public_class(node):
    return isinstance(node, ast.ClassDef) and not node.name.startswith("_")
