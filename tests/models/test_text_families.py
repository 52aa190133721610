"""Every family of text models, beside transformers with the same random weights: from logits to whole bundles."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.testing import assert_close

from heedful.export.bundle import export
from heedful.export.checkpoint import Checkpoint, open_checkpoint
from heedful.export.eager import EagerDecoder
from heedful.export.families import find_family
from heedful.export.family import Family
from heedful.export.tokenizers import build_tokenizers
from heedful.models.seq2seq import Seq2Seq
from heedful.runtime.bundle import Bundle
from heedful.runtime.engine.decoder import All, Best, Feed, Scores
from heedful.runtime.engine.device import choose_device
from heedful.runtime.engine.generate import Job, Stepper, generate
from heedful.runtime.engine.sessions import Sessions
from heedful.runtime.load import load
from heedful.runtime.text.model import TextModel
from heedful.runtime.text.options import TextOptions
from heedful.runtime.text.request import Request

hf: Any = transformers

TEXTS = [
    "The rain fell on the old town all day and all night.",
    "A cat sat on a mat.",
    "We read books in the evening by the fire, and then we sleep.",
    "Nobody knows.",
    "The sea is green and the boats are small, said the old man to the cat.",
]
LENGTH = 16
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
FAIRSEQ, GOOGLE = dict[str, Any](unk_id=0, bos_id=1, eos_id=2), dict[str, Any](pad_id=0, eos_id=1, unk_id=2, bos_id=-1)

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")


def pieces(folder: Path, name: str, **options: Any) -> list[str]:
    """The pieces of a small SentencePiece model, which is written."""
    written = io.BytesIO()
    sizes: dict[str, Any] = {"vocab_size": 48, "hard_vocab_limit": "model_type" in options, "minloglevel": 2}
    SentencePieceTrainer.train(sentence_iterator=iter(TEXTS * 4), model_writer=written, **sizes, **options)
    (folder / name).write_bytes(written.getvalue())
    package = SentencePieceProcessor(model_proto=written.getvalue())
    return [package.id_to_piece(i) for i in range(package.get_piece_size())]


def m2m_100(folder: Path) -> None:
    found = pieces(folder, "sentencepiece.bpe.model", model_type="bpe", **FAIRSEQ)
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate([*SPECIAL, *found[3:]])}))


def marian(folder: Path) -> None:
    source, target = (pieces(folder, f"{side}.spm") for side in ("source", "target"))
    names = ["</s>", "<unk>", *sorted({*source[3:], *target[3:]}), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))


def bart(folder: Path) -> None:
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXTS, vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    tokenizer.save_model(str(folder))


# by the name that export/tokenizers.py has: the class in transformers and what writes its files
TOKENIZERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "marian": ("MarianTokenizer", marian),
    "bart": ("BartTokenizer", bart),
    "mbart": ("MBartTokenizer", partial(pieces, name="sentencepiece.bpe.model", **FAIRSEQ)),
    "mbart50": ("MBart50Tokenizer", partial(pieces, name="sentencepiece.bpe.model", **FAIRSEQ)),
    "pegasus": ("PegasusTokenizer", partial(pieces, name="spiece.model", **GOOGLE)),
    "m2m_100": ("M2M100Tokenizer", m2m_100),
    "nllb": ("NllbTokenizer", partial(pieces, name="sentencepiece.bpe.model", model_type="bpe", **FAIRSEQ)),
    "t5": ("T5Tokenizer", partial(pieces, name="spiece.model", **GOOGLE)),
}
BART = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 48, "max_position_embeddings": 128,
}  # fmt: skip
SCALED = BART | {"scale_embedding": True}
RELU = SCALED | {"activation_function": "relu"}
T5 = {
    "d_model": 32, "d_kv": 12, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
}  # fmt: skip
# what config.json said before transformers 5: nothing, unless the output has a matrix of its own
T5_PUBLISHED: dict[str, Any] = {"scale_decoder_outputs": None, "tie_word_embeddings": None}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


@dataclass(frozen=True)
class Case:
    """How transformers begins a model's name; the tokenizer's; what its config.json says; the seed of its weights
    and how far the end token's row of the output stands out, such that texts end in every way; its rules of generation;
    source and target language; what config.json says otherwise where it is published, None if it says nothing.
    """

    model: str
    tokenizer: str
    config: dict[str, Any]
    seed: int = 0
    favour: float = 1.0
    rules: dict[str, Any] = field(default_factory=dict)
    languages: tuple[str, str] | None = None
    published: dict[str, Any] = field(default_factory=dict)


CASES = {
    "marian": Case(
        "Marian", "marian", SCALED | {"activation_function": "swish"}, 7, 2.5,
        {"num_beams": 4, "forced_eos_token_id": 0, "bad_words_ids": [[47], [12, 20]]},
    ),
    "bart": Case(
        "Bart", "bart", BART, 5, 2.5,
        {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 3, "min_length": 6}
        | {"forced_bos_token_id": 0, "forced_eos_token_id": 2},
    ),
    "mbart": Case("MBart", "mbart", SCALED, 0, 3.0, {"num_beams": 5, "forced_eos_token_id": 2}, ("en_XX", "ro_RO")),
    "mbart50": Case(
        "MBart", "mbart50", RELU | {"tokenizer_class": "MBart50Tokenizer"}, 7, 2.5,
        {"num_beams": 5, "early_stopping": True, "forced_eos_token_id": 2}, ("pt_XX", "gl_ES"),
    ),
    "pegasus": Case(
        "Pegasus", "pegasus", RELU, 1, 3.0, {"num_beams": 8, "length_penalty": 0.8, "forced_eos_token_id": 1}
    ),
    "m2m_100": Case(
        "M2M100", "m2m_100", RELU, 0, 3.0,
        {"num_beams": 5, "early_stopping": True, "suppress_tokens": [5, 7]}, ("en", "pt"),
    ),
    "nllb": Case(
        "M2M100", "nllb", RELU | {"tokenizer_class": "NllbTokenizer"}, 6, 2.5,
        {"no_repeat_ngram_size": 2}, ("eng_Latn", "por_Latn"),
    ),
    "t5": Case("T5", "t5", T5, 0, 2.0, {"min_length": 4}),
    "t5 v1.1": Case("T5", "t5", T5 | GATED, 3, 2.0),
}  # fmt: skip
# of which only logits are looked at
TWO = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 60}
KIN = {
    "marian, two vocabularies": Case("Marian", "marian", SCALED | TWO),
    "bart, scaled": Case("Bart", "bart", SCALED | {"activation_function": "gelu_new"}),
    "mt5": Case("MT5", "t5", T5 | GATED),
    "t5, as published": Case("T5", "t5", T5, published=T5_PUBLISHED),
    "t5 v1.1, as published": Case("T5", "t5", T5 | GATED, published=T5_PUBLISHED | GATED),
    "mt5, as published": Case("MT5", "t5", T5 | GATED, published=T5_PUBLISHED | GATED),
}


@dataclass(frozen=True)
class Pair:
    """A checkpoint of random weights in `folder`, opened by transformers and by us."""

    case: Case
    folder: Path
    theirs: Any
    tokenizer: Any
    checkpoint: Checkpoint
    family: Family
    ours: Seq2Seq

    @property
    def target(self) -> dict[str, int]:
        """How transformers is told of the target language: the first mBART's targets begin with it, others have it
        second.
        """
        if self.case.languages is None:
            return {}
        where = "decoder_start_token_id" if self.case.tokenizer == "mbart" else "forced_bos_token_id"
        name = {"m2m_100": "__{}__"}.get(self.case.tokenizer, "{}").format(self.case.languages[1])
        return {where: self.tokenizer.convert_tokens_to_ids(name)}

    @property
    def languages(self) -> dict[str, str]:
        """How we are told of them."""
        return dict(zip(("source", "target"), self.case.languages or (), strict=False))


def open_tokenizer(case: Case, folder: Path) -> Any:
    """The tokenizer that transformers makes of `folder`."""
    settings: dict[str, Any] = dict(zip(("src_lang", "tgt_lang"), case.languages or (), strict=False))
    if case.tokenizer == "nllb":
        from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

        # without a tokenizer.json the mask would come first, unlike in the published one
        settings |= {"mask_token": None, "extra_special_tokens": [*FAIRSEQ_LANGUAGE_CODES, "<mask>"]}
    return getattr(hf, TOKENIZERS[case.tokenizer][0]).from_pretrained(folder, **settings)


@torch.no_grad()
def randomise(model: Any, case: Case, end: int) -> None:
    for name, parameter in model.named_parameters():
        if case.tokenizer in {"marian", "pegasus"} and "embed_positions" in name:
            continue  # computed
        parameter.normal_(0, 0.2)
        if "norm" in name and name.endswith("weight"):
            parameter += 1
        if "encoder_attn" in name or "EncDecAttention" in name:
            parameter *= 3
        if name.endswith("Attention.q.weight"):
            parameter *= model.config.d_kv**-0.5  # T5 does not divide scores
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_(0, 0.2)
    if case.config.get("tie_word_embeddings") is False:
        model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.2)
    model.lm_head.weight[end] *= case.favour


def make(case: Case, folder: Path) -> Pair:
    TOKENIZERS[case.tokenizer][1](folder)
    tokenizer = open_tokenizer(case, folder)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    start = "pad" if case.tokenizer in {"marian", "pegasus", "t5"} else "eos"
    vocabulary = build_tokenizers(folder, case.tokenizer).source.get_vocab_size()
    model = getattr(hf, case.model + ("MTModel" if case.model == "Marian" else "ForConditionalGeneration"))
    torch.manual_seed(case.seed)
    config = model.config_class(
        **case.config, **special, vocab_size=vocabulary, decoder_start_token_id=special[f"{start}_token_id"]
    )
    theirs = model(config)
    randomise(theirs, case, special["eos_token_id"])
    theirs.generation_config.update(**{"max_length": LENGTH, "num_beams": 1} | case.rules)
    theirs.save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text()) | case.published
    (folder / "config.json").write_text(json.dumps({name: value for name, value in said.items() if value is not None}))
    checkpoint = open_checkpoint(folder)
    family = find_family(checkpoint)
    theirs = model.from_pretrained(folder, attn_implementation="eager").eval()
    ours = family.load(checkpoint).requires_grad_(False)
    return Pair(case, folder, theirs, tokenizer, checkpoint, family, ours)


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(CASES[request.param], tmp_path_factory.mktemp("checkpoint"))


def padded(pair: Pair, sources: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Sources and their lengths."""
    tokens = pad_sequence(list(map(torch.tensor, sources)), True, pair.theirs.config.pad_token_id)
    return tokens, torch.tensor([len(source) for source in sources])


def check_logits(pair: Pair) -> None:
    """On sources of several lengths side by side."""
    rng = np.random.default_rng(0)
    sources = [rng.integers(3, 40, size).tolist() for size in (9, 25, 1, 18)]
    tokens, lengths = padded(pair, sources)
    seen = torch.arange(tokens.shape[1]) < lengths[:, None]
    target = torch.from_numpy(rng.integers(3, 40, (4, 20)))
    with torch.no_grad():
        expected = pair.theirs(input_ids=tokens, attention_mask=seen.long(), decoder_input_ids=target).logits
    assert expected.std() > 0.1
    assert_close(pair.ours(tokens, lengths, target), expected, rtol=1e-4, atol=1e-4)


def test_logits_are_those_of_transformers(pair: Pair) -> None:
    check_logits(pair)


@pytest.mark.parametrize("name", KIN)
def test_so_are_those_of_their_kin(name: str, tmp_path: Path) -> None:
    check_logits(make(KIN[name], tmp_path))


@pytest.fixture(scope="module")
def opened(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    """What the runtime knows of a bundle, none of whose graphs are needed."""
    folder = tmp_path_factory.mktemp("bundle")
    tokenizers = pair.family.tokenizers(pair.checkpoint)
    for name, tokenizer in tokenizers.items():
        tokenizer.save(str(folder / name))
    text = json.loads(json.dumps(pair.family.describe(pair.checkpoint, pair.ours, tokenizers)))
    sizes = {"layers": 2, "heads": 2, "head_dim": 16, "frames": 0, "positions": 128, "vocabulary": 300}
    shape = sizes | {"dtype": "float32", "cache": {}}
    manifest = {"family": "", "precision": "fp32", "decoder": shape, "files": dict.fromkeys(tokenizers), "text": text}
    return TextModel(Sessions(Bundle(folder, manifest), choose_device("cpu")))


class Ranked:
    """A decoder that hands over the best logits only, as a graph does."""

    def __init__(self, decoder: Stepper) -> None:
        self.decoder = decoder
        self.spare = decoder.spare

    def release(self, row: int) -> None:
        self.decoder.release(row)

    def step(self, feeds: Mapping[int, Feed]) -> dict[int, Scores]:
        return {row: best(scores, feeds[row].wanted.best) for row, scores in self.decoder.step(feeds).items()}


def best(scores: Scores, count: int) -> Best:
    assert count > 0, "rules that look at logits would need all of them"
    assert isinstance(scores, All)
    tokens, total = np.argsort(-scores.logits, axis=1, kind="stable")[:, :count], scores.total.tolist()
    return Best(np.take_along_axis(scores.logits, tokens, 1).tolist(), tokens.tolist(), total, total)


Found = list[list[tuple[list[int], float]]]
# as transformers has them
NAMES = {"beams": "num_beams", "no_repeat_ngram": "no_repeat_ngram_size"}


def by_engine(pair: Pair, opened: TextModel, ranked: bool, **options: Any) -> Found:
    """For each text what was written, the end token included, and the scores; best first."""
    request = Request(opened, TextOptions.of(**pair.languages, **options), split=False)
    sources = [request.framing.source(opened.tokens.encode(text)) for text in TEXTS]
    tokens, lengths = padded(pair, sources)
    decoder = EagerDecoder(pair.ours.decoder, pair.ours.encode(tokens, lengths), lengths.tolist())
    jobs = [Job(row, request.framing.start, request.search(source)) for row, source in enumerate(sources)]
    generate(Ranked(decoder) if ranked else decoder, jobs)
    return [[([*one.tokens, *[opened.end] * one.ended], one.score) for one in job.search.results()] for job in jobs]


def by_transformers(pair: Pair, **options: Any) -> Found:
    rules = {NAMES.get(name, name): value for name, value in options.items()}
    width = rules.get("num_beams") or pair.theirs.generation_config.num_beams
    inputs = pair.tokenizer(TEXTS, return_tensors="pt", padding=True)
    out = pair.theirs.generate(
        **inputs, **rules, **pair.target, num_return_sequences=width, return_dict_in_generate=True, output_scores=True
    )
    config = pair.theirs.generation_config
    start = 1 + ("forced_bos_token_id" in pair.target or config.forced_bos_token_id is not None)
    length, end = rules.get("max_length", LENGTH) - start, config.eos_token_id
    texts = [[*text, end][: [*text, end].index(end) + 1][:length] for text in out.sequences[:, start:].tolist()]
    found = list(zip(texts, [0.0] * len(texts) if width == 1 else out.sequences_scores.tolist(), strict=True))
    return [found[i : i + width] for i in range(0, len(found), width)]


STOPPING: dict[bool | str, list[tuple[int, float]]] = {
    True: [(2, 0.8), (4, 1), (5, 2)], False: [(2, 2), (4, 0.8), (5, 1)], "never": [(2, 1), (4, -0.5), (3, 2)],
}  # fmt: skip
SEARCHES: list[dict[str, Any]] = [
    {},
    {"beams": 1},
    *({"beams": n, "length_penalty": x, "early_stopping": early} for early in STOPPING for n, x in STOPPING[early]),
    {"beams": 3, "no_repeat_ngram": 2, "min_length": 7, "max_length": 12},
    {"beams": 1, "no_repeat_ngram": 2, "min_length": 5},
    {"beams": 4, "repetition_penalty": 1.3, "no_repeat_ngram": 3},
    {"beams": 3, "repetition_penalty": 0.7},
    {"beams": 1, "repetition_penalty": 1.8, "min_length": 5},
]


@pytest.mark.parametrize("options", SEARCHES, ids=str)
def test_texts_are_those_of_transformers(pair: Pair, opened: TextModel, options: dict[str, Any]) -> None:
    """All that were found and their scores, not the best alone, from all logits and from the best of them."""
    expected = by_transformers(pair, **options)
    # a repetition penalty is of all logits
    for ranked in {False, "repetition_penalty" not in options}:
        found = by_engine(pair, opened, ranked, **options)
        assert [[text for text, _ in texts] for texts in found] == [[text for text, _ in texts] for texts in expected]
        for ours, theirs in zip(found, expected, strict=True):
            if len(ours) > 1:
                assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], rel=1e-4)


def test_these_searches_end_in_every_way(pair: Pair, opened: TextModel) -> None:
    """Else the comparisons above would show little: texts end early, late, and at the limit."""
    found = by_engine(pair, opened, True, beams=5, no_repeat_ngram=0)
    texts = [text for each in found for text, _ in each]
    assert len({len(text) for text in texts if text[-1] == opened.end}) >= 3
    assert max(map(len, texts)) == LENGTH - len(opened.framing(*opened.some_languages()).start)
    assert len({tuple(text) for text in texts}) > len(texts) / 2


@pytest.fixture(scope="module")
def write(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The bundle of the checkpoint, loaded."""
    return load(export(pair.folder, tmp_path_factory.mktemp("bundles") / "bundle"), device="cpu", threads=1)


@pytest.mark.parametrize("pair", ["marian", "mbart50", "t5 v1.1"], indirect=True)
@pytest.mark.parametrize("options", SEARCHES, ids=str)
def test_a_bundle_writes_what_transformers_writes(pair: Pair, write: Any, options: dict[str, Any]) -> None:
    """These have every kind of layer, of positions and of tokens around a text."""
    assert write.model.decoder(1).ranks, "else this would not be the search among the best logits"
    expected = [texts[0][0] for texts in by_transformers(pair, **options)]
    found = write(TEXTS, **pair.languages, split=False, **options)
    end = pair.theirs.generation_config.eos_token_id
    assert [list(each.tokens) for each in found] == [text[: [*text, end].index(end)] for text in expected]
    texts = [pair.tokenizer.decode(text, skip_special_tokens=True).strip() for text in expected]
    assert [each.text for each in found] == texts
