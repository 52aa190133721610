"""Rewrites for onnxruntime's kernels: graphs compute what they computed before."""

import copy
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from heedful.export import whisper
from heedful.export.flash import cut_heads_within, use_flash
from heedful.export.fold import drop_zeros, fold_queries, fold_scales
from heedful.export.graphs import Graph
from heedful.export.trace import trace
from heedful.models.text import StackConfig, TokenDecoder
from heedful.models.transformer import LayerConfig
from heedful.models.whisper import Whisper, WhisperConfig
from heedful.runtime.engine.decoder import FEW

HEADS, HEAD_DIM, LAYERS, FRAMES, SLOTS = 3, 24, 2, 50, 64
CONFIG = WhisperConfig(
    vocabulary=90,
    width=HEADS * HEAD_DIM,
    encoder_layers=LAYERS,
    decoder_layers=LAYERS,
    encoder_heads=HEADS,
    decoder_heads=HEADS,
    encoder_inner=96,
    decoder_inner=96,
    audio_positions=FRAMES,
    text_positions=SLOTS,
)
Array = NDArray[Any]


@pytest.fixture(scope="module")
def model() -> Whisper:
    torch.manual_seed(0)
    model = Whisper(CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.2)
    return model


@pytest.fixture(scope="module")
def traced(model: Whisper) -> Callable[[str], onnx.ModelProto]:
    graphs: dict[str, Graph] = {
        graph.name: graph for graph in whisper.graphs(model, {"alignment_heads": [(0, 1)], "tokens": {"end": 80}})
    }
    protos: dict[str, onnx.ModelProto] = {}

    def proto(name: str) -> onnx.ModelProto:
        if name not in protos:
            protos[name] = ir.serde.serialize_model(trace(graphs[name]))
        return protos[name]

    return proto


def rewritten(proto: onnx.ModelProto, rewrite: Callable[[ir.Model], None]) -> onnx.ModelProto:
    model = ir.serde.deserialize_model(proto)
    rewrite(model)
    changed = ir.serde.serialize_model(model)
    onnx.checker.check_model(changed)
    return changed


def operators(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


def run(proto: onnx.ModelProto, inputs: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, inputs)
    return outputs


def step(batch: int, new: int) -> dict[str, Array]:
    """Inputs of the decoder: `new` tokens for each of `batch` inputs after 9 slots of a past."""
    rng = np.random.default_rng([batch, new])

    def caches(prefix: str, slots: int) -> dict[str, Array]:
        shape = (batch, HEADS, slots, HEAD_DIM)
        names = [f"{prefix}.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
        return {name: rng.standard_normal(shape).astype(np.float32) for name in names}

    mask = np.zeros((batch, new, SLOTS), np.bool_)
    mask[:, :, :9] = True
    mask[:, :, 9 : 9 + new] = np.tri(new, dtype=np.bool_)
    return {
        "tokens": rng.integers(0, CONFIG.vocabulary, (batch, new)),
        "positions": np.broadcast_to(np.arange(9, 9 + new), (batch, new)).copy(),
        "at": np.full(batch, 9),
        "mask": mask,
        "select": np.arange(batch * new),
        **caches("past", SLOTS),
        **caches("memory", FRAMES),
    }


def test_scales_are_folded_into_queries(model: Whisper) -> None:
    """Of both kinds of attention, the weights of which are asked for or not; 1 / sqrt(24) is no power of two."""
    folded = copy.deepcopy(model)
    fold_scales(folded)
    tokens, waveform = torch.arange(7)[None], torch.randn(1, CONFIG.samples, generator=torch.Generator().manual_seed(1))
    scales = [module.scale for module in folded.modules() if hasattr(module, "scale")]
    assert set(scales) == {1.0}
    torch.testing.assert_close(folded(waveform, tokens), model(waveform, tokens), rtol=1e-4, atol=1e-4)
    twice = copy.deepcopy(folded)
    fold_scales(twice)
    torch.testing.assert_close(twice(waveform, tokens), folded(waveform, tokens), rtol=0, atol=0)


@pytest.mark.parametrize(("number", "kept"), [(0.0, False), (0.5, True)])
def test_a_bias_of_zeros_is_left_out(number: float, kept: bool) -> None:
    torch.manual_seed(0)
    model = TokenDecoder(StackConfig(19, 1, LayerConfig(16, 2, 24), "learned", 8, output_bias=True))
    assert model.output_bias is not None
    hidden = torch.randn(2, 16)
    with torch.no_grad():
        model.output_bias[3] = number
        expected = model.logits(hidden)
        drop_zeros(model)
        torch.testing.assert_close(model.logits(hidden), expected, rtol=0, atol=0)
    assert (model.output_bias is not None) == kept


@pytest.mark.parametrize("new", [1, 2, FEW, FEW + 1, 20])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("own", [False, True])
def test_folded_queries_give_the_same(
    traced: Callable[[str], onnx.ModelProto], batch: int, new: int, own: bool
) -> None:
    before = traced("decoder")
    after = rewritten(before, partial(fold_queries, own=own))
    assert operators(after)["Attention"] == operators(before)["Attention"]
    # there and back, and once the mask
    assert operators(after)["Reshape"] == operators(before)["Reshape"] + (4 * LAYERS + 1 if own else 2 * LAYERS)
    for found, expected in zip(run(after, step(batch, new)), run(before, step(batch, new)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_few_queries_get_the_bits_that_each_gets_alone(traced: Callable[[str], onnx.ModelProto]) -> None:
    """Self-attention sees the same past only."""
    decoder = rewritten(traced("decoder"), fold_queries)
    inputs = step(1, 5)
    inputs["mask"][:] = False
    inputs["mask"][:, :, :9] = True
    together = run(decoder, inputs)[0]
    pairs = []
    for first in (0, 3):
        part = {name: inputs[name][:, first : first + 2] for name in ("tokens", "positions", "mask")}
        pairs.append(run(decoder, {**inputs, **part, "select": np.arange(2)})[0])
    np.testing.assert_array_equal(together[:2], pairs[0])
    np.testing.assert_array_equal(together[3:5], pairs[1])


def test_flash_attention_gives_the_same(traced: Callable[[str], onnx.ModelProto]) -> None:
    before = traced("encoder")
    after = rewritten(before, use_flash)
    assert operators(after)["MultiHeadAttention"] == operators(before)["Attention"] == LAYERS
    assert operators(after)["Attention"] == 0
    assert operators(after)["Transpose"] == operators(before)["Transpose"] - 2 * LAYERS
    waveform = 0.1 * np.random.default_rng(0).standard_normal((1, CONFIG.samples)).astype(np.float32)
    for found, expected in zip(run(after, {"waveform": waveform}), run(before, {"waveform": waveform}), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("graph", ["encoder", "aligner"])
def test_heads_cut_by_the_operator_give_the_same_bits(traced: Callable[[str], onnx.ModelProto], graph: str) -> None:
    """Without a mask and with one."""
    before = traced(graph)
    after = rewritten(before, cut_heads_within)
    assert operators(after)["Attention"] == operators(before)["Attention"] == LAYERS
    assert operators(after)["Transpose"] == operators(before)["Transpose"] - 2 * LAYERS
    rng = np.random.default_rng(0)
    inputs: dict[str, Array] = {"waveform": 0.1 * rng.standard_normal((1, CONFIG.samples)).astype(np.float32)}
    if graph == "aligner":
        memory = {name: value for name, value in step(1, 9).items() if name.startswith("memory")}
        inputs = {"tokens": rng.integers(0, CONFIG.vocabulary, (1, 9)), **memory}
    for found, expected in zip(run(after, inputs), run(before, inputs), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_attention_with_a_mask_or_to_a_memory_is_left_to_the_standard_operator(
    traced: Callable[[str], onnx.ModelProto],
) -> None:
    before = traced("decoder")
    assert operators(rewritten(before, use_flash)) == operators(before)
