"""Summaries by rules: length, copying, repetition, and whether given facts are in it. Domain `summary`.

The reference is an object:

| key             |                                                                                                  |
|-----------------|--------------------------------------------------------------------------------------------------|
| `max_words`     | required: at most so many tokens                                                                 |
| `min_words`     | at least so many (1)                                                                             |
| `facts`         | what it must say: each is text, or a list of texts of which one is enough; a number is a number   |
| `source`        | the text that was summarised; required by the next two                                           |
| `max_copied`    | longest run of tokens that may be taken over from the source                                     |
| `max_overlap`   | largest share of the summary's runs of four tokens that the source has, 0 to 1                   |
| `max_repeated`  | largest share of its runs of four tokens that it has said before, 0 to 1 (0.2)                    |

The reward is the share of the facts that are said, or 1 without facts; 0 where a limit is broken. Tokens are those of
`answer_text`: words without punctuation and articles, single characters in Chinese.

A list of all facts is bounded by `max_words` alone, a copy of the source by `max_copied` and `max_overlap`. Rules see
neither whether a summary reads well nor whether it turns a fact round ("not in Rome"): give a reward model or a judge a part
beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.answer_text import tokens
from megatron_ring.rewards.instructions.finding import shown
from megatron_ring.rewards.instructions.text import answer_part
from megatron_ring.rewards.interface import Reward, ScoreRequest

RUN = 4  # tokens of the runs that are compared
MAX_WORDS = 10_000
MAX_COPIED = 256
MAX_FACTS = 256
MAX_CHARACTERS = 1 << 17  # of a summary; a source may have eight times as many
_KEYS = {"max_words", "min_words", "facts", "source", "max_copied", "max_overlap", "max_repeated"}
# Around each token of a joined text: no token holds it.
_EDGE = "\n"


@dataclass(frozen=True, slots=True)
class SummaryRules:
    """A reference that has been checked. `facts`: for each its variants, as joined tokens. `copied` None: unlimited."""

    least: int
    most: int
    facts: tuple[tuple[str, ...], ...]
    source: str | None
    copied: int | None
    overlap: float
    repeated: float


def score(request: ScoreRequest) -> Reward:
    """The share of facts that are said, 0 where a limit is broken; the reason names it. For the registry."""
    try:
        rules = read_rules(request.answer)
    except UserError as error:
        return Reward(0.0, str(error))
    text = answer_part(request.response)
    if len(text) > MAX_CHARACTERS:
        return Reward(0.0, f"the summary has {len(text)} characters, more than {MAX_CHARACTERS}")
    words = _words(text)
    broken = _broken_limit(words, rules)
    if broken is not None:
        return Reward(0.0, broken)
    joined = _joined(words)
    missing = [variants for variants in rules.facts if not any(variant in joined for variant in variants)]
    said = len(rules.facts) - len(missing)
    share = said / len(rules.facts) if rules.facts else 1.0
    lacking = f", not {shown(' '.join(missing[0][0].split()))}" if missing else ""
    return Reward(share, f"{len(words)} words, {said} of {len(rules.facts)} facts{lacking}")


def read_rules(answer: Any) -> SummaryRules:
    """Read and check a reference.

    Raises:
        UserError: a key that is unknown, missing or malformed; it names the key.
    """
    if not isinstance(answer, Mapping):
        raise UserError(f"the reference of a summary must be an object, not {type(answer).__name__}")
    unknown = answer.keys() - _KEYS
    if unknown:
        raise UserError(f"the reference has an unknown key {shown(str(min(unknown, key=str)))}")
    most, least = _count(answer, "max_words", None), _count(answer, "min_words", 1)
    if most is None:
        raise UserError("the reference has no 'max_words': without it all of the source would be a summary")
    if least is None or least > most:
        raise UserError(f"the reference's 'min_words' {least} exceed 'max_words' {most}")
    source = answer.get("source")
    if source is not None and (not isinstance(source, str) or not any(map(str.isalnum, source))):
        raise UserError("the reference's 'source' must be text with words")
    copied, overlap = _count(answer, "max_copied", None, MAX_COPIED), _share(answer, "max_overlap", 1.0)
    if source is None and (copied is not None or overlap < 1):
        raise UserError("the reference limits copying: give the 'source'")
    if source is not None and copied is None and overlap == 1:
        raise UserError("the reference has a 'source' and no limit of copying: give 'max_copied' or 'max_overlap'")
    return SummaryRules(
        least, most, _facts(answer.get("facts")), source, copied, overlap, _share(answer, "max_repeated", 0.2)
    )


def _broken_limit(words: Sequence[str], rules: SummaryRules) -> str | None:
    """The first limit that is broken, with its numbers."""
    if not rules.least <= len(words) <= rules.most:
        return f"{len(words)} words, {rules.least} to {rules.most} wanted"
    runs = list(_runs(words, RUN))
    again = len(runs) - len(set(runs))
    if again > rules.repeated * len(runs):
        return f"{again} of {len(runs)} runs of {RUN} words said again, a share of {rules.repeated:g} allowed"
    if rules.source is None:
        return None
    source = _words(rules.source)
    if rules.copied is not None:
        taken = next(iter(_shared(words, source, rules.copied + 1)), None)
        if taken is not None:
            return f"more than {rules.copied} words in a row are the source's: {shown(' '.join(taken.split()))}"
    known = _shared(words, source, RUN) if rules.overlap < 1 else frozenset()
    taken_over = sum(run in known for run in runs)
    if taken_over > rules.overlap * len(runs):
        return f"{taken_over} of {len(runs)} runs of {RUN} words are the source's, a share of {rules.overlap:g} allowed"
    return None


def _shared(words: Sequence[str], source: Sequence[str], size: int) -> Set[str]:
    """Runs of so many tokens that both have. Of the source, which may be long, only these are kept."""
    own = set(_runs(words, size))
    return own.intersection(_runs(source, size))


def _runs(words: Sequence[str], size: int) -> Iterator[str]:
    """All runs of so many tokens, each joined."""
    return (_joined(words[begin : begin + size]) for begin in range(len(words) - size + 1))


def _joined(words: Sequence[str]) -> str:
    return f"{_EDGE}{_EDGE.join(words)}{_EDGE}"


def _words(text: str) -> list[str]:
    return tokens(text[: 8 * MAX_CHARACTERS])


def _facts(given: Any) -> tuple[tuple[str, ...], ...]:
    if given is None:
        return ()
    if not isinstance(given, list) or not 0 < len(given) <= MAX_FACTS:
        raise UserError(f"the reference's 'facts' must be a list of 1 to {MAX_FACTS}")
    return tuple(tuple(map(_fact, fact if isinstance(fact, list) and fact else [fact])) for fact in given)


def _fact(given: Any) -> str:
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise UserError(f"a fact must be text, a number or a list of such, not {type(given).__name__}")
    words = _words(str(given))
    if not words:
        raise UserError(f"the fact {shown(str(given))} is empty: every summary would have it")
    return _joined(words)


def _count(answer: Mapping[str, Any], name: str, default: int | None, most: int = MAX_WORDS) -> int | None:
    value = answer.get(name, default)
    if value is not None and (type(value) is not int or not 1 <= value <= most):
        raise UserError(f"the reference's {name!r} must be a whole number from 1 to {most}, not {shown(repr(value))}")
    return value


def _share(answer: Mapping[str, Any], name: str, default: float) -> float:
    value = answer.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"the reference's {name!r} must be a number from 0 to 1, not {shown(repr(value))}")
    return float(value)
