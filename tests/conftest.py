"""Fixtures shared by all tests: the cache of weights and samples, the built wheel, an environment without torch.

What a test fetches is kept, so only the first run needs a network; without one the tests that lack their files skip.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import Phase, settings
from tokenizers import Tokenizer, models, pre_tokenizers

from heedful.export.fetch import fetch
from heedful.models.filterbank import mel_filterbank
from heedful.runtime.bundle import VERSION
from heedful.runtime.errors import FetchError
from heedful.runtime.home import home

ROOT = Path(__file__).parent.parent
PACKAGES = ("models", "export", "runtime")
SPECIAL_TOKENS = [
    f"<|{name}|>"
    for name in (
        *("endoftext", "startoftranscript", "en", "pt", "translate", "transcribe"),
        *("startoflm", "startofprev", "nospeech", "notimestamps"),
    )
]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", *PACKAGES)

# A shared machine makes deadlines flaky. A continuous build must fail or pass twice alike, and is told what fails, not
# the simplest case of it, which can take minutes for each test.
_BUILD = "CI" in os.environ
_PHASES = [phase for phase in Phase if not _BUILD or phase not in {Phase.shrink, Phase.explain}]
settings.register_profile("heedful", deadline=None, derandomize=_BUILD, phases=_PHASES)
settings.load_profile("heedful")


@pytest.fixture(scope="session", autouse=True)
def heedful_home() -> Iterator[Path]:
    """`HEEDFUL_TEST_HOME`, else a folder beside the user's own; it is `HEEDFUL_HOME` for the whole session."""
    chosen = os.environ.get("HEEDFUL_TEST_HOME")
    folder = Path(chosen).expanduser().absolute() if chosen else home().absolute().with_name("heedful-test")
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEEDFUL_HOME", str(folder))
        yield folder


def pip(python: str | Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run pip under the interpreter `python`, quietly, its output captured as text."""
    command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> bool:
    """Whether pip reaches a package registry: it can download a tiny wheel afresh."""
    folder = tmp_path_factory.mktemp("registry")
    patience = ("--retries=1", "--timeout=15")
    probe = pip(sys.executable, "download", "--no-cache-dir", "--no-deps", *patience, "-d", folder, "iniconfig")
    return probe.returncode == 0


def fetched(name: str, request: pytest.FixtureRequest) -> Path:
    """The catalogue's `name` in the tests' cache; skips without a network, fails when the fetch is at fault."""
    try:
        return fetch(name, progress=False)
    except FetchError as error:
        if request.getfixturevalue("registry"):
            raise
        pytest.skip(f"needs network for {name}: {error}")


@pytest.fixture(scope="session")
def two_cities(request: pytest.FixtureRequest) -> Path:
    """A wav file of 44 s of read English."""
    return fetched("two-cities", request)


@pytest.fixture(scope="session")
def tiny_en_checkpoint(request: pytest.FixtureRequest) -> Path:
    """The checkpoint folder of Whisper tiny.en."""
    return fetched("whisper-tiny.en", request)


@pytest.fixture(scope="session")
def student_en_pt(request: pytest.FixtureRequest) -> Path:
    """The checkpoint folder of a small student that translates English to Portuguese."""
    return fetched("translate-en-pt", request)


@pytest.fixture(scope="session")
def translate_bundle(heedful_home: Path, request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """Gives the bundle of that student in a precision; skips without a network to fetch the checkpoint."""
    return lambda precision: exported(
        "translate-en-pt", export_key(), precision, lambda: request.getfixturevalue("student_en_pt")
    )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built without a network from a copy: a build folder left behind would leak into it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    built = pip(
        sys.executable, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", target, source
    )
    assert built.returncode == 0, built.stderr
    (path,) = target.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def torchless_python(heedful_home: Path, wheel: Path, request: pytest.FixtureRequest) -> Path:
    """The interpreter of an environment with the wheel and its base dependencies only: no torch.

    The dependencies are kept in the tests' cache until they change; the wheel is installed anew each session.
    """
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    folder = heedful_home / "torchless"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    key = hashlib.sha256(json.dumps([sys.version, *dependencies]).encode()).hexdigest()
    stamp = folder / "dependencies.sha256"
    if not stamp.is_file() or stamp.read_text() != key:
        if not request.getfixturevalue("registry"):
            pytest.skip("needs network to make an environment without torch")
        venv.create(folder, clear=True, with_pip=True)
        installed = pip(python, "install", *dependencies)
        assert installed.returncode == 0, installed.stderr
        stamp.write_text(key)
    installed = pip(python, "install", "--no-index", "--no-deps", "--force-reinstall", wheel)
    assert installed.returncode == 0, installed.stderr
    return python


def export_key() -> str:
    """What an export depends on: the code of the exporter and of the models, the libraries under them, the format."""
    digest = hashlib.sha256(" ".join([str(VERSION), *map(version, ("torch", "onnxscript", "transformers"))]).encode())
    sources = (path for package in ("export", "models") for path in (ROOT / package).rglob("*"))
    for path in sorted(path for path in sources if path.is_file() and "__pycache__" not in path.parts):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def export_apart(checkpoint: Path, bundle: Path, precision: str) -> Path:
    """`bundle`, exported by a process of its own, whose memory torch does not keep."""
    export = "import sys; from heedful.export.bundle import export; export(*sys.argv[1:])"
    command = [sys.executable, "-c", export, str(checkpoint), str(bundle), precision]
    done = subprocess.run(command, capture_output=True, text=True)
    assert bundle.is_dir(), done.stderr
    return bundle


def exported(name: str, key: str, precision: str, checkpoint: Callable[[], Path]) -> Path:
    """The bundle of `checkpoint` in the tests' cache: exported, and those of older keys removed, where it is not.

    Of several processes that ask for it one exports it, and the others wait.
    """
    folder = home() / "bundles"
    bundle = folder / f"{name}-{precision}-{key}"
    with FileLock(home() / f"{name}-{precision}.lock"):
        if not bundle.is_dir():
            for older in folder.glob(f"{name}-{precision}-*"):
                shutil.rmtree(older)
            export_apart(checkpoint(), bundle, precision)
    return bundle


@pytest.fixture(scope="session")
def tiny_en_bundle(heedful_home: Path, request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """Gives the bundle of Whisper tiny.en in a precision; skips without a network to fetch the checkpoint."""
    return lambda precision: exported(
        "whisper-tiny.en", export_key(), precision, lambda: request.getfixturevalue("tiny_en_checkpoint")
    )


@pytest.fixture(scope="session")
def seeded_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multilingual Whisper of random weights with windows of a second, in Hugging Face's layout.

    Its tokens are the 256 bytes, Whisper's special tokens and 51 timestamps. It writes printable ASCII only.
    """
    mel_filterbank(201, 80, 16_000)  # transformers imports torchaudio, which loads without CUDA only after this
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    folder = tmp_path_factory.mktemp("checkpoints") / "seeded"
    folder.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.save(str(folder / "tokenizer.json"))
    unwritten = [i for i in range(len(letters)) if not (32 <= ord(tokenizer.decode([i])) < 127)]
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size() + 51,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=50,
        max_target_positions=64,
        pad_token_id=len(letters),
        bos_token_id=len(letters),
        eos_token_id=len(letters),
        decoder_start_token_id=len(letters) + 1,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    end = tokenizer.token_to_id("<|endoftext|>")
    rules: Any = model.generation_config
    rules.suppress_tokens = [i for i in unwritten if i != end]
    rules.begin_suppress_tokens = [end]
    rules.is_multilingual = True
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def seeded_bundle(seeded_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 bundle of `seeded_checkpoint`; needs no network."""
    return export_apart(seeded_checkpoint, tmp_path_factory.mktemp("bundles") / "seeded", "fp32")


@pytest.fixture(scope="session")
def seeded_int8(seeded_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int8 bundle of `seeded_checkpoint`; needs no network."""
    return export_apart(seeded_checkpoint, tmp_path_factory.mktemp("bundles") / "seeded-int8", "int8")


@pytest.fixture(scope="session")
def captioner_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP of random weights that reads pictures of 32 x 32 and writes English words, in Hugging Face's layout.

    Its captions differ from picture to picture and end by themselves, most of them.
    """
    mel_filterbank(201, 80, 16_000)  # transformers imports torchaudio, which loads without CUDA only after this
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BlipConfig, BlipForConditionalGeneration

    folder = tmp_path_factory.mktemp("checkpoints") / "captioner"
    folder.mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    words = "a an the of in on at by two old red big small dog cat boat sea town night man rain picture photo look ."
    names = [*special, *words.split(), "##s", "##ing"]
    tokenizer = BertWordPieceTokenizer({name: i for i, name in enumerate(names)})
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "preprocessor_config.json").write_text('{"size": {"height": 32, "width": 32}}')
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ends = {"bos_token_id": 5, "sep_token_id": 3, "pad_token_id": 0}
    vision = {"hidden_size": 48, "image_size": 32, "patch_size": 8, **sizes}
    text = {"hidden_size": 32, "vocab_size": len(names), "max_position_embeddings": 32, **sizes, **ends}
    torch.manual_seed(0)
    model: Any = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 1 if "crossattention" in name or "position" in name else 0.2)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter += 1
        model.text_decoder.get_output_embeddings().weight[ends["sep_token_id"]] *= 1.5
    rules: Any = model.generation_config
    unwritten = [i for i in range(len(special)) if i != ends["sep_token_id"]]
    rules.update(max_length=16, num_beams=3, no_repeat_ngram_size=2, suppress_tokens=unwritten)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def seeded_captioner(captioner_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 bundle of `captioner_checkpoint`; needs no network."""
    return export_apart(captioner_checkpoint, tmp_path_factory.mktemp("bundles") / "captioner", "fp32")


@pytest.fixture
def resident() -> Callable[[], int]:
    """Says how many bytes of memory this process holds, those of libraries such as onnxruntime and FFmpeg included."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("needs /proc, to see the memory of libraries too")
    return lambda: int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
