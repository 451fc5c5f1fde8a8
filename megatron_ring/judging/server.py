"""A judge behind a server with OpenAI's interface, whose replies are kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from megatron_ring.judging.asking import Asking
from megatron_ring.judging.cache import ReplyCache
from megatron_ring.judging.client import PAUSES, Answer, Asked, Client, Server
from megatron_ring.judging.verdict import COMPLETE, Reply

ENDS = ("stop", "eos_token")  # words of servers for an answer that ended by itself


class ServerJudge:
    """A `Generate` that asks a server what the cache does not hold.

    Args:
        cache: where replies are kept; None: nowhere.
        report: told the prompts that are answered, and those asked, as it goes.
    """

    def __init__(
        self, server: Server, cache: ReplyCache | None, pauses: Sequence[float] = PAUSES,
        report: Callable[[int, int], None] = lambda done, asked: None,
    ) -> None:  # fmt: skip
        self._client, self._cache, self._report = Client(server, pauses), cache, report
        self._asking = Asking(self._answer, server.concurrency)
        self.check = self._client.check

    def begin(self, prompts: Sequence[str]) -> None:
        """Have prompts asked that a later call is about. What fails then fails in that call."""
        self._asking.begin(prompts)

    def __call__(self, prompts: Sequence[str]) -> list[Reply]:
        """Raises `UserError` where the server cannot be reached, or refuses us as such."""
        distinct = list(dict.fromkeys(prompts))
        found: dict[str, Reply] = {}
        for prompt, reply in self._asking.answers(distinct):
            found[prompt] = reply
            self._report(len(found), len(distinct))
        return [found[prompt] for prompt in prompts]

    def _answer(self, prompt: str, stop: threading.Event) -> Reply:
        """The reply that is kept, or one that the server gives."""
        kept = None if self._cache is None else self._cache.find(prompt)
        if kept is not None:
            return kept
        reply = reply_of(self._client.ask(Asked(({"role": "user", "content": prompt},)), stop))
        if self._cache is not None:
            self._cache.keep(prompt, reply)
        return reply


def reply_of(answer: Answer) -> Reply:
    """What the judge has written, without thinking that the server keeps apart."""
    if answer.problem is not None:
        return Reply("", "", problem=f"the judge's server: {answer.problem}")
    return Reply(answer.text, COMPLETE if answer.finish in ENDS else answer.finish)
