"""Questions that are asked side by side in threads: from the moment that they are known, answered when they are wanted."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from megatron_ring.judging.verdict import Reply


class Asking:
    """Asks each prompt once until its reply is fetched. The threads do not outlive the process: one that is stuck in a
    request does not hold its end up.

    Args:
        ask: answers one prompt; is told when to give up. What it raises ends all that is asked then.
        most: prompts at once.
    """

    def __init__(self, ask: Callable[[str, threading.Event], Reply], most: int) -> None:
        self._ask, self._most = ask, most
        self._changed = threading.Condition()
        self._waiting: deque[str] = deque()
        self._known: set[str] = set()  # waiting, under way or answered, and not fetched
        self._arrived: deque[tuple[str, Reply | Exception]] = deque()
        self._early: dict[str, Reply] = {}  # arrived while others were fetched
        self._threads, self._stop = 0, threading.Event()

    def begin(self, prompts: Iterable[str]) -> None:
        """Have these prompts asked, if they are not yet."""
        with self._changed:
            for prompt in prompts:
                if prompt not in self._known:
                    self._known.add(prompt)
                    self._waiting.append(prompt)
            for _ in range(min(self._most - self._threads, len(self._waiting))):
                self._threads += 1
                threading.Thread(target=self._work, args=(self._stop,), name="judge", daemon=True).start()

    def answers(self, prompts: Iterable[str]) -> Iterator[tuple[str, Reply]]:
        """The reply to each of these prompts as it comes, no prompt twice. Raises what `ask` does; nothing else is asked
        then, and what was is forgotten."""
        open_ones = dict.fromkeys(prompts)
        self.begin(open_ones)
        for prompt in [prompt for prompt in open_ones if prompt in self._early]:
            del open_ones[prompt]
            yield prompt, self._fetch(prompt, self._early.pop(prompt))
        try:
            while open_ones:
                with self._changed:
                    self._changed.wait_for(lambda: self._arrived)
                    prompt, reply = self._arrived.popleft()
                if isinstance(reply, Exception):
                    raise reply
                if prompt not in open_ones:
                    self._early[prompt] = reply
                    continue
                del open_ones[prompt]
                yield prompt, self._fetch(prompt, reply)
        finally:
            if open_ones:
                self._forget()

    def _fetch(self, prompt: str, reply: Reply) -> Reply:
        with self._changed:
            self._known.discard(prompt)
        return reply

    def _forget(self) -> None:
        with self._changed:
            self._stop.set()
            self._stop, self._threads = threading.Event(), 0
            self._waiting.clear()
            self._known.clear()
            self._early.clear()
            self._arrived = deque()

    def _work(self, stop: threading.Event) -> None:
        arrived = self._arrived  # a late reply does not come among those that are asked for after a failure
        while True:
            with self._changed:
                if stop.is_set() or not self._waiting:
                    self._threads -= not stop.is_set()
                    return
                prompt = self._waiting.popleft()
            try:
                reply: Reply | Exception = self._ask(prompt, stop)
            except Exception as error:  # whoever waits raises it
                reply = error
            with self._changed:
                if isinstance(reply, Exception) and not stop.is_set():
                    self._waiting.clear()
                arrived.append((prompt, reply))
                self._changed.notify_all()
