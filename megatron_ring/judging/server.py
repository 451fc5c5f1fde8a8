"""A judge behind a server with OpenAI's interface, whose replies are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_ring.judging.cache import ReplyCache
from megatron_ring.judging.client import PAUSES, Answer, Asked, Client, Server
from megatron_ring.judging.verdict import COMPLETE, Reply

ENDS = ("stop", "eos_token")  # words of servers for an answer that ended by itself


class ServerJudge:
    """A `Generate` that asks a server what the cache does not hold.

    Args:
        report: told the prompts that are answered, and those asked, as it goes.
    """

    def __init__(
        self, server: Server, cache: ReplyCache, pauses: Sequence[float] = PAUSES,
        report: Callable[[int, int], None] = lambda done, asked: None,
    ) -> None:  # fmt: skip
        self._client, self._cache, self._report = Client(server, pauses), cache, report
        self.check = self._client.check

    def __call__(self, prompts: Sequence[str]) -> list[Reply]:
        """Raises `UserError` where the server cannot be reached, or refuses us as such."""
        found: dict[str, Reply] = {}
        missing = []
        for prompt in dict.fromkeys(prompts):
            reply = self._cache.find(prompt)
            if reply is None:
                missing.append(prompt)
            else:
                found[prompt] = reply
        total = len(found) + len(missing)
        asked = [Asked(({"role": "user", "content": prompt},)) for prompt in missing]
        for place, answer in self._client.answers(asked):
            prompt, reply = missing[place], reply_of(answer)
            self._cache.keep(prompt, reply)
            found[prompt] = reply
            self._report(len(found), total)
        return [found[prompt] for prompt in prompts]


def reply_of(answer: Answer) -> Reply:
    """What the judge has written, without thinking that the server keeps apart."""
    if answer.problem is not None:
        return Reply("", "", problem=f"the judge's server: {answer.problem}")
    return Reply(answer.text, COMPLETE if answer.finish in ENDS else answer.finish)
