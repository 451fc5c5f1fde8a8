"""The options of every step: what a recipe may say and what holds without it. docs/curation.md explains each rule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from megatron_ring.config.checks import require
from megatron_ring.config.judge import JudgeSettings

# Reasons of the cleansing step that a recipe may switch off.
RULES = (
    "missing_problem", "missing_answer", "invalid_source", "too_short", "too_long", "long_answer", "invalid_characters",
    "image", "link", "answer_given", "proof", "multiple_choice", "true_false", "yes_no", "multi_part", "truncated",
    "language", "contradicting_answer", "unusable_answer", "broken_tests",
)  # fmt: skip
Prefer = Literal["first", "solution", "longest", "tests"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a step is told."""

    name: ClassVar[str]


@dataclass(frozen=True, kw_only=True)
class Clean(Options):
    """Repair texts and drop rows that cannot be trained on or are too easily guessed.

    Attributes:
        off: rules that are not applied.
        multiple_choice: `drop` such rows, `keep` them, or `rewrite` them as questions for the text of the right option where
            they make sense without the others; those that do not are dropped.
        languages: codes as in `en` or `zh`; rows of another language are dropped. None: any.
        asymptote: what to do with problems that hold drawing code of Asymptote.
        min_characters, max_characters: of a problem.
        max_answer_characters: of an answer that is text.
        min_tests, max_tests: of a code problem; one with fewer sound tests is dropped, of more the first are kept.
        max_test_characters: of one test's input and output; larger tests are removed.
    """

    name = "clean"
    off: tuple[str, ...] = ()
    multiple_choice: Literal["drop", "keep", "rewrite"] = "drop"
    languages: tuple[str, ...] = ()
    asymptote: Literal["keep", "drop"] = "keep"
    min_characters: int = 3
    max_characters: int = 20_000
    max_answer_characters: int = 400
    min_tests: int = 1
    max_tests: int = 100
    max_test_characters: int = 200_000

    def __post_init__(self) -> None:
        unknown = next((rule for rule in self.off if rule not in RULES), None)
        require(unknown is None, f"off: there is no rule {unknown!r}: use {', '.join(RULES)}")
        require(1 <= self.min_tests <= self.max_tests, "min_tests: give 1 at least and no more than max_tests")
        require(
            1 <= self.min_characters < self.max_characters, "min_characters: give 1 at least and less than max_characters"
        )
        _check_languages(self.languages)


@dataclass(frozen=True, kw_only=True)
class Solutions(Options):
    """Run the solutions of code problems in the sandbox; keep a problem only where one passes every test.

    Attributes:
        keep: passing solutions that stay in the row.
        tried: solutions that are run at most.
        without: what to do with a code problem that brings no solution.
        unsafe_code: run without a sandbox where bubblewrap does not work. For trusted code only.
    """

    name = "solutions"
    keep: int = 1
    tried: int = 8
    without: Literal["drop", "keep"] = "drop"
    unsafe_code: bool = False

    def __post_init__(self) -> None:
        require(1 <= self.keep <= self.tried, "keep: give 1 at least and no more than tried")


@dataclass(frozen=True, kw_only=True)
class Exact(Options):
    """Drop rows whose problem says the same as another's, spelling of LaTeX and white space aside.

    Attributes:
        prefer: which copy stays: the `first` (in the order of sources), one with a `solution`, the `longest`, or the one
            with most `tests`; the first of equals.
        conflicts: what to do with copies that certainly have different answers: `drop` all of them, or `keep` the preferred.
    """

    name = "exact"
    prefer: Prefer = "first"
    conflicts: Literal["drop", "keep"] = "drop"


@dataclass(frozen=True, kw_only=True)
class Near(Options):
    """Drop rows whose problem is almost another's with the same numbers (MinHash, then the Jaccard similarity itself).

    Attributes:
        threshold: Jaccard similarity from which two problems are duplicates.
        prefer: as for `exact`.
        words: n of the word n-grams of plain text; word_bands and word_rows: the signature's bands and rows.
        characters: n of the character n-grams of LaTeX and Chinese text; character_bands, character_rows: likewise.
        numbers: whether problems with other numbers, signs or turning words (`most`, `least`) are different whatever else.
    """

    name = "near"
    threshold: float = 0.8
    prefer: Prefer = "first"
    words: int = 5
    word_bands: int = 28
    word_rows: int = 4
    characters: int = 24
    character_bands: int = 52
    character_rows: int = 5
    numbers: bool = True

    def __post_init__(self) -> None:
        require(0 < self.threshold <= 1, f"threshold is {self.threshold}: give more than 0 and at most 1")
        counts = (self.words, self.word_bands, self.word_rows, self.characters, self.character_bands, self.character_rows)
        require(min(counts) >= 1, "n-grams, bands and rows: give 1 at least")
        require(max(self.word_bands * self.word_rows, self.character_bands * self.character_rows) <= 2048,
                "bands times rows: give at most 2,048 hashes")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Decontaminate(Options):
    """Drop rows that hold a problem of a benchmark.

    Attributes:
        benchmarks: prompt files or public benchmark files; patterns may be given.
        ngram, long_ngram: words that must follow each other in both, for problems of up to `long_words` words and for
            longer.
        coverage: share of a benchmark problem's words that such matches must cover.
        same_answer_coverage: the same where the answers agree, too.
        any: drop at any one match, whatever it covers (as open-r1 does).
        renamed: whether other names of one-letter variables make no difference.
    """

    name = "decontaminate"
    benchmarks: tuple[Path, ...] = ()
    ngram: int = 8
    long_ngram: int = 13
    long_words: int = 100
    coverage: float = 0.4
    same_answer_coverage: float = 0.25
    any: bool = False
    renamed: bool = True

    def __post_init__(self) -> None:
        require(bool(self.benchmarks), "benchmarks: give the files of benchmarks")
        require(1 <= self.ngram <= self.long_ngram, "ngram: give 1 at least and no more than long_ngram")
        for value in (self.coverage, self.same_answer_coverage):
            require(0 < value <= 1, f"coverage is {value}: give more than 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class Annotate(Options):
    """Write into `metadata` what stage files select by: length, language, subject, level, kind of answer, difficulty.

    Attributes:
        tokenizer: a folder or tokenizer.json; `metadata.tokens` counts the problem's tokens with it.
        solve_rate: the metadata field that holds solve rates (0 to 1, or 0 to 100 where one is above 1).
        language, subject: whether to write these.
    """

    name = "annotate"
    tokenizer: Path | None = None
    solve_rate: str | None = None
    language: bool = True
    subject: bool = True


@dataclass(frozen=True)
class JudgeSubject(Options, JudgeSettings):
    """Have a language model name the subject of mathematical problems, as a class of MSC 2020. Behind `annotate`.

    Attributes:
        ask: for `all` problems, or for those alone whose subject is `unknown`.
    """

    name = "judge_subject"
    group: ClassVar[str] = "judge_subject"
    ask: Literal["all", "unknown"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.given, "give url and model of a server, or checkpoint")


@dataclass(frozen=True, kw_only=True)
class Responses(Options):
    """Drop responses of a teacher by their form. The rows have `response`; docs/curation.md says how a source brings them.

    Attributes:
        think: `any`: no `<think>` block, or a whole one at the beginning with an answer behind it; `required`: a whole one;
            `forbidden`: none.
        min_characters, max_characters: of a response.
        tokenizer, max_tokens: a folder or tokenizer.json, and the most tokens of a response by it.
        repeat_words, max_repeats: a response goes where one run of so many words comes more than so many times.
        languages: codes; responses whose text behind the thinking is in another language go. None: any.
        max_mixing: share of letters in a script that the problem has not and that is not the response's own.
    """

    name = "responses"
    think: Literal["any", "required", "forbidden"] = "any"
    min_characters: int = 1
    max_characters: int = 200_000
    tokenizer: Path | None = None
    max_tokens: int = 32_768
    repeat_words: int = 20
    max_repeats: int = 20
    languages: tuple[str, ...] = ()
    max_mixing: float = 0.01

    def __post_init__(self) -> None:
        require(1 <= self.min_characters <= self.max_characters, "min_characters: give 1 at least, max_characters no less")
        require(min(self.max_tokens, self.repeat_words, self.max_repeats) >= 1,
                "max_tokens, repeat_words, max_repeats: give 1 at least")  # fmt: skip
        require(0 <= self.max_mixing <= 1, f"max_mixing is {self.max_mixing}: give a share from 0 to 1")
        _check_languages(self.languages)


@dataclass(frozen=True, kw_only=True)
class Verify(Options):
    """Score each response by the verifier of its domain, as RL does; drop those that are wrong.

    Attributes:
        least: reward from which on a response stays.
        unsafe_code: run programs without a sandbox where bubblewrap does not work. For trusted code only.
    """

    name = "verify"
    least: float = 1.0
    unsafe_code: bool = False


@dataclass(frozen=True, kw_only=True)
class PerProblem(Options):
    """Keep some of the responses to each problem.

    Attributes:
        keep: how many; a response that says the same as one that stays counts as none.
        prefer: which: the `first`, the `shortest` or the `longest`; the first of equals.
    """

    name = "per_problem"
    keep: int = 1
    prefer: Literal["first", "shortest", "longest"] = "first"

    def __post_init__(self) -> None:
        require(self.keep >= 1, f"keep is {self.keep}: give 1 at least")


def _check_languages(codes: tuple[str, ...]) -> None:
    for code in codes:
        require(code.isalpha() and code.islower() and len(code) in (2, 3), f"languages: {code!r} is no code like en or zh")


STEPS: dict[str, type[Options]] = {
    kind.name: kind
    for kind in (Clean, Solutions, Exact, Near, Decontaminate, Annotate, JudgeSubject, Responses, Verify, PerProblem)
}
