"""Subjects of mathematical problems by a language model: a server with OpenAI's interface, or a checkpoint that we serve.

A reply is read strictly: it ends in exactly one verdict line that bears the prompt's code and names one class of MSC 2020.
Any other reply is no verdict, and the subject stays what it was. Replies are kept on disk by their content: nothing is asked
twice, after a kill neither.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_ring.curation.msc import CLASSES, FORMS, class_of
from megatron_ring.curation.options import JudgeSubject
from megatron_ring.curation.served import serve
from megatron_ring.curation.store import Row, ShardWriter
from megatron_ring.curation.text import prompt_text
from megatron_ring.errors import UserError
from megatron_ring.judging.cache import ReplyCache
from megatron_ring.judging.client import Server
from megatron_ring.judging.prompt_files import read_prompt
from megatron_ring.judging.server import ServerJudge
from megatron_ring.judging.verdict import code_of, read_verdict

KEY = "RING_JUDGE_KEY"
MOST_FAILURES = 0.5  # of a shard's replies: a server that cannot answer more is no judge
_FLAGS = ("judge_subject: url", "model")
_SAMPLE = 16 << 10  # bytes: of a file of up to 64 samples all is read


class SubjectJudge:
    """Asks for the subjects of one shard after another. Use as a context manager.

    Args:
        replies: where they are kept, if the options name no folder.

    Raises:
        UserError: nothing answers, or what answers refuses the key, the model or the settings.
    """

    def __init__(self, options: JudgeSubject, replies: Path) -> None:
        self._options, self._replies = options, options.cache or replies
        self._prompt = read_prompt("subject")
        self._held = ExitStack()
        self._judge: ServerJudge | None = None

    def __enter__(self) -> SubjectJudge:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._held.close()

    def run(self, rows: Sequence[Row], writer: ShardWriter) -> None:
        """Keep each row, in order, with the subject that the judge names. Raises `UserError` where the judge as a whole
        cannot be asked, or fails on most of a shard."""
        asked = {place: self._filled(row) for place, row in enumerate(rows) if self._wants(row)}
        if asked and self._judge is None:
            self._judge = self._open()
        replies = self._judge([prompt for prompt, _ in asked.values()]) if self._judge is not None and asked else []
        failed = [reply.problem for reply in replies if reply.problem is not None]
        if len(failed) > MOST_FAILURES * max(1, len(replies)):
            raise UserError(
                f"judge_subject: {len(failed)} of {len(replies)} replies failed, the first: {failed[0]}: the same command "
                f"goes on where this one stopped"
            )
        verdicts = {
            place: read_verdict(reply, code, FORMS) for (place, (_, code)), reply in zip(asked.items(), replies, strict=True)
        }
        for place, row in enumerate(rows):
            verdict = verdicts.get(place)
            if verdict is None:
                writer.keep(row)
            elif verdict.value is None:
                writer.change(row, "no_verdict", verdict.problem or "")
                writer.keep(row)
            else:
                writer.keep(_with_subject(row, class_of(verdict.value), writer))

    def _wants(self, row: Row) -> bool:
        known = row["metadata"].get("subject")
        return row["domain"] == "math" and (self._options.ask == "all" or known in (None, "unknown"))

    def _filled(self, row: Row) -> tuple[str, str]:
        """The prompt for a row, and its code."""
        text = prompt_text(row["prompt"]).encode("utf-8", "replace").decode()  # halves of surrogate pairs are no text
        code = code_of(self._prompt.sha256, text)
        return self._prompt.fill({"code": code, "problem": text, "classes": "\n".join(CLASSES)}), code

    def _open(self) -> ServerJudge:
        options = self._options
        url, model, judge = options.url, options.model, judge_identity(options)
        if options.checkpoint is not None:
            url, model = self._held.enter_context(serve(options)), str(options.checkpoint)
        assert url is not None and model is not None
        server = Server(
            url, model, options.temperature, options.max_tokens, os.environ.get(KEY) or None, options.concurrency,
            options.requests_per_minute, options.timeout, _FLAGS,
        )  # fmt: skip
        found = ServerJudge(server, ReplyCache(self._replies, judge))
        found.check()
        return found


def _with_subject(row: Row, subject: str, writer: ShardWriter) -> Row:
    metadata = dict(row["metadata"])
    before = metadata.get("subject")
    if before not in (None, subject):
        writer.change(row, "subject", f"{before} before, {subject} by the judge")
        metadata["subject_before"] = before
    metadata |= {"subject": subject, "subject_by": "judge"}
    return {**row, "metadata": metadata}


def judge_identity(options: JudgeSubject) -> dict[str, Any]:
    """What decides a reply besides its prompt. A server that has moved is the same one."""
    found: dict[str, Any] = {"model": options.model, "temperature": options.temperature, "max_tokens": options.max_tokens}
    for name in ("checkpoint", "tokenizer", "chat_template"):
        path = getattr(options, name)
        if path is not None:
            found[name] = path_digest(path)
    return found


def path_digest(path: Path) -> str:
    """Of a file, or of a folder's files by name, size and content; of large ones 64 samples, evenly spaced, as weights of
    many gigabytes are not read. Raises `UserError` where there is neither."""
    if not path.exists():
        raise UserError(f"judge_subject: {path}: no such file or folder")
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    told = []
    for each in files:
        size, content = each.stat().st_size, hashlib.blake2b(digest_size=16)
        step = _SAMPLE if size <= 64 * _SAMPLE else size // 64
        with each.open("rb") as stream:
            for start in range(0, size, step):
                stream.seek(start)
                content.update(stream.read(_SAMPLE))
        told.append([each.relative_to(path).as_posix(), size, content.hexdigest()])
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()
