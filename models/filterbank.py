"""The mel filterbank of torchaudio, also where torchaudio's compiled extension cannot load."""

import importlib
import sys
from types import ModuleType

from torch import Tensor


def _torchaudio_functional() -> ModuleType:
    """torchaudio.functional, whose filterbank is plain torch.

    The wheel on PyPI links CUDA libraries, so beside a CPU build of torch its `_extension` fails to load and takes the
    whole import down. A stand-in that reports "no extension" lets the Python part load.
    """
    try:
        return importlib.import_module("torchaudio.functional")
    except (ImportError, OSError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        extension = ModuleType("torchaudio._extension")
        extension.__dict__.update(_IS_TORCHAUDIO_EXT_AVAILABLE=False, fail_if_no_align=lambda function: function)
        sys.modules["torchaudio._extension"] = extension
        return importlib.import_module("torchaudio.functional")


def mel_filterbank(frequencies: int, mels: int, sample_rate: int) -> Tensor:
    """Triangular filters (frequencies, mels), float32, on Slaney's mel scale from 0 Hz to half the sample rate."""
    bank: Tensor = _torchaudio_functional().melscale_fbanks(
        n_freqs=frequencies,
        f_min=0.0,
        f_max=sample_rate / 2,
        n_mels=mels,
        sample_rate=sample_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    return bank
