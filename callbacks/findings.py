"""What an evaluation step returned, for the callbacks that draw or write it."""

from typing import Any

from lightning.pytorch.callbacks import Callback

from vr1.records import Finding


def findings_of(callback: Callback, outputs: Any) -> list[Finding]:
    """The findings of one batch.

    Args:
        callback: whoever asks, to be named where they are none.
        outputs: what ``validation_step``, ``test_step`` or ``predict_step`` returned.

    Raises:
        TypeError: if the step returned something else.

    Example:
        >>> from vr1.drawing.examples import example_finding
        >>> len(findings_of(Callback(), [example_finding()]))
        1
    """
    if not isinstance(outputs, list) or not all(isinstance(output, Finding) for output in outputs):
        raise TypeError(
            f"{type(callback).__name__} wants vr1.records.Finding, but the step returned {type(outputs).__name__}: let"
            " it return a list of findings, or leave the callback out"
        )
    return outputs
