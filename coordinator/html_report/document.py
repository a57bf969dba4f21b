"""A page's frame: head, style sheet, contents, sections."""

from collections.abc import Sequence

from coordinator.html_report.axes import chart_style, palette_style
from coordinator.html_report.cells import cell_rules, cell_style
from coordinator.html_report.markup import Markup, element

_LIGHT = "--paper:#fff;--raised:#f3f4f6;--ink:#1b1f24;--muted:#59616b;--rule:#d9dde2;--link:#0b5cad;--bad:#a4262c;"
_DARK = "--paper:#14171b;--raised:#20252b;--ink:#e8eaed;--muted:#a5adb7;--rule:#363d46;--link:#7fb8f5;--bad:#ff8f8f;"


def document(title: str, kind: str, name: str, sections: Sequence[tuple[str, str, Markup]]) -> str:
    """An HTML document of sections, each with its key, heading and content; the navigation leads to them."""
    links = [element("a", heading, href=f"#{key}") for key, heading, _ in sections]
    body = element(
        "body",
        element("header", element("p", kind, class_="kind"), element("h1", name)),
        element("nav", *links, aria_label="Sections"),
        element(
            "main",
            *(
                element(
                    "section",
                    element("h2", heading, id=f"{key}-title"),
                    content,
                    id=key,
                    aria_labelledby=f"{key}-title",
                )
                for key, heading, content in sections
            ),
        ),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(style())),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def style() -> str:
    """The page's rules."""
    light = _LIGHT + palette_style(dark=False) + cell_style(dark=False)
    dark = _DARK + palette_style(dark=True) + cell_style(dark=True)
    return f"""
:root{{color-scheme:light dark;{light}}}
@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}
*{{box-sizing:border-box}}
html{{-webkit-text-size-adjust:100%;text-size-adjust:100%}}
body{{margin:0 auto;max-width:76rem;padding:1.25rem 1rem 4rem;background:var(--paper);color:var(--ink);
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",Arial,sans-serif;overflow-wrap:anywhere}}
h1{{font-size:1.7rem;line-height:1.2;margin:0}}
h2{{font-size:1.25rem;margin:0 0 .75rem}}
h3{{font-size:1rem;margin:1.5rem 0 .5rem}}
p{{margin:0 0 .75rem;max-width:70ch}}
a{{color:var(--link)}}
.kind{{color:var(--muted);margin:0}}
nav{{display:flex;flex-wrap:wrap;gap:.25rem 1.1rem;margin:.75rem 0 0;padding:.6rem 0;
 border-block:1px solid var(--rule)}}
section{{padding-top:1.75rem}}
.missing,.note{{color:var(--muted)}}
.bad{{color:var(--bad);font-weight:600}}
.facts{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,15rem),1fr));gap:.6rem;margin:0}}
.facts div{{background:var(--raised);border-radius:.5rem;padding:.6rem .8rem}}
dt{{color:var(--muted);font-size:.85rem}}
dd{{margin:0;font-weight:600}}
.charts+.charts{{margin-top:1.5rem}}
.charts{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));gap:1.5rem 2rem}}
.cell{{margin-bottom:1.5rem}}
figure{{margin:0;min-width:0}}
figcaption{{font-weight:600;margin-bottom:.25rem}}
.charts svg[role=img]{{display:block;width:100%;max-width:34rem;height:auto}}
.cell svg{{display:block}}
.legend{{display:flex;flex-wrap:wrap;gap:.1rem .9rem;list-style:none;margin:0 0 .3rem;padding:0;font-size:.85rem}}
.legend li{{display:flex;align-items:center;gap:.35rem}}
.swatch{{width:28px;height:14px;flex:none}}
.scroll{{overflow-x:auto;max-width:100%}}
details{{margin-top:.4rem}}
details+p{{margin-top:1rem}}
summary{{cursor:pointer;color:var(--link);font-size:.9rem}}
details .scroll{{max-height:26rem;overflow-y:auto}}
table{{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;overflow-wrap:normal}}
th,td{{text-align:left;padding:.25rem .7rem .25rem 0;border-bottom:1px solid var(--rule);vertical-align:top}}
thead th{{color:var(--muted);font-weight:600}}
tbody th{{font-weight:400}}
code{{font:.92em ui-monospace,SFMono-Regular,"Liberation Mono",Menlo,monospace}}
.size{{white-space:nowrap}}
.hash{{overflow-wrap:anywhere;min-width:17rem;display:inline-block}}
:focus-visible{{outline:2px solid var(--link);outline-offset:2px}}
{chart_style()}
{cell_rules()}
@media print{{
 @page{{margin:14mm}}
 body{{max-width:none;padding:0;font-size:10pt}}
 nav,summary{{display:none}}
 *{{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
 .charts{{grid-template-columns:1fr 1fr}}
 figure,.facts div,tr{{break-inside:avoid}}
 h2,h3,figcaption,section>p{{break-after:avoid}}
 th,td{{padding-block:.1rem}}
 .scroll,details .scroll{{overflow:visible;max-height:none}}
 .cell svg{{max-width:100%;height:auto}}
 details.printed::details-content{{content-visibility:visible;block-size:auto;opacity:1}}
 figure details{{display:none}}
 th,td{{overflow-wrap:anywhere}}
 .hash{{min-width:0}}
}}
"""
