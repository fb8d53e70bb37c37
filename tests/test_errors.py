"""Which errors are told in one line."""

import pytest
from lightning.pytorch.callbacks import BatchSizeFinder

from callbacks import Gallery
from vr1.errors import told_by_us


@pytest.mark.parametrize(
    ("kind", "settings", "ours"), [(Gallery, {"columns": 0}, True), (BatchSizeFinder, {"mode": "x"}, False)]
)
def test_a_check_of_our_callbacks_is_told_and_one_of_lightnings_is_not(kind, settings, ours):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - what it says is asked below
        kind(**settings)
    assert told_by_us(raised.value) == (str(raised.value) if ours else None)
