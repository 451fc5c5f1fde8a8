"""The manifest beside a corpus, `PREFIX.manifest.json`: what it was made of, with what, and how to tell that it is whole."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError, naming

FORMAT = "megatron_ring corpus"
VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """What is known of a prepared corpus.

    Attributes:
        documents, tokens: how many; each document's end token counts.
        text_bytes: UTF-8 bytes of the documents' text, for bits per byte.
        dtype: of the tokens.
        largest_token: the largest id in it.
        eos: id of the token that ends each document.
        left_out: documents that are not in it, by reason.
        settings: how text was found and tokenised.
        tokenizer: `fingerprint` (with the chat template), `vocabulary_fingerprint` (of what decides tokens of plain text),
            `vocab_size` (largest id + 1).
        sources: of each input file in order `path`, `bytes`, `sha256`, `documents`.
        files: of `bin` and `idx` the `bytes` and `sha256`.
        made_by: version of megatron_ring.
    """

    documents: int
    tokens: int
    text_bytes: int
    dtype: str
    largest_token: int
    eos: int
    left_out: dict[str, int]
    settings: dict[str, Any]
    tokenizer: dict[str, Any]
    sources: list[dict[str, Any]]
    files: dict[str, dict[str, Any]]
    made_by: str

    def write(self, path: Path) -> None:
        """Write it whole or not at all. Raises `UserError`."""
        text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False)
        write_atomically(path, (text + "\n").encode(errors="surrogateescape"))


def manifest_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".manifest.json")


def read_manifest(path: Path) -> Manifest | None:
    """The manifest, None where there is none. Raises `UserError` for one that is malformed or newer."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict) or found.pop("format") != FORMAT:
            raise ValueError
        version = found.pop("version")
        if version == VERSION:
            return Manifest(**{field.name: found[field.name] for field in fields(Manifest)})
    except (OSError, ValueError, KeyError, RecursionError):
        raise UserError(f"{path}: not a manifest of a corpus: prepare the corpus again, or remove the file") from None
    raise UserError(f"{path}: version {version}, only {VERSION} is known: use a newer megatron_ring")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with naming(path), path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
