"""Whisper, beside transformers' Whisper with the same random weights, from the encoder to whole searches."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.testing import assert_close

from heedful.export.checkpoint import Checkpoint
from heedful.export.eager import EagerDecoder
from heedful.export.weights import load_weights
from heedful.export.whisper import read_config
from heedful.export.whisper_names import NAMES
from heedful.models.attention import visible
from heedful.models.whisper import Whisper
from heedful.runtime.engine.decoder import Feed
from heedful.runtime.engine.generate import Job, generate
from heedful.runtime.engine.rules import Suppress
from heedful.runtime.engine.search import Beam, Limits, Sample, Search
from heedful.runtime.engine.slots import Slots

hf: Any = transformers

END, VOCABULARY, NEW_TOKENS = 3, 70, 12
NEVER, NOT_FIRST = [5, 6, 7], [END, 9]
PROMPTS = [[40, 8], [41, 9], [42, 10], [43, 11, 12, 13], [44, 14, 15, 16], [45, 17, 18, 19]]


@dataclass
class Pair:
    """Two models of the same weights, and six recordings of a second, each of another tone."""

    theirs: Any
    ours: Whisper
    waveform: Tensor

    @property
    def mel(self) -> Tensor:
        mel: Tensor = self.ours.log_mel(self.waveform)
        return mel


@dataclass(frozen=True)
class Case:
    """Sizes as transformers names them; how much the final bias favours the end token, and the seed of the weights."""

    sizes: dict[str, int]
    favour: float
    seed: int


def case(favour: float, seed: int, **sizes: int) -> Case:
    common = {"vocab_size": VOCABULARY, "max_source_positions": 50, "max_target_positions": 40}
    return Case(common | {"num_mel_bins": 80, "d_model": 32} | sizes, favour, seed)


CASES = {
    "even": case(
        0.6, 3, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64,
    ),
    "uneven": case(
        0.6, 0, d_model=24, encoder_layers=1, decoder_layers=3, encoder_attention_heads=3, decoder_attention_heads=2,
        encoder_ffn_dim=40, decoder_ffn_dim=56,
    ),
    "few decoder layers, 128 mels": case(
        0.8, 1, num_mel_bins=128, encoder_layers=3, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=8, encoder_ffn_dim=48, decoder_ffn_dim=32,
    ),
}  # fmt: skip


def checkpoint(config: dict[str, Any]) -> Checkpoint:
    return Checkpoint(Path(), "made up", "huggingface", config, {}, {}, {}, Path(), None)


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest) -> Pair:
    case = CASES[request.param]
    torch.manual_seed(case.seed)
    special: dict[str, Any] = {"bos_token_id": 1, "decoder_start_token_id": 1, "eos_token_id": END, "pad_token_id": END}
    config = hf.WhisperConfig(**case.sizes, **special, attn_implementation="eager")
    theirs = hf.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
        for name, parameter in theirs.named_parameters():
            parameter *= 3 if "encoder_attn" in name or "decoder.embed_positions" in name else 1
        end = theirs.model.decoder.embed_tokens.weight[END]
        theirs.model.decoder.layer_norm.bias += case.favour * end / end.norm()
    ours = Whisper(read_config(checkpoint(config.to_dict()))).eval().requires_grad_(False)
    load_weights(ours, theirs.state_dict(), NAMES["huggingface"])
    pitch = torch.tensor([100, 300, 700, 1500, 3000, 6000])[:, None]
    tones = torch.sin(2 * torch.pi * pitch * torch.arange(ours.config.samples) / 16_000)
    return Pair(theirs, ours, 0.5 * tones + 0.01 * torch.randn_like(tones))


@torch.no_grad()
def test_the_encoder_gives_the_keys_and_values_of_transformers(pair: Pair) -> None:
    hidden = pair.theirs.model.encoder(pair.mel).last_hidden_state
    memory = pair.ours.encode(pair.waveform)
    assert len(memory) == pair.ours.config.decoder_layers
    for ours, layer in zip(memory, pair.theirs.model.decoder.layers, strict=True):
        attention = layer.encoder_attn
        for found, projection in zip(ours, (attention.k_proj, attention.v_proj), strict=True):
            expected = projection(hidden).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
            assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_logits_and_cross_attention_are_those_of_transformers(pair: Pair) -> None:
    tokens = torch.randint(VOCABULARY, (len(PROMPTS), 11))
    expected = pair.theirs(input_features=pair.mel, decoder_input_ids=tokens, output_attentions=True)
    logits = pair.ours(pair.waveform, tokens)
    assert logits.dtype == torch.float32
    assert_close(logits, expected.logits, rtol=1e-4, atol=1e-4)
    mask, memory = visible(11, 11, causal=True), pair.ours.encode(pair.waveform)
    _, _, weights = pair.ours.decoder(tokens, torch.arange(11)[None], mask, memory, need_weights=True)
    for found, theirs in zip(weights, expected.cross_attentions, strict=True):
        assert_close(found, theirs, rtol=1e-4, atol=1e-5)


def test_logits_depend_on_the_recording(pair: Pair) -> None:
    tokens = torch.tensor([PROMPTS[0]]).expand(2, -1)
    first, second = pair.ours(pair.waveform[:2], tokens)
    assert (first - second).abs().max() > 0.01


def test_every_branch_in_the_cache_is_the_text_it_stands_for(pair: Pair) -> None:
    """Hypotheses fork, go on and are dropped at random; each one's logits are those of its whole text, uncached."""
    rng = np.random.default_rng(0)
    decoder = EagerDecoder(pair.ours.decoder, pair.ours.encode(pair.waveform))
    slots = {row: Slots() for row in range(len(PROMPTS))}
    texts = {row: [prompt] for row, prompt in enumerate(PROMPTS)}

    def uncached(row: int, text: list[int]) -> Tensor:
        logits: Tensor = pair.ours(pair.waveform[row : row + 1], torch.tensor([text]))[0]
        return logits

    feeds = {}
    for row, prompt in enumerate(PROMPTS):
        count = len(prompt)
        feeds[row] = Feed(prompt, range(count), 0, slots[row].prefill(count), range(count))
    for row, scores in decoder.step(feeds).items():
        assert_close(torch.as_tensor(scores.logits), uncached(row, PROMPTS[row]), rtol=1e-4, atol=1e-4)
    for _ in range(6):
        feeds = {}
        for row in rng.permutation(len(PROMPTS))[:4].tolist():
            parents = rng.integers(len(texts[row]), size=rng.integers(1, 5)).tolist()
            texts[row] = [[*texts[row][parent], int(rng.integers(VOCABULARY))] for parent in parents]
            tokens, at, count = [text[-1] for text in texts[row]], slots[row].used, len(parents)
            positions = [len(texts[row][0]) - 1] * count
            feeds[row] = Feed(tokens, positions, at, slots[row].step(parents), range(count))
        for row, scores in decoder.step(feeds).items():
            expected = torch.stack([uncached(row, text)[-1] for text in texts[row]])
            assert_close(torch.as_tensor(scores.logits), expected, rtol=1e-4, atol=1e-4)


Found = list[list[tuple[list[int], float]]]


def by_transformers(pair: Pair, width: int, **options: object) -> Found:
    """For each prompt its `width` best texts, cut after the end token, with their scores; prompts of a length go
    together.
    """
    found: Found = []
    for rows in (slice(0, 3), slice(3, 6)):
        prompt = torch.tensor(PROMPTS[rows])
        out = hf.GenerationMixin.generate(
            pair.theirs, inputs=pair.mel[rows], decoder_input_ids=prompt, num_beams=width, num_return_sequences=width,
            max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=END, pad_token_id=END, suppress_tokens=NEVER,
            begin_suppress_tokens=NOT_FIRST, return_dict_in_generate=True, output_scores=True, **options,
        )  # fmt: skip
        texts = [[*text, END][: [*text, END].index(END) + 1] for text in out.sequences[:, prompt.shape[1] :].tolist()]
        texts = [text[:NEW_TOKENS] for text in texts]
        scores = [0.0] * len(texts) if width == 1 else out.sequences_scores.tolist()
        pairs = list(zip(texts, scores, strict=True))
        found += [pairs[i : i + width] for i in range(0, len(pairs), width)]
    return found


def by_engine(pair: Pair, searches: list[Search]) -> Found:
    jobs = [Job(row, prompt, search) for row, (prompt, search) in enumerate(zip(PROMPTS, searches, strict=True))]
    generate(EagerDecoder(pair.ours.decoder, pair.ours.encode(pair.waveform)), jobs)
    return [[([*one.tokens, *[END] * one.ended], one.score) for one in job.search.results()] for job in jobs]


def limits() -> Limits:
    return Limits(END, NEW_TOKENS, [Suppress(NEVER), Suppress(NOT_FIRST, at_start=True)])


def test_greedy_search_is_that_of_transformers(pair: Pair) -> None:
    found = by_engine(pair, [Sample(limits()) for _ in PROMPTS])
    assert [texts[0][0] for texts in found] == [texts[0][0] for texts in by_transformers(pair, 1)]


@pytest.mark.parametrize(("early_stopping", "patience"), [(True, 1.0), (False, None)], ids=["early", "late"])
@pytest.mark.parametrize("length_penalty", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("width", [2, 3, 5])
def test_beam_search_is_that_of_transformers(
    pair: Pair, width: int, length_penalty: float, early_stopping: bool, patience: float | None
) -> None:
    """All texts found and their scores, not the best alone."""
    searches = [Beam(limits(), width=width, length_penalty=length_penalty, patience=patience) for _ in PROMPTS]
    found = by_engine(pair, [*searches])
    expected = by_transformers(pair, width, length_penalty=length_penalty, early_stopping=early_stopping)
    for ours, theirs in zip(found, expected, strict=True):
        assert [text for text, _ in ours] == [text for text, _ in theirs]
        assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], rel=1e-4)


def test_these_searches_end_in_every_way(pair: Pair) -> None:
    """Else the comparisons above would show little: texts end early, late, and at the limit."""
    texts = [text for each in by_engine(pair, [Beam(limits(), width=5) for _ in PROMPTS]) for text, _ in each]
    assert len({len(text) for text in texts if text[-1] == END}) >= 3
    assert any(text[-1] != END for text in texts)
    assert len({tuple(text) for text in texts}) > len(texts) / 2
