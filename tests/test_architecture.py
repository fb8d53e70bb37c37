"""Imports only go down; nothing imports the callbacks; no module is a drawer for odds and ends."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the bottom up. A module may import modules of its own layer and of those below.
LAYERS = [
    {
        "records",
        "seeds",
        "runs",
        "ranks",
        "random_states",
        "checkpoint_file",
        "child_process",
        "meter",
        "memory_advice",
        "markdown",
    },
    {"boxes", "drawing", "recorded_answers"},
    {"families"},
    {"matching", "detections", "input_sizes", "box_scores"},
    {"rewards", "metrics", "data.sources", "advantage", "losses", "tally", "answer_lines"},
    {"prompts", "experience", "divide"},
    {"policy"},
    {"checkpoint", "export", "model_card", "model_words", "strategies"},
    {"rollout"},
    {"detector"},
    {"module", "sft"},
    {"data.modules"},
    {"mistakes", "report", "sweeps", "wandb_resume"},
    {
        "score",
        "score_command",
        "export_command",
        "check",
        "doctor",
        "trainer_commands",
        "plan",
        "cli",
        "__main__",
        "__init__",
    },
]


def layer_of(module: str) -> int:
    """The layer of ``vr1.<module>``."""
    name = module.split(".")[1] if "." in module else "__init__"
    if name == "data":
        part = module.split(".")[2] if module.count(".") > 1 else "modules"
        name = "data.modules" if part in {"datamodule", "modules"} or part.endswith("_data") else "data.sources"
    return next(index for index, names in enumerate(LAYERS) if name in names)


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
        if imported == "vr1" or imported.startswith("vr1."):
            assert layer_of(imported) <= layer_of(module), f"{module} imports {imported}, which lies above it"


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
