"""The order in which lines are handed out."""

from collections.abc import Callable, Iterable, Sequence


def longest_first(lines: Sequence[str], translate: Callable[[list[str]], Iterable[str]]) -> list[str]:
    """The translations of `lines`. `translate` gets them longest first: neighbours are alike, and what is left over
    when some thread runs out of work is short.
    """
    order = sorted(range(len(lines)), key=lambda at: len(lines[at]), reverse=True)
    found = dict(zip(order, translate([lines[at] for at in order]), strict=True))
    return [found[at] for at in range(len(lines))]
