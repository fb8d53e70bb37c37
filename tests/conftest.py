"""A small untrained model, written once per test session and loaded as any other model."""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

# Nothing that imports torch: pytest-xdist's first process reads this file before it starts the workers.

ROOT = Path(__file__).parents[1]

# bitsandbytes has torch compile its functions for CPUs, which takes seconds in every process that imports it and more
# where one is called. Nothing in vr1 is compiled.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

if "PYTEST_XDIST_WORKER" in os.environ:
    # What is imported and collected stays to the end of the run.
    gc.disable()
    # Workers of pytest-xdist share the cores; threads of theirs would wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)

# The slowest files, begun first, so that no worker is left with one of them when the others have nothing more to do.
SLOWEST = (
    "tests/benchmarks/test_gpu.py",
    "tests/strategies/test_fully_sharded.py",
    "tests/commands/test_plan.py",
    "tests/commands/sweep/test_command.py",
    "tests/modules/test_accumulation.py",
    "tests/griffon/test_plan.py",
    "tests/test_tutorials.py",
    "tests/commands/test_check.py",
    "tests/commands/test_trainer.py",
    "tests/checkpoints/test_resume.py",
    "tests/checkpoints/test_export.py",
    "tests/families/test_json_answer.py",
    "tests/test_public_names.py",
)


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist would begin with the files of most tests, which are not the slowest.
    if "loadscopereorder" in vars(config.option):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        # One process runs what it was told in the order in which it was told.
        return
    places = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


def pytest_collection_finish() -> None:
    # The garbage collector need not look again at modules and tests that stay to the end.
    gc.freeze()
    gc.enable()


# The same examples in every run, so that a change is judged by what it changes. `pytest --hypothesis-profile default`
# draws others.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands set for their process must not last until the next test.

    Lightning would start every later run of several processes at the first one's port, perhaps taken by then.
    """
    monkeypatch.delenv("MASTER_PORT", raising=False)
    # Every command with a trainer sets it for its process.
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vr1.policy.tiny import Sizes, write_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    sizes = Sizes(
        hidden=64,
        layers=2,
        heads=4,
        kv_heads=2,
        intermediate=96,
        vision_hidden=64,
        vision_layers=2,
        vision_heads=4,
        vision_intermediate=96,
    )
    write_model(folder, sizes)
    return folder


@pytest.fixture
def source(tiny_model: Path):
    from vr1.policy import PolicySource

    return PolicySource(path=str(tiny_model))


@pytest.fixture
def encoder(source):
    from vr1.families import Qwen25VL
    from vr1.prompts import PromptEncoder

    return PromptEncoder(source.processor(), Qwen25VL(), max_prompt_tokens=256)


@pytest.fixture
def records():
    """Three scenes of three image sizes, whose prompts have different lengths."""
    from vr1.data.synthetic import SceneSource, SceneStyle

    scenes = SceneSource(40, "val", style=SceneStyle(num_objects=(2, 5), absent=0.0))
    by_size = {}
    for record in scenes:
        by_size.setdefault(record.image_size, record)
        if len(by_size) == 3:
            return list(by_size.values())
    raise AssertionError("the scenes have fewer than three sizes")


@pytest.fixture
def prompts(encoder, records):
    return encoder(records)


@pytest.fixture
def ragged_completions():
    """Tokens ``[3, 4, 9]`` and a mask of unequal lengths, one completion of a single token among them."""
    import torch

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(20, 400, (3, 4, 9), generator=generator)
    lengths = torch.tensor([[9, 1, 4, 7], [2, 2, 9, 3], [5, 8, 6, 1]])
    return tokens, torch.arange(9) < lengths[..., None]
