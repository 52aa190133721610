"""Text cut into sentences, and sentences into what a model can read; joined again it is the same text."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from unicodedata import category

import sentencex


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch to be translated, and the white space after it, kept as it is."""

    text: str
    tail: str


# The library knows its rules by codes of two letters. These are NLLB's codes whose rules are not those of English;
# of the others, the library knows some and takes the rest for English.
_NLLB = """
    acm:ar acq:ar ajp:ar amh:am apc:ar arb:ar ars:ar asm:as ayr:ay bak:ba bam:bm ben:bn bul:bg cat:ca ces:cs dan:da
    deu:de ell:el est:et fin:fi fra:fr glg:gl grn:gn guj:gu hat:ht hin:hi hrv:hr hun:hu hye:hy isl:is ita:it jpn:ja
    kan:kn kaz:kk lim:li lin:ln ltz:lb lvs:lv mal:ml mar:mr mya:my nld:nl nno:nn nob:nb oci:oc pan:pa plt:mg pol:pl
    por:pt quy:qu rus:ru sag:sg san:sa slk:sk slv:sl spa:es srp:sr tam:ta tat:tt tel:te tur:tr ukr:uk wol:wo
"""
_TWO_LETTERS = dict(pair.split(":") for pair in _NLLB.split())

# The library's time is quadratic in the length of what has no spaces, so it sees this many characters at once.
_WINDOW = 2048
# It fails on white space of several bytes and on what is no UTF-8, so it sees a space in the place of either.
_UNSEEN = re.compile(r"[^\S ]|[\ud800-\udfff]")

# What the library lacks in one language or another: titles, and the languages in which "5." is the fifth.
_TITLE = re.compile("av|dra?|exa|mlle|mme|mrs?|ms|pr|profa?|sra?|srta|st[ae]?", re.IGNORECASE)
_ORDINALS = re.compile("cs|da|de|et|fi|hr|hu|is|lb|lv|nb|nn|no|pl|sk|sl|sr|tr")
_LAST_WORD = re.compile(r"(?<!\w)([^\W\d_]{1,5})\.$")
_LAST_NUMBER = re.compile(r"(?<![\w.,])\d{1,2}\.$")

# Where to cut what is too long, the best places first: after a sentence, after a clause, before white space. Marks
# that numbers and names are written with count before white space only; no closing mark is torn off.
_CLOSING = "」』”’）》"  # noqa: RUF001
_STOPS = "。！？।॥۔؟።"  # noqa: RUF001
_BOUNDARIES = (
    re.compile(
        rf"(?<=[.!?…])(?=\s)|(?<=[.!?…][\"'»)\]{_CLOSING}])(?=\s)"
        rf"|(?<=[{_STOPS}])(?=[^{_STOPS}{_CLOSING}])|(?<=[{_STOPS}][{_CLOSING}])(?=[^{_CLOSING}])"
    ),
    re.compile(rf"(?<=[;:,،؛–])(?=\s)|(?<=[—，、；：])(?=[^{_CLOSING}—])"),  # noqa: RUF001
    re.compile(r"(?<=\S)(?=\s)"),
)
_FIRST_GUESS = 256  # characters, about what fits into the positions of most models
_JOINER = "\u200d"
# What belongs to the character before it, apart from the marks: joiners, jamo, low surrogates, colours of skin.
_EXTENDS = re.compile("[\u200c\u200d\u1160-\u11ff\udc00-\udfff\U0001f3fb-\U0001f3ff]")


def split_sentences(line: str, language: str) -> list[Piece]:
    """The sentences of `line`; white space before the first is the tail of an empty piece.

    `language` is a code such as "pt", "pt_XX", "pt-BR" or "por_Latn"; one that is not known is taken for English.
    """
    return _pieces(line, _sentence_ends(line, language))


def split_to_fit(text: str, fits: Callable[[str], bool]) -> list[Piece]:
    """`text` in few pieces that fit; white space before the first is the tail of an empty piece.

    A piece ends with a sentence, a clause or a word where one ends in the last half of what fits, else between two
    characters as a reader sees them. Only a single code point is left that does not fit.

    `fits` should hold for the beginnings of whatever it holds for. It is called some seven times for each piece, and
    after the first with no more than twice what fits.
    """
    return _pieces(text, _fitting_ends(text, fits))


def _pieces(text: str, ends: Iterable[int]) -> list[Piece]:
    """`text` cut where its white space at the start ends, and at `ends`."""
    start = _after_space(text, 0)
    pieces = [Piece("", text[:start])] if start else []
    for first, last in pairwise((start, *ends, len(text))):
        stripped = text[first:last].rstrip()
        if stripped:
            pieces.append(Piece(stripped, text[first + len(stripped) : last]))
    return pieces


def _after_space(text: str, start: int) -> int:
    while text[start : start + 1].isspace():
        start += 1
    return start


def _sentence_ends(line: str, language: str) -> Iterator[int]:
    """Where the sentences of `line` end, with the white space after them."""
    code = re.split("[-_]", language)[0].lower()
    code = _TWO_LETTERS.get(code, code)
    cased = not line.islower()
    start = _after_space(line, 0)
    for end in _candidates(_UNSEEN.sub(" ", line), start, code):
        end = _after_space(line, end)
        before, after = line[start:end].rstrip(), line[end : end + 2]
        if before and after and not _goes_on(before, after, code, cased):
            yield end
        start = end


def _candidates(line: str, start: int, code: str) -> Iterator[int]:
    """Where the sentences of `line` from `start` on end as the library has it."""
    while start < len(line):
        window = line[start : start + _WINDOW]
        lengths = [len(sentence) for sentence in sentencex.segment(code, window)]
        if start + len(window) < len(line):
            lengths.pop()  # the window may have cut it short
        for length in lengths:
            start += length
            yield start
        if not lengths:
            start += len(window)


def _goes_on(before: str, after: str, code: str, cased: bool) -> bool:
    """Whether the sentence that ends with `before` as the library has it goes on with `after`.

    When in doubt it does: two sentences together are translated well enough, half of one is not.
    """
    if cased and after[0].islower():
        return True
    if not any(map(str.isalpha, before)):  # the number of an item
        return True
    if before.endswith(("」", "』")) and after.startswith(("と", "って")):  # "he said" in Japanese
        return True
    if _LAST_NUMBER.search(before) and _ORDINALS.fullmatch(code):
        return True
    last = _LAST_WORD.search(before)
    if last is None:
        return False
    word = last[1]
    initial = len(word) == 1 and word.isupper()
    numbered = len(word) <= 3 and after[0].isdecimal()  # an article, a page
    return initial or numbered or _TITLE.fullmatch(word) is not None


def _fitting_ends(text: str, fits: Callable[[str], bool]) -> Iterator[int]:
    """Where pieces of `text` that fit end, with the white space after them."""
    start = _after_space(text, 0)
    reach = _FIRST_GUESS
    while start < len(text):
        reach = max(1, _reach(text, start, reach, fits))
        end = _cut(text, start, start + reach)
        # a part of a word can be more tokens than the whole word
        while start + 1 < end < start + reach and not fits(text[start:end]):
            end = _cut(text, start, end - 1)
        start = _after_space(text, end)
        yield start


def _reach(text: str, start: int, guess: int, fits: Callable[[str], bool]) -> int:
    """How many characters of `text` from `start` on fit, to within a sixteenth; `guess` is where to look first."""
    left = len(text) - start
    low, high = 0, min(guess, left)
    while fits(text[start : start + high]):
        if high == left:
            return left
        low, high = high, min(2 * high, left)
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        if fits(text[start : start + middle]):
            low = middle
        else:
            high = middle
    return low


def _cut(text: str, start: int, limit: int) -> int:
    """The best place to cut `text` in the last half from `start` to `limit`."""
    if limit == len(text):
        return limit
    half = max(start + 1, (start + limit) // 2)
    for boundary in _BOUNDARIES:
        places = [match.start() for match in boundary.finditer(text, half, limit + 1)]
        if places:
            return places[-1]
    place = limit
    while place > start and _inside_character(text, place):
        place -= 1
    return place if place > start else limit


def _inside_character(text: str, place: int) -> bool:
    """Whether a cut at `place` would part what a reader sees as one character."""
    after = text[place]
    return category(after).startswith("M") or _EXTENDS.match(after) is not None or text[place - 1] == _JOINER
