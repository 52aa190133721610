"""Text cut into sentences and into what fits: nothing lost, nothing cut in two that belongs together."""

import re
from collections.abc import Callable
from itertools import accumulate

import pytest
import sentencex
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from heedful.runtime.text.split import Piece, split_sentences, split_to_fit

# ruff: noqa: RUF001

SENTENCES = {
    "abbreviations": ("en", "Dr. Ana Reis, of Acme Inc., came at 5 p.m. on Friday.", "Prof. Lee (see Fig. 3) did not."),
    "initials": ("en_XX", "The U.S. Senate heard J. P. Morgan in Washington, D.C. on Monday.", "It adjourned."),
    "numbers": ("eng_Latn", "Version 2.0.1 is 3.5 percent faster, at $1,204.75.", "Nobody noticed."),
    "quotes": ("en", "“Where are you going?” she asked.", 'He said, "Home."', "Then he left."),
    "ellipsis": ("en", "Well... I don't know.", "Visit www.example.com for more!", "Really?!", "Yes."),
    "items": ("en", "1. Buy some milk.", "2. Drink it."),
    "small letters": ("en", "i am here.", "you are there.", "fine."),
    "titles, Portuguese": ("pt", "O Sr. Silva e a Dra. Costa moram na Av. Paulista.", "A Profa. Maria não."),
    "ordinals, Portuguese": ("pt_XX", "Veja a pág. 12, art. 5.º, da lei n.º 8.", "Obrigado!"),
    "numbers, Portuguese": ("por_Latn", "A taxa subiu 3,5% para 1.204,75 reais.", "E você?"),
    "small after a stop": ("pt-BR", "Comprei maçãs, pão, etc. no mercado da R. das Flores.", "— Vens?", "— Não posso."),
    "guillemets": ("pt", "Disse o Eng. Sousa: «Não sei.»", "«Vem cá?» pediu ela.", "V. Exa. sabe disso?"),
    "marks at both ends": ("es", "El Sr. García llegó.", "¿Quién lo vio?", "¡Nadie!"),
    "French": ("fra_Latn", "M. Dupont et le Dr. Roux voient Mme. Durand.", "« Où vas-tu ? » dit-elle.", "Merci !"),
    "German": ("deu_Latn", "Am 3. Mai kam z. B. die 5. Auflage für 3,50 Euro.", "„Gut.“", "Das war 1990.", "Ja."),
    "Polish": ("pl", "Prof. Nowak mieszka przy ul. Długiej 5, m.in. z żoną.", "To duży dom."),
    "Russian": ("rus_Cyrl", "А. С. Пушкин жил в Москве на ул. Ленина.", "Он был поэтом."),
    "Czech": ("ces_Latn", "Přijel 12. Března večer.", "Byl unavený."),
    "Greek": ("ell_Grek", "Πού ήταν;", "Δεν ξέρω."),
    "Hindi": ("hi", "मेरा नाम राम है।", "आप कैसे हैं?", "ठीक हूँ।"),
    "Arabic": ("arb_Arab", "كيف حالك؟", "أنا بخير.", "شكرا!"),
    "Urdu": ("ur", "آپ کیسے ہیں؟", "شکریہ۔"),
    "Korean": ("ko", "안녕하세요.", "저는 3.5kg입니다."),
}
UNSPACED = {
    "Chinese": ("zho_Hans", "圆周率是3.14。", "你叫什么名字？", "真的吗?!", "我叫小明！", "那么……我们走吧。"),
    "Japanese": ("jpn_Jpan", "こんにちは。", "彼は「行きたくない。」と言った。", "３．５ドルですか？", "はい！"),
}


@pytest.mark.parametrize("gap", [" ", "  ", "\u00a0", "\t", "\u2003 "], ids=repr)
@pytest.mark.parametrize(("language", "sentences"), [(one, rest) for one, *rest in SENTENCES.values()], ids=SENTENCES)
def test_sentences_are_found_and_what_is_between_them_kept(language: str, sentences: list[str], gap: str) -> None:
    expected = [*(Piece(one, gap) for one in sentences[:-1]), Piece(sentences[-1], "")]
    assert split_sentences(gap.join(sentences), language) == expected


@pytest.mark.parametrize(("language", "sentences"), [(one, rest) for one, *rest in UNSPACED.values()], ids=UNSPACED)
def test_sentences_without_spaces_are_found(language: str, sentences: list[str]) -> None:
    assert split_sentences("".join(sentences), language) == [Piece(one, "") for one in sentences]


@pytest.mark.parametrize("language", ["", "xx", "tlh", "Klingon", "zz_ZZ", "🌍"])
def test_an_unknown_language_is_split_as_english(language: str) -> None:
    line = "Mr. Reed left.  Why? See Fig. 3.\t"
    assert split_sentences(line, language) == split_sentences(line, "en")
    assert [piece.text for piece in split_sentences(line, "en")] == ["Mr. Reed left.", "Why?", "See Fig. 3."]


@pytest.mark.parametrize(
    ("line", "pieces"),
    [
        ("", []),
        (" \t\u3000", [Piece("", " \t\u3000")]),
        ("\u3000 Go. \r\n", [Piece("", "\u3000 "), Piece("Go.", " \r\n")]),
        ("One.\n\nTwo.\r\rThree", [Piece("One.", "\n\n"), Piece("Two.", "\r\r"), Piece("Three", "")]),
        ("...", [Piece("...", "")]),
    ],
)
@pytest.mark.parametrize(
    "split",
    [lambda line: split_sentences(line, "en"), lambda line: split_to_fit(line, fit(6))],
    ids=["into sentences", "to fit"],
)
def test_white_space_is_kept(split: Callable[[str], list[Piece]], line: str, pieces: list[Piece]) -> None:
    assert split(line) == pieces


TRICKY = [*" .!?…。！？،;:—\"“”«»()[]„‘’'「」\t\n\r\f\x85\u2028\u3000\u00a0\u200b", *"aAß\u0301\ud800\x00º9とा", "🌍"]
TRICKY += ["Dr.", "etc. ", "U.S. ", "a.b@c.de", "... ", "z. B.", "1. ", "Yahoo!", "a) ", "\r\n", "👩\u200d🚀", "।", "։"]
texts = st.text() | st.lists(st.sampled_from(TRICKY)).map("".join)
LANGUAGES = "am ar bg bn ca da de el en es fi fr gu hi hy it ja kk kn ml mr my nl pa pl pt ru sk ta te uk zh"


def check_pieces(pieces: list[Piece], line: str) -> None:
    assert "".join(piece.text + piece.tail for piece in pieces) == line
    assert all(piece.text for piece in pieces[1:])
    assert all(piece.text == piece.text.strip() and not piece.tail.strip() for piece in pieces)


@given(line=texts, language=st.sampled_from(LANGUAGES.split()) | st.text(max_size=3))
def test_sentences_joined_are_the_line(line: str, language: str) -> None:
    check_pieces(split_sentences(line, language), line)


@pytest.mark.parametrize(
    ("sentence", "gap"),
    [
        ("“Go,” said Dr. Reis at 5.30 p.m. today.", " "),
        ("你好，世界。", ""),
        ("「はい。」", ""),
        ("He left!", " " * 3000),
    ],
)
def test_a_long_line_is_split_like_a_short_one(sentence: str, gap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    segment = sentencex.segment

    def seeing(code: str, text: str) -> list[str]:
        seen.append(len(text))
        found: list[str] = segment(code, text)
        return found

    monkeypatch.setattr(sentencex, "segment", seeing)
    pieces = split_sentences((sentence + gap) * 1000, "en")
    assert pieces == [Piece(sentence, gap)] * 1000
    # The library's time is quadratic in what it sees at once.
    assert max(seen) < 5000
    assert sum(seen) < 2 * 1000 * len(sentence + gap) + 5000


@pytest.mark.parametrize("line", ["a" * 100_000, "word " * 20_000, "我" * 100_000, "A. " * 33_000], ids=lambda x: x[:5])
def test_a_line_without_an_end_is_one_sentence(line: str) -> None:
    assert split_sentences(line, "en") == [Piece(line.rstrip(), line[len(line.rstrip()) :])]


def fit(most: int, unit: Callable[[str], int] = len) -> Callable[[str], bool]:
    return lambda text: unit(text) <= most


FITTED = {
    "fits": ("Go home now.", 12, ["Go home now."]),
    "sentence before clause": ("He left. She, too, stayed on", 16, ["He left.", "She, too,", "stayed on"]),
    "closed sentence": ("(He left.) She has stayed", 16, ["(He left.)", "She has stayed"]),
    "clause before word": ("red apples; green pears, too", 20, ["red apples;", "green pears, too"]),
    "colon and dash": ("my list: one two – three — four fives", 17, ["my list:", "one two – three —", "four fives"]),
    "unspaced dash": ("red—green—blue apples", 13, ["red—green—", "blue apples"]),
    "word": ("a b c d e f", 4, ["a b", "c d", "e f"]),
    "nothing in the last half": ("a, bcdefghijklmnop", 8, ["a, bcdef", "ghijklmn", "op"]),
    "numbers whole": ("we will pay 1,234,567.89 now", 20, ["we will pay", "1,234,567.89 now"]),
    "Chinese sentence": ("他走了。我们，也走吧", 7, ["他走了。", "我们，也走吧"]),
    "Chinese clause": ("他走了，我们也都走吧", 7, ["他走了，", "我们也都走吧"]),
    "Chinese closing": ("“他走了。”我们也走吧", 9, ["“他走了。”", "我们也走吧"]),
    "Japanese clause": ("はい、行きますよ", 5, ["はい、", "行きますよ"]),
    "unbroken": ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
}


@pytest.mark.parametrize(("text", "most", "expected"), FITTED.values(), ids=FITTED)
def test_long_text_is_cut_at_the_best_place(text: str, most: int, expected: list[str]) -> None:
    pieces = split_to_fit(text, fit(most))
    assert [piece.text for piece in pieces] == expected
    check_pieces(pieces, text)


UNITS = {"characters": len, "bytes": lambda text: len(text.encode("utf-8", "surrogatepass"))}


@given(text=texts, most=st.integers(1, 40), unit=st.sampled_from(sorted(UNITS)))
def test_what_is_cut_fits_and_joins_again(text: str, most: int, unit: str) -> None:
    fits = fit(most, UNITS[unit])
    pieces = split_to_fit(text, fits)
    check_pieces(pieces, text)
    assert all(fits(piece.text) or len(piece.text) == 1 for piece in pieces)


@given(text=texts, chosen=st.integers(0, 9))
def test_any_idea_of_what_fits_is_kept_to(text: str, chosen: int) -> None:
    """Even one by which a part does not fit where the whole does."""

    def fits(part: str) -> bool:
        return len(part.encode("utf-8", "replace")) % 10 < chosen

    check_pieces(split_to_fit(text, fits), text)
    text = "-".join(text.split())
    pieces = split_to_fit(text, fits)
    check_pieces(pieces, text)
    assert all(fits(piece.text) or len(piece.text) == 1 for piece in pieces)


CHARACTERS = [
    "a",
    "é",
    "e\u0301",
    "🌍",
    "👩\u200d🚀",
    "👍🏽",
    "❤\ufe0f",
    "कि",
    "한",
    "\u1112\u1161\u11ab",
    "ن\u064e",
    "\ud83c\udf0d",
]


@given(characters=st.lists(st.sampled_from(CHARACTERS)), most=st.integers(max(map(len, CHARACTERS)), 12))
def test_no_character_is_cut_in_two(characters: list[str], most: int) -> None:
    cuts = accumulate(len(piece.text) for piece in split_to_fit("".join(characters), fit(most)))
    assert set(cuts) <= set(accumulate(map(len, characters)))


def test_a_character_that_does_not_fit_is_cut() -> None:
    text = "e" + "\u0301" * 99
    assert [len(piece.text) for piece in split_to_fit(text, fit(30))] == [30, 30, 30, 10]


@pytest.mark.parametrize("most", [100, 333, 1000])
@pytest.mark.parametrize(
    ("stuff", "filled"), [("x", 0.9), ("我", 0.9), ("e\u0301", 0.9), ("word ", 0.85), ("one, two ", 0.8)]
)
def test_long_text_takes_few_pieces_and_few_looks(stuff: str, filled: float, most: int) -> None:
    text = (stuff * 100_000)[:100_000].rstrip()
    looks: list[int] = []

    def fits(part: str) -> bool:
        looks.append(len(part))
        return len(part) <= most

    pieces = split_to_fit(text, fits)
    check_pieces(pieces, text)
    assert len(pieces) <= len(text) / (filled * most) + 1
    assert len(looks) <= 10 * len(pieces)
    assert max(looks) <= max(256, 2 * most)


STORY = "The old lighthouse keeper, whose name was Amaro, counted the ships: three, four; none of them stopped. "
STORY += "Unquestionably, international interoperability is (as ever) counterintuitive — he wrote it in 1,204 letters. "


@pytest.fixture(scope="module")
def tokens() -> Callable[[str], int]:
    """Counts the tokens of a text: merges of bytes, so that a part of a word can be more than the word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([STORY] * 2, trainer)
    return lambda text: len(tokenizer.encode(text))


@pytest.mark.parametrize("most", [2, 3, 5, 8, 13, 21, 34])
@pytest.mark.parametrize("text", [STORY * 20, re.sub(r"\W", "", STORY) * 20], ids=["words", "unbroken"])
def test_pieces_fit_a_real_tokenizer(tokens: Callable[[str], int], text: str, most: int) -> None:
    pieces = split_to_fit(text, fit(most, tokens))
    check_pieces(pieces, text)
    assert all(tokens(piece.text) <= most or len(piece.text) == 1 for piece in pieces)
    assert len(pieces) <= 3 * tokens(text) / most
