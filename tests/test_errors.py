"""Which errors are one line for the user."""

import pytest
from lightning.pytorch.callbacks import BatchSizeFinder

from callbacks import Gallery
from vr1.errors import user_message


@pytest.mark.parametrize(
    ("kind", "settings", "ours"), [(Gallery, {"columns": 0}, True), (BatchSizeFinder, {"mode": "x"}, False)]
)
def test_only_what_the_user_can_fix_has_a_message(kind, settings, ours):
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - what it says is asked below
        kind(**settings)
    assert user_message(raised.value) == (str(raised.value) if ours else None)
