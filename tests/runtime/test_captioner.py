"""Captions of pictures by a tiny BLIP: what transformers says too, however they are asked for and in what company."""

import asyncio
import io
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from heedful.models.filterbank import mel_filterbank
from heedful.runtime import BusyError, Caption, Captioner, InputError, load
from heedful.runtime.image.pixels import PictureSource

ROWS = 3
SIDE = 4  # of the grid of a heat map
LENGTH = 16  # of the longest caption, with the token that begins it


def picture(seed: int) -> Image.Image:
    patches = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(patches).resize((40, 30), Image.Resampling.NEAREST)


PICTURES = [picture(seed) for seed in range(12)]


@pytest.fixture(scope="module")
def captioner(seeded_captioner: Path) -> Captioner:
    found: Captioner = load(seeded_captioner, "cpu", threads=1, rows=ROWS)
    return found


def one(captioner: Captioner, image: PictureSource, **options: Any) -> Caption:
    found = captioner(image, **options)
    assert isinstance(found, Caption)
    return found


def many(captioner: Captioner, images: Sequence[PictureSource], **options: Any) -> list[Caption]:
    found = captioner(images, **options)
    assert isinstance(found, list)
    return found


@pytest.fixture(scope="module")
def alone(captioner: Captioner) -> list[Caption]:
    """The caption of each picture, asked for by itself."""
    return [one(captioner, image) for image in PICTURES]


def said(caption: Caption) -> tuple[Any, ...]:
    return caption.text, caption.tokens, [each.text for each in caption.candidates], [w.text for w in caption.words]


def same(found: Sequence[Caption], expected: Sequence[Caption]) -> None:
    """All of it is the same, numbers but for the last bits, which depend on what is computed side by side."""
    assert list(map(said, found)) == list(map(said, expected))
    for one, other in zip(found, expected, strict=True):
        scores, its = ([each.score for each in caption.candidates] for caption in (one, other))
        assert scores == pytest.approx(its, abs=1e-4)
        for word, twin in zip(one.words, other.words, strict=True):
            assert word.probability == pytest.approx(twin.probability, rel=1e-3)
            np.testing.assert_allclose(word.heatmap, twin.heatmap, atol=1e-4)


class Reference:
    """transformers' BLIP of the same checkpoint."""

    def __init__(self, folder: Path) -> None:
        mel_filterbank(201, 80, 16_000)  # transformers imports torchaudio, which loads without CUDA only after this
        from transformers import BlipForConditionalGeneration
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

        kind: Any = BlipForConditionalGeneration
        self.model = kind.from_pretrained(folder, attn_implementation="eager").eval()
        processor: Any = BlipImageProcessorPil.from_pretrained(folder)
        self.values = processor(images=PICTURES, return_tensors="pt").pixel_values
        self.start, self.end = (getattr(self.model.config.text_config, f"{end}_token_id") for end in ("bos", "sep"))

    def write(self, **options: Any) -> list[list[int]]:
        """The tokens of the captions, those that begin and end them left out."""
        special = {self.start, self.end, self.model.config.text_config.pad_token_id}
        # it passes on what it is called with only
        rules = self.model.generation_config.to_diff_dict()
        stated = ("max_length", "num_beams", "no_repeat_ngram_size", "suppress_tokens")
        found = self.model.generate(pixel_values=self.values, **{name: rules[name] for name in stated} | options)
        return [[token for token in tokens if token not in special] for tokens in found.tolist()]

    def look(self, i: int, tokens: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Log-probabilities (n + 1, vocabulary) of what may come before and after each of `tokens`, and how much the
        upper of the two layers attends to the picture there (n + 1, rows, columns).
        """
        import torch

        with torch.no_grad():
            memory = self.model.vision_model(self.values[i : i + 1]).last_hidden_state
            out = self.model.text_decoder(
                torch.tensor([[self.start, *tokens]]), encoder_hidden_states=memory, output_attentions=True
            )
        logprobs = out.logits[0].double().log_softmax(-1).numpy()
        # the first place is no part of the picture
        return logprobs, out.cross_attentions[-1][0].mean(0)[:, 1:].double().numpy().reshape(-1, SIDE, SIDE)


@pytest.fixture(scope="module")
def reference(captioner_checkpoint: Path) -> Reference:
    return Reference(captioner_checkpoint)


@pytest.fixture(scope="module")
def tokenizer(captioner_checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_file(str(captioner_checkpoint / "tokenizer.json"))


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({}, {}),
        ({"beams": 1}, {"num_beams": 1}),
        ({"length_penalty": 3, "min_length": 6, "beams": 4}, {"length_penalty": 3.0, "min_length": 6, "num_beams": 4}),
        ({"no_repeat_ngram": 1, "early_stopping": True}, {"no_repeat_ngram_size": 1, "early_stopping": True}),
        ({"max_length": 7}, {"max_length": 7}),
    ],
    ids=str,
)
def test_captions_are_those_of_transformers(
    captioner: Captioner, reference: Reference, tokenizer: Tokenizer, options: dict[str, Any], theirs: dict[str, Any]
) -> None:
    expected = reference.write(**theirs)
    found = many(captioner, PICTURES, **options)
    assert [list(caption.tokens) for caption in found] == expected
    assert [caption.text for caption in found] == [tokenizer.decode(tokens) for tokens in expected]
    assert len({caption.text for caption in found}) > len(PICTURES) / 2


def test_a_score_is_the_mean_logprob_of_a_token(alone: list[Caption], reference: Reference) -> None:
    """The end token counts where there is one: a caption may also have been cut off."""
    lengths = set()
    for i, caption in enumerate(alone):
        ended = len(caption.tokens) < LENGTH - 1
        tokens = [*caption.tokens, *([reference.end] if ended else [])]
        logprobs, _ = reference.look(i, caption.tokens)
        assert caption.score == pytest.approx(logprobs[range(len(tokens)), tokens].mean(), abs=1e-4)
        lengths.add(ended)
    assert lengths == {True, False}


def every_kind(image: Image.Image, folder: Path) -> Iterator[PictureSource]:
    path = folder / "picture.png"
    image.save(path)
    yield from (path, str(path), path.read_bytes(), image, np.asarray(image), io.BytesIO(path.read_bytes()))


def test_every_kind_of_source_has_the_same_caption(captioner: Captioner, alone: list[Caption], tmp_path: Path) -> None:
    sources = list(every_kind(PICTURES[4], tmp_path))
    same([one(captioner, source) for source in sources], [alone[4]] * len(sources))
    with (tmp_path / "picture.png").open("rb") as file:
        same(many(captioner, [*sources, file]), [alone[4]] * (len(sources) + 1))


@pytest.mark.parametrize("batch", [1, 2, ROWS, ROWS + 1, 2 * ROWS, 100])
def test_captions_come_in_order_whatever_the_batch(captioner: Captioner, alone: list[Caption], batch: int) -> None:
    """The decoder has fewer rows than some batches have pictures."""
    assert len({caption.text for caption in alone}) > 6
    same(many(captioner, PICTURES, batch=batch), alone)
    same(list(captioner.stream(iter(PICTURES), batch=batch)), alone)
    same(many(captioner, tuple(PICTURES[:2]), batch=batch), alone[:2])
    assert many(captioner, [], batch=batch) == []


BAD: dict[int, PictureSource] = {0: "missing.png", 3: b"no picture", 4: np.zeros(5), 11: b""}
MESSAGES = {0: "missing.png: No such file", 3: "<bytes>: not a picture", 4: "<ndarray>: shape", 11: "<bytes>: empty"}


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_an_error_stands_in_the_place_of_its_picture(captioner: Captioner, alone: list[Caption], batch: int) -> None:
    mixed = [BAD.get(i, image) for i, image in enumerate(PICTURES)]
    found = list(captioner.attempts(mixed, batch=batch))
    errors = {i: str(each) for i, each in enumerate(found) if isinstance(each, InputError)}
    assert errors.keys() == BAD.keys()
    assert all(errors[i].startswith(message) for i, message in MESSAGES.items())
    good = [i for i in range(len(PICTURES)) if i not in BAD]
    same([each for each in found if isinstance(each, Caption)], [alone[i] for i in good])
    stream = captioner.stream(mixed[1:], batch=batch)
    same([next(stream), next(stream)], alone[1:3])
    with pytest.raises(InputError, match=MESSAGES[3]):
        next(stream)
    with pytest.raises(InputError, match=r"missing\.png"):
        captioner(mixed)


def test_nothing_but_bad_pictures_is_no_trouble(captioner: Captioner) -> None:
    found = list(captioner.attempts([*BAD.values()] * 5))
    assert [type(each) for each in found] == [InputError] * len(found)
    assert len(found) == 5 * len(BAD)


@pytest.mark.parametrize("options", [{}, {"beams": 5}, {"max_length": 8}, {"prompt": "a photo of"}], ids=str)
@pytest.mark.parametrize("count", [2, 5])
def test_candidates_fall_in_score_and_begin_with_the_text(
    captioner: Captioner, options: dict[str, Any], count: int
) -> None:
    for caption in many(captioner, PICTURES, count=count, **options):
        scores = [each.score for each in caption.candidates]
        assert len({each.text for each in caption.candidates}) == len(scores) == count
        assert scores == sorted(scores, reverse=True)
        assert (caption.text, caption.score) == (caption.candidates[0].text, scores[0])


def test_more_captions_are_asked_for_by_wider_beams(captioner: Captioner, alone: list[Caption]) -> None:
    same(many(captioner, PICTURES, count=1), alone)
    wide = many(captioner, PICTURES, beams=5)
    assert [caption.text for caption in many(captioner, PICTURES, count=5)] == [caption.text for caption in wide]


@pytest.mark.parametrize("prompt", ["a photo of", "A  Photo\tOF ", "sea"])
def test_a_caption_begins_with_its_prompt(
    captioner: Captioner, alone: list[Caption], tokenizer: Tokenizer, prompt: str
) -> None:
    found = many(captioner, PICTURES, prompt=prompt, count=2)
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    for caption in found:
        assert all(each.text.startswith(" ".join(prompt.lower().split())) for each in caption.candidates)
        assert caption.text == tokenizer.decode([*ids, *caption.tokens])
        assert len(ids) + len(caption.tokens) < LENGTH
    assert len({caption.text for caption in found}) > 6
    same(many(captioner, PICTURES, prompt=""), alone)


@pytest.mark.parametrize("length", [2, 5, 9])
def test_no_caption_is_longer_than_asked_for(captioner: Captioner, length: int) -> None:
    """Lengths count the token that captions begin with, as transformers does; greedy captions are cut off there."""
    whole = many(captioner, PICTURES, beams=1)
    found = many(captioner, PICTURES, beams=1, max_length=length)
    assert [caption.tokens for caption in found] == [caption.tokens[: length - 1] for caption in whole]
    assert max(len(caption.tokens) for caption in whole) > 9
    assert max(len(caption.tokens) for caption in many(captioner, PICTURES, max_length=length)) == length - 1


def joined(tokens: Sequence[str]) -> Iterator[list[int]]:
    """Which tokens make a word: BERT's continuations and full stops stand without a space before them."""
    word: list[int] = []
    for i, token in enumerate(tokens):
        if word and not token.startswith(("##", ".")):
            yield word
            word = []
        word.append(i)
    yield word


@pytest.mark.parametrize("prompt", [None, "a photo of"])
def test_heat_maps_are_the_attention_of_transformers(
    captioner: Captioner, alone: list[Caption], reference: Reference, tokenizer: Tokenizer, prompt: str | None
) -> None:
    """Of the words of the whole caption, those of the prompt among them."""
    begun = tokenizer.encode(prompt or "", add_special_tokens=False).ids
    found = many(captioner, PICTURES, heatmaps=True, prompt=prompt)
    several = 0
    for i, caption in enumerate(found):
        tokens = [*begun, *caption.tokens]
        logprobs, maps = reference.look(i, tokens)
        groups = list(joined([str(tokenizer.id_to_token(token)) for token in tokens]))
        several += any(len(group) > 1 for group in groups)
        assert " ".join(word.text for word in caption.words) == caption.text
        assert len(caption.words) == len(groups)
        for word, group in zip(caption.words, groups, strict=True):
            assert word.heatmap.shape == (SIDE, SIDE)
            assert word.heatmap.dtype == np.float32
            assert word.heatmap.min() >= 0
            assert word.heatmap.sum() <= 1 + 1e-5
            np.testing.assert_allclose(word.heatmap, maps[group].mean(0), atol=1e-4)
            expected = np.exp(logprobs[group, [tokens[j] for j in group]].sum())
            assert word.probability == pytest.approx(expected, rel=1e-2)
    assert several
    if prompt is None:
        assert [caption.text for caption in found] == [caption.text for caption in alone]


def test_heat_maps_come_with_the_picture_as_it_is_seen(captioner: Captioner, alone: list[Caption]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the left
    file = io.BytesIO()
    PICTURES[0].save(file, "PNG", exif=exif)
    caption = one(captioner, file.getvalue(), heatmaps=True)
    assert caption.region == (0, 0, 30, 40)
    assert caption.picture is not None
    np.testing.assert_array_equal(np.asarray(caption.picture), np.rot90(np.asarray(PICTURES[0]), -1))
    assert (alone[0].picture, alone[0].words, alone[0].region) == (None, (), (0, 0, 40, 30))


def test_a_caption_of_no_words_has_no_heat_maps(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [token for token in range(captioner.model.shape.vocabulary) if token != captioner.model.end]
    monkeypatch.setitem(captioner.model.search, "suppress", others)
    caption = one(captioner, PICTURES[0], heatmaps=True)
    assert (caption.text, caption.tokens, caption.words) == ("", (), ())
    prompted = one(captioner, PICTURES[0], heatmaps=True, prompt="a photo of")
    assert [word.text for word in prompted.words] == ["a", "photo", "of"]


# pictures, beams, captions of each, batch, heat maps, seconds before it comes
Request = tuple[list[int], int, int, int, bool, float]
requests = st.tuples(
    st.lists(st.integers(0, len(PICTURES) - 1), min_size=1, max_size=5),
    st.integers(2, 4), st.integers(1, 2), st.integers(1, 5), st.booleans(), st.floats(0, 0.02),
)  # fmt: skip


def answer(captioner: Captioner, request: Request) -> list[Caption]:
    which, beams, count, batch, heatmaps, delay = request
    time.sleep(delay)
    images = [PICTURES[i] for i in which]
    return many(captioner, images, beams=beams, count=count, batch=batch, heatmaps=heatmaps)


@settings(max_examples=8)
@given(chosen=st.lists(requests, min_size=2, max_size=5))
def test_each_thread_gets_what_it_gets_alone(captioner: Captioner, chosen: list[Request]) -> None:
    expected = [answer(captioner, request) for request in chosen]
    with ThreadPoolExecutor(len(chosen)) as pool:
        together = list(pool.map(lambda request: answer(captioner, request), chosen))
    for found, each in zip(together, expected, strict=True):
        same(found, each)


def test_submitted_requests_give_what_calls_give(captioner: Captioner, alone: list[Caption]) -> None:
    asked: list[Any] = [*PICTURES[:4], PICTURES[4:6]]

    async def ask() -> list[Any]:
        futures = [captioner.submit(image) for image in asked]
        return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))

    *ones, both = asyncio.run(ask())
    same([*ones, *both], alone[:6])
    with pytest.raises(InputError, match=r"missing\.png"):
        captioner.submit("missing.png").result(30)


def test_streams_that_nobody_takes_further_hold_up_nobody(captioner: Captioner, alone: list[Caption]) -> None:
    streams = [captioner.stream(PICTURES) for _ in range(ROWS + 1)]
    same([next(stream) for stream in streams], [alone[0]] * len(streams))
    found = captioner.submit(PICTURES[1:2]).result(60)
    assert isinstance(found, list)
    same(found, alone[1:2])


def test_more_requests_than_the_queue_holds_are_refused(seeded_captioner: Path) -> None:
    before = set(threading.enumerate())
    small: Captioner = load(seeded_captioner, "cpu", threads=1, queue=1)
    first = small.attempts(PICTURES * 2)
    assert isinstance(next(first), Caption)
    with pytest.raises(BusyError, match="1 requests are under way"):
        small(PICTURES[0])
    first.close()  # type: ignore[attr-defined]
    one(small, PICTURES[0])
    with pytest.raises(InputError, match="empty"):
        small(b"")
    with pytest.raises(ZeroDivisionError):
        list(small.stream(PICTURES[1 // i] for i in (1, 1, 0)))
    one(small, PICTURES[0])
    assert {each.name for each in set(threading.enumerate()) - before} <= {"heedful"}


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_no_more_than_three_batches_of_pictures_are_held(captioner: Captioner, batch: int) -> None:
    """However long the stream; and no more are taken from it than are needed soon."""
    alive: list[weakref.ref[Image.Image]] = []

    def coming() -> Iterator[Image.Image]:
        for seed in range(60):
            image = picture(seed)
            alive.append(weakref.ref(image))
            yield image
            del image

    most = 0
    for done, _ in enumerate(captioner.attempts(coming(), batch=batch, beams=1, max_length=3)):
        assert len(alive) <= done + 3 * batch
        most = max(most, sum(each() is not None for each in alive))
    assert len(alive) == done + 1 == 60
    assert 0 < most <= 3 * batch
