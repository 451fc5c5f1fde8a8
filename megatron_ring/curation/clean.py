"""The cleansing step: a row is repaired, then the rules look at it in order; the first that objects drops it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from megatron_ring.curation import choices, rules
from megatron_ring.curation.code_tests import cleaned_tests
from megatron_ring.curation.language import language_of
from megatron_ring.curation.options import Clean
from megatron_ring.curation.repair import repaired
from megatron_ring.curation.store import Row, ShardWriter
from megatron_ring.curation.text import prompt_text
from megatron_ring.errors import UserError
from megatron_ring.rewards.batch import reference_check

Objection = tuple[str, str]  # reason, evidence
_VALID = {"yes", "true", "1", "valid", "complete"}


class Cleaner:
    """Cleans one row after another."""

    def __init__(self, options: Clean) -> None:
        self._options = options
        self._off = set(options.off)

    def __call__(self, row: Row, writer: ShardWriter) -> Row | None:
        """The row as it stays; None where it was dropped. Both are told to the writer's ledger, the row itself is not."""
        row = self._repaired(row, writer)
        for reason, evidence in self._objections(row, writer):
            if reason not in self._off:
                writer.drop(row, reason, evidence)
                return None
        return row

    def _repaired(self, row: Row, writer: ShardWriter) -> Row:
        markup = row["domain"] != "code"
        prompt, answer = row["prompt"], row["answer"]
        done: list[str] = []
        if isinstance(prompt, str):
            prompt, done = repaired(prompt, markup)
        else:
            messages = []
            for message in prompt:
                content, changes = repaired(message["content"], markup)
                messages.append({**message, "content": content})
                done += changes
            prompt = messages
        if isinstance(answer, str):
            answer, changes = repaired(answer)
            done += [f"answer_{change}" for change in changes]
        for change in dict.fromkeys(done):
            writer.change(row, change, f"was: {prompt_text(row['prompt'])[:80]!r}")
        return {**row, "prompt": prompt, "answer": answer}

    def _objections(self, row: Row, writer: ShardWriter) -> Iterator[Objection]:
        """What speaks against a row, cheap rules first. May rewrite its prompt and answer in place."""
        yield from self._basics(row)
        text = prompt_text(row["prompt"])
        if row["domain"] == "code":
            yield from self._code(row, writer)
        elif row["domain"] in ("math", "science"):
            yield from self._worded(row, text, writer)
        elif rules.IMAGE.search(text):
            yield "image", f"mentions {_found(rules.IMAGE, text)}"
        yield from self._of_language(text)
        check = self._check(row["domain"])
        if check is not None and row["domain"] != "code":
            try:
                check(row["answer"])
            except UserError as error:
                yield "unusable_answer", str(error)

    def _basics(self, row: Row) -> Iterator[Objection]:
        options, text, answer = self._options, prompt_text(row["prompt"]), row["answer"]
        if not text.strip() or rules.is_placeholder(text):
            yield "missing_problem", f"the problem is {text[:40]!r}"
        if isinstance(answer, str) and (not answer.strip() or rules.is_placeholder(answer)):
            yield "missing_answer", f"the answer is {answer[:40]!r}"
        for name in ("problem_is_valid", "solution_is_valid"):
            said = row["metadata"].get(name)
            if said is not None and str(said).strip().lower() not in _VALID:
                yield "invalid_source", f"{name} is {str(said)[:40]!r}"
        if len(text) < options.min_characters:
            yield "too_short", f"{len(text)} characters"
        if len(text) > options.max_characters:
            yield "too_long", f"{len(text)} characters"
        bad = rules.INVALID.search(text) or (rules.INVALID.search(answer) if isinstance(answer, str) else None)
        if bad:
            yield "invalid_characters", f"holds U+{ord(bad[0]):04X}"

    def _worded(self, row: Row, text: str, writer: ShardWriter) -> Iterator[Objection]:
        options, answer = self._options, row["answer"]
        if isinstance(answer, str) and len(answer) > options.max_answer_characters:
            yield "long_answer", f"{len(answer)} characters"
        if rules.IMAGE.search(text):
            yield "image", f"mentions {_found(rules.IMAGE, text)}"
        if options.asymptote == "drop" and rules.ASYMPTOTE.search(text):
            yield "image", "holds drawing code of Asymptote"
        if rules.LINK.search(text):
            yield "link", f"holds {_found(rules.LINK, text)}"
        kind = choices.kind_of_columns(row["metadata"])
        if kind == "proof":
            yield "proof", "by its column"
        if (evidence := rules.proof(text, answer)) is not None:
            yield "proof", evidence
        yield from self._choices(row, text, kind, writer)
        text, answer = prompt_text(row["prompt"]), row["answer"]
        for name, rule in _TEXT_RULES.items():
            if (evidence := rule(text, answer)) is not None:
                yield name, evidence
        if (evidence := rules.contradiction(answer, row.get("solutions", []))) is not None:
            yield "contradicting_answer", evidence

    def _choices(self, row: Row, text: str, kind: str | None, writer: ShardWriter) -> Iterator[Objection]:
        answer, doing = row["answer"], self._options.multiple_choice
        kind = kind or choices.kind_of_answer(text, answer)
        if kind in ("true_false", "yes_no"):
            yield kind, f"the answer is {str(answer)[:20]!r}"
        if kind != "multiple_choice":
            listed = choices.options_in(text)
            if listed is None or (len(listed.texts) < 3 and choices.letter_of(answer) is None):
                return
        if doing == "keep":
            return
        rewritten = choices.open_question(text, answer, row["metadata"]) if doing == "rewrite" else None
        if rewritten is None or not isinstance(row["prompt"], str):
            yield "multiple_choice", "by its column" if kind else "its text lists options"
            return
        writer.change(row, "multiple_choice_rewritten", f"the answer was {str(answer)[:20]!r}, is {rewritten[1][:60]!r}")
        row["prompt"], row["answer"] = rewritten
        row["metadata"] = {key: value for key, value in row["metadata"].items() if key not in ("options", "choices")}
        # Solutions end in the letter that the answer was.
        row.pop("solutions", None)

    def _code(self, row: Row, writer: ShardWriter) -> Iterator[Objection]:
        text = prompt_text(row["prompt"])
        if rules.IMAGE.search(text):
            yield "image", f"mentions {_found(rules.IMAGE, text)}"
        if "broken_tests" in self._off:
            return
        try:
            row["answer"], removed = cleaned_tests(row["answer"], self._options)
        except UserError as error:
            yield "broken_tests", str(error)
            return
        for reason, count in removed.items():
            writer.change(row, reason, f"{count} tests")

    def _of_language(self, text: str) -> Iterator[Objection]:
        if not self._options.languages:
            return
        found = language_of(text)
        if found is not None and found[0] not in self._options.languages:
            yield "language", f"{found[0]} ({found[1]:.2f})"

    def _check(self, domain: str) -> Callable[[Any], object] | None:
        try:
            return reference_check(domain)
        except UserError as error:
            raise UserError(f"domain {domain!r}: {error}") from None


_TEXT_RULES: dict[str, Callable[[str, Any], str | None]] = {
    "multi_part": rules.multi_part,
    "truncated": lambda text, answer: rules.truncated(text),
    "answer_given": rules.answer_given,
}


def _found(pattern: Any, text: str) -> str:
    return repr(pattern.search(text)[0][:60])
