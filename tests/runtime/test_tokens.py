"""Words and prompts from tokens of a byte-level tokenizer, one of whose tokens ends in the middle of a character."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from heedful.export.whisper import vocabulary
from heedful.runtime.errors import InputError
from heedful.runtime.speech.options import Task, TranscribeOptions
from heedful.runtime.speech.tokens import SpeechTokens

NAMES = {
    "end": "endoftext",
    "start": "startoftranscript",
    "transcribe": "transcribe",
    "translate": "translate",
    "language_model": "startoflm",
    "previous": "startofprev",
    "no_speech": "nospeech",
    "no_timestamps": "notimestamps",
}
LANGUAGES = ("en", "pt", "zh")
POSITIONS = 20


def byte_tokenizer() -> Tokenizer:
    """The 256 bytes, a few merges and the special tokens."""
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    hello = bytes_of.pre_tokenize_str("你好")[0][0]
    # the third byte of one character with the first of the next
    merges = [(hello[2], hello[3]), ("Ġ", "h"), ("Ġh", "i"), ("Ġ", '"'), ("Ġ", "-"), ("Ġ", "Â")]
    vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(vocabulary)}, merges=merges))
    tokenizer.pre_tokenizer = bytes_of
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([f"<|{name}|>" for name in (*NAMES.values(), *LANGUAGES)])
    return tokenizer


TOKENIZER = byte_tokenizer()


def speech_tokens(
    languages: tuple[str, ...] = LANGUAGES, vocabulary: list[str] | None = None, tokenizer: Tokenizer = TOKENIZER
) -> SpeechTokens:
    special = {field: TOKENIZER.token_to_id(f"<|{name}|>") for field, name in NAMES.items()}
    ids = {language: TOKENIZER.token_to_id(f"<|{language}|>") for language in languages}
    first = {"first_timestamp": TOKENIZER.get_vocab_size()}
    return SpeechTokens(lambda: tokenizer, special | {"languages": ids} | first, POSITIONS, vocabulary)


TOKENS = speech_tokens()
ENGLISH_ONLY = speech_tokens(())


def ids_of(text: str) -> list[int]:
    return list(TOKENS.tokenizer.encode(text, add_special_tokens=False).ids)


def texts_of(text: str, language: str) -> list[str]:
    return [word for word, _ in TOKENS.words(ids_of(text), language)]


# as they come in speech, with what lies between them; and anything at all
MIXED = st.lists(st.sampled_from([" ", "hi", "你", "好", "é", "e\u0301", "👩‍🚀", "🏳️‍🌈", ".", "\n", "\ufffd"])).map(
    "".join
)
SPOKEN = MIXED | st.text(max_size=20)


@given(ids=st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=30))
def test_the_vocabulary_alone_writes_what_the_tokenizer_writes(ids: list[int]) -> None:
    """Of ids in any order: most are no whole characters."""
    alone = speech_tokens(vocabulary=json.loads(vocabulary({"tokenizer.json": TOKENIZER})["vocabulary.json"]))
    alone.__dict__["tokenizer"] = None  # not to be asked
    assert alone.text(ids) == TOKENS.text(ids) == TOKENIZER.decode(ids)


@given(text=SPOKEN, language=st.sampled_from(["en", "zh"]))
def test_words_join_back_to_the_text(text: str, language: str) -> None:
    ids = ids_of(text)
    words = TOKENS.words(ids, language)
    assert "".join(word for word, _ in words) == text == TOKENS.text(ids)
    assert [token for _, tokens in words for token in tokens] == ids
    assert all(word == TOKENS.text(tokens) and tokens for word, tokens in words)


@given(ids=st.lists(st.integers(0, TOKENS.special.end - 1), max_size=20), language=st.sampled_from(["en", "zh"]))
def test_words_join_back_to_broken_text(ids: list[int], language: str) -> None:
    """Tokens drawn at random are seldom whole characters."""
    words = TOKENS.words(ids, language)
    assert "".join(word for word, _ in words) == TOKENS.text(ids)
    assert [token for _, tokens in words for token in tokens] == ids


@pytest.mark.parametrize("language", ["zh", "ja", "th", "lo", "my", "yue"])
def test_words_are_characters_where_no_spaces_are_written(language: str) -> None:
    # one token holds the end of 你 and the beginning of 好
    assert texts_of("你好世界。", language) == ["你好", "世", "界", "。"]


SPACED = {
    "en": " hi there Ada2 x",
    "pt": " não há coração",
    "decomposed accents": " cafe\u0301 cre\u0300me",
    "ko": " 안녕하세요 여러분",
    "el": " καλημέρα κόσμε",
    "hi": " हिन्दी में बात करते हैं",
    "ta": " தமிழ் மொழி",
    "ar": " مُحَمَّد يكتب",
    "emoji": " hi 👩‍🚀 there 🏳️‍🌈",
}


@pytest.mark.parametrize(("language", "text"), SPACED.items(), ids=SPACED)
def test_words_begin_at_spaces_and_only_there(language: str, text: str) -> None:
    assert texts_of(text, language) == re.findall(r" \S+", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" hi, there.", [" hi", ",", " there", "."]),
        (' "hi"', [' "hi', '"']),
        (" ¿hi?", [" ¿hi", "?"]),
        ("hi there", ["hi", " there"]),
        (" hi - there", [" hi", " -", " there"]),
        ("", []),
    ],
)
def test_punctuation_is_a_word_of_its_own(text: str, expected: list[str]) -> None:
    assert texts_of(text, "es") == expected


@pytest.mark.parametrize("broken", [ids_of("\ufffd"), ids_of("你")[:1], ids_of("👩")[:3]])
def test_a_broken_character_spoils_no_words_after_it(broken: list[int]) -> None:
    words = TOKENS.words([*ids_of(" hi"), *broken, *ids_of(" hi there hi")], "en")
    assert [word for word, _ in words][-2:] == [" there", " hi"]


@given(text=SPOKEN)
def test_text_is_encoded_as_it_would_go_on(text: str) -> None:
    assert TOKENS.text(TOKENS.encode(text)) == " " + text.strip()


@pytest.mark.parametrize("name", [*NAMES.values(), "pt", "0.00"])
def test_the_name_of_a_special_token_is_only_text(name: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|0.00|>"])  # which is not special in Whisper's file either
    tokens = speech_tokens(tokenizer=tokenizer)
    text = f"hi <|{name}|>there"
    assert tokens.text(tokens.encode(text)) == f" {text}"


def test_text_leaves_special_tokens_and_timestamps_out() -> None:
    special = TOKENS.special
    ids = [
        special.start,
        *ids_of(" hi"),
        special.first_timestamp + 3,
        special.no_speech,
        *ids_of(" there"),
        special.end,
    ]
    assert TOKENS.text(ids) == " hi there"


def names(ids: list[int]) -> str:
    """Text as it is, special tokens by name."""
    return str(TOKENIZER.decode(ids, skip_special_tokens=False))


START = "<|startoftranscript|>"
HEADERS = [
    ("en", "transcribe", True, f"{START}<|en|><|transcribe|>"),
    ("pt", "transcribe", False, f"{START}<|pt|><|transcribe|><|notimestamps|>"),
    ("pt", "translate", True, f"{START}<|pt|><|translate|>"),
    ("zh", "translate", False, f"{START}<|zh|><|translate|><|notimestamps|>"),
]


@pytest.mark.parametrize(("language", "task", "timestamps", "expected"), HEADERS)
def test_the_header_says_what_is_to_be_done(language: str, task: Task, timestamps: bool, expected: str) -> None:
    assert names(TOKENS.header(language, TranscribeOptions(task=task, timestamps=timestamps))) == expected


@pytest.mark.parametrize(("timestamps", "expected"), [(True, START), (False, f"{START}<|notimestamps|>")])
def test_the_header_of_an_english_only_model(timestamps: bool, expected: str) -> None:
    assert names(ENGLISH_ONLY.header("en", TranscribeOptions(timestamps=timestamps))) == expected


@pytest.mark.parametrize(
    ("hotwords", "previous", "expected"),
    [
        ("", "", f"{START}<|en|><|transcribe|>"),
        ("", "hi hi", f"<|startofprev|> hi hi{START}<|en|><|transcribe|>"),
        ("Ada", "", f"<|startofprev|> Ada{START}<|en|><|transcribe|>"),
        ("Ada", "hi hi", f"<|startofprev|> Ada hi hi{START}<|en|><|transcribe|>"),
        ("Ada", "hi Tom and hi", f"<|startofprev|> Ada and hi{START}<|en|><|transcribe|>"),
        ("Ada and Tom too", "hi", f"<|startofprev|> Ada and {START}<|en|><|transcribe|>"),
    ],
)
def test_the_prompt_is_hotwords_then_text_then_header(hotwords: str, previous: str, expected: str) -> None:
    """Half of the 20 positions hold the token of what came before and 9 more, of which ` hi` is one."""
    header = TOKENS.header("en", TranscribeOptions())
    before = [TOKENS.encode(text) if text else [] for text in (previous, hotwords)]
    assert names(TOKENS.prompt(header, *before)) == expected


@given(
    previous=st.lists(st.integers(0, 99), max_size=15),
    hotwords=st.lists(st.integers(0, 99), max_size=15),
    count=st.integers(1, 4),
)
def test_the_prompt_fills_its_room_and_no_more(previous: list[int], hotwords: list[int], count: int) -> None:
    header = list(range(200, 200 + count))
    prompt = TOKENS.prompt(header, previous, hotwords)
    before, after = prompt[:-count], prompt[-count:]
    assert after == header
    assert len(before) == min(POSITIONS // 2, bool(previous or hotwords) + len(previous) + len(hotwords))
    kept = min(len(hotwords), POSITIONS // 2 - 1)
    assert before[:1] == [TOKENS.special.previous] * bool(before)
    assert before[1 : 1 + kept] == hotwords[:kept]
    assert [*hotwords, *previous][len(hotwords) + len(previous) - len(before[1 + kept :]) :] == before[1 + kept :]


@pytest.mark.parametrize("language", [None, "en"])
def test_an_english_only_model_takes_english(language: str | None) -> None:
    ENGLISH_ONLY.check_language(language, "transcribe")
    assert (ENGLISH_ONLY.multilingual, TOKENS.multilingual) == (False, True)


@pytest.mark.parametrize(
    ("tokens", "language", "task", "message"),
    [
        (TOKENS, "fr", "transcribe", "unknown language 'fr': this model knows en, pt, zh"),
        (ENGLISH_ONLY, "pt", "transcribe", "English only"),
        (ENGLISH_ONLY, None, "translate", "English only"),
        (ENGLISH_ONLY, "en", "translate", "English only"),
    ],
)
def test_what_a_model_cannot_do_is_named(tokens: SpeechTokens, language: str | None, task: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokens.check_language(language, task)


@pytest.mark.parametrize("language", [None, *LANGUAGES])
@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_a_multilingual_model_takes_its_languages(language: str | None, task: str) -> None:
    TOKENS.check_language(language, task)
