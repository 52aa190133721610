"""Reading Marian's binary models, against files written here byte by byte and one of Firefox Translations."""

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from heedful.export import ctranslate2
from heedful.export.marian_binary import configuration, read, recognises
from heedful.export.student import decoder_settings
from heedful.runtime.errors import CheckpointError

Array = NDArray[Any]
TEXT, FLOAT16, FLOAT32, INT8, INT8_OF_MARIAN = 0x101, 0x402, 0x404, 0x4101, 0x10001
MULTIPLIER = 0.75


class Item:
    """One item of a file: `data` as Marian writes it, then `padding` bytes of rubbish."""

    def __init__(self, name: str, kind: int, shape: tuple[int, ...], data: bytes, padding: int = 0) -> None:
        self.name = name.encode() + b"\0"
        self.kind = kind
        self.shape = struct.pack(f"<{len(shape)}i", *shape)
        self.data = data + b"\xab" * padding

    @property
    def header(self) -> bytes:
        return struct.pack("<4Q", len(self.name), self.kind, len(self.shape) // 4, len(self.data))


def plain(name: str, value: Array, padding: int = 0) -> Item:
    kind = {"f4": FLOAT32, "f2": FLOAT16}[value.dtype.str[1:]]
    return Item(name, kind, value.shape, value.tobytes(), padding)


def quantized(name: str, value: Array, padding: int = 0, kind: int = INT8, multiplier: float = MULTIPLIER) -> Item:
    """`value` is (in, out), or a table of embeddings, which alone is not turned over."""
    laid = value if "Wemb" in name else value.T
    return Item(name, kind, value.shape, laid.tobytes() + struct.pack("<f", multiplier), padding)


def text(content: str | bytes) -> Item:
    data = (content.encode() if isinstance(content, str) else content) + b"\0"
    return Item("special:model.yml", TEXT, (len(data),), data)


def model(*items: Item, version: int = 1, gap: int = 0) -> bytes:
    parts = [struct.pack("<2Q", version, len(items)), *(item.header for item in items), *(item.name for item in items)]
    parts += [item.shape for item in items] + [struct.pack("<Q", gap) + b"\0" * gap] + [item.data for item in items]
    return b"".join(parts)


def saved(content: bytes, folder: Path, name: str = "model.enpt.intgemm.alphas.bin") -> Path:
    (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


def in_torchs_layout(name: str, value: Array) -> Array:
    """What `read` is to make of `value`, multiplied by (in, out), or stored as one row when it is a vector."""
    while value.ndim and value.shape[0] == 1:
        value = value[0]
    return value if value.ndim != 2 or "Wemb" in name else value.T


shapes = st.lists(st.integers(1, 4), max_size=2).map(tuple)
names = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=12).map(lambda text: f"v_{text}")
kinds = st.sampled_from(["<f4", "<f2", "<i1"])
values = st.builds(
    lambda kind, shape, seed: np.random.default_rng(seed).integers(-127, 128, shape).astype(kind),
    *(kinds, shapes, st.integers(0, 2**32 - 1)),
)
variables = st.dictionaries(names | st.sampled_from(["Wemb", "encoder_Wemb"]), values, min_size=1, max_size=4)


@given(variables=variables, gap=st.integers(0, 300), padding=st.integers(0, 255))
def test_everything_written_is_read_back(shared: Path, variables: dict[str, Array], gap: int, padding: int) -> None:
    items = [(quantized if v.dtype == np.int8 else plain)(name, v, padding) for name, v in variables.items()]
    tensors = read(saved(model(*items, text("type: transformer"), gap=gap), shared))
    multipliers = {f"{name}_QuantMultB" for name, value in variables.items() if value.dtype == np.int8}
    assert set(tensors) == {*variables, *multipliers}
    assert all(tensors[name].shape == () and tensors[name].item() == MULTIPLIER for name in multipliers)
    for name, value in variables.items():
        expected = in_torchs_layout(name, value).astype(np.float32)
        assert tensors[name].dtype == torch.float32
        assert tensors[name].is_contiguous()
        np.testing.assert_array_equal(
            tensors[name].numpy(),
            expected / np.float32(MULTIPLIER) if value.dtype == np.int8 else expected,
            strict=True,
        )


@pytest.mark.parametrize("kind", ["<f4", "<f2", "<i1"])
def test_a_matrix_multiplies_as_torch_linear_does(tmp_path: Path, kind: str) -> None:
    matrix, x = np.arange(6).reshape(2, 3).astype(kind), np.array([[3, -1]], "<f4")
    item = (quantized if kind == "<i1" else plain)("encoder_l1_ffn_W1", matrix)
    weight = read(saved(model(item), tmp_path))["encoder_l1_ffn_W1"]
    expected = x @ (matrix / MULTIPLIER if kind == "<i1" else matrix)
    np.testing.assert_allclose(torch.nn.functional.linear(torch.from_numpy(x), weight).numpy(), expected, rtol=1e-6)


def test_learnt_positions_are_rows(tmp_path: Path) -> None:
    value = np.arange(6, dtype="<f4").reshape(3, 2)
    assert read(saved(model(plain("Wpos", value)), tmp_path))["Wpos"].tolist() == value.tolist()


def test_marians_own_number_for_int8(tmp_path: Path) -> None:
    value = np.arange(6, dtype=np.int8).reshape(3, 2)
    tensor = read(saved(model(quantized("W", value, kind=INT8_OF_MARIAN)), tmp_path))["W"]
    np.testing.assert_allclose(tensor.numpy(), value.T / MULTIPLIER, rtol=1e-6)


def test_a_quantized_multiplier_of_activations_is_a_number(tmp_path: Path) -> None:
    alpha = quantized("decoder_Wemb_QuantMultA", np.array([[127]], np.int8), padding=251, multiplier=14.5)
    tensors = read(saved(model(alpha, plain("none_QuantMultA", np.array([[8.5]], "<f4"))), tmp_path))
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "decoder_Wemb_QuantMultA": (),
        "none_QuantMultA": (),
    }
    assert tensors["decoder_Wemb_QuantMultA"].item() == pytest.approx(127 / 14.5)


W = np.arange(1, 7, dtype="<f4").reshape(2, 3)
Q = np.arange(-3, 3, dtype="<i1").reshape(2, 3)
SOUND = model(quantized("Wq", Q, 5), plain("h", W.astype("<f2")), plain("b", W[:1]), text("a: 1"), gap=3)


def test_every_truncation_is_an_error(shared: Path) -> None:
    assert read(saved(SOUND, shared))
    for size in range(len(SOUND)):
        with pytest.raises(CheckpointError, match=r"at byte \d+: the (file ends inside|number of items)|holds no"):
            read(saved(SOUND[:size], shared))
    with pytest.raises(CheckpointError, match=f"at byte {len(SOUND) - 5}: the file ends inside the data of 'special:"):
        configuration(saved(SOUND[:-1], shared))


@given(at=st.integers(0, len(SOUND) - 1), byte=st.integers(0, 255))
def test_a_damaged_byte_gives_tensors_or_a_checkpoint_error(shared: Path, at: int, byte: int) -> None:
    try:
        tensors = read(saved(SOUND[:at] + bytes([byte]) + SOUND[at + 1 :], shared))
        configuration(shared)
    except CheckpointError:
        return
    assert len(tensors) == 4


PLAIN = model(plain("W", W))  # The header begins at byte 16, the name at 48, the shape at 50, the gap at 58.
SHAPE = struct.pack("<2i", 2, 3)
MALFORMED = {
    "later version": (model(plain("W", W), version=2), "at byte 0: version 2 of the format is not supported"),
    "trailing bytes": (PLAIN + b"\0\0", "at byte 90: 2 bytes follow"),
    "rank": (PLAIN.replace(struct.pack("<2Q", 2, 24), struct.pack("<2Q", 9, 24)), "holds no"),
    "rank of a later one": (model(plain("b", W), Item("W", FLOAT32, (1,) * 9, b"\0" * 4)), "'W' has 9 dimensions"),
    "shape": (PLAIN.replace(SHAPE, struct.pack("<2i", 2, 4)), r"at byte 16: 'W' has 24 bytes, but .*\(2, 4\) needs 32"),
    "smaller shape": (model(Item("W", FLOAT32, (2, 3), b"\0" * 280)), "'W' has 280 bytes, but its shape"),
    "no multiplier": (model(Item("W", INT8, (2, 3), b"\0" * 9)), "'W' has 9 bytes, but its shape .* needs 10"),
    "empty shape": (PLAIN.replace(SHAPE, struct.pack("<2i", 2, 0)), r"at byte 50: 'W' has the shape \(2, 0\)"),
    "negative shape": (PLAIN.replace(SHAPE, struct.pack("<2i", -2, -3)), r"at byte 50: 'W' has the shape \(-2, -3\)"),
    "gap": (PLAIN.replace(SHAPE + b"\0", SHAPE + b"\xff"), "at byte 66: .* inside the padding"),
    "unended name": (PLAIN.replace(b"W\0", b"WW"), "at byte 48: .* does not end where its length says"),
    "name not text": (PLAIN.replace(b"W\0", b"\xff\0"), "at byte 48: .* is not UTF-8"),
    "twice": (model(plain("W", W), plain("W", W)), "at byte 48: tensor 'W' occurs twice"),
    "multiplier twice": (model(quantized("W", Q), plain("W_QuantMultB", W[:1, :1])), "tensor 'W_QuantMultB' occurs"),
    "zero multiplier": (model(quantized("W", Q, multiplier=0.0)), "at byte 72: 'W' has the multiplier 0.0"),
    "multiplier nan": (model(quantized("W", Q, multiplier=math.nan)), "'W' has the multiplier nan"),
    "avx2": (model(Item("W", 0x11001, (2, 3), bytes(10))), "type 0x11001, a layout packed for one kind of processor"),
    "fbgemm": (model(Item("W", 0x1801, (2, 3), bytes(10))), "type 0x1801, a layout packed for one kind of processor"),
    "int16": (model(Item("W", 0x4102, (2, 3), bytes(16))), "'W' is of Marian's type 0x4102, while float32"),
    "bytes": (model(Item("W", TEXT, (6,), bytes(6))), "at byte 16: 'W' is of Marian's type 0x101, while float32"),
}


@pytest.mark.parametrize(("content", "problem"), MALFORMED.values(), ids=MALFORMED)
def test_malformed(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        read(saved(content, tmp_path))


def test_tensors_are_owned(tmp_path: Path) -> None:
    folder = saved(model(plain("b", W[:1]), quantized("Wq", Q)), tmp_path)
    tensors = read(folder)
    for tensor in tensors.values():
        tensor.zero_()
    assert read(folder)["b"].tolist() == W[0].tolist()
    kept = read(folder)["b"]
    next(folder.iterdir()).write_bytes(b"")
    assert kept.tolist() == W[0].tolist()


def test_the_configuration(tmp_path: Path) -> None:
    written = "dim-emb: 256\ndim-vocabs:\n  - 32000\n  - 32000\ntied-embeddings-all: true\nversion: v1.9.56 94aeaa46\n"
    assert configuration(saved(model(plain("W", W), text(written)), tmp_path)) == {
        "dim-emb": 256,
        "dim-vocabs": [32000, 32000],
        "tied-embeddings-all": True,
        "version": "v1.9.56 94aeaa46",
    }


CONFIGURATIONS = {
    "none": (plain("W", W), "lacks special:model.yml"),
    "a list": (text("- 1"), "at byte 78: special:model.yml is not a mapping"),
    "not YAML": (text("a: [1"), "at byte 78: special:model.yml is not YAML"),
    "not text": (text(b"\xff\xfe\xfd"), "special:model.yml is not YAML"),
    "an object": (text("a: !!python/object/apply:os.getcwd []"), "special:model.yml is not YAML"),
    "an empty number": (text("a: !!int ''"), "special:model.yml is not YAML"),
    "endless nesting": (text("[" * 5000), "special:model.yml is not YAML"),
}


@pytest.mark.parametrize(("item", "problem"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_no_configuration(tmp_path: Path, item: Item, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        configuration(saved(model(item), tmp_path))


def test_the_settings_of_a_decoder(tmp_path: Path) -> None:
    """Of all files that state some, the later name goes before the earlier."""
    assert decoder_settings(tmp_path) == {}
    (tmp_path / "a.yml").write_text("beam-size: 4\nnormalize: 0.5\n")
    (tmp_path / "b.yml").write_text("beam-size: 1\n")
    assert decoder_settings(tmp_path) == {"beam-size": 1, "normalize": 0.5}


SETTINGS = {
    "empty": (b"", "is not a mapping"),
    "a list": (b"- 1", "is not a mapping"),
    "not YAML": (b"a: [1", "is not YAML"),
    "not text": (b"\xff\xfe\xfd", "is not YAML"),
    "an object": (b"a: !!python/object/apply:os.getcwd []", "is not YAML"),
}


@pytest.mark.parametrize(("written", "problem"), SETTINGS.values(), ids=SETTINGS)
def test_no_settings(tmp_path: Path, written: bytes, problem: str) -> None:
    (tmp_path / "config.yml").write_bytes(written)
    with pytest.raises(CheckpointError, match=rf"(?s)config\.yml {problem}.*; download it again"):
        decoder_settings(tmp_path)


HEADS = {
    "model": (PLAIN, True),
    "later version": (model(plain("W", W), version=3), True),
    "empty": (b"", False),
    "version only": (struct.pack("<Q", 1), False),
    "no items": (struct.pack("<2Q", 1, 0) + bytes(64), False),
    "more items than fit": (struct.pack("<2Q", 1, 9) + PLAIN[16:], False),
    "no name": (struct.pack("<6Q", 1, 1, 0, FLOAT32, 2, 24) + bytes(64), False),
    "ctranslate2": (struct.pack("<IH", 6, 12) + b"WhisperSpec\0" + bytes(64), False),
    "shortlist": (struct.pack("<6Q", 0xF11A48D5013417F5, 7, 50, 50, 1, 0) + bytes(64), False),
    "pickle": (b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(64), False),
    "zip": (b"PK\3\4\x14\0\0\0\0\0" + bytes(64), False),
}


@pytest.mark.parametrize(("head", "plausible"), HEADS.values(), ids=HEADS)
def test_recognised_by_content(tmp_path: Path, head: bytes, plausible: bool) -> None:
    assert recognises(saved(head, tmp_path, "model.bin")) is plausible
    assert ctranslate2.recognises(tmp_path) is (head == HEADS["ctranslate2"][0])


def test_other_files_beside_the_model_do_not_matter(tmp_path: Path) -> None:
    assert not recognises(tmp_path)
    (tmp_path / "folder.bin").mkdir()
    saved(HEADS["shortlist"][0], tmp_path, "lex.enpt.s2t.bin")
    assert not recognises(tmp_path)
    assert recognises(saved(PLAIN, tmp_path))
    assert read(tmp_path)["W"].tolist() == W.T.tolist()


def test_one_model_a_folder(tmp_path: Path) -> None:
    saved(PLAIN, tmp_path, "a.bin")
    saved(PLAIN, tmp_path, "b.bin")
    for function in (read, configuration):
        with pytest.raises(CheckpointError, match=r"holds a\.bin, b\.bin: keep one"):
            function(tmp_path)


def test_a_student_of_firefox_translations(student_en_pt: Path) -> None:
    assert recognises(student_en_pt)
    options = configuration(student_en_pt)
    assert [options[key] for key in ("enc-depth", "dec-depth", "dim-emb", "transformer-dim-ffn")] == [6, 2, 256, 1536]
    tensors = read(student_en_pt)
    own = {name for name in tensors if name.endswith("_QuantMultB")}
    assert (len(tensors), len(own)) == (194 + 53, 53)
    assert tensors["Wemb"].shape == (32_000, 256)
    assert tensors["decoder_l2_ffn_W1"].shape == (1536, 256)
    assert tensors["decoder_l2_ffn_W2"].shape == (256, 1536)
    assert tensors["encoder_l1_self_Wo_ln_scale"].shape == (256,)
    assert tensors["Wemb_QuantMultB"].item() == 153.83001708984375
    assert tensors["Wemb_QuantMultA"].item() == pytest.approx(tensors["none_QuantMultA"].item(), rel=1e-6)
    np.testing.assert_allclose(tensors["decoder_ff_logit_out_b"][:3], [-1.9500537, -15.324212, 2.9124737], rtol=1e-6)
    for name in own:  # The largest weight of each is 127 steps, all are whole steps.
        steps = tensors[name.removesuffix("_QuantMultB")] * tensors[name]
        assert (steps - steps.round()).abs().max() < 1e-4
        assert steps.abs().max().round() == 127
