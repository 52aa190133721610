"""Runs faster-whisper in an environment of its own; see serve.py.

A request holds `model` (a CTranslate2 folder), `compute_type`, `threads`, `audio` and `options` for `transcribe`, with
`batch_size` among them for the batched pipeline; the answer `text`, and `words` (start, end, text) where asked for.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from faster_whisper import BatchedInferencePipeline, WhisperModel
from serve import serve
from tokenizers import Tokenizer


@cache
def opened(model: str, compute_type: str, threads: int) -> WhisperModel:
    with TemporaryDirectory() as folder:
        for file in Path(model).iterdir():
            (Path(folder) / file.name).symlink_to(file.resolve())
        write_vocabulary(Path(folder))
        return WhisperModel(folder, device="cpu", compute_type=compute_type, cpu_threads=threads)


def write_vocabulary(folder: Path) -> None:
    """The list of tokens that CTranslate2 asks for beside the tokenizer, which has all but the timestamps."""
    if any(folder.glob("vocabulary.*")):
        return
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)
    stamps = [f"<|{0.02 * i:.2f}|>" for i in range(1501)]
    tokens = [*sorted(ids, key=ids.__getitem__), *stamps]
    (folder / "vocabulary.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")


def prepare(request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    model = opened(request["model"], request["compute_type"], request["threads"])
    engine = BatchedInferencePipeline(model) if "batch_size" in request["options"] else model

    def timed() -> dict[str, Any]:
        segments = list(engine.transcribe(request["audio"], **request["options"])[0])
        return {
            "text": "".join(segment.text for segment in segments),
            "words": [(word.start, word.end, word.word) for segment in segments for word in segment.words or []],
        }

    return timed


if __name__ == "__main__":
    serve("faster-whisper", prepare)
