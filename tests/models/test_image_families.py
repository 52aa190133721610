"""Every family of captioners, beside transformers with the same random weights: from pictures to whole bundles."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from sentencepiece import SentencePieceTrainer
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from torch.testing import assert_close

from heedful.export.bundle import export
from heedful.export.checkpoint import open_checkpoint
from heedful.export.families import find_family
from heedful.models.captioner import Captioner
from heedful.runtime.image.pixels import Framing, read_picture
from heedful.runtime.load import load

hf: Any = transformers

LENGTH = 16
LINES = [
    "a dog sits on the red mat in the big blue room.",
    "two small cats are playing with a ball, and a man looks at them.",
    "the sea is green and the boats are small.",
    "a picture of an old town at night, in the rain.",
]
WORDS = sorted({word.strip(".,") for line in LINES for word in line.split()})


def bert(folder: Path) -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"._,'", "##s", "##ing", "##t"]
    (folder / "vocab.txt").write_text("\n".join(names) + "\n")


def blip(folder: Path) -> None:
    """BERT's with a token of its own to begin captions with, as one file."""
    bert(folder)
    tokenizer = hf.BertTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.save_pretrained(folder)
    (folder / "vocab.txt").unlink()


def gpt2(folder: Path) -> None:
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(LINES, vocab_size=330, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.save_model(str(folder))


def xlm_roberta(folder: Path) -> None:
    written = io.BytesIO()
    options: dict[str, Any] = {"vocab_size": 48, "hard_vocab_limit": False, "minloglevel": 2}
    options |= {"unk_id": 0, "bos_id": 1, "eos_id": 2}
    SentencePieceTrainer.train(sentence_iterator=iter(LINES * 4), model_writer=written, **options)
    (folder / "sentencepiece.bpe.model").write_bytes(written.getvalue())


# what writes its files, the class in transformers, and what captions begin and end with and what fills them up
TOKENIZERS: dict[str, tuple[Callable[[Path], None], str, tuple[str, str, str]]] = {
    "bert": (bert, "BertTokenizer", ("[CLS]", "[SEP]", "[PAD]")),
    "blip": (blip, "BertTokenizer", ("[DEC]", "[SEP]", "[PAD]")),
    "gpt2": (gpt2, "GPT2Tokenizer", ("<|endoftext|>",) * 3),
    "xlm_roberta": (xlm_roberta, "XLMRobertaTokenizer", ("</s>", "</s>", "<pad>")),
}
SIDE = 32
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
VISION = dict(zip(SIZES, (48, 1, 4, 64), strict=True)) | {"image_size": SIDE, "patch_size": 8}
BERT = dict(zip(SIZES, (32, 2, 2, 48), strict=True)) | {"max_position_embeddings": 64, "tie_word_embeddings": True}
GPT2 = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}
TROCR = {
    "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 48,
    "max_position_embeddings": 64, "cross_attention_hidden_size": 48,
}  # fmt: skip
UNTIED = {"tie_word_embeddings": False}
SQUARE = {"size": {"height": SIDE, "width": SIDE}}
CROPPED = {"size": {"height": 40, "width": 40}, "crop_size": {"height": SIDE, "width": SIDE}}
SHORTER = {"size": {"shortest_edge": 40}, "crop_size": {"height": SIDE, "width": SIDE}}


WHOLE = {"Blip": "BlipForConditionalGeneration", "Git": "GitForCausalLM"}


@dataclass(frozen=True)
class Case:
    """How names in transformers begin, of the model or of both stacks of a VisionEncoderDecoderModel; what their
    configurations say; the tokenizer; how the image processor's name begins and its settings; the seed of the weights
    and how far the end token's row of the output stands out, such that captions end in every way; rules of generation.
    """

    model: str
    encoder: dict[str, Any]
    decoder: dict[str, Any]
    tokenizer: str
    processor: tuple[str, dict[str, Any]]
    seed: int = 0
    favour: float = 1.0
    rules: dict[str, Any] = field(default_factory=dict)

    def configure(self, start: int, end: int, pad: int, **sizes: Any) -> Any:
        """The configuration of the whole model."""
        ends = {"bos_token_id": start, "sep_token_id" if self.model == "Blip" else "eos_token_id": end}
        decoder = self.decoder | sizes | ends | {"pad_token_id": pad}
        if self.model == "Blip":
            tied = self.decoder["tie_word_embeddings"]
            return hf.BlipConfig(text_config=decoder, vision_config=self.encoder, tie_word_embeddings=tied)
        if self.model == "Git":
            return hf.GitConfig(**decoder, vision_config=self.encoder)
        decoder |= {"is_decoder": True, "add_cross_attention": True, "decoder_start_token_id": start}
        stacks = zip(self.model.split(), (self.encoder, decoder), strict=True)
        configs = [getattr(hf, f"{name}Config")(**config) for name, config in stacks]
        return hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(*configs)


CASES = {
    "blip": Case(
        "Blip", VISION, BERT, "blip", ("Blip", SQUARE), 0, 2.0,
        {"num_beams": 3, "min_length": 5, "bad_words_ids": [[9], [12, 20]]},
    ),
    "vit, gpt2": Case(
        "ViT GPT2", VISION, GPT2, "gpt2", ("ViT", SQUARE), 1, 2.0,
        {"num_beams": 4, "early_stopping": True, "suppress_tokens": [5, 300]},
    ),
    "deit, bert": Case("DeiT Bert", VISION, BERT, "bert", ("DeiT", CROPPED), 3, 2.0, {"no_repeat_ngram_size": 2}),
    "deit, trocr": Case(
        "DeiT TrOCR", VISION | {"qkv_bias": False},
        TROCR | UNTIED | dict.fromkeys(("use_learned_position_embeddings", "layernorm_embedding"), False)
        | {"scale_embedding": True},
        "xlm_roberta", ("DeiT", SQUARE | {"do_center_crop": False}), 0, 2.0,
        {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 3},
    ),
    "git": Case(
        "Git", VISION, BERT | UNTIED, "bert", ("CLIP", SHORTER), 2, 3.0, {"num_beams": 4, "length_penalty": 0.6}
    ),
}  # fmt: skip
# of which only logits are looked at
KIN = {
    "blip, untied": Case("Blip", VISION, BERT | UNTIED, "blip", ("Blip", SQUARE)),
    "vit, bert": Case("ViT Bert", VISION | {"hidden_size": 32}, BERT, "bert", ("ViT", SQUARE)),
    "vit, trocr": Case("ViT TrOCR", VISION, TROCR, "xlm_roberta", ("ViT", SQUARE)),
    "deit, gpt2": Case("DeiT GPT2", VISION, GPT2 | UNTIED, "gpt2", ("DeiT", CROPPED)),
    "git, tied": Case("Git", VISION, BERT, "bert", ("CLIP", SHORTER)),
    "vit, patches that leave a rest": Case("ViT Bert", VISION | {"patch_size": 7}, BERT, "bert", ("ViT", SQUARE)),
}


def picture(width: int, height: int, seed: int) -> Image.Image:
    """A few patches of random colours under noise."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (4, 3, 3), dtype=np.uint8)).resize((width, height), 1)
    return Image.blend(patches, Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)), 0.3)


PICTURES = [picture(*size, seed) for seed, size in enumerate([(45, 31), (33, 97), (150, 101), (32, 32)])]


@dataclass(frozen=True)
class Pair:
    """A checkpoint of random weights in `folder`, opened by transformers and by us; the tokens that captions begin and
    end with; the pictures as transformers feeds them and as we do.
    """

    case: Case
    folder: Path
    theirs: Any
    tokenizer: Any
    start: int
    end: int
    values: Tensor
    ours: Captioner
    pixels: Tensor

    @property
    def text(self) -> str:
        """What transformers calls the tokens of the text."""
        return "input_ids" if self.case.model in WHOLE else "decoder_input_ids"

    def encode(self, text: str | None) -> list[int]:
        return list(self.tokenizer(text or "", add_special_tokens=False).input_ids)

    def decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


# what brings the picture into the text; the larger, the more the text depends on it
LOOKING = re.compile(r"crossattention|encoder_attn|git\.encoder\..*(query|value)")


@torch.no_grad()
def randomise(model: Any, case: Case, end: int) -> None:
    for name, parameter in model.named_parameters():
        parameter.normal_(0, 0.2)
        if re.search(r"norm|ln_", name.lower()) and name.endswith("weight"):
            parameter += 1
        if LOOKING.search(name):
            parameter *= 3
    writer = {"Blip": "text_decoder", "Git": ""}.get(case.model, "decoder")
    model.get_submodule(writer).get_output_embeddings().weight[end] *= case.favour


def make(case: Case, folder: Path) -> Pair:
    write, kind, names = TOKENIZERS[case.tokenizer]
    write(folder)
    tokenizer = getattr(hf, kind).from_pretrained(folder)
    start, end, pad = tokenizer.convert_tokens_to_ids(list(names))
    name, settings = case.processor
    processor = getattr(hf, f"{name}ImageProcessorPil")(**settings)
    processor.save_pretrained(folder)
    torch.manual_seed(case.seed)
    model = getattr(hf, WHOLE.get(case.model, "VisionEncoderDecoderModel"))
    theirs = model(case.configure(start, end, pad, vocab_size=len(tokenizer))).eval()
    randomise(theirs, case, end)
    theirs.generation_config.update(**{"max_length": LENGTH, "num_beams": 1} | case.rules)
    theirs.save_pretrained(folder)
    values = processor(images=PICTURES, return_tensors="pt").pixel_values
    checkpoint = open_checkpoint(folder)
    family = find_family(checkpoint)
    ours = family.load(checkpoint).requires_grad_(False)
    framing = Framing(**family.describe(checkpoint, ours, {})["framing"])
    pixels = torch.stack([torch.from_numpy(read_picture(each, framing).pixels) for each in PICTURES])
    return Pair(case, folder, theirs, tokenizer, start, end, values, ours, pixels)


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(CASES[request.param], tmp_path_factory.mktemp("checkpoint"))


def check_logits(pair: Pair) -> None:
    """From the pictures on, which are of several sizes."""
    assert_close(pair.ours.normalize(pair.pixels).permute(0, 3, 1, 2), pair.values, rtol=0, atol=2e-6)
    tokens = torch.randint(3, len(pair.tokenizer), (len(PICTURES), 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = pair.theirs(pixel_values=pair.values, **{pair.text: tokens}).logits[:, -20:]
    assert expected.std() > 0.5
    assert (expected[0] - expected[1]).abs().mean() > 0.1
    assert_close(pair.ours(pair.pixels, tokens), expected, rtol=1e-4, atol=1e-4)


def test_logits_are_those_of_transformers(pair: Pair) -> None:
    check_logits(pair)


@pytest.mark.parametrize("name", KIN)
def test_so_are_those_of_their_kin(name: str, tmp_path: Path) -> None:
    check_logits(make(KIN[name], tmp_path))


@pytest.fixture(scope="module")
def caption(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The bundle of the checkpoint, loaded."""
    return load(export(pair.folder, tmp_path_factory.mktemp("bundles") / "bundle"), device="cpu", threads=1)


NAMES = {"beams": "num_beams", "no_repeat_ngram": "no_repeat_ngram_size"}
OUTPUTS = dict.fromkeys(("return_dict_in_generate", "output_logits", "output_scores"), True)


def by_transformers(pair: Pair, prompt: str | None = None, **options: Any) -> list[list[tuple[list[int], float]]]:
    """For each picture the captions found, best first: their tokens, and the mean of the logarithms of those tokens'
    probabilities, the end's among them if it came.
    """
    # BLIP does not look at the generation_config.json of the whole model
    rules: dict[str, Any] = {"max_length": LENGTH, "num_beams": 1, "length_penalty": 1.0} | pair.case.rules
    rules |= {NAMES.get(name, name): value for name, value in options.items()}
    begun = given = [pair.start, *pair.encode(prompt)]
    if prompt and pair.case.model == "Blip":  # which puts its start in the place of [CLS], and drops [SEP]
        given = pair.tokenizer(prompt).input_ids
    text = {pair.text: torch.tensor([given] * len(PICTURES))} if prompt else {}
    width = rules["num_beams"]
    out = pair.theirs.generate(pixel_values=pair.values, **text, **rules, **OUTPUTS, num_return_sequences=width)
    found: list[tuple[list[int], float]] = []
    for i, row in enumerate(out.sequences[:, len(begun) :].tolist()):
        tokens = [*row, pair.end][: [*row, pair.end].index(pair.end)]
        count = min(len(tokens) + 1, len(row))
        if width > 1:
            total = float(out.sequences_scores[i]) * count ** rules["length_penalty"]
        else:
            total = sum(float(out.logits[j][i].log_softmax(-1)[row[j]]) for j in range(count))
        found.append((tokens, total / count))
    return [found[i : i + width] for i in range(0, len(found), width)]


SEARCHES: dict[str, dict[str, Any]] = {
    "as the checkpoint says": {},
    "greedy": {"beams": 1},
    "short": {"beams": 2, "length_penalty": 0.8, "early_stopping": True},
    "long": {"beams": 4, "length_penalty": 2.0, "early_stopping": False},
    "early": {"beams": 4, "length_penalty": 1.0, "early_stopping": True},
    "late": {"beams": 5, "length_penalty": 1.0, "early_stopping": False},
    "latest": {"beams": 3, "length_penalty": 1.5, "early_stopping": "never"},
    "repeating less": {"beams": 4, "length_penalty": 1.0, "repetition_penalty": 1.4},
    "with rules": {"beams": 3, "no_repeat_ngram": 2, "min_length": 7, "max_length": 12},
    "greedy with rules": {"beams": 1, "no_repeat_ngram": 2, "min_length": 9},
}
PROMPTS = [None, "the small cats"]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES)
def test_captions_are_those_of_transformers(
    pair: Pair, caption: Any, options: dict[str, Any], prompt: str | None
) -> None:
    """All that were found and their scores, not the best alone."""
    expected = by_transformers(pair, prompt, **options)
    found = caption(PICTURES, prompt=prompt, count=len(expected[0]), **options)
    for ours, theirs in zip(found, expected, strict=True):
        texts = [pair.decode([*pair.encode(prompt), *tokens]) for tokens, _ in theirs]
        assert list(ours.tokens) == theirs[0][0]
        assert [each.text for each in ours.candidates] == texts
        assert [each.score for each in ours.candidates] == pytest.approx([score for _, score in theirs], rel=1e-4)
        assert (ours.text, ours.score) == (texts[0], ours.candidates[0].score)


def test_these_searches_end_in_every_way(pair: Pair) -> None:
    """Else the comparisons above would show little: captions end early, late, and at the limit, and differ."""
    found = by_transformers(pair, beams=5, no_repeat_ngram=0)
    *others, longest = sorted({len(tokens) for each in found for tokens, _ in each})
    assert len(others) >= 3
    assert longest == LENGTH - 1
    assert len({tuple(each[0][0]) for each in found}) == len(PICTURES)


@pytest.mark.parametrize("options", [{"beams": 1}, {"beams": 4, "count": 3, "heatmaps": True}], ids=["greedy", "beams"])
def test_a_picture_among_others_is_captioned_as_alone(pair: Pair, caption: Any, options: dict[str, Any]) -> None:
    for image, among in zip(PICTURES, caption(PICTURES, **options), strict=True):
        alone = caption(image, **options)
        assert among.tokens == alone.tokens
        assert [each.text for each in among.candidates] == [each.text for each in alone.candidates]
        assert [each.score for each in among.candidates] == pytest.approx([each.score for each in alone.candidates])
        for one, other in zip(among.words, alone.words, strict=True):
            np.testing.assert_allclose(one.heatmap, other.heatmap, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def read_again(pair: Pair, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """For each of `tokens`, written after the start about the first picture, by transformers: where it looked, as the
    mean of the heads of the upper half of the layers, and its probability.
    """
    theirs, given, image = pair.theirs, torch.tensor([[pair.start, *tokens]]), pair.values[:1]
    theirs.set_attn_implementation("eager")
    if pair.case.model == "Blip":
        memory = theirs.vision_model(image).last_hidden_state
        out = theirs.text_decoder(given, encoder_hidden_states=memory, output_attentions=True)
    else:
        out = theirs(pixel_values=image, **{pair.text: given}, output_attentions=True)
    attended = torch.stack(out.attentions if pair.case.model == "Git" else out.cross_attentions)[:, 0]
    before = slice(-len(tokens) - 1, -1)  # a token is written where the one before it is read
    looked = attended[len(attended) // 2 :, :, before].mean((0, 1))
    extra, side = 2 if "DeiT" in pair.case.model else 1, SIDE // VISION["patch_size"]
    likely = out.logits[0, before].softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)]
    return looked[:, extra : extra + side**2].reshape(-1, side, side), likely


def words_of(pair: Pair, tokens: list[int]) -> list[list[int]]:
    """The places of each word's tokens, those by which what transformers decodes grows."""
    texts = [pair.decode(tokens[:i]) for i in range(len(tokens) + 1)]
    places: list[list[int]] = [[] for _ in texts[-1].split()]
    for i, (before, after) in enumerate(pairwise(texts)):
        if after != before:
            places[len(after.split()) - 1].append(i)
    return places


@pytest.mark.parametrize("prompt", PROMPTS)
def test_heatmaps_are_the_attention_of_transformers(pair: Pair, caption: Any, prompt: str | None) -> None:
    """Of each word the mean of its tokens', the words of the prompt among them."""
    found = caption(PICTURES[0], heatmaps=True, beams=1, min_length=9, prompt=prompt)
    tokens = [*pair.encode(prompt), *found.tokens]
    maps, likely = read_again(pair, tokens)
    places = words_of(pair, tokens)
    assert [word.text for word in found.words] == found.text.split()
    for word, its in zip(found.words, places, strict=True):
        np.testing.assert_allclose(word.heatmap, maps[its].mean(0), rtol=1e-3, atol=1e-5)
        assert word.probability == pytest.approx(float(likely[its].prod()), rel=1e-3)
        assert 0 < word.heatmap.sum() < 1 + 1e-5


@pytest.mark.parametrize("pair", ["blip", "git"], indirect=True)
def test_an_int8_bundle_is_near_and_captions_a_picture_among_others_as_alone(
    pair: Pair, caption: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # tokens of random weights are too near each other for the check of the export
    monkeypatch.setattr("heedful.export.bundle.certify", lambda *_: {})
    small = load(export(pair.folder, tmp_path / "bundle", "int8"), device="cpu", threads=1)
    for options in ({"beams": 1}, {"beams": 4}):
        among = small(PICTURES, **options)
        assert [each.tokens for each in among] == [small(image, **options).tokens for image in PICTURES]
        assert len({each.tokens for each in among}) == len(PICTURES)
    near, exact = (each(PICTURES[0], prompt=PROMPTS[1], heatmaps=True).words[:3] for each in (small, caption))
    assert all(0 < np.abs(one.heatmap - other.heatmap).sum() < 0.5 for one, other in zip(near, exact, strict=True))
