"""The commands themselves, run for real on the tiny model."""

import csv
import json
import re

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.command import CONFIGS, RACCOON, Keep, run, small, steps
from tests.processes import Command
from tests.shared_data import needs_shared
from vr1.cli import COMMANDS, TRAINER_COMMANDS
from vr1.data import SceneSource
from vr1.policy import Lora

MY_TERM = """
from vr1.rewards import RewardTerm

class Alternating(RewardTerm):
    '''Pays an untrained model differently for every completion.'''

    def __init__(self, pay: float = 1.0) -> None:
        super().__init__()
        self.pay, self.calls = pay, 0

    def score(self, match, criterion) -> float:
        self.calls += 1
        return self.pay * (self.calls % 2)
"""


@pytest.fixture(scope="module")
def demo(tiny_model, tmp_path_factory):
    """A folder in which the demo was trained for two steps, with a reward term of the user's own."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "my_terms.py").write_text(MY_TERM)
    # 0.8 of two steps is their end; half of them leaves the second stage one.
    config = (CONFIGS / "demo.yaml").read_text()
    assert "at_fraction: 0.8" in config
    (folder / "demo.yaml").write_text(config.replace("at_fraction: 0.8", "at_fraction: 0.5"))
    reward = [
        "--model.reward",
        "vr1.rewards.Reward",
        "--model.reward.terms",
        "{mine: {class_path: my_terms.Alternating}}",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        arguments = [*small(tiny_model, folder / "demo.yaml"), *steps(2), *reward]
        arguments += ["--trainer.callbacks+", "tests.command.Keep"]
        assert run(folder, "fit", *arguments) == 0
    return folder


@pytest.fixture
def version(demo):
    return demo / "runs" / "demo" / "version_0"


def test_fit_draws_galleries_and_curves(version):
    assert sorted(path.name for path in (version / "gallery").iterdir()) == [
        "step_000000.png",
        "step_000001.png",
        "step_000002.png",
    ]
    for picture in [*(version / "gallery").iterdir(), version / "curves.png"]:
        assert min(Image.open(picture).size) > 100


def test_fit_compares_before_and_after(version):
    assert "| val/map |" in (version / "before_after.md").read_text()
    compared = json.loads((version / "before_after.json").read_text())
    assert (compared["before"]["step"], compared["after"]["step"]) == (0, 2)
    [note] = compared["notes"]
    assert "by the criterion of stage overlap, the reward after by that of stage beginner" in note
    assert compared["before"]["metrics"].keys() == compared["after"]["metrics"].keys()


def test_fit_writes_metrics_for_programs(version):
    with (version / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    measured = {name for row in rows for name, value in row.items() if value}
    assert {
        "reward/mine",
        "reward/total",
        "grpo/loss",
        "perf/tokens_per_second",
        "val/map",
        "val/valid_rate",
    } <= measured
    assert yaml.safe_load((version / "config.yaml").read_text())["trainer"]["max_steps"] == 2


def test_fit_writes_for_tensorboard(version):
    events = EventAccumulator(str(version), size_guidance={"images": 0}).Reload()
    assert {"reward/total", "val/map"} <= set(events.Tags()["scalars"])
    assert {"gallery/val", "curves"} <= set(events.Tags()["images"])
    assert [item.step for item in events.Images("gallery/val")] == [0, 1, 2]


@torch.no_grad()
def test_fit_exports_a_model_for_plain_transformers(demo, version, tiny_model):
    model = AutoModelForImageTextToText.from_pretrained(version / "model").eval()
    processor = AutoProcessor.from_pretrained(version / "model")
    record = SceneSource(1, "test")[0]
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Locate every star."}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[record.image], return_tensors="pt")
    trained = Keep.module.policy.network.eval()
    torch.testing.assert_close(model(**inputs).logits, trained(**inputs).logits, rtol=1e-4, atol=1e-5)
    start = AutoModelForImageTextToText.from_pretrained(tiny_model).eval()
    assert (start(**inputs).logits - model(**inputs).logits).abs().max() > 1e-4, "two steps changed nothing"


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_of_the_exported_model(command, demo, version, tmp_path):
    assert run(tmp_path, command, *small(version / "model")) == 0
    folder = tmp_path / "runs" / "demo" / "version_0"
    assert (folder / "gallery" / f"{command}.png").is_file()
    with (folder / "metrics.csv").open() as file:
        row = next(csv.DictReader(file))
    assert row["val/map" if command == "validate" else "test/map"]


def test_predict_writes_drawings_boxes_and_a_sheet(tiny_model, tmp_path):
    photos = tmp_path / "my photos"
    photos.mkdir()
    names = ["a dog.png", "b.jpg"]
    for name, record in zip(names, SceneSource(2, "test"), strict=True):
        record.image.save(photos / name)
    arguments = [*small(tiny_model, "predict.yaml", scenes=False), "--data.images", photos]
    assert run(tmp_path, "predict", *arguments, "--data.categories", "[dog, cat]") == 0
    out = tmp_path / "runs" / "predict"
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == [str(photos / name) for name in names]
    assert all("dog, cat" in row["instruction"] for row in rows)
    for row in rows:
        assert Image.open(out / row["drawing"]).size == (row["width"], row["height"])
    assert (out / "contact_sheet.png").is_file()


@needs_shared
def test_fit_on_photographs(tiny_model, tmp_path):
    arguments = [*small(tiny_model, "raccoon.yaml", scenes=False), *steps(), "--data.root", RACCOON]
    arguments += ["--data.batch_size", 2, "--trainer.limit_val_batches", 1, "--data.eval_batch_size", 4]
    assert run(tmp_path, "fit", *arguments) == 0
    folder = tmp_path / "runs" / "raccoon" / "version_0"
    for name in ("gallery/step_000000.png", "gallery/step_000001.png", "curves.png", "before_after.md", "model"):
        assert (folder / name).exists(), name


def test_print_config_prints_a_configuration_that_can_be_used(tiny_model, tmp_path, capsys):
    assert run(tmp_path, "fit", *small(tiny_model), "--print_config") == 0
    printed = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(printed)
    assert run(tmp_path, "fit", "--config", "again.yaml", "--print_config") == 0
    assert capsys.readouterr().out == printed


@pytest.fixture
def no_loading(monkeypatch):
    """Fails the test where a model or its processor is loaded."""

    def refuse(*_, **__):
        raise AssertionError("loaded before the settings were checked")

    for kind in (AutoModelForImageTextToText, AutoProcessor):
        monkeypatch.setattr(kind, "from_pretrained", refuse)


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--trainer.max_stepz", "3"),
        ("--model.sampling.group_sice", "3"),
        ("--data.style.num_object", "[1, 2]"),
        ("--model.loss.kl_coeff", "0.1"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_mistyped_word_is_refused_before_anything_is_loaded(arguments, tiny_model, tmp_path, capsys):
    assert run(tmp_path, "fit", *small(tiny_model), *arguments) == 2
    message = capsys.readouterr().err
    assert arguments[0].split(".")[-1] in message.splitlines()[0]
    assert len(message.splitlines()) == 2
    assert "vr1 fit --help" in message


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("right", "wrong"), [("max_steps", "max_stepz"), ("group_size: 8", "group_sice: 8"), ("kl_coef", "kl_coeff")]
)
def test_a_mistyped_key_in_yaml_is_refused_before_anything_is_loaded(right, wrong, tmp_path, capsys):
    (tmp_path / "typo.yaml").write_text((CONFIGS / "demo.yaml").read_text().replace(right, wrong))
    assert run(tmp_path, "fit", "--config", "typo.yaml") == 2
    message = capsys.readouterr().err.splitlines()
    assert wrong.split(":")[0] in message[0]
    assert len(message) == 2


def test_any_nested_value_can_be_given_on_the_command_line(tiny_model, tmp_path):
    arguments = ["--model.reward", CONFIGS / "rewards" / "released.yaml"]
    arguments += ["--model.loss", "vr1.losses.DrGRPO", "--model.loss.max_tokens", 64]
    arguments += ["--data.style.num_objects", "[2,3]", "--model.optimizer.lr", 0.5]
    arguments += [
        "--trainer.limit_val_batches",
        0,
        "--trainer.callbacks",
        "tests.command.Keep",
        "--trainer.logger",
        "false",
    ]
    assert run(tmp_path, "fit", *small(tiny_model), *steps(), *arguments) == 0
    module = Keep.module
    assert (type(module.loss).__name__, module.loss.max_tokens) == ("DrGRPO", 64)
    assert (module.reward.matcher.overlap, module.reward.criterion.strict) == ("giou", True)
    assert tuple(Keep.trainer.datamodule.style.num_objects) == (2, 3)
    assert Keep.trainer.optimizers[0].param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("null", [("--model.policy.quantize", "null"), ("--model.policy.quantize=null",)], ids=len)
@pytest.mark.parametrize("lora", [(), ("--model.policy.lora.rank", "2")], ids=["full", "lora"])
def test_null_is_no_text(null, lora, tiny_model, tmp_path):
    """On the command line alone, and against a value that a file or the words before give."""
    (tmp_path / "four_bits.yaml").write_text(
        "model: {init_args: {policy: {quantize: nf4, lora: {rank: 2}, freeze_vision: true}}}"
    )
    before = ["--config", "four_bits.yaml", "--model.policy.quantize", "nf4"] if lora else []
    arguments = [*small(tiny_model), *steps(), *before, *lora, *null]
    quick = ["--trainer.limit_val_batches", 0, "--trainer.callbacks", "tests.command.Keep"]
    assert run(tmp_path, "fit", *arguments, *quick) == 0
    assert Keep.module.source.quantize is None
    assert Keep.module.source.lora == (Lora(rank=2) if lora else None)
    assert not any("Linear4bit" in type(layer).__name__ for layer in Keep.module.policy.modules())
    saved = yaml.safe_load(next((tmp_path / "runs").rglob("config.yaml")).read_text())
    assert saved["model"]["init_args"]["policy"]["quantize"] is None


def test_help_names_every_command(tmp_path, capsys):
    assert run(tmp_path, "--help") == 0
    message = capsys.readouterr().out
    for command in (*TRAINER_COMMANDS, *COMMANDS):
        # A long name has a line of its own.
        assert re.search(rf"\n    {command}\s", message), command


@pytest.mark.parametrize(
    ("arguments", "fault"), [((), "no command"), (("fitt", "--config", "a"), "fitt is no command")]
)
def test_an_unknown_command_is_refused_with_those_that_exist(arguments, fault, tmp_path, capsys):
    assert run(tmp_path, *arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vr1: error: {fault}; give one of fit, validate, ")
    assert "report" in line


@pytest.mark.parametrize("name", ["GRPOModule", "SFTModule"])
def test_modules_and_data_have_short_names(name, tmp_path, capsys):
    assert run(tmp_path, "fit", "--model", name, "--data", "SceneDataModule", "--print_config") == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"].endswith(f".{name}")


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize("value", ["1e-5x", "fast"])
def test_a_number_that_is_none_is_named(value, tmp_path, capsys):
    assert run(tmp_path, "fit", "--config", CONFIGS / "demo.yaml", "--model.optimizer.lr", value) == 2
    first, _ = capsys.readouterr().err.splitlines()
    assert first == f"vr1: error: model.optimizer.lr: expected float, got '{value}'"


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("setting", "given", "meant"),
    [
        ("--trainer.callbacks+", "callbacks.RuleRefinment", "callbacks.RuleRefinement"),
        ("--model.loss", "vr1.losses.GPRO", "vr1.losses.GRPO"),
    ],
)
def test_a_misspelled_class_is_answered_with_those_that_are_like_it(setting, given, meant, tmp_path, capsys):
    assert run(tmp_path, "fit", "--config", CONFIGS / "demo.yaml", setting, given) == 2
    first, _ = capsys.readouterr().err.splitlines()
    assert f"({given}): module" in first
    assert meant in first.partition("; did you mean ")[2].removesuffix("?").split(" or ")


@pytest.mark.parametrize(
    ("setting", "value"), [("devices", "foo"), ("devices", "-7"), ("strategy", "foo"), ("accelerator", "foo")]
)
def test_trainer_settings_that_lightning_refuses_are_named(setting, value, tiny_model, tmp_path, capsys):
    assert run(tmp_path, "fit", *small(tiny_model), f"--trainer.{setting}", value) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("vr1: error: ")
    assert f"trainer.{setting}={value}" in line


def test_a_callback_that_two_configurations_add_is_named(tiny_model, tmp_path, capsys):
    guarded = ["--config", CONFIGS / "guarded.yaml"]
    assert run(tmp_path, "fit", *small(tiny_model), *guarded, *guarded) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("vr1: error: ")
    assert "trainer.callbacks has callbacks.NonFiniteGuard and " in line
    assert line.endswith("leave one out")


def test_a_module_of_the_user_named_callbacks(tmp_path, capsys):
    """It hides nothing of vr1; and where its own classes are meant, the error says which file was not read."""
    (tmp_path / "callbacks.py").write_text("raise SystemExit('the file of the user was imported')\n")
    arguments = ["fit", "--config", str(CONFIGS / "demo.yaml"), "--print_config"]
    with Command(arguments, tmp_path, tmp_path) as command:
        assert command.wait(300) == 0, command.errors
        assert "class_path: callbacks.RuleRefinement" in command.out
    assert run(tmp_path, *arguments, "--trainer.callbacks+", "callbacks.Mine") == 2
    line = capsys.readouterr().err.splitlines()[0]
    assert "module 'callbacks' has no attribute 'Mine'" in line
    assert f"{tmp_path / 'callbacks.py'} is not read: rename it" in line
