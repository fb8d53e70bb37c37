"""All weights of a small Griffon-G on two processes, sharded and not, against one process."""

import pytest
import torch

from tests.griffon.models import small_model
from tests.strategies import runs
from tests.strategies.test_fully_sharded import assert_alike, assert_rows, weights
from vr1.policy import PolicySource

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
STEPS = 2


def on_two(source, out):
    runs.train(runs.module(source), out / "sharded", steps=STEPS, **runs.two())
    # Parts of the vision tower have no gradients: those must not be waited for.
    runs.train(runs.module(source), out / "ddp", steps=STEPS, world=2, strategy="ddp")
    runs.train(runs.module(source), out / "mixed", steps=1, precision="bf16-mixed", **runs.two())


def test_two_processes_train_as_one(tmp_path):
    model, processor = small_model()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    source = PolicySource(path=str(tmp_path / "model"), gradient_checkpointing=True)
    runs.train(runs.module(source), tmp_path / "one", steps=STEPS)
    runs.start_two(source, tmp_path, on_two)
    for kind in ("sharded", "ddp"):
        assert_rows(runs.rows(tmp_path / kind), runs.rows(tmp_path / "one"))
        assert_alike(weights(tmp_path / kind / "end.ckpt"), weights(tmp_path / "one" / "end.ckpt"))
    [row] = runs.rows(tmp_path / "mixed")
    assert all(torch.isfinite(torch.tensor(value)) for value in row.values())
