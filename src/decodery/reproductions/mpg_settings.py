"""What the mpg reproduction compares: models alone, blends by exact decoders, chunk rejection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from decodery.core.decoder import Decoder
from decodery.methods.autoregressive.sample import Sample
from decodery.methods.blending.mpg_route import MpgRoute
from decodery.methods.blending.mpg_scr import MpgScr, Params
from decodery.methods.blending.mpg_token import MpgToken
from decodery.reproductions.frame import Mode

Source = Literal[
    "neutral", "pirate", "formal", "prompted", "sum", "answers", "product", "product 2"
]
Way = Literal["sample", "route", "token", "scr"]

CHUNK = 8  # of the blend, in every setting


@dataclass(frozen=True)
class Setting:
    """A source, a decoder, and for chunk rejection its draft length and quantile."""

    source: Source
    way: Way = "sample"
    length: int = CHUNK
    quantile: float = 1.0

    def __str__(self) -> str:
        if self.way == "scr":
            quantile = "" if self.quantile == 1.0 else f" q={self.quantile:g}"
            return f"scr L={self.length}{quantile}"
        return f"{self.source} {self.way}" if self.way != "sample" else self.source

    def decoder(self) -> Decoder:
        if self.way == "scr":
            return MpgScr(Params(draft_length=self.length, quantile=self.quantile))
        if self.way == "token":
            return MpgToken(self.length)
        return MpgRoute() if self.way == "route" else Sample(1)


REFERENCE = Setting("neutral")
ALONE = (Setting("pirate"), Setting("formal"))
PROMPTED = Setting("prompted")
ROUTE = Setting("sum", "route")
ANSWERS = Setting("answers", "route")
BLENDED = Setting("sum")
TOKEN = Setting("sum", "token")
PRODUCT, PRODUCT_2 = Setting("product"), Setting("product 2")
QUANTILE = 0.8  # beside 1


def lengths(mode: Mode) -> tuple[int, ...]:
    """Draft lengths of the curve."""
    return (1, 2, 4, 8, 16) if mode == "quick" else (1, 2, 4, 8)


def scr(length: int, quantile: float = 1.0) -> Setting:
    return Setting("sum", "scr", length, quantile)


def curve(mode: Mode) -> list[Setting]:
    return [scr(length) for length in lengths(mode)]


def settings(mode: Mode) -> list[Setting]:
    """All settings of a mode."""
    common = [REFERENCE, *ALONE, BLENDED, ROUTE, ANSWERS, TOKEN, PRODUCT, PRODUCT_2, *curve(mode)]
    common += [scr(CHUNK, QUANTILE)]
    return common if mode == "quick" else [*common, PROMPTED]


@dataclass(frozen=True)
class Size:
    """How much a mode measures: each setting answers so many items with so many seeds."""

    items: int
    seeds: int
    max_tokens: int


def size(mode: Mode) -> Size:
    return Size(4, 4, 110) if mode == "quick" else Size(8, 3, 48)
