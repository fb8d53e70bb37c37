import numpy as np
import pytest

from vr1.types import Detections, Match, Targets, as_boxes


@pytest.fixture
def matched():
    """Makes the match of a completion from its overlaps and counts."""

    def make(overlap, num_predicted=None, num_targets=None, well_formed=True, valid=True):
        pairs = np.arange(len(overlap))
        num_predicted = len(overlap) if num_predicted is None else num_predicted
        num_targets = len(overlap) if num_targets is None else num_targets
        return Match(
            predicted=pairs,
            target=pairs,
            overlap=np.array(overlap, dtype=np.float64),
            box_overlap=np.array(overlap, dtype=np.float64),
            num_predicted=num_predicted,
            num_targets=num_targets,
            detections=Detections(
                boxes_xyxy=as_boxes([[0, 0, 1, 1]] * num_predicted),
                labels=("cat",) * num_predicted,
                scores=np.ones(num_predicted),
                well_formed=well_formed,
                valid=valid,
            ),
            targets=Targets(boxes_xyxy=as_boxes([[0, 0, 1, 1]] * num_targets), labels=("cat",) * num_targets),
        )

    return make
