"""Reading CTranslate2's model.bin, against files written by CTranslate2 itself and by struct."""

import base64
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from heedful.export.ctranslate2 import read, recognises
from heedful.runtime.errors import CheckpointError

Array = NDArray[np.generic]
Variables = dict[str, Array]

# Saved by ctranslate2 4.8.5 (specs.ModelSpec: validate, optimize, save) from sin(1), sin(2), ... : a (5, 4) embedding,
# a projection tied to it with a bias of 5, a (3, 4, 2) convolution with a bias of zeros, the scalar num_heads = 2 and
# the text activation = "gelu".
BY_CTRANSLATE2 = {
    "int8": (
        "c-muQU|`^62+7Q=3@%7bW?%+#Ie?g(Au+imvn;VBGe3`kkp(CMCel-LO1T)4^YhB|lQI*F85lw88F&~_0S`n)d1_{QMhOEmNDW9c6UY<^A"
        "dyolG{5yuNWIDK#yzHW!M7Xdid5$RpU@$MtS`PeIWZ>{$%d`549<%g{y7y$vN#Jdq~<22rle%%r5D5OVPb{a!zcnI%IZa?!R#=rhu9&3sS9Qc"
        "NG}6OpU7%%XP8Z{CJfFX+qf9=N^|2gQWH~(fu=KpyduC*P?VpQnhXjbXi&h7Seg}Xzx{ZI{ozIdyYqV;_Y2gN?gwcSLe>LyG&YX_00_frxB"
    ),
    "int16": (
        "c-muQU|`^62+7Q=3@%7bW?%+#Ie?g(Au+imvn;VBGe3`kkp(CMCel-LO1T)4^YhB|lQI*F85lw88F&~_0S`n)d1_{QMhOEmNDW9c69^jsi8$u"
        "P%o7=Y{?YpL=-)!7uguFBFaKrubNlZ)#&68Cm~Q^l`1AkIOorvmk<8!!&;675M+n)x_~PWmoK&chK@1HpLJX<7NvSC*nR)5OFgux8VRmYeV4n"
        "o0Nf@?qG31rz#%H7^rW6Cigb`$g07F4hepYHSD6F8t0<xY#1c;Yrh1+jGo?(BuQNZr}UdR0cHKqGOnuL(`Kpl<EBLM6JeYy"
    ),
}


def sines(*shape: int) -> NDArray[np.float64]:
    return np.sin(np.arange(1, math.prod(shape) + 1, dtype=np.float32)).astype(np.float64).reshape(shape)


def string(text: str) -> bytes:
    return struct.pack("<H", len(text.encode()) + 1) + text.encode() + b"\0"


DTYPES = {"f4": 0, "i1": 1, "i2": 2, "i4": 3, "f2": 4}


def variable(name: str, value: Array) -> bytes:
    shape = struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
    return string(name) + shape + struct.pack("<BI", DTYPES[value.dtype.str[1:]], value.nbytes) + value.tobytes()


def model(variables: Variables, aliases: dict[str, str] | None = None, version: int = 6) -> bytes:
    parts = [struct.pack("<I", version), string("WhisperSpec"), struct.pack("<II", 3, len(variables))]
    parts += [variable(name, value) for name, value in variables.items()]
    parts += [struct.pack("<I", len(aliases or {}))]
    parts += [string(alias) + string(name) for alias, name in (aliases or {}).items()]
    return b"".join(parts)


def saved(content: bytes, folder: Path) -> Path:
    (folder / "model.bin").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


def int8_scale(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What CTranslate2 documents: one scale a row, so that its largest magnitude becomes 127."""
    rows: NDArray[np.float64] = np.abs(values).reshape(len(values), -1).max(axis=1)
    return np.asarray(127 / rows).reshape(-1, *[1] * (values.ndim - 1))


def int16_scale(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """One scale for all: 10 bits for the largest magnitude."""
    return np.asarray(2**10 / np.abs(values).max())


@pytest.mark.parametrize(("dtype", "scale"), [("int8", int8_scale), ("int16", int16_scale)])
def test_a_model_saved_by_ctranslate2(
    tmp_path: Path, dtype: str, scale: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> None:
    folder = saved(zlib.decompress(base64.b85decode(BY_CTRANSLATE2[dtype])), tmp_path)
    assert recognises(folder)
    tensors = read(folder)
    assert set(tensors) == {
        "activation", "conv/bias", "conv/weight", "embeddings/weight", "num_heads", "projection/bias",
        "projection/weight",
    }  # fmt: skip
    for name, values in (("embeddings/weight", sines(5, 4)), ("conv/weight", sines(3, 4, 2))):
        expected = np.rint(values * scale(values)) / scale(values)
        assert tensors[name].dtype == torch.float32
        np.testing.assert_allclose(tensors[name].numpy(), expected, rtol=1e-6)
        assert np.abs(tensors[name].numpy() - values).max() < 0.004
    assert tensors["projection/weight"] is tensors["embeddings/weight"]
    np.testing.assert_array_equal(tensors["projection/bias"].numpy(), sines(5).astype(np.float32))
    assert (tensors["num_heads"].shape, tensors["num_heads"].dtype, tensors["num_heads"].item()) == ((), torch.int8, 2)
    assert tensors["activation"].numpy().tobytes() == b"gelu"


arrays = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(-100, 100, shape).astype(dtype),
    st.sampled_from(["<f4", "<i4", "<f2"]),
    st.lists(st.integers(1, 4), max_size=4).map(tuple),
    st.integers(0, 2**32 - 1),
)
names = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=12).map(lambda text: f"v/{text}")


@given(variables=st.dictionaries(names, arrays, min_size=1, max_size=4), data=st.data())
def test_everything_written_is_read_back(shared: Path, variables: Variables, data: st.DataObject) -> None:
    aliases = data.draw(
        st.dictionaries(names.map(lambda name: f"alias/{name}"), st.sampled_from(sorted(variables)), max_size=3)
    )
    tensors = read(saved(model(variables, aliases), shared))
    assert set(tensors) == {*variables, *aliases}
    for name, value in variables.items():
        assert tensors[name].shape == value.shape
        assert tensors[name].numpy().dtype == value.dtype
        np.testing.assert_array_equal(tensors[name].numpy(), value)
    for alias, name in aliases.items():
        assert tensors[alias] is tensors[name]


SOUND = model(
    {"a/weight": np.arange(-6, 6, dtype="<i1").reshape(3, 4), "a/weight_scale": np.array([2, 4, 8], "<f4"),
     "b": np.ones((2, 2), "<f2"), "heads": np.asarray(2, "<i2")},
    {"tied": "a/weight"},
)  # fmt: skip


def test_every_truncation_is_an_error_that_names_its_offset(shared: Path) -> None:
    assert read(saved(SOUND, shared))
    for size in range(1, len(SOUND)):
        with pytest.raises(CheckpointError, match=r"model\.bin at byte \d+: the .*(ends inside|more than the file)"):
            read(saved(SOUND[:size], shared))


@given(at=st.integers(0, len(SOUND) - 1), byte=st.integers(0, 255))
def test_a_damaged_byte_gives_tensors_or_a_checkpoint_error(shared: Path, at: int, byte: int) -> None:
    try:
        tensors = read(saved(SOUND[:at] + bytes([byte]) + SOUND[at + 1 :], shared))
    except CheckpointError:
        return
    assert sorted(tensor.numel() for tensor in tensors.values()) == [1, 4, 12, 12]


def test_bfloat16(shared: Path) -> None:
    content = bytearray(model({"w": np.array([0x3FC0, 0xC000], "<u2").view("<i2")}))
    content[-4 - 4 - 5] = 5  # The dtype, before the size, the data and the number of aliases.
    tensor = read(saved(bytes(content), shared))["w"]
    assert tensor.dtype == torch.bfloat16
    assert tensor.tolist() == [1.5, -2.0]


W = np.ones((2, 3), "<f4")
Q = np.ones((2, 3), "<i1")
SHAPE = struct.pack("<II", 2, 3)
PLAIN = model({"w": W})  # 22 bytes before the number of variables, 26 before "w", 68 before the number of aliases.
MALFORMED = {
    "later version": (model({"w": W}, version=7), "at byte 0: version 7 of the format is not supported"),
    "trailing bytes": (PLAIN + b"\0\0", "at byte 72: 2 bytes follow"),
    "count of variables": (PLAIN[:22] + b"\xff" * 4 + PLAIN[26:], "at byte 22: .* is 4294967295, more than the file"),
    "count of aliases": (PLAIN[:68] + b"\xff" * 4, "at byte 68: .* is 4294967295, more than the file"),
    "rank": (PLAIN.replace(b"\2" + SHAPE, b"\xff" + SHAPE), "at byte 30: 'w' has 255 dimensions"),
    "shape": (PLAIN.replace(SHAPE, struct.pack("<II", 2, 4)), "at byte 30: 'w' has 24 bytes, which is not shape"),
    "huge shape": (PLAIN.replace(SHAPE, struct.pack("<II", 0, 2**32 - 1)), "24 bytes, which is not shape"),
    "dtype": (PLAIN.replace(struct.pack("<BI", 0, 24), struct.pack("<BI", 9, 24)), "unknown dtype 9"),
    "unended name": (PLAIN.replace(b"w\0", b"ww"), "at byte 26: .* does not end where its length says"),
    "name not text": (PLAIN.replace(b"w\0", b"\xff\0"), "at byte 26: .* is not UTF-8"),
    "variable twice": (model({"w": W, "x": W}).replace(b"x\0", b"w\0"), "at byte 68: variable 'w' occurs twice"),
    "alias of that name": (model({"w": W}, {"w": "w"}), "at byte 72: alias 'w' is the name of another"),
    "alias of nothing": (model({"w": W}, {"a": "nowhere"}), "at byte 72: alias 'a' stands for 'nowhere'"),
    "no scale": (model({"w": Q}), "'w' is quantized and has no scale"),
    "scale of other rows": (model({"w": Q, "w_scale": np.ones(3, "<f4")}), "'w' needs a scale"),
    "zero scale": (model({"w": Q, "w_scale": np.zeros(2, "<f4")}), "'w' needs a scale"),
    "scale not a number": (model({"w": Q, "w_scale": np.full(2, np.nan, "<f4")}), "'w' needs a scale"),
}


@pytest.mark.parametrize(("content", "problem"), MALFORMED.values(), ids=MALFORMED)
def test_malformed(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        read(saved(content, tmp_path))


def test_tensors_are_owned(tmp_path: Path) -> None:
    folder = saved(model({"w": W}), tmp_path)
    tensor = read(folder)["w"]
    tensor.zero_()
    assert read(folder)["w"].tolist() == W.tolist()
    kept = read(folder)["w"]
    (folder / "model.bin").write_bytes(b"")
    assert kept.tolist() == W.tolist()


HEADS = {
    "model": (PLAIN[:30], True),
    "later version": (struct.pack("<I", 99) + string("FutureSpec"), True),
    "empty": (b"", False),
    "version only": (b"\6\0\0\0", False),
    "zip": (b"PK\3\4\x14\0\0\0\0\0", False),
    "pickle": (b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", False),
    "name cut off": (struct.pack("<IH", 6, 40) + b"Short\0", False),
    "not a name": (struct.pack("<I", 6) + string("Not a name!"), False),
}


@pytest.mark.parametrize(("head", "plausible"), HEADS.values(), ids=HEADS)
def test_recognised_by_content(tmp_path: Path, head: bytes, plausible: bool) -> None:
    assert recognises(saved(head, tmp_path)) is plausible


def test_a_folder_without_model_bin_is_not_recognised(tmp_path: Path) -> None:
    assert not recognises(tmp_path)
