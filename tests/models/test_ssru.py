"""The recurrent cell and the students that have it, beside float64 written out plainly: nothing cached or masked."""

import io
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sentencepiece import SentencePieceTrainer
from torch import Tensor
from torch.testing import assert_close

from heedful.export.bundle import export
from heedful.export.checkpoint import open_checkpoint
from heedful.export.eager import EagerDecoder
from heedful.export.student import load
from heedful.models.cache import State
from heedful.models.seq2seq import Seq2Seq
from heedful.models.ssru import SSRU
from heedful.runtime.bundle import open_bundle
from heedful.runtime.engine.decoder import Feed
from heedful.runtime.engine.device import choose_device
from heedful.runtime.engine.sessions import Sessions
from heedful.runtime.engine.slots import Slots
from heedful.runtime.load import load as load_bundle
from heedful.runtime.text.model import TextModel

Array = NDArray[np.float64]
EPSILON, END = 1e-6, 0


def sigmoid(x: Array) -> Array:
    positive: Array = 1 / (1 + np.exp(-np.abs(x)))
    return np.where(x >= 0, positive, 1 - positive)


def recur(forget: Array, new: Array) -> Array:
    """The states (n, width) from zero on, given the gates' logits and what is to be remembered (n, width)."""
    state, states = np.zeros(new.shape[1]), []
    for gate, value in zip(sigmoid(forget), new, strict=True):
        state = gate * state + (1 - gate) * value
        states.append(state)
    return np.stack(states)


@dataclass(frozen=True)
class Reference:
    """A student with Marian's names for its tensors, matrices (out, in); one sentence at a time."""

    tensors: Mapping[str, Array]
    heads: int

    def depth(self, side: str) -> range:
        return range(1, 1 + sum(name.startswith(f"{side}_l") and name.endswith("_ffn_W1") for name in self.tensors))

    def normed(self, name: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
        result: Array = scaled * self.tensors[f"{name}_ln_scale"] + self.tensors[f"{name}_ln_bias"]
        return result

    def mapped(self, name: str, part: str, x: Array) -> Array:
        result: Array = x @ self.tensors[f"{name}_W{part}"].T + self.tensors.get(f"{name}_b{part}", 0)
        return result

    def placed(self, x: Array) -> Array:
        """With positions: sines, then cosines, of wavelengths from 2 pi to 10000 * 2 pi, both included."""
        half = x.shape[1] // 2
        angles = np.outer(np.arange(len(x)), 10_000.0 ** (-np.arange(half) / (half - 1)))
        result: Array = x + np.concatenate([np.sin(angles), np.cos(angles)], -1)
        return result

    def embedded(self, ids: Sequence[int]) -> Array:
        table = self.tensors["Wemb"]
        rows: Array = table[list(ids)] * np.sqrt(table.shape[1])
        return rows

    def attended(self, name: str, x: Array, memory: Array) -> Array:
        """Every row of x attends to every row of memory."""
        q, k, v = (self.mapped(name, part, rows) for part, rows in (("q", x), ("k", memory), ("v", memory)))
        mixed = []
        for query, key, value in zip(*(np.split(each, self.heads, axis=1) for each in (q, k, v)), strict=True):
            scores = query @ key.T / np.sqrt(query.shape[1])
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(shares / shares.sum(-1, keepdims=True) @ value)
        return self.normed(f"{name}_Wo", x + self.mapped(name, "o", np.concatenate(mixed, -1)))

    def fed(self, name: str, x: Array) -> Array:
        inner = np.maximum(self.mapped(name, "1", x), 0)
        return self.normed(f"{name}_ffn", x + self.mapped(name, "2", inner))

    def recurred(self, name: str, x: Array) -> Array:
        states = recur(self.mapped(name, "f", x), x @ self.tensors[f"{name}_W"].T)
        return self.normed(f"{name}_ffn", x + np.maximum(states, 0))

    def encode(self, ids: Sequence[int]) -> Array:
        """(n, width) for the n tokens of a sentence, the end included."""
        x = self.placed(self.embedded(ids))
        for layer in self.depth("encoder"):
            x = self.attended(f"encoder_l{layer}_self", x, x)
            x = self.fed(f"encoder_l{layer}_ffn", x)
        return x

    def logits(self, source: Sequence[int], target: Sequence[int]) -> Array:
        """(n + 1, vocabulary): what is said before and after each of the n tokens of a translation."""
        memory = self.encode(source)
        x = self.placed(np.concatenate([np.zeros((1, memory.shape[1])), self.embedded(target)]))
        for layer in self.depth("decoder"):
            x = self.recurred(f"decoder_l{layer}_rnn", x)
            x = self.attended(f"decoder_l{layer}_context", x, memory)
            x = self.fed(f"decoder_l{layer}_ffn", x)
        result: Array = x @ self.tensors["Wemb"].T + self.tensors["decoder_ff_logit_out_b"]
        return result


WIDTH, HEADS, INNER, LAYERS, PIECES = 24, 3, 40, 2, 45
CONFIGURATION = {
    "type": "transformer", "dim-emb": WIDTH, "dim-vocabs": [PIECES, PIECES], "tied-embeddings-all": True,
    "enc-depth": LAYERS, "dec-depth": LAYERS, "transformer-decoder-autoreg": "rnn", "dec-cell": "ssru",
    "transformer-heads": HEADS, "transformer-dim-ffn": INNER, "transformer-ffn-depth": 2,
    "transformer-ffn-activation": "relu", "transformer-preprocess": "", "transformer-postprocess": "dan",
    "transformer-tied-layers": [], "transformer-train-position-embeddings": False,
}  # fmt: skip
LINES = ["the rain fell on the old town all day", "a cat sat on a mat", "we read books in the evening by the fire"]


def random_tensors() -> dict[str, Array]:
    """Of a student, by Marian's names; matrices are (out, in)."""
    shapes: dict[str, tuple[int, ...]] = {"Wemb": (PIECES, WIDTH), "decoder_ff_logit_out_b": (PIECES,)}

    def block(name: str, matrices: Mapping[str, tuple[int, int]], norm: str, *, biased: bool = True) -> None:
        for part, shape in matrices.items():
            shapes[f"{name}_W{part}"] = shape
            if biased:
                shapes[f"{name}_b{part}"] = shape[:1]
        shapes[f"{name}_{norm}_ln_scale"] = shapes[f"{name}_{norm}_ln_bias"] = (WIDTH,)

    square = (WIDTH, WIDTH)
    for layer in range(1, LAYERS + 1):
        for side, attention in (("encoder", "self"), ("decoder", "context")):
            block(f"{side}_l{layer}_{attention}", dict.fromkeys("qkvo", square), "Wo")
            block(f"{side}_l{layer}_ffn", {"1": (INNER, WIDTH), "2": (WIDTH, INNER)}, "ffn")
        block(f"decoder_l{layer}_rnn", {"f": square}, "ffn")
        shapes[f"decoder_l{layer}_rnn_W"] = square
    rng = np.random.default_rng(0)
    return {
        name: (rng.normal(0, 0.3, shape) + name.endswith("ln_scale")).astype(np.float32).astype(np.float64)
        for name, shape in shapes.items()
    }


def write_marian(path: Path, tensors: Mapping[str, Array]) -> None:
    """A model as Marian stores it: vectors as rows, matrices (in, out), in float32."""
    text = yaml.safe_dump(CONFIGURATION).encode() + b"\0"
    items = [("special:model.yml", 0x101, (len(text),), text)]
    for name, value in tensors.items():
        stored = value if name == "Wemb" or value.ndim == 1 else value.T
        shape = (1, len(value)) if value.ndim == 1 else stored.shape
        items.append((name, 0x404, shape, stored.astype("<f4").tobytes()))
    names = [name.encode() + b"\0" for name, *_ in items]
    parts = [struct.pack("<2Q", 1, len(items))]
    parts += [
        struct.pack("<4Q", len(name), kind, len(shape), len(data))
        for name, (_, kind, shape, data) in zip(names, items, strict=True)
    ]
    parts += [*names, *(struct.pack(f"<{len(shape)}i", *shape) for _, _, shape, _ in items), struct.pack("<Q", 0)]
    path.write_bytes(b"".join([*parts, *(data for *_, data in items)]))


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint folder of a student of random weights."""
    folder = tmp_path_factory.mktemp("students") / "seeded"
    folder.mkdir()
    write_marian(folder / "model.enpt.bin", random_tensors())
    pieces = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 4), model_writer=pieces, minloglevel=2,
        vocab_size=PIECES, hard_vocab_limit=False, eos_id=END, unk_id=1, bos_id=-1,
    )  # fmt: skip
    (folder / "vocab.enpt.spm").write_bytes(pieces.getvalue())
    return folder


@dataclass(frozen=True)
class Student:
    """A model, the same in float64, and a few of its sources and translations."""

    model: Seq2Seq
    reference: Reference
    sources: list[list[int]]
    targets: list[list[int]]


def opened(folder: Path, length: int) -> Student:
    checkpoint = open_checkpoint(folder)
    tensors = {name: value.numpy().astype(np.float64) for name, value in checkpoint.tensors.items()}
    rng, vocabulary = np.random.default_rng(1), len(tensors["Wemb"])
    sources = [[*rng.integers(2, vocabulary, count).tolist(), END] for count in (length, 1, length // 2)]
    targets = [rng.integers(2, vocabulary, count).tolist() for count in (length // 2, length, 3)]
    reference = Reference(tensors, checkpoint.config["transformer-heads"])
    return Student(load(checkpoint).requires_grad_(False), reference, sources, targets)


@pytest.fixture(scope="module")
def student(seeded: Path) -> Student:
    return opened(seeded, 20)


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for to, row in zip(tokens, rows, strict=True):
        to[: len(row)] = torch.tensor(row)
    return tokens, lengths


def check(found: Array | NDArray[np.float32], expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def check_model(student: Student) -> None:
    source, lengths = padded(student.sources)
    # whatever token a text begins with
    target, _ = padded([[5 + row, *tokens] for row, tokens in enumerate(student.targets)])
    logits = student.model(source, lengths, target).numpy()
    for row, (ids, tokens) in enumerate(zip(student.sources, student.targets, strict=True)):
        check(logits[row, : len(tokens) + 1], student.reference.logits(ids, tokens))


def check_bundle(student: Student, bundle: Path) -> None:
    """Token by token, several translations side by side."""
    model = TextModel(Sessions(open_bundle(bundle), choose_device("cpu"), 1))
    decoder = model.decoder(len(student.sources))
    model.encode(decoder, dict(enumerate(student.sources)))
    expected = [student.reference.logits(*pair) for pair in zip(student.sources, student.targets, strict=True)]
    for step in range(max(map(len, expected))):
        feeds = {
            row: Feed(
                [END if step == 0 else student.targets[row][step - 1]],
                [step], step, np.ones((1, step + 1), np.bool_), [0],
            )
            for row in range(len(expected))
            if step < len(expected[row])
        }  # fmt: skip
        for row, scores in decoder.step(feeds).items():
            check(np.asarray(scores.logits)[0], expected[row][step])


def test_a_seeded_model_says_what_it_should(student: Student) -> None:
    check_model(student)


def test_the_real_model_says_what_it_should(student_en_pt: Path) -> None:
    check_model(opened(student_en_pt, 12))


def test_a_seeded_bundle_says_what_it_should(student: Student, seeded: Path, tmp_path: Path) -> None:
    check_bundle(student, export(seeded, tmp_path / "bundle"))


def test_the_real_bundle_says_what_it_should(student_en_pt: Path, translate_bundle: Callable[[str], Path]) -> None:
    check_bundle(opened(student_en_pt, 12), translate_bundle("fp32"))


def test_a_text_by_itself_is_the_same_as_in_company(seeded: Path, tmp_path: Path) -> None:
    translate = load_bundle(export(seeded, tmp_path / "bundle", "int8"), "cpu", threads=1)
    assert translate.model.has_greedy
    assert [translate(line) for line in LINES] == translate(LINES)


def test_the_source_matters_and_so_do_all_tokens_before(student: Student) -> None:
    """Else the comparisons above would show little."""
    (first, _, second), (target, *_) = student.sources, student.targets
    logits = student.reference.logits(first, target)
    assert np.abs(logits - student.reference.logits(second, target)).max() > 0.1
    changed = student.reference.logits(first, [(target[0] + 1) % PIECES, *target[1:]])
    assert np.abs(logits - changed)[-1].max() > 0.01
    np.testing.assert_array_equal(logits[0], changed[0])


def test_every_branch_in_the_cache_is_the_text_it_stands_for(student: Student) -> None:
    """Hypotheses fork, go on and are dropped at random, so often that slots are moved together; each one's logits are
    those of its whole text.
    """
    rng = np.random.default_rng(0)
    source, lengths = padded(student.sources)
    decoder = EagerDecoder(student.model.decoder, student.model.encode(source, lengths), lengths.tolist())
    rows = range(len(student.sources))
    slots = [Slots() for _ in rows]
    texts: list[list[list[int]]] = [[[END]] for _ in rows]
    moved = 0
    decoder.step({row: Feed([END], [0], 0, slots[row].prefill(1), [0]) for row in rows})
    for step in range(1, 56):
        feeds = {}
        for row in rows:
            parents = rng.integers(len(texts[row]), size=rng.integers(1, 6)).tolist()
            texts[row] = [[*texts[row][parent], int(rng.integers(2, PIECES))] for parent in parents]
            kept = slots[row].compact(parents, 64)
            moved += kept is not None
            at, count, tokens = slots[row].used, len(parents), [text[-1] for text in texts[row]]
            feeds[row] = Feed(tokens, [step] * count, at, slots[row].step(parents), range(count), kept)
        found = decoder.step(feeds)
        if step % 9 == 1:
            for row, ids in enumerate(student.sources):
                for logits, text in zip(found[row].logits, texts[row], strict=True):
                    check(logits, student.reference.logits(ids, text[1:])[-1])
    assert moved > 1


@dataclass(frozen=True)
class Cell:
    """A cell of random weights, the same in float64, and what it reads: (n, width)."""

    module: SSRU
    x: Tensor

    def expected(self, x: Tensor) -> Array:
        """The outputs for a text, whose states begin with zero."""
        maps = zip(self.module.gate_input.weight.chunk(2), self.module.gate_input.bias.chunk(2), strict=True)
        forget, new = (x.double().numpy() @ w.double().numpy().T + b.double().numpy() for w, b in maps)
        return np.maximum(recur(forget, new), 0)


@st.composite
def cells(draw: st.DrawFn, most: int = 12) -> Cell:
    """With gates from half open to shut tight."""
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    width, spread = draw(st.integers(1, 9)), draw(st.sampled_from([0.1, 1.0, 5.0]))
    module = SSRU(width).requires_grad_(False)
    module.gate_input.weight.normal_(0, spread)
    module.gate_input.bias.normal_(0, spread)
    return Cell(module, torch.randn(draw(st.integers(1, most)), width))


def check_states(found: Tensor, expected: Array, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=0, atol=tolerance * max(1.0, expected.max()))


NO_MASK = torch.ones(1, 1, 1, 1, dtype=torch.bool)


@given(cell=cells())
def test_a_text_is_read_at_once(cell: Cell) -> None:
    attended, cache = cell.module(cell.x[None].repeat(2, 1, 1), NO_MASK)
    assert attended.weights is None
    for row in attended.output:
        check_states(row, cell.expected(cell.x))
    assert_close(cache.state.relu()[:, 0], attended.output)


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 2e-2)])
def test_a_long_text_is_read_at_once(kind: torch.dtype, tolerance: float) -> None:
    """The gates of hundreds of tokens multiply to next to nothing, which must not lose those of the last few."""
    torch.manual_seed(0)
    module = SSRU(16).requires_grad_(False).to(kind)
    cell = Cell(module, torch.randn(400, 16).to(kind))
    expected = cell.expected(cell.x)
    check_states(module(cell.x[None], NO_MASK)[0].output[0], expected, tolerance)


@given(cell=cells(), data=st.data())
def test_every_branch_of_a_tree_is_the_text_it_stands_for(cell: Cell, data: st.DataObject) -> None:
    """Tokens go on from any before them, or from none, a few at once; two trees side by side, one of them behind."""
    count, behind = len(cell.x), data.draw(st.integers(0, 3))
    slots = count + behind + 2
    # what was never written must not matter
    cache = State(torch.full((2, 1, slots, cell.x.shape[1]), 1e3))
    paths: list[list[int]] = []
    first = 0
    while first < count:
        new = data.draw(st.integers(1, min(3, count - first)))
        mask = torch.zeros(2, 1, new, slots, dtype=torch.bool)
        parents = [data.draw(st.none() | st.sampled_from(range(first)) if first else st.none()) for _ in range(new)]
        for i, parent in enumerate(parents):
            paths.append([*([] if parent is None else paths[parent]), first + i])
            for row, shift in enumerate((0, behind)):
                mask[row, 0, i, [shift + slot for slot in paths[-1]]] = True
        x = cell.x[first : first + new].expand(2, -1, -1)
        attended, cache = cell.module(x, mask, cache=cache, at=torch.tensor([first, first + behind]))
        for row in attended.output:
            for found, path in zip(row, paths[first:], strict=True):
                check_states(found, cell.expected(cell.x[path])[-1])
        first += new


def test_an_empty_cache_is_zero() -> None:
    cache = SSRU(5).half().empty(3, 7)
    assert cache.state.shape == (3, 1, 7, 5)
    assert cache.state.dtype == torch.float16
    assert not cache.state.any()
