"""Requests from as many threads at once against the same ones one after another, by turns."""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from rivals.measure import alternate, spread, typical

REQUESTS = 8
COLUMNS = ("one after another s", "at once s", "throughput ratio", "same texts", "spread %")

Ask = Callable[[Any], str]


def compared(ask: Ask, requests: Sequence[Any], runs: int) -> tuple[str, ...]:
    """The cells of `COLUMNS` for `requests`; seconds are medians until the last of them is answered."""
    with ThreadPoolExecutor(len(requests)) as threads:
        sides = {
            "one after another": partial(_answered, map, ask, requests),
            "at once": partial(_answered, threads.map, ask, requests),
        }
        apart, together = alternate(sides, runs).values()
    same = sum(a == b for a, b in zip(apart[0]["texts"], together[0]["texts"], strict=True))
    seconds = [typical(apart), typical(together)]
    ratio = f"{seconds[0] / seconds[1]:.2f}"
    return (*(f"{each:.3g}" for each in seconds), ratio, f"{same} of {len(requests)}", spread(apart, together))


def _answered(each: Callable[[Ask, Sequence[Any]], Iterable[str]], ask: Ask, requests: Sequence[Any]) -> dict[str, Any]:
    begin = time.perf_counter()
    texts = list(each(ask, requests))
    return {"texts": texts, "seconds": time.perf_counter() - begin}
