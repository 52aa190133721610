"""What tests of networks share: one thread, and transformers that can be imported."""

from collections.abc import Iterator

import pytest
import torch

from heedful.models.filterbank import mel_filterbank


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These models are too small to share among threads, which would wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def transformers_loads() -> None:
    """transformers imports torchaudio, which loads beside a CPU build of torch only after this."""
    mel_filterbank(201, 80, 16_000)
