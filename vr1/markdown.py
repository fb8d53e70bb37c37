"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""Texts as a table, its first column to the left and all others, which are numbers mostly, to the right.

    Example:
        >>> print(markdown_table(["metric", "value"], [["val/map", "0.25"], ["a|b", "-"]]))
        | metric | value |
        | :-- | --: |
        | val/map | 0.25 |
        | a\|b | - |
    """
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)
