"""A checkpoint's tensors into a model: a family's table says where each of its modules is found."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from heedful.runtime.errors import CheckpointError

# what formats call the two parameters of a module
_LEAVES = {"weight": ("weight", "gamma"), "bias": ("bias", "beta")}


@dataclass(frozen=True)
class NameTable:
    """Where a format keeps the modules of a model.

    `modules` maps a module of ours, `{}` for a layer's number, to the modules of the checkpoint whose parameters, one
    below the other, make its own. `parameters` does the same for single tensors. `ignored` are patterns of tensors
    that the model makes for itself, `optional` of our parameters that are zero where the checkpoint has none.
    `separator` joins the parts of a name.
    """

    modules: Mapping[str, Sequence[str]]
    parameters: Mapping[str, str | Sequence[str]]
    ignored: Sequence[str] = ()
    optional: Sequence[str] = ()
    separator: str = "."
    numbers: re.Pattern[str] = field(default=re.compile(r"(?<=\.)\d+(?=\.)"), repr=False)

    def sources(self, parameter: str, available: Mapping[str, Tensor]) -> list[str | None]:
        """Names of the tensors that make `parameter`, None for a part that is missing; empty when all are."""
        number = self.numbers.findall(parameter)
        key = self.numbers.sub("{}", parameter)
        if key in self.parameters:
            stated = self.parameters[key]
            names = [name.format(*number) for name in ([stated] if isinstance(stated, str) else stated)]
            return list(names) if all(name in available for name in names) else []
        module, _, leaf = key.rpartition(".")
        found: list[str | None] = []
        for source in self.modules.get(module, ()):
            spelled = [self.separator.join([source.format(*number), each]) for each in _LEAVES[leaf]]
            found.append(next((name for name in spelled if name in available), None))
        return found if any(found) else []


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], table: NameTable) -> None:
    """Fill every parameter of `model`, in float32, from `tensors`.

    A bias that the checkpoint has for some parts of a joint projection only (Whisper's keys have none) is zero for the
    others. Raises CheckpointError when a parameter has no source, a shape differs, or a tensor is left over.
    """
    used: set[str] = set()
    for name, parameter in model.named_parameters():
        sources = table.sources(name, tensors)
        if not sources and any(re.fullmatch(pattern, name) for pattern in table.optional):
            nn.init.zeros_(parameter)
            continue
        if not sources or (None in sources and not name.endswith(".bias")):
            raise CheckpointError(f"the checkpoint lacks {name}: is it whole, and of the model its config.json names?")
        parts = [None if source is None else tensors[source].float() for source in sources]
        length = next(part for part in parts if part is not None).shape[0]
        parts = [torch.zeros(length) if part is None else part for part in parts]
        shapes = [tuple(part.shape) for part in parts if part is not None]
        rest = {shape[1:] for shape in shapes}
        if rest != {tuple(parameter.shape[1:])} or sum(shape[0] for shape in shapes) != parameter.shape[0]:
            raise CheckpointError(
                f"{' + '.join(str(source) for source in sources)} has shape {' + '.join(map(str, shapes))}, "
                f"but the configuration asks for {tuple(parameter.shape)}"
            )
        value = torch.cat([part for part in parts if part is not None])
        with torch.no_grad():
            parameter.copy_(value)
        used.update(source for source in sources if source is not None)
    left = [name for name in tensors if name not in used and not any(re.fullmatch(p, name) for p in table.ignored)]
    if left:
        raise CheckpointError(f"the model has no place for {len(left)} tensors of the checkpoint, such as {left[0]}")
