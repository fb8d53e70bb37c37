"""The score of a box whose numbers are not in the text: the whole answer's, whatever answers are beside it."""

import pytest

from tests.trainers import trainer
from vr1.data import SceneDataModule, SceneStyle
from vr1.families import Qwen25VL
from vr1.modules.grpo import GRPOModule
from vr1.rollout import Sampling
from vr1.types import Answer, as_boxes


class ReadsOtherwise(Qwen25VL):
    """One box that no text says."""

    def read(self, completion):
        return Answer(boxes=as_boxes([[1.25, 2.25, 30.5, 40.5]]), labels=("circle",), follows_template=True)


def test_the_score_does_not_depend_on_the_batch(tmp_path):
    scores, lengths = [], []
    for size in (1, 4):
        module = GRPOModule(
            family=ReadsOtherwise(),
            evaluation=Sampling(group_size=1, temperature=0.0, max_new_tokens=48),
        )
        data = SceneDataModule(SceneStyle(num_objects=(1, 3)), test_scenes=4, eval_batch_size=size, num_workers=0)
        batches = trainer(tmp_path).predict(module, data)
        predictions = [prediction for batch in batches for prediction in batch]
        scores.append([float(prediction.detections.scores[0]) for prediction in predictions])
        lengths = [len(prediction.completion) for prediction in predictions]
    assert len({*lengths}) > 1, "all answers are of one length"
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    assert len({*scores[0]}) == 4
