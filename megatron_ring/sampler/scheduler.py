"""Which tokens the next forward pass takes, and in which pages of the KV cache their keys and values go. No tensors.

Continuous batching over a paged cache. A sequence is *filled* in chunks up to its last token but one, then *decoded*: its
last token is fed and a new one sampled. Nothing is sampled while filling, so that all decoding steps look alike.

- Requests come at any time, and may be cancelled at any time between two steps.
- The samples of one prompt share its pages, whenever they come: the first fills them, the others wait for it. A page with
  several users is copied before it is written to; only the sample that filled it may go on behind the prompt. A prompt is
  forgotten with its last sample.
- Older requests (lower index) go first. When pages run out the youngest running sequence gives its own back: it keeps what
  it has sampled, and is filled again later. So the oldest always advances, and every request finishes.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Sequence_

from megatron_ring.config.sampling import RequestSampling
from megatron_ring.sampler.completion import FinishReason
from megatron_ring.sampler.pages import PagePool, pages_for
from megatron_ring.sampler.requests import GenerationRequest, Prefix, Sampled, Sequence
from megatron_ring.sampler.step import FILL_BESIDE, Chunk, Patience, Step
from megatron_ring.sampler.stopping import StopConditions


class Scheduler:
    """The state of all requests that are not finished. A step is planned, launched and landed; the next one may be planned
    before the last has landed where `may_fly` says so. Between two calls requests come and go.

    Args:
        pages: of the cache, the scrap page not counted. Each request must fit them alone.
        page_size: tokens of a page.
        max_batch: sequences running at once.
        prefill_tokens: tokens filled in one step, at most.
        stop: why a sequence ends after the token it just took; None if it does not.
        may_stop: whether it might end within these tokens that it has not taken yet; asked so that `stop` need not be.

    Attributes:
        patience: how long prompts wait to be begun together.
        sequences: those not finished, by index, which is their age.
        version: of the weights that sample now.
        finished, generated, filled, preemptions: counts since the start: of requests, of tokens, of tokens, of times.
    """

    def __init__(
        self, *, pages: int, page_size: int, max_batch: int, prefill_tokens: int,
        stop: Callable[[Sequence], FinishReason | None],
        may_stop: Callable[[Sequence, Sequence_[int]], bool] = lambda sequence, tokens: True, version: int = 0,
    ) -> None:  # fmt: skip
        self.page_size, self.max_batch, self.prefill_tokens = page_size, max_batch, prefill_tokens
        self.stop, self.may_stop, self.version = stop, may_stop, version
        self.pool, self.patience = PagePool(pages), Patience(max_batch)
        self.sequences: dict[int, Sequence] = {}
        self._prefixes: dict[tuple[int | None, tuple[int, ...]], Prefix] = {}
        self._waiting: list[tuple[int, Sequence]] = []  # a heap
        self._blocked = self._scored = 0
        self.running: list[Sequence] = []  # sorted by age
        self._rows = list(range(max_batch - 1, -1, -1))
        self.finished = self.generated = self.filled = self.preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.sequences)

    def add(
        self, index: int, request: GenerationRequest, sampling: RequestSampling | None = None,
        stops: StopConditions | None = None,
    ) -> Sequence:  # fmt: skip
        """Take a request; `index` is larger than those before, and what `Sequence` is told beside it."""
        # A prompt whose tokens are scored is computed by its own request, all of it.
        prefix = Prefix(tuple(request.prompt_tokens), owner=index if request.prompt_scores else None)
        prefix = self._prefixes.setdefault(prefix.key, prefix)
        prefix.unfinished += 1
        self._scored += request.scored
        sequence = self.sequences[index] = Sequence(index, request, prefix, sampling, stops)
        heapq.heappush(self._waiting, (index, sequence))
        return sequence

    def cancel(self, index: int) -> None:
        """Forget a request, and free what it holds. One that is not there, as it has finished, is none of it."""
        sequence = self.sequences.get(index)
        if sequence is None:
            return
        if sequence.row >= 0:
            self._stop_running(sequence)
            if sequence.prefix.filler is sequence:
                self._unblock(sequence.prefix)
        elif sequence in sequence.prefix.blocked:
            sequence.prefix.blocked.remove(sequence)
            self._blocked -= 1
        else:
            self._waiting.remove((index, sequence))
            heapq.heapify(self._waiting)
        self._forget(sequence)

    def restart(self) -> None:
        """Compute all keys and values anew: the weights or the memory of the cache are no longer what they were."""
        for sequence in reversed(self.running[:]):
            self._preempt(sequence)
        for prefix in self._prefixes.values():
            self._drop(prefix)

    def may_fly(self) -> bool:
        """Whether a step can be planned before the last one has landed: no token is scored, and there is a page for the next
        one of each sequence: none must give back what it has."""
        return not self._scored and sum(s.lacks_a_page(self.pool, self.page_size) for s in self.running) <= self.pool.free

    def plan(self, horizon: int = 1, beside: bool = False) -> Step:
        """The next step; it has work whenever the scheduler has, or a step before that is still in the air (`beside`; then
        `may_fly` was true). Where nothing is filled and pages suffice, its horizon is the one asked for; beside a small fill
        it is FILL_BESIDE at most."""
        step = Step()
        preempted = self.preemptions
        for sequence in list(self.running):  # older ones first; those behind may be preempted meanwhile
            if sequence.cached >= sequence.writable and sequence.row >= 0 and not sequence.all_asked:
                self._make_writable(sequence, step)
        if self.preemptions == preempted:
            self._admit(step, beside)
        budget = self.prefill_tokens
        for sequence in self.running:
            left = sequence.left_to_fill
            if left == 0:
                if not sequence.all_asked:
                    step.decoding.append(sequence)
            elif left <= budget or (not step.chunks and budget):
                # In pieces only if it must: a whole prompt is attended to as in training, without the cache.
                count = min(left, budget)
                step.chunks.append(Chunk(sequence, sequence.cached, count))
                budget -= count
        if step.chunks:
            begin = len(self.running) - len(step.decoding) + self._blocked
            horizon = min(horizon, FILL_BESIDE) if step.fills_beside(begin) else 1
        if horizon > 1 and not step.scored:  # scores are made of each pass's logits
            step.look_ahead(horizon, self.pool, self.page_size)
        return step

    def launched(self, step: Step, turns: int) -> None:
        """The device has been asked for `step`, with so many tokens of each sequence that decodes. What it fills is there
        for all that is launched behind it."""
        for chunk in step.chunks:
            sequence, prefix = chunk.sequence, chunk.sequence.prefix
            sequence.cached += chunk.count
            self.filled += chunk.count
            if prefix.filler is sequence and sequence.cached >= prefix.length:
                self._hold(prefix, sequence)
                sequence.writable = 0  # its next token may go into a page that is now shared
                self._unblock(prefix)
        for sequence in step.decoding:
            sequence.cached += turns
            sequence.flying += turns

    def landed(self, drawn: Iterable[tuple[Sequence, Sampled]], version: int) -> list[Sequence]:
        """Take the tokens of a step that was launched under `version` of the weights, of the sequences that it decodes and
        that are here still. Returns those that are finished by it. What is in the air of these goes on to no effect: pages
        are written in the order of launches, so that who gets theirs comes behind it."""
        done = []
        for sequence, found in drawn:
            count = len(found.tokens)
            sequence.flying -= count
            if not self.may_stop(sequence, found.tokens):
                sequence.take(found, 0, count, version)
            else:
                count = sequence.take_to_end(found, self.stop, version)
                if sequence.finish_reason is not None:
                    done.append(sequence)
            self.generated += count
        for sequence in done:
            self._stop_running(sequence)
            self.finished += 1
            self._forget(sequence)
        return done

    def _make_writable(self, sequence: Sequence, step: Step) -> None:
        """Give the sequence a page of its own for its next token, unless it has to give back all it has."""
        column = sequence.cached // self.page_size
        while True:
            if column < len(sequence.pages) and not self.pool.is_shared(sequence.pages[column]):
                sequence.writable = len(sequence.pages) * self.page_size
                return
            if self.pool.free:
                page = self.pool.take()
                if column < len(sequence.pages):
                    # Copies are made at once: what is itself a copy of this step is taken from where it comes from.
                    step.copies[page] = step.copies.get(sequence.pages[column], sequence.pages[column])
                    self.pool.release([sequence.pages[column]])
                    sequence.pages[column] = page
                else:
                    sequence.pages.append(page)
                step.table.append((sequence.row, column, page))
                continue
            if not self._drop_a_prefix():
                youngest = self.running[-1]
                self._preempt(youngest)
                if youngest is sequence:
                    return

    def _admit(self, step: Step, beside: bool) -> None:
        """Start waiting sequences, oldest first, while there are rows and pages, with a page to spare for each that runs:
        otherwise what is admitted now would be preempted soon."""
        begins = self.patience.is_over(self.max_batch - len(self.running) - self._blocked)
        while self._waiting and len(self.running) + self._blocked < self.max_batch:
            sequence = self._waiting[0][1]
            if beside and sequence.request.scored:
                return
            prefix = sequence.prefix
            self._find_running(prefix)
            if prefix.filler is not None:
                heapq.heappop(self._waiting)
                prefix.blocked.append(sequence)
                self._blocked += 1
                continue
            if not prefix.pages and not begins:
                return
            copied = bool(prefix.pages) and prefix.length % self.page_size > 0
            needed = pages_for(sequence.length, self.page_size) - len(prefix.pages) + copied
            if needed + len(self.running) + self._blocked > self.pool.free:
                if self.running or not self._drop_a_prefix():
                    return
                continue
            heapq.heappop(self._waiting)
            self.patience.begun(not prefix.pages)
            self._start(sequence, step)

    def _find_running(self, prefix: Prefix) -> None:
        """Where nobody holds the pages of a prompt, or fills them for others, but a sample that came before runs: take its
        pages, or let it be the one that fills them."""
        if prefix.pages or prefix.filler is not None or prefix.unfinished == 1 or not prefix.length:
            return
        for sequence in self.running:
            if sequence.prefix is prefix:
                if sequence.cached >= prefix.length:
                    self._hold(prefix, sequence)
                else:
                    prefix.filler = sequence
                return

    def _hold(self, prefix: Prefix, sequence: Sequence) -> None:
        """Hold the pages in which `sequence` has the prompt. What it goes on to write into the last of them is behind the
        prompt, and read by nobody else."""
        prefix.pages = sequence.pages[: pages_for(prefix.length, self.page_size)]
        self.pool.share(prefix.pages)

    def _start(self, sequence: Sequence, step: Step) -> None:
        prefix = sequence.prefix
        sequence.row = self._rows.pop()
        sequence.pages = list(prefix.pages)
        self.pool.share(prefix.pages)
        sequence.cached = prefix.length if prefix.pages else 0
        while len(sequence.pages) < pages_for(sequence.length, self.page_size):
            sequence.pages.append(self.pool.take())
        if not prefix.pages and prefix.length and prefix.unfinished > 1:
            prefix.filler = sequence
        insort(self.running, sequence, key=lambda running: running.index)
        self._make_writable(sequence, step)  # `_admit` has seen to it that there is a page
        step.table += [(sequence.row, column, page) for column, page in enumerate(sequence.pages)]

    def _stop_running(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.pages)
        self._rows.append(sequence.row)
        sequence.pages, sequence.cached, sequence.writable, sequence.row = [], 0, 0, -1

    def _forget(self, sequence: Sequence) -> None:
        del self.sequences[sequence.index]
        self._scored -= sequence.request.scored
        prefix = sequence.prefix
        prefix.unfinished -= 1
        if prefix.unfinished == 0:
            self._drop(prefix)
            del self._prefixes[prefix.key]

    def _preempt(self, sequence: Sequence) -> None:
        assert not sequence.flying, "its next token is not known"
        self._stop_running(sequence)
        if sequence.prefix.filler is sequence:
            self._unblock(sequence.prefix)
        heapq.heappush(self._waiting, (sequence.index, sequence))
        self.preemptions += 1

    def _unblock(self, prefix: Prefix) -> None:
        prefix.filler = None
        for sequence in prefix.blocked:
            heapq.heappush(self._waiting, (sequence.index, sequence))
        self._blocked -= len(prefix.blocked)
        prefix.blocked = []

    def _drop(self, prefix: Prefix) -> None:
        self.pool.release(prefix.pages)
        prefix.pages = []

    def _drop_a_prefix(self) -> bool:
        """Let go of the youngest prompt that is held; False when none is."""
        for prefix in reversed(self._prefixes.values()):
            if prefix.pages:
                self._drop(prefix)
                return True
        return False
