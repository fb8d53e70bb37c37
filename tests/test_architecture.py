"""Imports only go down; nothing imports the callbacks; no module is a drawer for odds and ends."""

import ast
from pathlib import Path

import pytest

from tests import conftest

ROOT = Path(__file__).parents[1]
# From the bottom up: a module imports from its own room and from rooms of the layers below, never from above.
LAYERS = [
    {"errors"},
    {"types", "distributed", "seeding", "timing", "losses", "optimizers", "runs", "griffon", "cpu_kernels"},
    {"boxes", "drawing"},
    {"data", "families", "matching"},
    {"prompts", "detections", "metrics", "rewards"},
    {"policy", "advantage"},
    {"rollout", "checkpoints"},
    {"strategies"},
    {"modules"},
    {"detector"},
    {"commands"},
    {"cli", "__init__"},
    {"__main__"},
]


def room_of(module: str) -> str:
    """The file or folder of ``vr1`` that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def layer_of(module: str) -> int:
    return next(index for index, rooms in enumerate(LAYERS) if room_of(module) in rooms)


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", modules("vr1"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_go_down(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for imported in imports_of(path):
        assert not imported.startswith("callbacks"), f"{module} imports {imported}"
        if imported.startswith("vr1.") and room_of(imported) != room_of(module):
            assert layer_of(imported) < layer_of(module), f"{module} imports {imported}, which is not below it"


@pytest.mark.parametrize(
    "package", ["vr1/rewards", "vr1/families", "vr1/matching.py", "vr1/advantage.py", "vr1/losses.py"]
)
def test_the_method_itself_needs_no_framework(package):
    paths = [ROOT / package] if package.endswith(".py") else modules(package)
    for path in paths:
        heavy = {name for name in imports_of(path) if name.split(".")[0] in {"lightning", "transformers", "peft"}}
        assert not heavy, f"{path.name} imports {heavy}"


def test_no_drawers_for_odds_and_ends():
    for path in [*modules("vr1"), *modules("callbacks")]:
        assert path.stem not in {"utils", "misc", "common", "helpers"}, path


def test_nothing_asks_whether_the_model_is_the_small_one():
    for path in [*modules("vr1"), *modules("callbacks")]:
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not {name for name in names if "tiny" in name.lower() or "demo" in name.lower()}, path


def test_the_files_that_are_begun_first_exist():
    assert all((ROOT / name).is_file() for name in conftest.SLOWEST)
