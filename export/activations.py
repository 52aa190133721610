"""What configurations call the activations of feed-forward blocks."""

from heedful.models.transformer import ActivationName
from heedful.runtime.errors import CheckpointError

_NAMES: dict[str, ActivationName] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def activation(name: str) -> ActivationName:
    """Our name of the activation that a configuration calls `name`. Raises CheckpointError for one we lack."""
    if name not in _NAMES:
        raise CheckpointError(f"the configuration asks for the activation {name!r}: known are {', '.join(_NAMES)}")
    return _NAMES[name]
