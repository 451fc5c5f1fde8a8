"""Configuration of the server. Its fields are the flags. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from megatron_ring.config.checks import require
from megatron_ring.config.metadata import NOT_RECORDED
from megatron_ring.config.stage import InferenceConfig


@dataclass(frozen=True, kw_only=True)
class ServeConfig(InferenceConfig):
    """A server in front of a model."""

    stage_name: ClassVar[str] = "serve"

    host: str = "127.0.0.1"
    """Address to listen on. Other machines reach the server only under one of theirs (0.0.0.0: all addresses)."""
    port: int = 8000
    """Port to listen on (0: a free one, said on stderr)."""
    model_name: str | None = None
    """Name of the model in requests and answers (default: the checkpoint's path)."""
    api_key: str | None = field(default=None, metadata=NOT_RECORDED)
    """Key that requests must bring as a bearer token (default: the environment variable RING_API_KEY; without one, none is
    asked for)."""
    tokens_in_a_row: int = 16
    """Tokens that a GPU decodes between two looks of the host, at most 16; at most 8 while the next are launched before the
    look, which is nearly always. Fewer reach a stream sooner, and a new request waits for fewer; more are decoded in all.
    On CPUs it is 1."""
    warm_up_seconds: float = 20.0
    """On GPUs, before the server answers: prompts are filled once, and the CUDA graphs of all batch sizes are captured, for
    contexts of up to 512 tokens, then 1,024 and so on, while so many seconds last and a GiB of memory is free. What is left
    is captured when it first comes, and all requests wait for it. 0: nothing is done before."""
    gather_seconds: float = 0.03
    """On GPUs: a step waits for requests while something comes within 3 ms, at most so long (seconds; 0.01 where others
    decode and fewer than 4 have come). So a burst is begun in few, full steps; a request that comes alone waits 3 to 4 ms.
    0: no wait."""
    max_queue: int = 1024
    """Choices that may wait beyond those decoded at once; further requests get status 429."""
    max_body_mib: float = 16.0
    """Largest body of a request (MiB); a larger one gets status 413."""
    body_seconds: float = 30.0
    """Time that a client has to send its body (seconds); then it gets status 408."""
    grace_seconds: float = 25.0
    """After SIGTERM or Ctrl-C: time for requests that are under way (seconds). torchrun itself waits 30."""

    def __post_init__(self) -> None:
        require(0 <= self.port < 65536, f"--port is {self.port}, outside 0..65535")
        require(bool(self.host), "--host is empty: give an address, such as 127.0.0.1")
        require(self.api_key != "", "--api-key is empty: give a key, or leave the flag out")
        require(1 <= self.tokens_in_a_row <= 16, f"--tokens-in-a-row is {self.tokens_in_a_row}, outside 1..16")
        require(self.warm_up_seconds >= 0, f"--warm-up-seconds is {self.warm_up_seconds:g}, below 0")
        require(0 <= self.gather_seconds <= 1, f"--gather-seconds is {self.gather_seconds:g}, outside 0..1")
        require(self.max_queue >= 0, f"--max-queue is {self.max_queue}, below 0")
        for name in ("max_body_mib", "body_seconds", "grace_seconds"):
            require(getattr(self, name) > 0, f"--{name.replace('_', '-')} is {getattr(self, name):g}, not above 0")

    @property
    def served_name(self) -> str:
        """What the model is called."""
        return self.model_name or str(self.checkpoint)
