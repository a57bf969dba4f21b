"""Elements of HTML and SVG as text. What is not markup already is escaped, so no value can become an element."""

import re
from html import escape

_VOID = frozenset({"meta", "rect", "line", "path", "circle", "polyline", "polygon"})
# Characters that neither XML nor HTML may hold, escaped or not; task names can come from folders of any user.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Markup(str):
    """Text that is HTML or SVG already."""

    __slots__ = ()


Content = str | int | Markup


def text(value: Content) -> Markup:
    """A value as it stands between tags; markup stays as it is."""
    return (
        value if isinstance(value, Markup) else Markup(escape(_FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", str(value))))
    )


def element(name: str, /, *children: Content, **attributes: Content | float | None) -> Markup:
    """`<name attribute="...">children</name>`, well-formed as XML too.

    Args:
        name: of the element.
        *children: escaped, unless they are markup.
        **attributes: escaped; None leaves one out. A trailing underscore is dropped (`class_`), others become hyphens.
            Floats are written with two decimals at most.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{joined(*children)}</{name}>")


def joined(*parts: Content) -> Markup:
    """Parts one after the other, escaped unless they are markup."""
    return Markup("".join(text(part) for part in parts))


def number(value: float) -> str:
    """A coordinate: two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def _attribute(value: Content | float) -> str:
    return number(value) if isinstance(value, float) else text(str(value))
