"""Input files of a corpus, read in order as chunks of documents: JSON lines, JSON lists, parquet, plain text, also packed.

A chunk knows where the next one begins, so that reading can go on there in another process on another day.
"""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from megatron_ring.data.parquet import parquet_column, parquet_rows
from megatron_ring.data.rows import PACKED, open_text_file, read_rows
from megatron_ring.errors import UserError

ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
TEXT_SUFFIXES = (".txt", ".md", ".rst")
_TABLES = (".csv", ".tsv", ".xlsx", ".arrow", ".feather")
_BLOCK = 1 << 18  # bytes of input in one chunk, about: small, so that all workers end together

Kind = Literal["lines", "rows", "texts"]


@dataclass(frozen=True)
class Position:
    """Where reading stands in a file: `offset` bytes (unpacked) or rows done, `line` lines or documents before it."""

    offset: int = 0
    line: int = 0


@dataclass(frozen=True)
class Chunk:
    """Documents of one file, not parsed yet.

    Attributes:
        kind: "lines": `content` is bytes of JSON lines; "rows": a list of objects; "texts": a list of UTF-8 bytes.
        line: number of lines (documents) of the file before it.
        after: where the next chunk begins.
    """

    path: Path
    kind: Kind
    content: Any
    line: int
    after: Position


@dataclass(frozen=True)
class ReadOptions:
    """How files are cut into documents.

    Attributes:
        field: column of the text; dots go into objects.
        separator: between documents of a plain text file; None: each file is one.
        max_bytes: of one document as it lies in the file.
    """

    field: str
    separator: str | None
    max_bytes: int


def list_sources(inputs: Iterable[Path], suffixes: tuple[str, ...], exclude: Path | None) -> tuple[list[Path], int]:
    """The files of `inputs`, folders with all that is below them in order of names; and how many files were passed over.

    Args:
        suffixes: of files that are taken from folders, such as `.py`; each also packed.
        exclude: prefix of the corpus, whose files are not its own input.

    Raises:
        UserError: no such file or folder, a file given twice, no file at all.
    """
    found: list[Path] = []
    passed = 0
    for given in inputs:
        if given.is_dir():
            below = sorted(path for path in given.rglob("*") if path.is_file() and not _hidden(path.relative_to(given)))
            taken = [path for path in below if _suffix(path) in suffixes and not _is_output(path, exclude)]
            if not taken:
                names = ", ".join(suffixes)
                raise UserError(f"{given}: no file in it is named {names}: give --suffixes of those that hold text")
            found, passed = found + taken, passed + len(below) - len(taken)
        elif given.exists():
            if (suffix := _suffix(given)) in _TABLES and suffix not in suffixes:
                raise UserError(f"{given}: a table: write its texts as JSON lines or parquet, or take the file for one text "
                                f"with --suffixes {suffix}")  # fmt: skip
            found.append(given)
        else:
            raise UserError(f"{given}: no such file or folder: check --input")
    seen: set[Path] = set()
    for path in found:
        real = path.resolve()
        if real in seen:
            raise UserError(f"{path}: given twice: --input holds it more than once; a blend's weights repeat data")
        seen.add(real)
    return found, passed


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_output(path: Path, prefix: Path | None) -> bool:
    if prefix is None:
        return path.name.endswith(".manifest.json")
    partial = prefix.resolve().with_name(prefix.name + ".partial")
    return path.name.endswith(".manifest.json") or path.resolve().is_relative_to(partial)


def _suffix(path: Path) -> str:
    """The suffix in small letters, that below .gz or .zst."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in PACKED else suffix


def read_chunks(path: Path, start: Position, options: ReadOptions) -> Iterator[Chunk]:
    """The chunks of a file from `start` on.

    Raises:
        UserError: the file cannot be read, is cut off (packed files, parquet), or holds a document that is too long.
    """
    suffix = _suffix(path)
    if suffix == ".parquet":
        yield from _parquet(path, start, options)
        return
    with _opened(path) as stream:
        if suffix == ".json" and _is_list(stream):
            yield from _json_list(path, start)
            return
        if stream.seekable():
            stream.seek(start.offset)
        else:  # just opened
            _skip(stream, start.offset)
        if suffix in ROW_SUFFIXES:
            yield from _lines(path, stream, start, options)
        else:
            yield from _texts(path, stream, start, options)


def _lines(path: Path, stream: IO[bytes], start: Position, options: ReadOptions) -> Iterator[Chunk]:
    offset, line = start.offset, start.line
    while block := stream.read(_BLOCK):
        if not block.endswith(b"\n"):
            block += stream.readline(options.max_bytes + 1)
        before, offset, line = line, offset + len(block), line + block.count(b"\n")
        if len(block) > options.max_bytes and len(longest := max(block.split(b"\n"), key=len)) > options.max_bytes:
            number = before + 1 + block.split(b"\n").index(longest)
            raise too_long(f"{path}:{number}", len(longest), options.max_bytes)
        yield Chunk(path, "lines", block, before, Position(offset, line))


def _texts(path: Path, stream: IO[bytes], start: Position, options: ReadOptions) -> Iterator[Chunk]:
    """Documents between separators; without one the file is a document."""
    mark = None if options.separator is None else options.separator.encode()
    rest, offset, line, size = b"", start.offset, start.line, _BLOCK if mark else options.max_bytes + 1
    while block := stream.read(size):
        pieces = [rest + block] if mark is None else (rest + block).split(mark)
        rest = pieces.pop()
        if pieces:
            before, line = line, line + len(pieces)
            offset += sum(len(piece) + len(mark or b"") for piece in pieces)
            yield Chunk(path, "texts", pieces, before, Position(offset, line))
        if len(rest) > options.max_bytes:
            more = "; --separator cuts a file into documents"
            raise too_long(f"{path}: document {line + 1}", len(rest), options.max_bytes, more)
    if rest:
        yield Chunk(path, "texts", [rest], line, Position(offset + len(rest), line + 1))


def _is_list(stream: IO[bytes]) -> bool:
    """Whether a .json file is one list, not lines. (A packed one by zstd is taken as lines.)"""
    return stream.seekable() and stream.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[")


def _skip(stream: IO[bytes], amount: int) -> None:
    while amount > 0 and (block := stream.read(min(amount, _BLOCK))):
        amount -= len(block)


def _json_list(path: Path, start: Position) -> Iterator[Chunk]:
    rows = (row for _, row in itertools.islice(read_rows(path), start.offset, None))
    yield from _rows(path, rows, start)


def _rows(path: Path, rows: Iterator[Any], start: Position) -> Iterator[Chunk]:
    line = start.line
    while taken := list(itertools.islice(rows, 256)):
        before, line = line, line + len(taken)
        yield Chunk(path, "rows", taken, before, Position(line, line))


def _parquet(path: Path, start: Position, options: ReadOptions) -> Iterator[Chunk]:
    """Rows that hold the one column, or, where there is none of its name, the first row whole: an error is made of it."""
    found = parquet_column(path, options.field, start.offset)
    if found is None:
        yield from _rows(path, itertools.islice(parquet_rows(path), 1), Position())
        return
    line = start.line
    for taken in found:
        before, line = line, line + len(taken)
        yield Chunk(path, "rows", taken, before, Position(line, line))


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked by its name; failures of reading become `UserError`."""
    try:
        with open_text_file(path) as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: cannot be unpacked ({error}): the file is damaged or cut off; copy it again") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror or error}: the file is damaged or cut off; copy it again"
        ) from None


def too_long(place: str, size: int, limit: int, more: str = "") -> UserError:
    return UserError(
        f"{place}: a document of more than {limit / 1e6:,.0f} MB (at least {size / 1e6:,.0f} MB): split it, or raise "
        f"--max-document-mb where there is memory (about 100 times its size in each worker){more}"
    )
