"""Settings as a file states them in YAML."""

from typing import Any

import yaml  # type: ignore[import-untyped]


def read_mapping(text: bytes) -> dict[str, Any]:
    """The mapping that `text` is; ValueError, which goes on after the name of its place, where it is anything else."""
    try:
        stated = yaml.safe_load(text)
    except Exception as error:  # PyYAML's constructors let through whatever a wrong value makes them raise
        raise ValueError(f"is not YAML ({error})") from error
    if not isinstance(stated, dict):
        raise ValueError("is not a mapping")
    return stated
