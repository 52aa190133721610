"""Traced graphs: what they are made of, what they are called, and that they compute what PyTorch does."""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from heedful.export import whisper
from heedful.export.graphs import Graph, named
from heedful.export.storage import store
from heedful.export.trace import trace
from heedful.models.attention import CrossAttention, ScoreName
from heedful.models.cache import KeyValue
from heedful.models.whisper import Whisper, WhisperConfig

Array = NDArray[Any]

ENCODER_LAYERS, LAYERS, HEADS, HEAD_DIM, FRAMES, SAMPLES = 1, 2, 4, 16, 50, 16_000
VOCABULARY, TEXT_VOCABULARY, POSITIONS = 200, 180, 64
ALIGNMENT_HEADS = [(0, 2), (1, 0), (1, 3)]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def model() -> Whisper:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocabulary=VOCABULARY,
        width=HEADS * HEAD_DIM,
        encoder_layers=ENCODER_LAYERS,
        decoder_layers=LAYERS,
        encoder_heads=HEADS,
        decoder_heads=HEADS,
        encoder_inner=96,
        decoder_inner=128,
        audio_positions=FRAMES,
        text_positions=POSITIONS,
    )
    model = Whisper(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.15)
    return model


@pytest.fixture(scope="module")
def graphs(model: Whisper) -> dict[str, Graph]:
    description = {"alignment_heads": ALIGNMENT_HEADS, "tokens": {"end": TEXT_VOCABULARY}}
    return {graph.name: graph for graph in whisper.graphs(model, description)}


@pytest.fixture(scope="module")
def folder(graphs: dict[str, Graph], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    store({name: trace(graph) for name, graph in graphs.items()}, folder)
    return folder


@pytest.fixture(scope="module")
def sessions(folder: Path) -> dict[str, ort.InferenceSession]:
    return {path.stem: session(path) for path in folder.glob("*.onnx")}


def session(path: Path, severity: int = 3) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = severity
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def protos(folder: Path) -> dict[str, onnx.ModelProto]:
    return {path.stem: onnx.load(path, load_external_data=False) for path in folder.glob("*.onnx")}


def noise(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def memories(seed: int, batch: int) -> list[NDArray[np.float32]]:
    return [noise(seed + i, batch, HEADS, FRAMES, HEAD_DIM) for i in range(2 * LAYERS)]


def by_layer(prefix: str, arrays: Sequence[Array]) -> dict[str, Array]:
    names = [f"{prefix}.{layer}.{part}" for layer in range(len(arrays) // 2) for part in ("key", "value")]
    return dict(zip(names, arrays, strict=True))


# One Attention for each call of scaled dot-product attention, one TensorScatter for each cache; the aligner's
# cross-attention gives its weights and is no Attention node.
NODES = {
    "encoder": {"Attention": ENCODER_LAYERS, "TensorScatter": 0, "Softmax": 0},
    "decoder": {"Attention": 2 * LAYERS, "TensorScatter": 2 * LAYERS, "Softmax": 0},
    "aligner": {"Attention": LAYERS, "TensorScatter": 0, "Softmax": LAYERS},
}


def test_one_node_for_each_attention_and_each_cache(folder: Path) -> None:
    for name, proto in protos(folder).items():
        counts = Counter(node.op_type for node in proto.graph.node)
        assert {op: counts[op] for op in NODES[name]} == NODES[name], name


def test_only_the_standard_operators_of_opset_24(folder: Path) -> None:
    assert set(protos(folder)) == set(NODES)
    for name, proto in protos(folder).items():
        onnx.checker.check_model(folder / f"{name}.onnx", full_check=True)
        assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 24)]
        assert {node.domain for node in proto.graph.node} == {""}
        assert not proto.functions


CACHE = ("float", ["b", HEADS, "slots", HEAD_DIM])
MEMORY = ("float", ["b", HEADS, FRAMES, HEAD_DIM])
PER_LAYER = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
INTERFACES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "encoder": ({"waveform": ("float", ["b", SAMPLES])}, {f"memory.{name}": MEMORY for name in PER_LAYER}),
    "decoder": (
        {
            "tokens": ("int64", ["b", "n"]),
            "positions": ("int64", ["b", "n"]),
            "at": ("int64", ["b"]),
            "mask": ("bool", ["b", "n", "slots"]),
            "select": ("int64", ["m"]),
        }
        | {f"past.{name}": CACHE for name in PER_LAYER}
        | {f"memory.{name}": MEMORY for name in PER_LAYER},
        {"logits": ("float", ["m", VOCABULARY])} | {f"present.{name}": CACHE for name in PER_LAYER},
    ),
    "aligner": (
        {"tokens": ("int64", ["b", "n"])} | {f"memory.{name}": MEMORY for name in PER_LAYER},
        {"weights": ("float", ["b", len(ALIGNMENT_HEADS), "n", FRAMES]), "logprobs": ("float", ["b", "n - 1"])},
    ),
}


@pytest.mark.parametrize("name", INTERFACES)
def test_names_types_and_axes(sessions: dict[str, ort.InferenceSession], name: str) -> None:
    def described(values: list[Any]) -> list[tuple[str, tuple[str, list[int | str]]]]:
        return [(value.name, (value.type.removeprefix("tensor(").removesuffix(")"), value.shape)) for value in values]

    inputs, outputs = INTERFACES[name]
    assert described(sessions[name].get_inputs()) == list(inputs.items())
    assert described(sessions[name].get_outputs()) == list(outputs.items())


def test_nothing_of_the_machine_it_was_traced_on(folder: Path) -> None:
    here = [Path(__file__).parents[2], Path.home(), Path(sys.prefix), Path(torch.__file__).parent, folder]
    for path in folder.iterdir():
        content = path.read_bytes()
        assert not [place for place in here if str(place).encode() in content], path.name
    for name, proto in protos(folder).items():
        content = (folder / f"{name}.onnx").read_bytes()
        assert not re.findall(rb"[\w/.]+\.py\b|stack_trace|Traceback|File \"|site-packages", content), name
        assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)


TONES = np.sin(np.outer([220, 1000, 7000], 2 * np.pi / 16_000 * np.arange(SAMPLES))).astype(np.float32)
WAVEFORMS = {
    "noise": 0.1 * noise(1, 1, SAMPLES),
    "silence": np.zeros((2, SAMPLES), np.float32),
    "tones": TONES,
    "loud, faint and padded": np.concatenate([np.sign(TONES), 1e-4 * TONES, TONES * (np.arange(SAMPLES) < 4000)]),
}


@pytest.mark.parametrize("waveform", WAVEFORMS.values(), ids=WAVEFORMS)
def test_the_encoder_takes_raw_waveforms(
    model: Whisper, sessions: dict[str, ort.InferenceSession], waveform: NDArray[np.float32]
) -> None:
    waveform = waveform.astype(np.float32)
    found = sessions["encoder"].run(None, {"waveform": waveform})
    expected = [tensor for layer in model.encode(torch.from_numpy(waveform)) for tensor in layer]
    for ours, eager in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, eager.numpy(), **CLOSE)


@st.composite
def steps(draw: st.DrawFn) -> dict[str, Any]:
    """Inputs of the decoder: each row's new tokens begin in a slot of its own, each query sees its own set of slots."""
    batch, new, slots = draw(st.integers(1, 5)), draw(st.integers(1, 7)), draw(st.integers(8, 90))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    mask = rng.random((batch, new, slots)) < draw(st.sampled_from([0.05, 0.5, 1.0]))
    mask[..., draw(st.integers(0, slots - 1))] = True  # a query that saw nothing would give NaN
    return {
        "tokens": rng.integers(VOCABULARY, size=(batch, new)),
        "positions": rng.integers(POSITIONS, size=(batch, new)),
        "at": rng.integers(slots - new + 1, size=batch),
        "mask": mask,
        "select": rng.permutation(batch * new)[: draw(st.integers(1, batch * new))],
        "past": [noise(seed % 1000 + i, batch, HEADS, slots, HEAD_DIM) for i in range(2 * LAYERS)],
        "memory": memories(seed % 1000 + 50, batch),
    }


def fed(inputs: dict[str, Any]) -> dict[str, Array]:
    plain = {name: value for name, value in inputs.items() if name not in {"past", "memory"}}
    return plain | by_layer("past", inputs["past"]) | by_layer("memory", inputs["memory"])


@settings(max_examples=40)
@given(inputs=steps())
def test_the_decoder_is_the_module_it_was_traced_from(
    graphs: dict[str, Graph], sessions: dict[str, ort.InferenceSession], inputs: dict[str, Any]
) -> None:
    def tensors(value: Any) -> Any:
        return [torch.from_numpy(each) for each in value] if isinstance(value, list) else torch.from_numpy(value)

    found = sessions["decoder"].run(None, fed(inputs))
    expected = graphs["decoder"].module(*map(tensors, inputs.values()))
    for name, ours, eager in zip(graphs["decoder"].outputs, found, expected, strict=True):
        np.testing.assert_allclose(ours, eager.numpy(), **CLOSE, err_msg=name)
    start = inputs["at"]
    for name, past in by_layer("past", inputs["past"]).items():
        present = found[graphs["decoder"].outputs.index(name.replace("past", "present"))]
        for row, first in enumerate(start):
            written = slice(first, first + inputs["tokens"].shape[1])
            assert not np.isclose(present[row, :, written], past[row, :, written]).all()
            present[row, :, written] = past[row, :, written]
        np.testing.assert_array_equal(present, past)


class InPlace:
    """The decoder with every cache bound as past and present at once, so that each run writes into `caches`."""

    def __init__(self, session: ort.InferenceSession, memory: list[NDArray[np.float32]], slots: int) -> None:
        self.session = session
        batch = len(memory[0])
        self.caches = by_layer("", [noise(90 + i, batch, HEADS, slots, HEAD_DIM) for i in range(2 * LAYERS)])
        self.memory = by_layer("memory", memory)

    def step(self, **inputs: Array) -> NDArray[np.float32]:
        binding = self.session.io_binding()
        for name, value in (inputs | self.memory).items():
            binding.bind_cpu_input(name, value)
        for name, cache in self.caches.items():
            where = ("cpu", 0, np.float32, cache.shape, cache.ctypes.data)
            binding.bind_input(f"past{name}", *where)
            binding.bind_output(f"present{name}", *where)
        binding.bind_output("logits", "cpu")
        self.session.run_with_iobinding(binding)
        logits: NDArray[np.float32] = binding.get_outputs()[-1].numpy()
        return logits


def test_rows_of_different_length_in_one_batch_are_the_texts_they_stand_for(
    model: Whisper, sessions: dict[str, ort.InferenceSession]
) -> None:
    """Each row's text is fed in runs of its own lengths; the reference reads whole texts, without a cache."""
    waveform = torch.from_numpy(0.1 * noise(7, 3, SAMPLES))
    texts = torch.randint(VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(1))
    expected = model(waveform, texts).numpy()
    memory = [tensor.numpy() for layer in model.encode(waveform) for tensor in layer]
    slots = 17
    decoder = InPlace(sessions["decoder"], memory, slots)
    runs = [(3, 1, 5), (1, 4, 2), (2, 2, 2), (4, 1, 1)]
    starts = np.zeros(3, np.int64)
    for counts in runs:
        width = max(counts)
        tokens, positions = np.zeros((3, width), np.int64), np.zeros((3, width), np.int64)
        mask = np.ones((3, width, slots), np.bool_)  # padding may see whatever is there
        for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
            tokens[row, :count] = texts[row, start : start + count]
            positions[row, :count] = np.arange(start, start + count)
            mask[row, :count] = np.tri(count, slots, int(start), dtype=np.bool_)
        select = np.concatenate([row * width + np.arange(count) for row, count in enumerate(counts)])
        logits = decoder.step(tokens=tokens, positions=positions, at=starts, mask=mask, select=select)
        wanted = [
            expected[row, start : start + count] for row, (start, count) in enumerate(zip(starts, counts, strict=True))
        ]
        np.testing.assert_allclose(logits, np.concatenate(wanted), **CLOSE)
        starts = starts + np.asarray(counts)


def test_caches_are_written_in_the_very_buffer_and_never_copied(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    decoder = session(folder / "decoder.onnx", severity=2)  # it warns when it copies a cache
    inputs = {
        "tokens": np.array([[5, 6], [7, 8]]),
        "positions": np.array([[3, 4], [9, 10]]),
        "at": np.array([3, 9]),
        "mask": np.stack([np.tri(2, 20, 3, dtype=np.bool_), np.tri(2, 20, 9, dtype=np.bool_)]),
        "select": np.array([1, 3]),
    }
    bound = InPlace(decoder, memories(3, 2), 20)
    before = {name: cache.copy() for name, cache in bound.caches.items()}
    logits = bound.step(**inputs)
    assert "TensorScatter" not in capfd.readouterr().err
    copied = decoder.run(None, inputs | bound.memory | {f"past{name}": cache for name, cache in before.items()})
    assert "TensorScatter" in capfd.readouterr().err
    np.testing.assert_array_equal(logits, copied[0])
    for (name, cache), present in zip(bound.caches.items(), copied[1:], strict=True):
        assert cache.tobytes() == present.tobytes() != before[name].tobytes()


@settings(max_examples=15)
@given(batch=st.integers(1, 4), length=st.integers(2, 20), seed=st.integers(0, 1000))
def test_the_aligner_is_the_module_it_was_traced_from(
    graphs: dict[str, Graph], sessions: dict[str, ort.InferenceSession], batch: int, length: int, seed: int
) -> None:
    tokens, memory = np.random.default_rng(seed).integers(VOCABULARY, size=(batch, length)), memories(seed, batch)
    weights, logprobs = sessions["aligner"].run(None, {"tokens": tokens} | by_layer("memory", memory))
    eager = graphs["aligner"].module(torch.from_numpy(tokens), [torch.from_numpy(each) for each in memory])
    np.testing.assert_allclose(weights, eager[0].numpy(), **CLOSE)
    np.testing.assert_allclose(logprobs, eager[1].numpy(), **CLOSE)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


class Reader(nn.Module):
    """Cross-attention of either score, and its weights."""

    def __init__(self, score: ScoreName) -> None:
        super().__init__()
        self.attention = CrossAttention(24, 3, memory_width=20, score=score)

    def forward(self, x: Tensor, memory: list[Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        output, weights = self.attention(x, KeyValue(*memory), mask, need_weights=True)
        assert weights is not None
        return output, weights


def test_the_additive_score_is_traced_too(tmp_path: Path) -> None:
    torch.manual_seed(2)
    module = Reader("additive").requires_grad_(False)

    def inputs(batch: int, queries: int, keys: int) -> dict[str, Any]:
        memory = module.attention.remember(torch.randn(batch, keys, 20))
        mask = torch.rand(batch, 1, queries, keys) < 0.7
        mask[..., 0] = True
        return {"x": torch.randn(batch, queries, 24), "memory": named("memory", [memory]), "mask": mask}

    def graph(*sizes: int) -> Graph:
        return Graph("reader", module, inputs(*sizes), ["output", "weights"], axes)

    axes = {"x": {0: "b", 1: "q"}, "memory": [{0: "b", 2: "k"}] * 2, "mask": {0: "b", 2: "q", 3: "k"}}
    store({"reader": trace(graph(2, 3, 5))}, tmp_path)
    traced = session(tmp_path / "reader.onnx")
    for sizes in [(1, 1, 1), (2, 3, 5), (3, 7, 2), (5, 2, 33)]:
        x, memory, mask = graph(*sizes).example
        flat = [each.numpy() for each in (x, *memory, mask)]
        found = traced.run(None, dict(zip(graph(*sizes).input_names, flat, strict=True)))
        for ours, eager in zip(found, module(x, memory, mask), strict=True):
            np.testing.assert_allclose(ours, eager.numpy(), rtol=1e-5, atol=1e-5)
