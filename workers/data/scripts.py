"""The characters that the glyphs source is made of, by script.

The table is fixed text, so the classes never depend on library versions. It was chosen from what DejaVu covers: a
character stays out if its shape, scaled to a common size, correlates above 0.92 with one before it (Latin A, Greek
Alpha, Cyrillic A) or is mistaken for another in one of the faces; each script then keeps the up to 16 that differ most.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Script:
    """Characters that belong together.

    Attributes:
        name: the group of its classes.
        prefix: start of its characters' Unicode names that class names leave out.
        spans: code points in hexadecimal, single or first-last, separated by spaces.
    """

    name: str
    prefix: str
    spans: str

    @cached_property
    def codes(self) -> tuple[int, ...]:
        """Code points, in the order of `spans`."""
        return tuple(_codes(self.spans))

    def class_name(self, code: int) -> str:
        """Script and shortened Unicode name, for example `hebrew/alef`. Unicode never renames a character."""
        words = re.sub(r"[^a-z0-9]+", "-", unicodedata.name(chr(code)).removeprefix(self.prefix).lower())
        return f"{self.name}/{words.strip('-')}"


def _codes(spans: str) -> Iterator[int]:
    for span in spans.split():
        first, _, last = span.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)


SCRIPTS = (
    Script("latin-upper", "LATIN CAPITAL LETTER", "0041 0043 004A-0050 0053-0054 0056-005A"),
    Script("latin-lower", "LATIN SMALL LETTER", "0061-0062 0064-0068 006B 006D-006E 0070-0072 0074 0079"),
    Script("latin-extended", "LATIN", "00C6 0186 018A 01AB 01AF 01BA 01C8 01F1 0232 0235"),
    Script("phonetic", "LATIN", "0250 025D 0260 0268 0271 0279 027F 028C-028E 0294 02A4 02A8 02AD"),
    Script("greek", "GREEK", "0394 039E 03A6 03A8 03B2 03B6 03BC 03C0 03C3-03C4 03C9"),
    Script("cyrillic", "CYRILLIC CAPITAL LETTER", "0414 0427 042A-042B 0403 040A 040C 0464 0466 046E 0479 047E 0480"),
    Script(
        "armenian-upper", "ARMENIAN CAPITAL LETTER", "0534 0539-053A 053D-0540 0543 0545-0546 0549-054A 054E 0552 0556"
    ),
    Script("armenian-lower", "ARMENIAN SMALL LETTER", "0561 0564 0567-056A 056D 056F 0571 0579 057B 057E 0583 0586"),
    Script("georgian-mkhedruli", "GEORGIAN LETTER", "10D0 10D7 10DE 10E0-10E1 10E3-10E7 10EF 10F2 10F4"),
    Script("georgian-asomtavruli", "GEORGIAN CAPITAL LETTER", "10A0-10A2 10A6-10A9 10B0 10B5 10BC 10BF 10C1 10C3-10C5"),
    Script("hebrew", "HEBREW LETTER", "05D0-05D2 05D4 05D6 05DA 05DC 05E2 05E4-05EA"),
    Script(
        "arabic", "ARABIC LETTER", "0621 062A 062C 0631 0633 0645-0646 0679 067B 0681 0688 0695 06A5 06A9-06AA 06AE"
    ),
    Script("tifinagh", "TIFINAGH LETTER", "2D3C 2D42-2D44 2D46-2D48 2D52 2D56 2D58-2D59 2D62-2D64"),
    Script("nko", "NKO", "07C1-07C2 07C4 07C6 07CD-07CE 07D1-07D4 07D6-07D8 07DC-07DD 07E2"),
    Script(
        "canadian-syllabics",
        "CANADIAN SYLLABICS",
        "1402 1444-1445 1469 1490 1494 14AF 14B2 14C3 14C5 14E3 14EF 14F7 1504 1517 1670",
    ),
    Script("ogham", "OGHAM LETTER", "1681-1683 1686 1689 168B 168D 1691 1695-1696"),
    Script("lao", "LAO", "0E82 0E87-0E88 0E8A 0E9C-0E9E 0EA7 0EAB 0EC0-0EC1 0EC4 0ED1-0ED2 0ED6"),
    Script("old-italic", "OLD ITALIC LETTER", "10302 10304 1030C-1030E 10310 10312 10314 10319 1031D 10323"),
    Script("braille", "BRAILLE PATTERN", "2803 2809-280A 280F 2811 2815 2829-282A 2833 283C 2867 288E 28BC 28DB"),
    Script(
        "apl", "APL FUNCTIONAL SYMBOL", "2336 233E 2340 2349 2358 235B 235E 2362 2364 2367-2369 2372 2376-2377 2379"
    ),
    Script("box-drawing", "BOX DRAWINGS", "2509 250D 251C 2526 252E 2535 2550 2553 255B-255C 2566 2569 256C 2570-2572"),
    Script("arrows", "", "2190 2198-2199 21A7 21B2-21B3 21B7-21B8 21BA 21C0-21C1 21C7-21C8 21D7"),
    Script("operators", "", "2213 2222 2235 22A3 22A7 22CC 22F0-22F1"),
    Script("geometric-shapes", "", "25A1 25AD 25AF 25B7 25C1 25C6 25D4 25DC-25DF 25E7 25F8-25FA 25FF"),
    Script("dingbats", "", "2701 2703 2706 2709 2713 2720 2730 2732 2750 2762 2768 279B 27AA 27AE 27B4 27B8"),
    Script("signs", "", "2602 2608-2609 2615-2616 261F 262A 2637 266A 266C 266E 268B 268F-2690 269F"),
    Script("zodiac", "", "263F-2640 2642-2643 2645 2647-2648 264A-264C 264E-2653"),
    Script("currency", "", "0024 00A2-00A5 20A0 20A2 20A7 20AA 20AD 20AF-20B0 20B9-20BA 20BD"),
    Script("letterlike", "", "2100 2103 210C 211E 2122 212D-212E 2136 213D-213F 2144 2148"),
    Script("technical", "", "2301 2306 230D-230E 2310 2314 2319 231F-2320 2325 2380 2387 239E 23CE"),
    Script("punctuation", "", "0022 0026 007D 00AC 00B1 2031 2033 203C 2040 2042 2048-2049 2050 2056 2058-2059"),
    Script("roman-numerals", "", "2162-2163 2165 2167-2168 216A-216B 2181"),
)
