"""What a reader sees of a text: without characters that are not shown, with one letter for those that look alike."""

from __future__ import annotations

import html
import re
import unicodedata

# Letters of other scripts that are drawn like Latin ones, capitals apart from small letters.
_PAIRS = (
    ("аеікморсухјѕһԁԛԝ", "aeikmopcyxjshdqw"),  # Cyrillic
    ("АВЕІКМНОРСТУХЈЅ", "ABEIKMHOPCTYXJS"),
    ("втнґгѵ", "bthrrv"),
    ("αβεικνορτυχγωϲϳ", "abeikvoptuxywcj"),  # Greek
    ("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ABEZHIKMNOPTYX"),
    ("օսհոցզ", "ouhngq"),  # Armenian
    ("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprstuvwyz"),
    ("ıɑɡɩʟ", "iagil"),
    ("\u2018\u2019\u02bc\u201b\u2010\u2011", "''''--"),  # apostrophes, hyphens
)
_ALIKE = {ord(other): latin for others, letters in _PAIRS for other, latin in zip(others, letters, strict=True)}
_UNSEEN = ("Cf", "Mn", "Me", "Cc")
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>|<!--[^<>]{0,200}-->")
_INSIDE_MARK = re.compile(r"(?<=[^\W_])(?:\*{1,3}|~~|`{1,2})(?=[^\W_])")
_EDGE_MARK = re.compile(r"(?<![^\W_])_++|_++(?![^\W_])")  # `_` counts as a letter of a word


def as_rendered(text: str) -> str:
    """`as_seen`, white space as one blank, without the marks that Markdown and HTML do not show: `r**o**ck`, `_rock_`,
    `ro&shy;ck`, `ro<b></b>ck`."""
    if "&" in text or "<" in text:
        text = _TAG.sub("", html.unescape(text))
    return re.sub(r"\s+", " ", as_seen(_EDGE_MARK.sub("", _INSIDE_MARK.sub("", text))))


def as_seen(text: str) -> str:
    """The text with compatible characters made one (full width, bold, circled), unseen ones dropped, look-alikes Latin.

    An accent that makes a letter of its own, as in é, stays; line breaks and tabs do.
    """
    if text.isascii():
        return text
    composed = unicodedata.normalize("NFKC", text)
    kept = (letter for letter in composed if letter in "\n\t" or unicodedata.category(letter) not in _UNSEEN)
    return "".join(kept).translate(_ALIKE)
