"""The plan of its configurations: on a small instance counted independently, and for the sizes of 9B."""

import pytest

from tests.command import CONFIGS
from tests.griffon.models import SMALL
from tests.griffon.test_model import NINE_B
from vr1.cli import main
from vr1.commands.plan.needs import needs_of
from vr1.commands.plan.predict import predict
from vr1.griffon import GriffonGConfig
from vr1.policy import PolicySource
from vr1.policy.tiny_griffon import write_model

ONE = ["--config", str(CONFIGS / "griffon_g.yaml")]
EIGHT = [*ONE, "--config", str(CONFIGS / "griffon_g_8xa100.yaml")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    write_model(folder, SMALL)
    return folder


def test_a_small_instance(folder):
    network = PolicySource(path=str(folder)).load().network
    count = sum(parameter.numel() for parameter in network.parameters())
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    prediction = predict(needs_of([*EIGHT, "--model.policy.path", str(folder)]))
    assert prediction.parameters == {"all": count, "trained": trained}
    assert trained < count, "the last layer of the tower"
    parts = prediction.moments["policy"]
    # Of each of eight processes, in float32, with the embedding's factor and the angles.
    assert parts["weights"] == pytest.approx(4 * count / 8, rel=1e-2)
    assert (parts["gradients"], parts["optimizer"]) == (4 * trained / 8, 8 * trained / 8)
    tokens = prediction.row_tokens - 4 * 512
    assert 16 < tokens <= 2048


def test_the_prompts_of_both_configurations_are_the_papers_sixteen():
    for arguments, processes, batches in ((ONE, 1, 4), (EIGHT, 8, 1)):
        needs = needs_of(arguments)
        assert needs.prompts * processes * batches == 16
        assert (needs.group_size, needs.completion_tokens) == (4, 512)


def test_adapters_on_9b_fit_one_gpu_of_80_gb(folder, tmp_path, capsys):
    """The plan needs the config and the processor alone."""
    GriffonGConfig(**NINE_B).save_pretrained(tmp_path)
    processor = PolicySource(path=str(folder)).processor()
    processor.image_tokens = GriffonGConfig(**NINE_B).image_tokens
    processor.image_processor.size = {"height": 1022, "width": 1022}
    processor.save_pretrained(tmp_path)
    assert main(["plan", *ONE, "--model.policy.path", str(tmp_path), "--gpu", "a100-80gb"]) == 0
    printed = capsys.readouterr().out
    assert "9,649,980,928 parameters, 54,018,048 trained" in printed
    assert "all 64 completions of a step are sampled at a time" in printed
    assert "fits: 44" in printed
