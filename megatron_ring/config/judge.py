"""Configuration of the judge of responses that no rule can score. Its fields are the flags. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from megatron_ring.config.checks import require, require_temperature


@dataclass(frozen=True)
class JudgeConfig:
    """A language model that judges: behind a server, or a checkpoint in the same processes. Without either, judged
    benchmarks are sampled and not scored."""

    url: str | None = None
    """Server with OpenAI's interface, up to and with /v1. Its key is the environment variable RING_JUDGE_KEY."""
    model: str | None = None
    """Name of the judging model on that server."""
    checkpoint: Path | None = None
    """Checkpoint or Hugging Face folder that judges, in place of a server; it is loaded once the evaluated model is done."""
    tokenizer: Path | None = None
    """Tokenizer directory of --judge.checkpoint (default: --tokenizer)."""
    chat_template: Path | None = None
    """File of the chat template in Jinja, in place of its tokenizer's own (default: --chat-template, where the tokenizer is
    --tokenizer)."""
    baseline: Path | None = None
    """Answers that arena-hard's are compared with: a file of a model's answers, or the --out of another evaluation."""
    temperature: float = 0.0
    """Sampling temperature of the judge."""
    max_tokens: int = 4096
    """Tokens of a judgement, its thinking included; a longer one is cut, and counts as failed."""
    concurrency: int = 8
    """Requests to the server at once."""
    requests_per_minute: float | None = None
    """Requests to the server a minute, at most (default: no limit)."""
    timeout: float = 600.0
    """Seconds without a sign of the server before a request is given up."""
    cache: Path | None = None
    """Folder of the judge's replies, which are never asked for twice (default: `judge` in --out)."""

    def __post_init__(self) -> None:
        require(
            self.url is None or self.checkpoint is None, "--judge.url is given with --judge.checkpoint: give one of the two"
        )
        require((self.url is None) == (self.model is None), "--judge.url and --judge.model belong together: give both")
        require(self.model != "", "--judge.model is empty: give the name that the server knows")
        require(
            self.url is None or _is_address(self.url),
            "--judge.url is no address of a server: give http://HOST:PORT/v1, or https, and the key in RING_JUDGE_KEY",
        )
        for name in ("tokenizer", "chat_template"):
            lone = getattr(self, name) is not None and self.checkpoint is None
            require(not lone, f"--judge.{name.replace('_', '-')} is of --judge.checkpoint: give it")
        require(
            self.baseline is None or self.given, "--judge.baseline needs a judge: give --judge.url or --judge.checkpoint"
        )
        require_temperature(self.temperature, "--judge.temperature")
        for name in ("max_tokens", "concurrency"):
            require(getattr(self, name) >= 1, f"--judge.{name.replace('_', '-')} is {getattr(self, name)}, below 1")
        for name in ("requests_per_minute", "timeout"):
            value = getattr(self, name)
            require(value is None or value > 0, f"--judge.{name.replace('_', '-')} is {value}, not above 0")

    @property
    def given(self) -> bool:
        """Whether there is a judge."""
        return self.url is not None or self.checkpoint is not None


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
