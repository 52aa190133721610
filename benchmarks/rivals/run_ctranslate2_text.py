"""Runs a translation model in CTranslate2, in an environment of its own; see serve.py.

A request is that of a Translation (task.py), `model` a Marian model in Hugging Face's layout, with `precision` (a
compute type: float32, int8) and `workers`, among which the threads are divided: batches go to whichever is free. The
answer holds `translations`. What CTranslate2 reads is kept in the folder, below `ctranslate2`.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from ctranslate2 import Translator
from serve import serve
from to_ctranslate2 import write
from tokenizers import Tokenizer


@cache
def opened(model: str, precision: str, threads: int, workers: int) -> tuple[Tokenizer, Translator]:
    folder = Path(model)
    converted = folder / "ctranslate2"
    if not converted.exists():
        write(folder, converted)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    threading = {"inter_threads": workers, "intra_threads": threads // workers}
    return tokenizer, Translator(str(converted), compute_type=precision, **threading)


def prepare(request: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    tokenizer, translator = opened(*(request[name] for name in ("model", "precision", "threads", "workers")))
    ids = tokenizer.get_vocab(with_added_tokens=True)
    options = {"beam_size": request["beams"], "max_batch_size": request["batch"]}
    if length := request["length"]:
        options |= {"min_decoding_length": length, "max_decoding_length": length}

    def timed() -> dict[str, Any]:
        sources = [encoding.tokens for encoding in tokenizer.encode_batch(request["lines"])]
        found = [result.hypotheses[0] for result in translator.translate_batch(sources, **options)]
        return {"translations": tokenizer.decode_batch([[ids[token] for token in tokens] for tokens in found])}

    return timed


if __name__ == "__main__":
    serve("ctranslate2", prepare)
