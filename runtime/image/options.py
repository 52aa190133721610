"""What a caller can ask of a caption."""

from dataclasses import dataclass

from heedful.runtime.errors import InputError
from heedful.runtime.options import SearchOptions, check_kind, check_whole, options_of


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionOptions(SearchOptions):
    """Options of a caption, beside those of `SearchOptions`. The prompt is what the caption begins with.

    count: how many captions to give, the best first; at most the beams. heatmaps: say where each word looked.
    """

    count: int = 1
    heatmaps: bool = False
    batch: int = 8

    def __post_init__(self) -> None:
        # slots make a class anew, so a bare super() would not find it
        super(CaptionOptions, self).__post_init__()
        check_whole("count", self.count, 1, 256)
        check_kind("heatmaps", self.heatmaps, bool)
        if self.beams is not None and self.count > self.beams:
            raise InputError(f"count must be at most the beams, {self.beams}, not {self.count}")

    @classmethod
    def of(cls, **given: object) -> "CaptionOptions":
        """Options from keyword arguments; InputError names one that does not exist."""
        return options_of(cls, given)
