"""A user's mistakes: one line that names the setting, the value and the fix, before any training."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.command import Keep, run, small, steps
from vr1.data import SceneSource
from vr1.data.annotated import AnnotatedSource
from vr1.modules.grpo import GRPOModule


@pytest.fixture
def error_of(tiny_model, tmp_path, capsys, monkeypatch):
    """Runs ``fit`` with some arguments and returns the message of a mistake, without having trained."""

    def train(*_):
        raise AssertionError("training began")

    monkeypatch.setattr(GRPOModule, "training_step", train)

    def fit(*arguments, command="fit", scenes=True):
        base = [*small(tiny_model, scenes=scenes), *steps()]
        assert run(tmp_path, command, *base, *arguments) == 2
        return the_error(capsys)

    return fit


def the_error(capsys):
    said = capsys.readouterr().err
    assert "Traceback" not in said
    [found] = said.split("vr1: error: ")[1:]
    return found.strip()


def coco(folder, count=6, size=(96, 80), spoil=(), **changes):
    """A data set of made scenes in COCO's format, of which some images are cut short."""
    images = folder / "images"
    images.mkdir(parents=True)
    document = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    for index, record in enumerate(SceneSource(count, "train")):
        path = images / f"{index}.png"
        record.image.resize(size).save(path)
        if index in spoil:
            path.write_bytes(path.read_bytes()[:2000])
        document["images"].append({"id": index, "file_name": path.name, "width": size[0], "height": size[1]})
        box = {"id": index, "image_id": index, "category_id": 1, "bbox": [5, 5, 30, 20]}
        document["annotations"].append(box)
    for split in ("train", "valid"):
        (folder / f"instances_{split}.json").write_text(json.dumps(document | changes))
    return folder


def on_coco(root, *arguments):
    """Words for training on the data set in ``root``."""
    return ("--data", "CocoDataModule", "--data.root", root, "--data.batch_size", 2, *arguments)


class TestModel:
    def test_path_is_missing(self, error_of):
        assert error_of("--model.policy.path", "no/such/model") == (
            "policy.path=no/such/model: no config.json there; give a folder written by save_pretrained, or the name of"
            " a model on the hub"
        )

    def test_folder_is_empty(self, error_of, tmp_path):
        (tmp_path / "empty").mkdir()
        assert "empty: no config.json there" in error_of("--model.policy.path", tmp_path / "empty")

    def test_model_reads_text_only(self, error_of, tmp_path):
        (tmp_path / "text").mkdir()
        (tmp_path / "text" / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 8}))
        message = error_of("--model.policy.path", tmp_path / "text")
        assert "a qwen2 model takes no images; give a vision-language model" in message

    def test_config_is_broken(self, error_of, tmp_path):
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "config.json").write_text("{")
        assert "broken: no model was found there" in error_of("--model.policy.path", tmp_path / "broken")

    def test_weights_are_pickled(self, error_of, tiny_model, tmp_path):
        folder = shutil.copytree(tiny_model, tmp_path / "pickled")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        message = error_of("--model.policy.path", folder)
        assert "found pytorch_model.bin, but only safetensors" in message

    def test_processor_is_missing(self, error_of, tiny_model, tmp_path):
        folder = shutil.copytree(tiny_model, tmp_path / "bare")
        for path in folder.iterdir():
            if path.name not in {"config.json", "model.safetensors"}:
                path.unlink()
        assert "its tokenizer or image processor cannot be read" in error_of("--model.policy.path", folder)

    def test_resolution_is_no_range(self, error_of):
        message = error_of("--model.policy.min_pixels", 9000, "--model.policy.max_pixels", 4000)
        assert message == "policy: min_pixels=9000 is more than max_pixels=4000; lower it"

    def test_quantized_weights_without_adapters(self, error_of):
        assert "quantize='nf4' requires adapters" in error_of("--model.policy.quantize", "nf4")

    def test_adapters_for_layers_that_do_not_exist(self, error_of):
        assert "policy.lora.targets=['qq_proj']" in error_of("--model.policy.lora.targets", "[qq_proj]")


class TestSettings:
    def test_group_of_one(self, error_of):
        assert error_of("--model.sampling.group_size", 1).startswith("sampling.group_size=1: GRPO compares")

    def test_greedy_rollouts(self, error_of):
        assert error_of("--model.sampling.temperature", 0).startswith("sampling.temperature=0 makes all completions")

    @pytest.mark.parametrize("data", ["scenes", "photographs"])
    def test_prompt_that_is_too_long(self, error_of, tmp_path, data):
        arguments = on_coco(coco(tmp_path / "data")) if data == "photographs" else ()
        message = error_of("--model.max_prompt_tokens", 8, *arguments, scenes=not arguments)
        assert "and max_prompt_tokens is 8. Prompts are never truncated, since that would remove image" in message

    def test_one_large_image_among_small_ones(self, error_of, tmp_path, encoder):
        root = coco(tmp_path / "data", size=(56, 56))
        source = AnnotatedSource(root / "instances_train.json", root / "images")
        enough_for_the_others = encoder([source[0]]).tokens.shape[1]
        for split in ("train", "valid"):
            path = root / f"instances_{split}.json"
            document = json.loads(path.read_text())
            document["images"][4] |= {"width": 200, "height": 112}
            path.write_text(json.dumps(document))
        Image.new("RGB", (200, 112)).save(root / "images" / "4.png")
        message = error_of(
            *on_coco(root, "--data.shuffle", "false"), "--model.max_prompt_tokens", enough_for_the_others, scenes=False
        )
        assert "4.png: the prompt has" in message

    def test_checkpoint_is_missing(self, error_of):
        message = error_of("--ckpt_path", "runs/last.ckpt")
        assert message == "ckpt_path=runs/last.ckpt: no such checkpoint; runs/demo has none"


class TestOutput:
    def test_folder_is_below_a_file(self, error_of, tmp_path):
        (tmp_path / "notes").write_text("a file")
        for arguments in (
            ("--trainer.logger.init_args.save_dir", "notes/run"),
            ("--trainer.logger", "false", "--trainer.default_root_dir", "notes"),
        ):
            message = error_of(*arguments)
            assert f"results cannot be written there, since {tmp_path / 'notes'} is no folder" in message

    def test_predictions_below_a_file(self, tiny_model, tmp_path, capsys):
        (tmp_path / "photos").mkdir()
        Image.new("RGB", (60, 60)).save(tmp_path / "photos" / "a.png")
        (tmp_path / "notes").write_text("a file")
        arguments = [*small(tiny_model, "predict.yaml", scenes=False), "--data.images", "photos"]
        arguments += [
            "--trainer.callbacks",
            "callbacks.PredictionWriter",
            "--trainer.callbacks.output_dir",
            "notes/out",
        ]
        assert run(tmp_path, "predict", *arguments) == 2
        assert "output_dir is 'notes/out', which cannot be written to" in the_error(capsys)


class TestData:
    def test_folder_is_missing(self, error_of):
        assert error_of(*on_coco("nowhere"), scenes=False) == "nowhere: no such folder of a data set; check the path"

    def test_no_images(self, error_of, tmp_path):
        root = coco(tmp_path / "data", images=[], annotations=[])
        assert "no record is left to read" in error_of(*on_coco(root), scenes=False)

    def test_no_scenes(self, error_of):
        assert error_of("--data.train_scenes", 0) == "scenes: length=0 is too few; give at least 1"

    def test_broken_json(self, error_of, tmp_path):
        root = coco(tmp_path / "data")
        (root / "instances_train.json").write_text('{"images": [')
        assert "instances_train.json" in error_of(*on_coco(root), scenes=False)

    def test_fewer_records_than_a_batch(self, error_of, monkeypatch):
        monkeypatch.setattr(GRPOModule, "validation_step", lambda *_: pytest.fail("validated first"))
        assert "1 training records do not fill one batch of batch_size=2" in error_of("--data.train_scenes", 1)

    def test_nothing_to_ask_for(self, error_of, tmp_path):
        assert "categories" in error_of(*on_coco(coco(tmp_path / "data"), "--data.categories", "[]"), scenes=False)

    def test_nothing_to_look_for_in_a_folder(self, tiny_model, tmp_path, capsys):
        arguments = [*small(tiny_model, "predict.yaml", scenes=False), "--data.categories", "[]"]
        assert run(tmp_path, "predict", *arguments) == 2
        assert the_error(capsys) == "data.categories is empty: name what to find, such as [raccoon]"

    def test_training_on_a_plain_folder(self, error_of):
        settings = ["--data.images", "x", "--data.categories", "[a]"]
        message = error_of("--data", "ImageFolderDataModule", *settings, scenes=False)
        assert message.startswith("data=x: a folder of images has no boxes, so it has no train split and can only be")

    @pytest.mark.parametrize("workers", [0, 1])
    def test_image_that_shows_to_be_damaged_in_training(self, workers, tiny_model, tmp_path, capsys):
        root = coco(tmp_path / "data", spoil=[3])
        arguments = [*small(tiny_model, scenes=False), *steps(3), *on_coco(root, "--data.shuffle", "false")]
        arguments += ["--data.num_workers", workers, "--trainer.limit_val_batches", 0, "--trainer.logger", "false"]
        assert run(tmp_path, "fit", *arguments) == 2
        message = the_error(capsys)
        assert message.startswith(f"{root}/images/3.png: the image is damaged or cut short")
        assert len(message.splitlines()) == 1

    def test_damaged_images_can_be_skipped(self, tiny_model, tmp_path, caplog):
        root = coco(tmp_path / "data", spoil=[3])
        arguments = [*small(tiny_model, scenes=False), *steps(3), *on_coco(root, "--data.shuffle", "false")]
        arguments += ["--data.bad_records", "skip", "--trainer.limit_val_batches", 0, "--trainer.logger", "false"]
        assert run(tmp_path, "fit", *arguments, "--trainer.callbacks", "tests.command.Keep") == 0
        assert Keep.trainer.global_step == 3
        assert "3.png: the image is damaged or cut short" in caplog.text
        assert np.isfinite(float(Keep.trainer.callback_metrics["grpo/loss"]))
