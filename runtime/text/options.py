"""What a caller can ask of a translation or a summary."""

from dataclasses import dataclass

from heedful.runtime.options import SearchOptions, check_kind, check_whole, options_of

_KINDS = {"source": str, "target": str, "split": bool, "alignment": bool, "shortlist": bool}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions(SearchOptions):
    """Options of a translation or summary, beside those of `SearchOptions`. The prompt, such as T5's "summarize: ",
    goes before every input.

    source, target: language codes, as the model has them; a model of one pair needs none. split: cut texts into
    sentences, which are read one by one; a text longer than the model's positions is cut even without. alignment: say
    which words of the source each word of the result looked at. shortlist: use no words but those that the bundle's
    shortlist has for the source's, which is faster for a single sentence. ahead: characters of several texts that are
    read before any of them is written, so that sentences of one length can be put together.
    """

    source: str | None = None
    target: str | None = None
    split: bool | None = None
    alignment: bool = False
    shortlist: bool = False
    ahead: int = 1 << 18

    def __post_init__(self) -> None:
        # slots make a class anew, so a bare super() would not find it
        super(TextOptions, self).__post_init__()
        check_whole("ahead", self.ahead, 1, 1_000_000_000)
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if value is not None:
                check_kind(name, value, kind)

    @classmethod
    def of(cls, **given: object) -> "TextOptions":
        """Options from keyword arguments; InputError names one that does not exist."""
        return options_of(cls, given)
