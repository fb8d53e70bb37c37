"""The commands of the pages, run one after the other as a reader would, on a tiny model and for a step or two."""

import pytest
from PIL import Image

from tests.command import ROOT, run, small, steps
from tests.docs.pages import commands

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
    """A working folder with the configurations and two photographs."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (112, 84), "white").save(tmp_path / "photos" / f"{name}.png")
    return tmp_path


def commands_of(page):
    """The arguments of vr1's commands on a page, in order."""
    return [
        command.words[3:]
        for command in commands([ROOT / "docs" / page])
        if command.words[:3] == ["python", "-m", "vr1"]
    ]


def shortened(arguments, model, count):
    """The arguments of a training, as a matter of seconds."""
    config = arguments[arguments.index("--config") + 1].removeprefix("configs/")
    trained_from_rewards = "sft" not in config
    length = steps(count) if trained_from_rewards else steps(count)[:4]
    return ["fit", *small(model, config), *arguments[3:], *length]


def test_the_quickstart_in_order(folder, tiny_model):
    page = commands_of("learn/quickstart.md")
    assert [arguments[0] for arguments in page] == ["doctor", "fit", "report", "compare", "predict"]
    _, fit, report, compare, predict = page
    assert run(folder, *shortened(fit, tiny_model, 1)) == 0
    [sft, *_] = commands_of("learn/sft_to_vr1.md")
    assert run(folder, *shortened(sft, tiny_model, 1)) == 0, "the run that the page compares with"
    demo = folder / "runs/demo/version_0"
    for name in ("report.html", "curves.png", "metrics.csv", "before_after.md", "config.yaml", "checkpoints/last.ckpt"):
        assert (demo / name).is_file(), f"the page promises {name}"
    assert (demo / "model/config.json").is_file()
    assert list((demo / "gallery").glob("step_*.png"))

    (demo / "report.html").unlink()
    assert run(folder, *report) == 0
    assert (demo / "report.html").is_file()
    assert run(folder, *compare) == 0
    assert (folder / "runs/compare/compare.png").is_file()
    assert run(folder, *predict, "--model.evaluation.max_new_tokens", 6, "--data.num_workers", 0) == 0
    assert list((folder / "runs/predict").rglob("contact_sheet.png"))

    [resume, *_] = commands_of("how_to/resume.md")
    assert resume[-2:] == ["--ckpt_path", "last"]
    assert run(folder, *shortened(resume, tiny_model, 2)) == 0
    assert (folder / "runs/demo/version_1/checkpoints/last.ckpt").is_file()
    [export, *_] = commands_of("how_to/export_and_serve.md")
    assert run(folder, *export) == 0
    assert (folder / "runs/my_model/model.safetensors").is_file()


def test_sft_and_then_vr1_as_the_page_has_it(folder, tiny_model):
    page = [arguments for arguments in commands_of("learn/sft_to_vr1.md") if "runs/sft_first" in " ".join(arguments)]
    first, second = page
    assert run(folder, *shortened(first, tiny_model, 1)) == 0
    model = second[second.index("--model.policy.path") + 1]
    assert (folder / model / "config.json").is_file(), "the second command starts from what the first has written"
    assert run(folder, *shortened(second, model, 1)) == 0
