"""A chunk of input to tokens, in a worker process: parse, find the text, tokenise, end each document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from megatron_ring.corpus.sources import Chunk, too_long
from megatron_ring.data.documents import ControlTokens, DocumentEncoder
from megatron_ring.data.fields import at, columns_of
from megatron_ring.data.messages import RecordError, kind_of
from megatron_ring.data.parquet import plain_value
from megatron_ring.data.rows import parse_line
from megatron_ring.errors import UserError

USUAL_TEXT = (
    "text",
    "content",
    "body",
    "raw_content",
    "document",
    "article",
    "code",
    "markdown",
    "story",
    "page",
    "passage",
)


@dataclass(frozen=True)
class EncodeOptions:
    """What becomes a document.

    Attributes:
        field: column of the text.
        control_tokens: of texts that spell control tokens.
        bad_rows: "error" refuses rows that are malformed or lack the text, "drop" leaves them out.
        max_bytes: of one document.
        dtype: numpy's name of the tokens' type.
        eos: id that ends each document.
    """

    field: str
    control_tokens: ControlTokens
    bad_rows: Literal["error", "drop"]
    max_bytes: int
    dtype: str
    eos: int


@dataclass(frozen=True)
class Encoded:
    """The tokens of a chunk.

    Attributes:
        tokens: of all documents, one after the other (dtype of the options).
        lengths: tokens of each (int32).
        text_bytes: UTF-8 bytes of their text.
        left_out: documents that are not in it, by reason.
    """

    tokens: bytes
    lengths: bytes
    largest: int
    text_bytes: int
    left_out: dict[str, int] = field(default_factory=dict)


def encode_chunk(chunk: Chunk, encoder: DocumentEncoder, options: EncodeOptions) -> Encoded:
    """Raises `UserError`, which names FILE:LINE, for what cannot be a document."""
    left_out: dict[str, int] = {}
    texts: list[str] = []
    for place, document in _documents(chunk):
        try:
            text = _text(document, options.field)
            size = len(text.encode())
        except UnicodeEncodeError:
            error = "holds half of a surrogate pair: remove the broken character"
        except RecordError as found:
            error = str(found)
        else:
            if size > options.max_bytes:
                raise too_long(place, size, options.max_bytes)
            reason = "empty" if not text else _control(place, text, encoder, options)
            if reason:
                left_out[reason] = left_out.get(reason, 0) + 1
            else:
                texts.append(text)
            continue
        if options.bad_rows == "error":
            raise UserError(f"{place}: {error}; or leave such rows out with --bad-rows drop")
        left_out["bad_rows"] = left_out.get("bad_rows", 0) + 1
    encoded = encoder(texts)
    lengths = np.fromiter((len(ids) + 1 for ids in encoded), dtype=np.int32, count=len(encoded))
    if len(texts) != len(kept := np.flatnonzero(lengths > 1)):  # white space alone may be no token
        left_out["empty"] = left_out.get("empty", 0) + len(texts) - len(kept)
        texts, encoded, lengths = [texts[at] for at in kept], [encoded[at] for at in kept], lengths[kept]
    tokens = np.full(int(lengths.sum()), options.eos, dtype=options.dtype)
    end = 0
    for ids in encoded:
        tokens[end : end + len(ids)] = ids
        end += len(ids) + 1
    largest = int(tokens.max()) if len(tokens) else 0
    return Encoded(tokens.tobytes(), lengths.tobytes(), largest, sum(len(text.encode()) for text in texts), left_out)


def texts_of(chunk: Chunk, field: str) -> Iterator[str]:
    """The texts of a chunk that are not empty. Raises `UserError`, which names FILE:LINE."""
    for place, document in _documents(chunk):
        try:
            text = _text(document, field)
        except RecordError as error:
            raise UserError(f"{place}: {error}") from None
        if text:
            yield text


def _control(place: str, text: str, encoder: DocumentEncoder, options: EncodeOptions) -> str:
    """Why a text is left out for a control token that it spells; empty where it is not. Raises `UserError`."""
    if options.control_tokens not in ("drop", "error"):
        return ""
    found = encoder.spells_control(text)
    if found is not None and options.control_tokens == "error":
        raise UserError(f"{place}: spells the control token {found!r}: choose another --control-tokens, or take it out")
    return "" if found is None else "control_tokens"


def _documents(chunk: Chunk) -> Iterator[tuple[str, Any]]:
    """(FILE:LINE, bytes of JSON, object or bytes of text); blank lines are skipped."""
    if chunk.kind == "texts":
        for number, text in enumerate(chunk.content, chunk.line + 1):
            yield (
                (f"{chunk.path}" if chunk.line == 0 and len(chunk.content) == 1 else f"{chunk.path}: document {number}"),
                text,
            )
        return
    items = chunk.content.split(b"\n") if chunk.kind == "lines" else chunk.content
    for number, item in enumerate(items, chunk.line + 1):
        if chunk.kind == "lines":
            if item.strip():
                yield f"{chunk.path}:{number}", _Line(item)
        else:
            yield f"{chunk.path}:{number}", item


class _Line(bytes):
    """A line of JSON, told apart from the bytes of a plain text."""


def _text(document: Any, field: str) -> str:
    """The text of a document. Raises `RecordError`."""
    if isinstance(document, bytes) and not isinstance(document, _Line):
        try:
            return document.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RecordError(f"not UTF-8 (byte {error.start + 1} of the document): save the file as UTF-8") from None
    row = parse_line(document) if isinstance(document, _Line) else document
    if not isinstance(row, Mapping):
        raise RecordError(f"expected an object, found {kind_of(row)}: put one {{...}} on each line")
    text = plain_value(at(row, field))
    if isinstance(text, str):
        return text
    if text is not None:
        raise RecordError(f"'{field}' is {kind_of(text)}, not text{_hint(row, field)}")
    if at(row, field) is None and _has(row, field):
        return ""
    raise RecordError(f"'{field}' is missing; {columns_of(row)}{_hint(row, field)}")


def _has(row: Mapping[str, Any], field: str) -> bool:
    """Whether the column is there, if only with null."""
    if field in row:
        return True
    first, _, rest = field.partition(".")
    inner = row.get(first)
    return bool(rest) and ((isinstance(inner, Mapping) and _has(inner, rest)) or (first in row and inner is None))


def _hint(row: Mapping[str, Any], field: str) -> str:
    """The column that seems to hold the text, a usual name before the longest text."""
    texts = {str(name): value for name, value in row.items() if isinstance(value, str) and value and name != field}
    lowered = {name.lower(): name for name in texts}
    usual = next((lowered[name] for name in USUAL_TEXT if name in lowered), None)
    likely = usual or max(texts, key=lambda name: len(texts[name]), default=None)
    return f"; '{likely}' seems to hold it: --field {likely}" if likely else ""
