"""Files of text to a corpus: read in order, tokenised by many processes, written in order.

The result depends on input, tokenizer and settings alone, not on the number of processes or on interruptions.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_ring import __version__
from megatron_ring.corpus.encoding import Encoded, EncodeOptions, encode_chunk
from megatron_ring.corpus.index_file import token_dtype, write_index
from megatron_ring.corpus.manifest import Manifest, manifest_path, read_manifest, sha256_of
from megatron_ring.corpus.partial import Partial, State
from megatron_ring.corpus.pool import WorkerPool
from megatron_ring.corpus.sources import Chunk, ReadOptions, read_chunks
from megatron_ring.data.documents import ControlTokens
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError, naming


@dataclass(frozen=True)
class PrepareOptions:
    """How text becomes documents (`EncodeOptions`, `ReadOptions`), and how the work is done.

    Attributes:
        workers: processes that tokenise; 1: this one does.
        save_every: bytes of text between two states that work can go on from.
    """

    field: str = "text"
    separator: str | None = None
    control_tokens: ControlTokens = "split"
    bad_rows: Literal["error", "drop"] = "error"
    max_document_bytes: int = 64_000_000
    workers: int = 1
    save_every: int = 64_000_000


def prepare_corpus(
    sources: list[Path], tokenizer: RingTokenizer, prefix: Path, options: PrepareOptions,
    restart: bool = False, overwrite: bool = False, on_text: Callable[[int, int], None] = lambda bytes_, documents: None,
) -> Manifest:  # fmt: skip
    """Make `PREFIX.bin`, `PREFIX.idx` and `PREFIX.manifest.json`, or go on making them. `.idx` appears last: a corpus that
    has one is whole.

    Args:
        sources: input files in order.
        restart: begin anew instead of going on with what an interrupted call left.
        overwrite: replace a corpus that is there.
        on_text: told of progress: bytes of input files that are read, and documents.

    Raises:
        UserError: input that cannot be read, or that changed since an interrupted call; a corpus of other settings is there.
    """
    settings = _settings(sources, tokenizer, options)
    done = _finished(prefix, settings, overwrite)
    if done is not None:
        return done
    with Partial(prefix) as partial:
        if restart:
            partial.clear()
        state = partial.open(settings, lambda left: _explain(prefix, left, settings))
        encoding = EncodeOptions(
            options.field, options.control_tokens, options.bad_rows, options.max_document_bytes,
            token_dtype(tokenizer.vocab_size).name, tokenizer.eos_id,
        )  # fmt: skip
        encoder = tokenizer.document_encoder(options.control_tokens)
        work = functools.partial(encode_chunk, encoder=encoder, options=encoding)
        with WorkerPool(work, options.workers, "give fewer --workers, or a smaller --max-document-mb") as pool:
            _fill(sources, partial, state, pool, options, encoding, on_text)
        if not state.documents:
            left = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in state.left_out.items())
            raise UserError(
                f"{sources[0]}: no text in the {len(sources)} input files{f' ({left})' if left else ''}: nothing to prepare"
            )
        partial.save(state)
        manifest = _publish(prefix, partial, state, tokenizer, encoding)
        partial.remove()
    return manifest


def _settings(sources: list[Path], tokenizer: RingTokenizer, options: PrepareOptions) -> dict[str, Any]:
    listed = hashlib.sha256()
    for path in sources:
        found = path.stat()
        listed.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return {
        "tokenizer": tokenizer.vocabulary_fingerprint, "field": options.field, "separator": options.separator,
        "control_tokens": options.control_tokens, "bad_rows": options.bad_rows, "eos": tokenizer.eos_id,
        "max_document_bytes": options.max_document_bytes, "sources": listed.hexdigest(),
    }  # fmt: skip


def _explain(prefix: Path, left: dict[str, Any], settings: dict[str, Any]) -> str:
    """What differs from the call that was interrupted."""
    changed = sorted(name for name in settings if left.get(name) != settings[name])
    what = {
        "tokenizer": "another tokenizer", "sources": "other input files, or files that changed since",
        "field": "another --field",
        "separator": "another --separator", "control_tokens": "another --control-tokens", "bad_rows": "another --bad-rows",
        "max_document_bytes": "another --max-document-mb", "eos": "another end token",
    }  # fmt: skip
    said = " and ".join(what[name] for name in changed)
    return f"{prefix}.partial: begun with {said}: --restart begins anew, or give what it was begun with"


def _finished(prefix: Path, settings: dict[str, Any], overwrite: bool) -> Manifest | None:
    """The manifest of the same corpus, finished before. Raises `UserError` where another is there."""
    there = [name for name in (".idx", ".bin") if prefix.with_name(prefix.name + name).exists()]
    manifest = read_manifest(manifest_path(prefix)) if there and not overwrite else None
    partial = prefix.with_name(prefix.name + ".partial")
    if manifest is not None and len(there) == 2 and manifest.settings == settings:
        shutil.rmtree(partial, ignore_errors=True)  # killed before the very last step
        return manifest
    publishing = there == [".bin"] and (partial / "state.json").exists()  # killed between the last steps
    if there and not overwrite and not publishing:
        raise UserError(
            f"{prefix}{there[0]}: there is a corpus of other settings: choose another --out, or give --overwrite"
        )
    return None


def _fill(
    sources: list[Path], partial: Partial, state: State, pool: WorkerPool[Chunk, Encoded], options: PrepareOptions,
    encoding: EncodeOptions, on_text: Callable[[int, int], None],
) -> None:  # fmt: skip
    """Read and write what is left; at most a few chunks for each worker are in memory."""
    reading = ReadOptions(options.field, options.separator, options.max_document_bytes)
    size = int(encoding.dtype.removeprefix("uint").removeprefix("int")) // 8
    saved, read_before = state.text_bytes, sum(path.stat().st_size for path in sources[: state.source])
    while state.source < len(sources):
        path = sources[state.source]
        file_bytes, began = path.stat().st_size, path.stat().st_mtime_ns
        digest = pool.submit(sha256_of, path)
        chunks = read_chunks(path, state.position, reading)
        for chunk, encoded in pool.in_order((_named(chunk), chunk) for chunk in chunks):
            partial.add(state, encoded, len(encoded.lengths) // 4, len(encoded.tokens) // size)
            state.position = chunk.after
            if state.text_bytes - saved >= options.save_every:
                partial.save(state)
                saved = state.text_bytes
            on_text(read_before + min(file_bytes, state.position.offset), state.documents)
        if (path.stat().st_size, path.stat().st_mtime_ns) != (file_bytes, began):
            raise UserError(f"{path}: changed while it was read: leave it alone, then --restart")
        source = {"path": str(path), "bytes": file_bytes, "sha256": digest.result(), "documents": state.source_documents}
        partial.finish_source(state, source)
        read_before += file_bytes
        on_text(read_before, state.documents)


def _publish(prefix: Path, partial: Partial, state: State, tokenizer: RingTokenizer, encoding: EncodeOptions) -> Manifest:
    """Move the files to their places, `.idx` last. What an earlier attempt moved already is there."""
    data, index = partial.path("data"), partial.path("idx")
    paths = {name: prefix.with_name(f"{prefix.name}.{name}") for name in ("bin", "idx")}
    write_index(index, partial.path("lengths"), token_dtype(tokenizer.vocab_size))
    with index.open("rb") as stream:
        os.fsync(stream.fileno())
    files = {
        name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for name, path in (("bin", data), ("idx", index))
    }
    manifest = Manifest(
        state.documents, state.tokens, state.text_bytes, encoding.dtype, state.largest, encoding.eos,
        dict(sorted(state.left_out.items())), state.settings,
        {"fingerprint": tokenizer.fingerprint, "vocabulary_fingerprint": tokenizer.vocabulary_fingerprint,
         "vocab_size": tokenizer.vocab_size},
        partial.sources(), files, __version__,
    )  # fmt: skip
    paths["idx"].unlink(missing_ok=True)
    paths["bin"].unlink(missing_ok=True)
    manifest.write(manifest_path(prefix))
    try:
        os.link(data, paths["bin"])  # a second name: a kill here leaves the work as it was
    except OSError:  # a file system without links
        with naming(paths["bin"]):
            shutil.copyfile(data, paths["bin"])
    index.replace(paths["idx"])
    return manifest


def _named(chunk: Chunk) -> Chunk:
    """The chunk without its content, which the main process need not keep."""
    return Chunk(chunk.path, chunk.kind, None, chunk.line, chunk.after)
