"""Pictures as tokens, and decoders that read a prefix: beside a convolution, numpy, and a Transformer written out."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from heedful.models.attention import visible
from heedful.models.text import StackConfig, TokenDecoder
from heedful.models.transformer import LayerConfig
from heedful.models.vision import Normalize, ViT, ViTConfig

channels = st.lists(st.floats(0.05, 1), min_size=3, max_size=3)


@given(mean=channels, std=channels, seed=st.integers(0, 2**32 - 1))
def test_bytes_are_normalised_as_by_numpy(mean: list[float], std: list[float], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 3, 5, 3), dtype=np.uint8)
    found = Normalize(mean, std)(torch.from_numpy(pixels))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), (pixels / 255 - np.array(mean)) / np.array(std), rtol=1e-5, atol=1e-5)


def test_normalising_is_no_part_of_the_weights() -> None:
    assert not Normalize((0.5,) * 3, (0.5,) * 3).state_dict()


@settings(max_examples=25)
@given(height=st.integers(5, 23), width=st.integers(5, 23), patch=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_patches_are_those_of_a_convolution(height: int, width: int, patch: int, seed: int) -> None:
    """One as wide as its stride, which leaves out what does not fill a patch."""
    torch.manual_seed(seed)
    config = ViTConfig((height, width), patch, 1, LayerConfig(6, 2, 8))
    vit = ViT(config).double()
    pixels, kernel = torch.randn(2, height, width, 3).double(), torch.randn(6, 3, patch, patch).double()
    expected = F.conv2d(pixels.permute(0, 3, 1, 2), kernel, stride=patch)
    assert config.grid == tuple(expected.shape[2:])
    found = F.linear(vit.cut(pixels), kernel.permute(0, 2, 3, 1).flatten(1))
    assert_close(found, expected.flatten(2).mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("embedding_norm", [False, True])
@torch.no_grad()
def test_a_vision_transformer_is_that_of_torch(embedding_norm: bool) -> None:
    """Its tokens are the extra ones and the patches, at their positions."""
    torch.manual_seed(0)
    layer = LayerConfig(16, 2, 24, activation="relu")
    vit = ViT(ViTConfig((9, 6), 3, 2, layer, extra_tokens=2, embedding_norm=embedding_norm)).double().eval()
    for parameter in vit.parameters():
        parameter.normal_(0, 0.5)
    pixels = torch.randn(2, 9, 6, 3).double()
    x = torch.cat([vit.extra.expand(2, -1, -1), vit.patches(vit.cut(pixels))], dim=1) + vit.positions
    x = vit.embedding_norm(x)
    for ours in vit.layers:
        theirs = nn.TransformerEncoderLayer(16, 2, 24, dropout=0, batch_first=True, norm_first=True).double().eval()
        named = {
            "self_attn.in_proj_": "attention.query_key_value.",
            "self_attn.out_proj.": "attention.output.",
            "linear1.": "feed_forward.inner.",
            "linear2.": "feed_forward.output.",
            "norm1.": "attention_norm.",
            "norm2.": "feed_forward_norm.",
        }
        weights = ours.state_dict()
        theirs.load_state_dict({a + end: weights[b + end] for a, b in named.items() for end in ("weight", "bias")})
        x = theirs(x)
    found = vit(pixels)
    assert found.shape == (2, 2 + 3 * 2, 16)
    assert_close(found, vit.norm(x), rtol=0, atol=1e-10)


WIDTH, HEADS, VOCABULARY, IMAGE = 12, 3, 20, 5


def prefixed(norm_first: bool) -> TokenDecoder:
    layer = LayerConfig(WIDTH, HEADS, 20, norm_first=norm_first, prefixed=True)
    decoder = TokenDecoder(StackConfig(VOCABULARY, 3, layer, "learned", 32, embedding_norm=True)).double()
    torch.manual_seed(1)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, 0, 0.4)
    return decoder.requires_grad_(False)


def norm(module: Any, x: Any) -> Any:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * module.weight + module.bias


def linear(module: Any, x: Any) -> Any:
    return x @ module.weight.T + module.bias


def plainly(decoder: Any, image: Tensor, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Hidden states of the text, and each layer's weights (b, h, n, image), by one Transformer over image and text,
    whose image tokens see each other, and whose text sees the image, itself and what was written before.
    """
    count = tokens.shape[1]
    text = norm(decoder.embedding_norm, decoder.tokens.weight[tokens] + decoder.positions.weight[:count])
    x, places = torch.cat([image, text], 1), range(IMAGE + count)
    hidden = torch.tensor([[key >= IMAGE and key > query for key in places] for query in places])
    looked = []
    for layer in decoder.layers:
        read = norm(layer.attention_norm, x) if layer.norm_first else x
        joint = linear(layer.attention.query_key_value, read).chunk(3, -1)
        query, key, value = (part.view(*part.shape[:2], HEADS, -1).transpose(1, 2) for part in joint)
        scores = (query @ key.mT / math.sqrt(WIDTH / HEADS)).masked_fill(hidden, -math.inf).exp()
        weights = scores / scores.sum(-1, keepdim=True)
        looked.append(weights[:, :, IMAGE:, :IMAGE])
        x = x + linear(layer.attention.output, (weights @ value).transpose(1, 2).flatten(2))
        x = x if layer.norm_first else norm(layer.attention_norm, x)
        read = norm(layer.feed_forward_norm, x) if layer.norm_first else x
        x = x + linear(layer.feed_forward.output, F.gelu(linear(layer.feed_forward.inner, read)))
        x = x if layer.norm_first else norm(layer.feed_forward_norm, x)
    return x[:, IMAGE:], looked


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_prefixed_decoder_is_one_transformer_over_image_and_text(norm_first: bool) -> None:
    decoder = prefixed(norm_first)
    image, tokens = torch.randn(2, IMAGE, WIDTH).double(), torch.randint(VOCABULARY, (2, 7))
    expected, looked = plainly(decoder, image, tokens)
    memory, mask, positions = decoder.remember(image), visible(7, 7, causal=True), torch.arange(7)[None]
    found, _, _ = decoder(tokens, positions, mask, memory)
    assert_close(found, expected, rtol=0, atol=1e-11)
    # whoever asks for weights has their softmax in float32
    again, _, weights = decoder(tokens, positions, mask, memory, need_weights=True)
    assert_close(again, expected, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(weights, looked, strict=True):
        assert ours.shape == (2, HEADS, 7, IMAGE)
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm_first", [True, False])
def test_so_it_is_step_by_step(norm_first: bool) -> None:
    """With a cache of the text alone, in slots of which more are there than are used."""
    decoder, slots = prefixed(norm_first), 9
    image, tokens = torch.randn(2, IMAGE, WIDTH).double(), torch.randint(VOCABULARY, (2, 7))
    expected, _ = plainly(decoder, image, tokens)
    memory, cache = decoder.remember(image), decoder.empty(2, slots)
    for first, last in [(0, 3), *((i, i + 1) for i in range(3, 7))]:
        mask = torch.arange(slots) <= torch.arange(first, last)[:, None]
        at, positions = torch.full((2,), first), torch.arange(first, last)[None]
        found, cache, _ = decoder(tokens[:, first:last], positions, mask[None, None], memory, cache=cache, at=at)
        assert_close(found, expected[:, first:last], rtol=0, atol=1e-11)
        assert all(each.key.shape == (2, HEADS, slots, WIDTH // HEADS) for each in cache)
