"""FSDP2 on two processes against one: the same losses, metrics and weights; files that each resumes from the other."""

import pytest
import torch
from safetensors.torch import load_file

from tests.strategies import runs
from vr1.checkpoints.shards import read_shards
from vr1.cli import main
from vr1.policy.loading import PolicySource

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")


@pytest.fixture(scope="module")
def out(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("strategies")
    source = PolicySource(path=str(tiny_model))
    runs.on_one(source, folder)
    runs.start_two(source, folder)
    return folder


def weights(path):
    state = read_shards(path) if path.is_dir() else torch.load(path, weights_only=True)
    return state["state_dict"]


def assert_alike(ours, theirs, atol=1e-5):
    """Weights within ``atol``, none missing."""
    assert ours.keys() == theirs.keys()
    assert ours
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=atol, msg=name)


def assert_rows(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for now, then in zip(ours, theirs, strict=True):
        assert now == pytest.approx(then, rel=1e-5, abs=1e-5)


def test_five_steps_are_those_of_one_process(out, tiny_model):
    rows = runs.rows(out / "one")
    assert all("grpo/supervised_loss" in row for row in rows)
    assert_rows(runs.rows(out / "two"), rows)
    end = weights(out / "two" / "end.ckpt")
    assert_alike(end, weights(out / "one" / "end.ckpt"))
    begin = PolicySource(path=str(tiny_model)).load().state_dict()
    assert max(float((end[f"policy.{name}"] - value).abs().max()) for name, value in begin.items()) > 1e-3


@pytest.mark.parametrize("kind", ["two_far", "ddp_far"])
def test_completions_of_very_different_lengths(out, kind):
    """Steps in which one process samples one token a completion, and the other 30."""
    ours, theirs = runs.rows(out / kind), runs.rows(out / "one_far")
    assert len(ours) == runs.FAR_STEPS
    # One token in one half of the prompts; in the other 30, unless an end token was drawn.
    assert all(row["grpo/completion_tokens"] > 8 for row in theirs)
    assert_rows(ours, theirs)
    assert_alike(weights(out / kind / "end.ckpt"), weights(out / "one_far" / "end.ckpt"))


@pytest.mark.parametrize("kind", ["tokens", "sft"])
def test_a_mean_over_tokens_is_over_those_of_all_processes(out, kind):
    """The processes hold 1 and 30 tokens a completion, or answers of scenes with one and with many objects."""
    assert_rows(runs.rows(out / f"ddp_{kind}"), runs.rows(out / f"one_{kind}"))
    assert_alike(weights(out / f"ddp_{kind}" / "end.ckpt"), weights(out / f"one_{kind}" / "end.ckpt"))


@pytest.mark.parametrize(("ours", "theirs"), [("two", "one"), ("lora_on", "one_lora")], ids=["all weights", "adapters"])
def test_export_of_two_processes_is_that_of_one(out, ours, theirs):
    folders = out / ours / "model", out / theirs / "model"
    assert sorted(path.name for path in folders[0].iterdir()) == sorted(path.name for path in folders[1].iterdir())
    name = "adapter_model.safetensors" if ours == "lora_on" else "model.safetensors"
    found, expected = (load_file(folder / name) for folder in folders)
    assert found.keys() == expected.keys()
    for weight, value in expected.items():
        assert found[weight].dtype == value.dtype == (torch.bfloat16 if ours == "lora_on" else torch.float32)
        torch.testing.assert_close(found[weight], value, rtol=1e-2 if ours == "lora_on" else 0, atol=1e-5)


def test_two_processes_resume_from_the_file_of_one(out):
    assert_alike(weights(out / "two_on" / "end.ckpt"), weights(out / "one" / "end.ckpt"))
    assert_alike(weights(out / "lora_on" / "end.ckpt"), weights(out / "one_lora" / "end.ckpt"))


def test_one_process_resumes_from_the_file_of_two(out, tiny_model, tmp_path):
    source = PolicySource(path=str(tiny_model))
    runs.train(runs.with_answers(source), tmp_path, steps=5, ckpt_path=out / "two.ckpt")
    assert_alike(weights(tmp_path / "end.ckpt"), weights(out / "one" / "end.ckpt"))


def test_shards_on_the_disk(out):
    assert sorted(path.name for path in (out / "three.shards").iterdir()) == [
        ".metadata",
        "__0_0.distcp",
        "__1_0.distcp",
        "rest.ckpt",
    ]
    saved = weights(out / "shards" / "end.ckpt")
    assert all("lora_" in name for name in saved), "only adapters are saved"
    assert_alike(saved, weights(out / "one_lora" / "end.ckpt"))
    assert_alike(weights(out / "shards_on" / "end.ckpt"), saved, atol=1e-6)
    assert not [path for path in out.iterdir() if path.name.startswith(".")], "no temporary files are left"


def test_the_average_of_sharded_weights(out):
    average = weights(out / "one_average" / "end.ckpt")
    for kind in ("average", "average_shards", "average_on"):
        assert_alike(weights(out / kind / "end.ckpt"), average)


def test_shards_are_exported(out, tmp_path):
    folder = tmp_path / "out"
    assert main(["export", "--ckpt", str(out / "shards" / "end.ckpt"), "--out", str(folder)]) == 0
    assert (folder / "adapter_model.safetensors").is_file()


def test_gathering_in_bfloat16_with_validation_between(out):
    mixed, full = runs.rows(out / "mixed"), runs.rows(out / "one")
    assert len(mixed) == 2
    # The same first rollouts but for tokens where rounding to bfloat16 decides.
    assert mixed[0]["grpo/entropy"] == pytest.approx(full[0]["grpo/entropy"], rel=0.05)
    assert {value.dtype for value in weights(out / "mixed" / "end.ckpt").values()} == {torch.float32}


@pytest.mark.parametrize("file", ["rest.ckpt", ".metadata", "__0_0.distcp"])
def test_damaged_shards_are_reported(out, tmp_path, file):
    folder = tmp_path / "cut.shards"
    folder.mkdir()
    for path in (out / "three.shards").iterdir():
        content = path.read_bytes()
        (folder / path.name).write_bytes(content[: len(content) // 2] if path.name == file else content)
    with pytest.raises(ValueError, match=r"cut\.shards"):
        read_shards(folder)


def test_no_code_is_run_from_shards(out, tmp_path):
    folder = tmp_path / "evil.shards"
    folder.mkdir()
    for path in (out / "three.shards").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    # A pickle that would call os.system.
    (folder / ".metadata").write_bytes(b"cos\nsystem\n(S'touch evil'\ntR.")
    with pytest.raises(ValueError, match=r"it names (os|posix)\.system"):
        read_shards(folder)
