"""HTML by construction: everything that is not `Html` is text and gets escaped, for model output is untrusted.

The page is one file: styles inline, figures as data URIs, and a content security policy that forbids scripts and any
request.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

# Control characters (newline and tab stay), lone surrogates, and the marks that reorder or hide text.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufffe\uffff]")
_SURROGATES = re.compile("[\ud800-\udfff]")


class Html(str):
    """Markup that is safe to put into the page as it is."""


def clean(value: object) -> str:
    """Plain text: carriage returns become newlines, control and reordering characters go, lone surrogates show."""
    text = str(value).replace("\r\n", "\n").replace("\r", "\n")
    return _SURROGATES.sub("\ufffd", _UNSAFE.sub("", text))


def escape(value: object) -> Html:
    """A value as markup: `Html` as it is, anything else cleaned and escaped (quotes too)."""
    return value if isinstance(value, Html) else Html(html.escape(clean(value), quote=True))


def element(tag: str, *children: object, **attributes: str) -> Html:
    """`<tag attribute="…">children</tag>`; an attribute `class_` is written `class`."""
    rendered = "".join(f' {name.rstrip("_")}="{escape(value)}"' for name, value in attributes.items())
    return Html(f"<{tag}{rendered}>{''.join(escape(child) for child in children)}</{tag}>")


def join(parts: Iterable[object]) -> Html:
    """Parts one after another."""
    return Html("".join(escape(part) for part in parts))


def table(
    head: Sequence[object], rows: Iterable[Sequence[object]], marked: int | None = None, text_columns: int = 1
) -> Html:
    """A table: the first `text_columns` columns are text, the others numbers; row `marked` stands out."""

    def line(tag: str, cells: Sequence[object], **attributes: str) -> Html:
        kinds = ["text" if column < text_columns else "number" for column in range(len(cells))]
        written = [element(tag, cell, class_=kind) for cell, kind in zip(cells, kinds, strict=True)]
        return element("tr", *written, **attributes)

    body = (line("td", row, **({"class_": "marked"} if index == marked else {})) for index, row in enumerate(rows))
    titles = [element("thead", line("th", head))] if any(head) else []
    inner = element("table", *titles, element("tbody", *body))
    return element("div", inner, class_="scroll")


def details(summary: object, *children: object) -> Html:
    """A part that is folded until clicked."""
    return element("details", element("summary", summary), *children)


def note(text: object) -> Html:
    """A remark in muted type: what is missing, how a number was obtained."""
    return element("p", text, class_="note")


def section(title: str, *children: object) -> Html:
    """A section with a heading."""
    return element("section", element("h2", title), *children)


def tile(label: str, value: object, detail: object = "") -> Html:
    """One headline number."""
    return element(
        "div",
        element("div", label, class_="label"),
        element("div", value, class_="value"),
        element("div", detail, class_="detail"),
        class_="tile",
    )


def figure(png: bytes, caption: str) -> Html:
    """A PNG inlined with its caption."""
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    image = Html(f'<img src="{source}" alt="{escape(caption)}">')
    return element("figure", image, element("figcaption", caption))


def clipped(text: object, limit: int = 4000) -> Html:
    """Preformatted text, the middle left out when it is longer than `limit` characters, and said so."""
    value = clean(text)
    if len(value) > limit:
        left_out = len(value) - limit
        value = f"{value[: limit // 2]}\n[… {left_out:,} characters left out …]\n{value[-limit // 2 :]}"
    return element("pre", value)


def document(title: str, body: Html) -> str:
    """The whole page."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body><main>{body}</main></body></html>\n"
    )
