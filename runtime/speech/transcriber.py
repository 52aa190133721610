"""Speech to text with one bundle, for any number of callers."""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext

from heedful.runtime.engine.lanes import Lanes, LanesByDecoder, threads_of
from heedful.runtime.engine.requests import Requests
from heedful.runtime.engine.sessions import Sessions
from heedful.runtime.speech.audio import Source, read_audio
from heedful.runtime.speech.model import SpeechModel
from heedful.runtime.speech.options import TranscribeOptions
from heedful.runtime.speech.results import Transcript
from heedful.runtime.speech.transcription import Transcription, collect


class Transcriber:
    """Transcribes speech with one bundle. Safe to call from several threads, whose windows are decoded together."""

    def __init__(self, sessions: Sessions, *, rows: int, queue: int) -> None:
        self.model = SpeechModel(sessions)
        self._lanes = LanesByDecoder(self.model, rows=rows, few=threads_of(self.model) - 1)
        # where there are two kinds the first request says which is needed
        if not self.model.has_beams:
            self.lanes(False)
        self._requests = Requests(queue)

    @property
    def device(self) -> str:
        """cpu or cuda: where it runs."""
        return self.model.device.name

    def lanes(self, beams: bool) -> Lanes[SpeechModel]:
        """The lanes whose decoders are for beam search, if the bundle has one, or are not; made when first needed."""
        return self._lanes[SpeechModel.beam_decoder if beams and self.model.has_beams else SpeechModel.decoder]

    def stream(self, audio: Source, *, sample_rate: int | None = None, **options: object) -> Transcription:
        """Begin a transcription of `audio`: a path, bytes, a binary file object, or an array with its `sample_rate`.

        `options` are those of `TranscribeOptions`. Raises InputError for audio or options that cannot be used.
        """
        return self._begin(self._requests.request, audio, sample_rate, options)

    def _begin(
        self,
        admitted: Callable[[], AbstractContextManager[None]],
        audio: Source,
        sample_rate: int | None,
        options: dict[str, object],
    ) -> Transcription:
        chosen = TranscribeOptions.of(**options)
        lanes = self.lanes(chosen.beams > 1)
        return Transcription(self.model, lanes, admitted, chosen, read_audio(audio, sample_rate))

    def __call__(self, audio: Source, *, sample_rate: int | None = None, **options: object) -> Transcript:
        """The whole transcript of `audio`; arguments as in `stream`."""
        return collect(self.stream(audio, sample_rate=sample_rate, **options))

    def submit(self, audio: Source, *, sample_rate: int | None = None, **options: object) -> Future[Transcript]:
        """The same, begun in the background: for asyncio, `await asyncio.wrap_future(transcriber.submit(...))`.

        Requests beyond the queue wait until others are over.
        """
        return self._requests.submit(lambda: collect(self._begin(nullcontext, audio, sample_rate, options)))
