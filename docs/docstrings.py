"""Reads the docstrings of vr1 for mkdocstrings: an extension of Griffe (`extensions` in ``mkdocs.yml``)."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":\w+:`~?([\w.]+)`")


def as_markdown(text: str) -> str:
    """A docstring with the sections and code blocks that Griffe knows.

    Sphinx roles become names, ``Example:`` the section ``Examples:``, and the double colon before a block a single one.

    Example:
        >>> as_markdown("See :class:`~vr1.rewards.Reward`, in YAML::")
        'See `Reward`, in YAML:'
        >>> as_markdown("Example::")
        'Examples:'
    """
    text = _ROLE.sub(lambda match: f"`{match[1].rsplit('.', 1)[-1]}`", text)
    text = re.sub(r"^Example:{1,2}$", "Examples:", text, flags=re.MULTILINE)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)


class PlainDocstrings(griffe.Extension):
    """Applies `as_markdown` to every docstring."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
