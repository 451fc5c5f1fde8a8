"""The first step: files become shards of rows in the contract's form. What cannot be read as a row is dropped with its line.

Files are cut at line ends into pieces of a few megabytes, which are read side by side. Parquet, gzip and lists of JSON are
written out as lines first.
"""

from __future__ import annotations

import hashlib
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_ring.curation.forms import ALL_FORMS, Lacking, extras, file_form, solutions_of
from megatron_ring.curation.recipe import Source
from megatron_ring.curation.responses import texts_of
from megatron_ring.curation.store import Row, Shard, ShardWriter, dumps
from megatron_ring.data.fields import at, columns_of, seems_to_hold
from megatron_ring.data.forms import Form, kept, small
from megatron_ring.data.messages import Message, RecordError, messages_to_json, read_prompt, reasoning_of
from megatron_ring.data.records import response_of, tools_of, with_system, with_tools
from megatron_ring.data.rows import LINES, check_beginning, open_text_file, parse_line, read_rows, suffix_of
from megatron_ring.errors import UserError

PIECE = 4 << 20  # bytes of a file that become one shard, at most
_SMALL_PIECE = 256 << 10
_PIECES = 32  # of a file that is not large, so that several processes end their work together
_SAMPLE = 200  # rows that decide the form of a file
_SOLUTIONS = 20  # of a row, at most
_RAW = 2000  # characters of an unreadable line that are kept
_PROBLEM_COLUMNS = frozenset({"problem", "question", "prompt", "description", "question_content", "origin_prompt", "text"})
CONTRACT = ("id", "domain", "prompt", "answer")


@dataclass(frozen=True)
class File:
    """A file of a source.

    Attributes:
        path: as the user named it, for messages.
        lines: the same rows as JSON lines, which is `path` itself for such a file.
        digest: of its content.
        form: name of the public form that it is of; None: the contract's, or the source's fields.
    """

    source: Source
    number: int
    path: Path
    lines: Path
    digest: str
    form: str | None


@dataclass(frozen=True)
class Piece:
    """Bytes `start` to `end` of a file of lines; the first of these lines has the number `line`, from 1."""

    file: File
    start: int
    end: int
    line: int


def open_source(source: Source, unpacked: Path) -> tuple[list[File], list[Piece]]:
    """Files of a source and their pieces. Raises `UserError` for a file that cannot be read or whose form is not known."""
    files, pieces = [], []
    for number, path in enumerate(source.files, start=1):
        check_beginning(path, suffix_of(path))
        lines = path if suffix_of(path) in LINES else _unpack(path, unpacked)
        digest, cuts = _cut(lines)
        file = File(source, number, path, lines, digest, None)
        if cuts:
            file = replace(file, form=_form(source, file))
        files.append(file)
        pieces += [Piece(file, *cut) for cut in cuts]
    if not pieces:
        raise UserError(f"source {source.name}: {source.files[0]}: no rows: check the file")
    return files, pieces


def _unpack(path: Path, folder: Path) -> Path:
    """The rows of a file as lines of JSON, written once for its content."""
    target = folder / f"{content_digest(path)}.jsonl"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".tmp")
    if suffix_of(path).startswith(LINES):
        _copy(path, temporary)
    else:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.writelines(dumps(row) + "\n" for _, row in read_rows(path))
    temporary.replace(target)
    return target


def _copy(path: Path, target: Path) -> None:
    try:
        with open_text_file(path) as packed, target.open("wb") as stream:
            shutil.copyfileobj(packed, stream, 1 << 20)
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path}: cannot be unpacked: {getattr(error, 'strerror', None) or error}: check the file") from None


def content_digest(path: Path) -> str:
    """Of a file's bytes. Raises `UserError` where it cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return digest.hexdigest()


def _cut(path: Path) -> tuple[str, list[tuple[int, int, int]]]:
    """The digest of a file of lines, and its pieces: first byte, byte after the last, number of the first line."""
    digest, cuts = hashlib.blake2b(digest_size=16), []
    start, line = 0, 1
    try:
        size = min(PIECE, max(_SMALL_PIECE, path.stat().st_size // _PIECES))
        with path.open("rb") as stream:
            while block := stream.read(size):
                block += stream.readline()
                digest.update(block)
                cuts.append((start, start + len(block), line))
                start, line = start + len(block), line + block.count(b"\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return digest.hexdigest(), cuts


def _form(source: Source, file: File) -> str | None:
    """The name of the form of a file; None where the source names the columns or the rows are the contract's."""
    sample = [row for _, row in islice(_parsed(file.lines), _SAMPLE) if isinstance(row, dict)]
    if not sample:
        raise UserError(f"{file.path}:1: no JSON object among the first {_SAMPLE} lines: give JSON lines, JSON or parquet")
    if source.response is not None and all(at(row, source.response) is None for row in sample):
        raise UserError(f"{file.path}:1: the column {source.response!r} of 'response' is missing; {columns_of(sample[0])}")
    if source.fields:
        for name, column in source.fields.items():
            if all(at(row, column) is None for row in sample):
                raise UserError(f"{file.path}:1: the column {column!r} of '{name}' is missing; {columns_of(sample[0])}")
        _need_domain(source, file, sample)
        return None
    contract = sum(all(row.get(name) is not None for name in CONTRACT) for row in sample)
    if 2 * contract >= len(sample):
        return None
    form = file_form(sample)
    if form is None:
        found = (seems_to_hold(sample[0], name, "").lstrip("; ").partition(" it:")[0] for name in ("prompt", "answer"))
        hint = ", ".join(f"{text} the {name}" for text, name in zip(found, ("prompt", "answer"), strict=True) if text)
        raise UserError(
            f"{file.path}:1: of no known form; {columns_of(sample[0])}: name the columns in the recipe, as in "
            f"fields: {{prompt: question, answer: final}}{f' ({hint})' if hint else ''}"
        )
    return form.name


def _need_domain(source: Source, file: File, sample: list[Row]) -> None:
    column = source.fields.get("domain", "domain")
    if source.domain is None and all(not isinstance(at(row, column), str) for row in sample):
        raise UserError(f"{file.path}:1: no row names its domain: give the source one, as in 'domain: math'")


def _parsed(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield number, parse_line(line) if line.strip() else None
            except RecordError:
                yield number, None


def read_piece(piece: Piece, shard: Shard) -> None:
    """Write one piece as a shard."""
    file, writer = piece.file, ShardWriter(shard, "read")
    form = ALL_FORMS[file.form] if file.form else None
    prefix = file.source.name if len(file.source.files) == 1 else f"{file.source.name}.{file.number}"
    with file.lines.open("rb") as stream:
        stream.seek(piece.start)
        data = stream.read(piece.end - piece.start)
    for number, line in enumerate(data.split(b"\n"), start=piece.line):
        if not line.strip():
            continue
        identity = {"id": f"{prefix}-{number}", "metadata": {"source": file.source.name}}
        try:
            row = parse_line(line)
            if not isinstance(row, dict):
                raise RecordError("not a JSON object")
            for found in _with_responses({**identity, **contract_row(row, file.source, form)}, row, file.source):
                writer.keep(found)
        except RecordError as error:
            reason = error.reason if isinstance(error, Lacking) else "malformed"
            raw = {"raw": line.decode("utf-8", "replace")[:_RAW]}
            writer.drop({**identity, **raw}, reason, f"{file.path.name}:{number}: {error}")
    writer.finish()


def _with_responses(found: Row, row: Row, source: Source) -> list[Row]:
    """The row, or one for each of its responses where the source names their column."""
    if source.response is None:
        if not isinstance(row.get("response"), str):
            return [found]
        # Thinking in a column of its own goes before the response, as where files are read for training.
        text = response_of(row)[0].content if reasoning_of(row) else row["response"]
        return [{**found, "response": text}]
    texts = texts_of(at(row, source.response), source.response)
    if not texts:
        raise Lacking("missing_response", f"{source.response!r} is empty")
    if len(texts) == 1:
        return [{**found, "response": texts[0]}]
    return [{**found, "id": f"{found['id']}.{place}", "response": text} for place, text in enumerate(texts, start=1)]


def contract_row(row: Row, source: Source, form: Form | None) -> Row:
    """A row as the contract has it, without `id`; `metadata` and `solutions` say what else it brings.

    Raises:
        Lacking: it has no problem or no answer.
        RecordError: it is malformed.
    """
    found = _converted(row, source, form)
    prompt, answer = found.get("prompt"), found.get("answer")
    if prompt is None or (isinstance(prompt, str) and not prompt.strip()) or prompt == []:
        raise Lacking("missing_problem", "the problem is empty")
    if answer is None or (isinstance(answer, str) and not answer.strip()) or answer in ([], {}):
        raise Lacking("missing_answer", "the answer is empty")
    messages = read_prompt(prompt)
    if source.response is not None or isinstance(row.get("response"), str):
        messages = _with_system(messages, row)
    if not isinstance(messages, str):
        alone = len(messages) == 1 and messages[0].role == "user"
        prompt = messages[0].content if alone else messages_to_json(messages)
    domain = found.get("domain") or source.domain
    if not isinstance(domain, str):
        raise RecordError("'domain' is missing: give the source one")
    metadata = found["metadata"] if isinstance(found.get("metadata"), dict) else {}
    origin = {"original_source": metadata["source"]} if metadata.get("source") is not None else {}
    metadata = {**extras(row), **metadata, **origin, **source.metadata, "source": source.name}
    if found.get("id") not in (None, ""):
        metadata["source_id"] = found["id"]
    solutions = found.get("solutions") if isinstance(found.get("solutions"), list) else solutions_of(row)
    given = {"domain": domain, "prompt": prompt, "answer": answer, **_tools(found), "metadata": metadata}
    return {**given, "solutions": solutions[:_SOLUTIONS]} if solutions else given


def _with_system(prompt: str | tuple[Message, ...], row: Row) -> str | tuple[Message, ...]:
    """The prompt with what the system says beside a conversation, as where files are read for training."""
    turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    whole, _ = with_system(small(row), turns, ())
    return prompt if whole == turns else whole


def _tools(found: Row) -> Row:
    """What the prompt may call, in one form. Raises `RecordError`."""
    return tools_of(with_tools((Message("user", ""),), found.get("tools")))


def _converted(row: Row, source: Source, form: Form | None) -> Row:
    if source.fields:
        found = {**row, **{name: at(row, column) for name, column in source.fields.items()}}
        if "solution" in source.fields and isinstance(found["solution"], str):
            found["solutions"] = [{"text": found["solution"], "language": None}]
        found["domain"] = found.get("domain") if isinstance(found.get("domain"), str) else None
        return found
    if form is None:
        return row
    lowered = small(row)
    lacks = sorted(name for name in form.columns if lowered.get(name) is None)
    if lacks:
        reason = "missing_problem" if _PROBLEM_COLUMNS & set(lacks) else "missing_answer"
        raise Lacking(reason, f"'{lacks[0]}' is missing, in a file of the form {form.name}")
    try:
        return {**form.convert(lowered), **kept(lowered, "tools")}
    except RecordError as error:
        if " has no " in str(error) and not isinstance(error, Lacking):  # forms say so of an answer that is not there
            raise Lacking("missing_answer", str(error)) from None
        raise
