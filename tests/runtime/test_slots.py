"""Cache slots, beside hypotheses that are plain lists of the slots they own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heedful.runtime.engine.slots import Slots

# how long the prompt is, then at each step which hypotheses go on: numbers to take modulo how many there are
TREES = st.tuples(st.integers(1, 6), st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=5), max_size=8))


@given(tree=TREES)
def test_a_hypothesis_sees_its_own_slots_and_no_others(tree: tuple[int, list[list[int]]]) -> None:
    prompt, steps = tree
    slots = Slots()
    given = [(slots.prefill(prompt), [list(range(i + 1)) for i in range(prompt)])]
    owned, used = [list(range(prompt))], prompt
    for choices in steps:
        parents = [choice % len(owned) for choice in choices]
        mask = slots.step(parents)
        owned = [[*owned[parent], used + i] for i, parent in enumerate(parents)]
        used += len(parents)
        given.append((mask, owned))
        assert mask.shape == (len(parents), used)
        assert slots.used == used
    for mask, expected in given:  # at the end, so that a mask given out is known to stay as it was
        assert mask.dtype == np.bool_
        assert [np.flatnonzero(row).tolist() for row in mask] == expected


@given(tree=TREES)
def test_every_hypothesis_sees_as_many_slots_as_it_has_tokens(tree: tuple[int, list[list[int]]]) -> None:
    prompt, steps = tree
    slots = Slots()
    slots.prefill(prompt)
    for depth, choices in enumerate(steps, start=1):
        mask = slots.step([choice % len(slots.visible) for choice in choices])
        assert (mask.sum(axis=1) == prompt + depth).all()
        assert mask[:, :prompt].all()


@given(st.data())
def test_compacting_keeps_what_is_seen(data: st.DataObject) -> None:
    """Followed by what each slot holds: hypotheses read the same whether or not dead slots are dropped."""
    slots, held = Slots(), list("prompt")
    spare = data.draw(st.integers(1, 64))
    slots.prefill(len(held))
    texts = ["prompt"]
    longest = 0
    for step in range(60):
        parents = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=5, max_size=5))
        kept = slots.compact(parents, spare)
        if kept is not None:
            held = [held[slot] for slot in kept]
        new = [chr(ord("a") + (step + i) % 26) for i in range(5)]
        mask = slots.step(parents)
        held += new
        texts = [texts[parent] + letter for parent, letter in zip(parents, new, strict=True)]
        assert ["".join(np.array(held)[row]) for row in mask] == texts
        assert slots.used == len(held)
        longest = max(longest, len(held) - len(set().union(*(np.flatnonzero(row).tolist() for row in mask))))
    # without it up to 300 slots would be written
    assert longest < spare + 5


def test_only_one_prompt() -> None:
    slots = Slots()
    slots.prefill(3)
    with pytest.raises(ValueError, match="a prompt comes first"):
        slots.prefill(1)
