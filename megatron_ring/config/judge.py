"""Configuration of the judge of responses that no rule can score. Its fields are the flags. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from megatron_ring.config.checks import require, require_temperature
from megatron_ring.config.metadata import BY_CONTENT, MAY_CHANGE


@dataclass(frozen=True)
class JudgeSettings:
    """A language model that judges: behind a server, or a checkpoint in the same processes."""

    group: ClassVar[str] = "--judge"
    """The flags' beginning."""

    url: str | None = field(default=None, metadata=MAY_CHANGE)
    """Server with OpenAI's interface, up to and with /v1. Its key is the environment variable RING_JUDGE_KEY."""
    model: str | None = None
    """Name of the judging model on that server."""
    checkpoint: Path | None = field(default=None, metadata=BY_CONTENT)
    """Checkpoint or Hugging Face folder that judges, in place of a server."""
    tokenizer: Path | None = field(default=None, metadata=BY_CONTENT)
    """Tokenizer directory of the judging checkpoint (default: that of the model that is judged)."""
    chat_template: Path | None = field(default=None, metadata=MAY_CHANGE)
    """File of the chat template in Jinja, in place of that of the judge's tokenizer (default: of a tokenizer shared with the
    model that is judged, the model's)."""
    temperature: float = 0.0
    """Sampling temperature of the judge."""
    max_tokens: int = 4096
    """Tokens of a judgement, its thinking included; a longer one is cut, and counts as failed."""
    concurrency: int = field(default=8, metadata=MAY_CHANGE)
    """Requests to the server at once."""
    requests_per_minute: float | None = field(default=None, metadata=MAY_CHANGE)
    """Requests to the server a minute, at most (default: no limit)."""
    timeout: float = field(default=600.0, metadata=MAY_CHANGE)
    """Seconds without a sign of the server before a request is given up."""
    cache: Path | None = field(default=None, metadata=MAY_CHANGE)
    """Folder of the judge's replies, which are never asked for twice (default: `judge` in the run's own folder)."""

    def __post_init__(self) -> None:
        group = self.group
        require(
            self.url is None or self.checkpoint is None,
            f"{group}.url is given with {group}.checkpoint: give one of the two",
        )
        require((self.url is None) == (self.model is None), f"{group}.url and {group}.model belong together: give both")
        require(self.model != "", f"{group}.model is empty: give the name that the server knows")
        require(
            self.url is None or _is_address(self.url),
            f"{group}.url is no address of a server: give http://HOST:PORT/v1, or https, and the key in RING_JUDGE_KEY",
        )
        for name in ("tokenizer", "chat_template"):
            lone = getattr(self, name) is not None and self.checkpoint is None
            require(not lone, f"{group}.{name.replace('_', '-')} is of {group}.checkpoint: give it")
        require_temperature(self.temperature, f"{group}.temperature")
        for name in ("max_tokens", "concurrency"):
            require(getattr(self, name) >= 1, f"{group}.{name.replace('_', '-')} is {getattr(self, name)}, below 1")
        for name in ("requests_per_minute", "timeout"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{group}.{name.replace('_', '-')} is {value}, not above 0")

    @property
    def given(self) -> bool:
        """Whether there is a judge."""
        return self.url is not None or self.checkpoint is not None


@dataclass(frozen=True)
class JudgeConfig(JudgeSettings):
    """A language model that judges: behind a server, or a checkpoint in the same processes. Without either, judged
    benchmarks are sampled and not scored."""

    baseline: Path | None = None
    """Answers that arena-hard's are compared with: a file of a model's answers, or the --out of another evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.baseline is None or self.given, "--judge.baseline needs a judge: give --judge.url or --judge.checkpoint"
        )


@dataclass(frozen=True)
class RewardJudgeConfig(JudgeSettings):
    """The judge of the domains `judge`, `judge/rubric`, `judge/reference` and `judge/pairwise`: behind a server, or a
    checkpoint that lies beside the policy under the same layout."""

    group: ClassVar[str] = "--rewards.judge"

    again: float = 0.0
    """Share of the verdicts that a second reply is asked for, to measure how far the judge agrees with itself
    (judge/disagreement); the second reply changes no reward."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.again <= 1, f"--rewards.judge.again is {self.again}, outside 0..1")
        lone = self.chat_template is not None and self.tokenizer is None
        require(not lone, "--rewards.judge.chat-template is of --rewards.judge.tokenizer: give it")
        pointer = self.checkpoint is not None and self.checkpoint.name == "latest"
        require(not pointer, "--rewards.judge.checkpoint names `latest`: name the checkpoint itself, a run keeps to one")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and not (parts.query or parts.fragment or "@" in parts.netloc)
        )
    except ValueError:
        return False
