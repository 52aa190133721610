"""Runs faster-whisper in an environment of its own: one JSON request a line in, one JSON answer a line out.

A request holds `model` (a CTranslate2 folder), `compute_type`, `threads`, `audio` and `options` for `transcribe`;
the answer `text`, `seconds` (of the transcription alone) and `words` (start, end, text) where they were asked for.
"""

import json
import sys
import time

from faster_whisper import WhisperModel

models: dict[tuple[str, str, int], WhisperModel] = {}
for line in sys.stdin:
    request = json.loads(line)
    key = request["model"], request["compute_type"], request["threads"]
    if key not in models:
        models[key] = WhisperModel(key[0], device="cpu", compute_type=key[1], cpu_threads=key[2])
    begin = time.perf_counter()
    segments = list(models[key].transcribe(request["audio"], **request["options"])[0])
    answer = {
        "seconds": time.perf_counter() - begin,
        "text": "".join(segment.text for segment in segments),
        "words": [(word.start, word.end, word.word) for segment in segments for word in segment.words or []],
    }
    print(json.dumps(answer), flush=True)
