import numpy as np
import pytest

from vr1.metrics import AnswerStatistics
from vr1.types import Detections, Match, Targets, as_boxes


def match(num_predicted: int, overlap: list[float], valid: bool) -> Match:
    detections = Detections(
        boxes_xyxy=as_boxes([[0, 0, 1, 1]] * num_predicted),
        labels=("cat",) * num_predicted,
        scores=np.ones(num_predicted),
        well_formed=True,
        valid=valid,
    )
    return Match(
        predicted=np.arange(len(overlap)),
        target=np.arange(len(overlap)),
        overlap=np.array(overlap),
        box_overlap=np.array(overlap),
        num_predicted=num_predicted,
        num_targets=3,
        detections=detections,
        targets=Targets(boxes_xyxy=as_boxes([[0, 0, 1, 1]] * 3), labels=("cat",) * 3),
    )


def figures(statistics: AnswerStatistics) -> dict[str, float]:
    return {name: float(value) for name, value in statistics.compute().items()}


BATCHES = [[match(3, [0.5, 1.0], True), match(0, [], False)], [match(2, [0.0], True)]]
EXPECTED = {"valid_rate": 2 / 3, "boxes_per_image": 5 / 3, "overlap": 0.5}


def test_by_hand():
    statistics = AnswerStatistics()
    for batch in BATCHES:
        statistics.update(batch)
    assert figures(statistics) == pytest.approx(EXPECTED)


def test_the_overlap_is_a_mean_over_pairs_and_the_boxes_one_over_answers():
    """Three answers with five pairs: BATCHES have as many of one as of the other."""
    statistics = AnswerStatistics()
    statistics.update([match(4, [0.5, 1.0, 0.75], True), match(3, [0.25, 0.5], True), match(0, [], True)])
    assert figures(statistics) == pytest.approx({"valid_rate": 1.0, "boxes_per_image": 7 / 3, "overlap": 3.0 / 5})


def test_merged_states_equal_one_process():
    first, second = AnswerStatistics(), AnswerStatistics()
    first.update(BATCHES[0])
    second.update(BATCHES[1])
    first.merge_state(second)
    assert figures(first) == pytest.approx(EXPECTED)


def test_nothing_matched_and_nothing_seen():
    statistics = AnswerStatistics()
    statistics.update([match(0, [], True)])
    assert figures(statistics) == {"valid_rate": 1.0, "boxes_per_image": 0.0, "overlap": 0.0}
    statistics.reset()
    statistics.update([])
    assert figures(statistics) == {"valid_rate": 0.0, "boxes_per_image": 0.0, "overlap": 0.0}
