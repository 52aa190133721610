"""All families that can be exported."""

from heedful.export import bart, captioners, student, t5, whisper
from heedful.export.checkpoint import Checkpoint
from heedful.export.family import Family
from heedful.runtime.errors import CheckpointError

FAMILIES: tuple[Family, ...] = (
    whisper.FAMILY,
    student.FAMILY,
    *(each.family for each in (*bart.FAMILIES, *t5.FAMILIES)),
    *(each.family for each in captioners.families()),
)


def find_family(checkpoint: Checkpoint) -> Family:
    """The family that `checkpoint` belongs to. Raises CheckpointError when there is none."""
    for family in FAMILIES:
        if family.recognises(checkpoint):
            return family
    kind = checkpoint.config.get("model_type", "an unknown family")
    names = ", ".join(family.name for family in FAMILIES)
    raise CheckpointError(f"{checkpoint.source} is of {kind}; Heedful exports {names}")
