"""How far the encoder and a decoding step are from what the machine's memory and multipliers allow.

    python benchmarks/speech_floor.py AUDIO [--models whisper-tiny.en whisper-base]

Of int8 bundles on the CPU. The floor of the encoder is its multiply-adds over the highest rate measured here, those of
convolutions and the spectrum in float32, those of attention and weights in 8 bits; that of a greedy step is the bytes
it must read, weights of the decoder and keys and values of cross-attention, over the memory bandwidth measured here.
Peaks are the best of 20 tries, times the median. Needs torch and onnx, as exporting does.
"""

import time
from collections.abc import Callable
from math import prod
from statistics import median

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from rivals.measure import conditions, head, parser, row

from heedful.runtime import load
from heedful.runtime.engine.generate import Job
from heedful.runtime.engine.search import Limits, Sample
from heedful.runtime.home import locate
from heedful.runtime.speech.audio import read_audio
from heedful.runtime.speech.model import SpeechModel
from heedful.runtime.speech.transcriber import Transcriber

_TRIES, _STEPS = 20, 100
_MELS, _FFT = 80, 400


def seconds(function: Callable[[], object]) -> list[float]:
    """How long each of several calls takes."""
    taken = []
    for _ in range(_TRIES):
        begin = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begin)
    return taken


def bandwidth() -> float:
    """Bytes a second, read from main memory by all threads."""
    numbers = torch.zeros(64 * 2**20)
    return numbers.nbytes / min(seconds(numbers.sum))


def float_peak() -> float:
    """Multiply-adds a second in float32."""
    left, right = torch.randn(1500, 2048), torch.randn(2048, 2048)
    return 1500 * 2048 * 2048 / min(seconds(lambda: left @ right))


def int8_peak(threads: int) -> float:
    """Multiply-adds a second in 8 bits, of onnxruntime's kernel."""
    size = 2048
    constants = {"w": np.ones((size, size), np.int8), "s": np.ones(size, np.float32)}
    node = helper.make_node("DynamicQuantizeMatMul", ["x", "w", "s"], ["y"], domain="com.microsoft")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1500, size]) for name in "xy"]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([node], "peak", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = np.ones((1500, size), np.float32)
    return 1500 * size * size / min(seconds(lambda: session.run(None, {"x": rows})))


def encoder_work(model: SpeechModel) -> tuple[float, float]:
    """Multiply-adds in float32 and in 8 bits for one window; the encoder is as deep and wide as the decoder."""
    shape = model.shape
    width, frames, layers = shape.heads * shape.head_dim, shape.frames, shape.layers
    attention = 2 * layers * frames**2 * width
    convolutions = 2 * frames * 3 * _MELS * width + frames * 3 * width**2
    spectrum = 2 * frames * _FFT * (_FFT + 2)
    weights = layers * frames * 12 * width**2 + layers * frames * 2 * width**2
    return convolutions + spectrum, attention + weights


def step_bytes(model: SpeechModel) -> float:
    """Bytes that one step of one input reads: weights of 8 bits with a scale for 64, the embedding, which has 4, and
    what cross-attention reads.
    """
    shape = model.shape
    width = shape.heads * shape.head_dim
    weights, embedding = shape.layers * 14 * width**2, shape.vocabulary * width
    memory = sum(np.dtype(dtype).itemsize * prod(size) for dtype, size in shape.memory.values())
    return weights * (1 + 4 / 64) + embedding * (1 / 2 + 4 / 64) + shape.layers * memory


def measured(transcriber: Transcriber, audio: str) -> tuple[float, float]:
    """Median seconds of the encoder for a window and of a greedy step."""
    model, decoder = transcriber.model, transcriber.lanes(False).wide.batcher.decoder
    waveform = np.concatenate(list(read_audio(locate(audio, "samples"))))[: model.samples]
    encoding = median(seconds(lambda: model.encode(decoder, {0: waveform})))
    job = Job(0, [model.tokens.special.start, model.tokens.special.no_timestamps], Sample(Limits(-1, _STEPS)))
    feed, taken = job.start(), []
    while feed is not None:
        begin = time.perf_counter()
        scores = decoder.step({0: feed})[0]
        taken.append(time.perf_counter() - begin)
        feed = job.advance(scores, decoder.spare)
    return encoding, median(taken[1:])


def main() -> None:
    """Print the table."""
    arguments_of = parser(__doc__)
    arguments_of.add_argument("audio")
    arguments_of.add_argument("--models", nargs="+", default=["whisper-tiny.en", "whisper-base"])
    arguments = arguments_of.parse_args()
    torch.set_num_threads(arguments.threads)
    reads, floats, ints = bandwidth(), float_peak(), int8_peak(arguments.threads)
    peaks = (
        f"{reads / 1e9:.0f} GB/s, {floats / 1e9:.0f} and {ints / 1e9:.0f} billion multiply-adds/s in float32 and int8"
    )
    print(conditions(f"{arguments.threads} threads", peaks), end="\n\n")
    print(head("model", "what", "floor ms", "measured ms", "measured / floor"))
    for name in arguments.models:
        transcriber = load(f"{name}-int8", "cpu", threads=arguments.threads)
        in_floats, in_ints = encoder_work(transcriber.model)
        floors = in_floats / floats + in_ints / ints, step_bytes(transcriber.model) / reads
        for what, floor, found in zip(("encoder", "step"), floors, measured(transcriber, arguments.audio), strict=True):
            print(row(name, what, f"{floor * 1e3:.1f}", f"{found * 1e3:.1f}", f"{found / floor:.1f}"))


if __name__ == "__main__":
    main()
