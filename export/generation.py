"""What generation_config.json, or an older config.json, says of how texts are to be searched for."""

import logging
from collections.abc import Mapping
from typing import Any

# settings that change what is written and that the runtime does not follow, with the values that change nothing
_IGNORED: dict[str, tuple[Any, ...]] = {
    "do_sample": (None, False),
    "diversity_penalty": (None, 0.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "sequence_bias": (None,),
    "penalty_alpha": (None, 0.0),
    "guidance_scale": (None, 1.0),
}
_logger = logging.getLogger("heedful")


def first(tokens: Any) -> int:
    """A token that a configuration may state as a list."""
    return int(tokens[0] if isinstance(tokens, list) else tokens)


def token(stated: Mapping[str, Any], name: str) -> int:
    """The token that a configuration must state; KeyError where it states none."""
    if stated.get(name) is None:
        raise KeyError(name)
    return first(stated[name])


def search(generation: Mapping[str, Any], started: int, positions: int) -> dict[str, Any]:
    """How the checkpoint asks for texts to be searched for; lengths count the `started` tokens that begin a text, as
    transformers does. Warns of settings that are not followed.
    """
    _warn(generation)
    new = generation.get("max_new_tokens")
    longest = started + int(new) if new else generation.get("max_length")
    bad = [list(map(int, tokens)) for tokens in generation.get("bad_words_ids") or []]
    return {
        "beams": generation.get("num_beams") or 1,
        "length_penalty": float(_stated(generation, "length_penalty", 1.0)),
        "early_stopping": generation.get("early_stopping") or False,
        "no_repeat_ngram": int(generation.get("no_repeat_ngram_size") or 0),
        "repetition_penalty": float(_stated(generation, "repetition_penalty", 1.0)),
        "min_length": int(generation.get("min_length") or 0),
        "max_length": min(longest or positions, positions),
        "length_factor": None,
        "forced_end": generation.get("forced_eos_token_id") is not None,
        "bad_words": bad,
        "suppress": list(generation.get("suppress_tokens") or []),
    }


def _stated(generation: Mapping[str, Any], name: str, default: float) -> float:
    value = generation.get(name)
    return default if value is None else value


def _warn(generation: Mapping[str, Any]) -> None:
    for name, harmless in _IGNORED.items():
        if generation.get(name) not in harmless:
            _logger.warning("the checkpoint asks for %s=%s, which is not followed", name, generation[name])
