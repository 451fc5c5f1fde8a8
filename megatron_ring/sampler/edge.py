"""What ranks tell each other between two steps: the only collectives of the sampler besides those of forward passes.

Every rank of a data-parallel replica has the same scheduler and sees the same sampled tokens, so they stay equal as long as
requests come and go at the same step on all of them. Ranks that share experts (EP) run forward passes together, over all
replicas. What happens on the host between forward passes may fail on one rank alone: it is noted, told to the others before
the next forward pass, and raised by all.

These are numbers and objects of the host. They go over gloo, so that nobody waits for a device.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

from megatron_ring.errors import NotFiniteError, RequestError, UserError
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.sampler.requests import GenerationRequest
from megatron_ring.sampler.step import Step, StepShape


class Tally(NamedTuple):
    """What a rank brings to an edge; what all bring is the sum.

    Attributes:
        failed: 1 where something has failed here.
        work: 1 where a request is not finished, or has come.
        open: 1 where further requests may come, counted on leaders of replicas.
        news: requests and cancellations that this leader of a replica brings.
        tokens: that count towards the budget, counted on leaders of replicas.
        watched: 1 where each token is wanted as soon as it is there.
        lands: 1 where the next step cannot be launched before the last one has landed.
        flights: steps in the air.
        flying: tokens that these may bring, counted on leaders of replicas.
    """

    failed: int
    work: int
    open: int
    news: int
    tokens: int
    watched: int
    lands: int
    flights: int
    flying: int


class News(NamedTuple):
    """What has come to the leader of a replica since the last edge: requests by id, and the ids of cancelled ones."""

    requests: list[tuple[int, GenerationRequest]]
    cancelled: list[int]


class StepEdge:
    """The collectives between two steps. Ranks call the same ones in the same order.

    Args:
        with_others: steps are agreed on by all replicas, not by each for itself. Always so where they share experts.
        tells_others: a failure is told to all replicas when they come to `settle`, not to this one's ranks alone.
    """

    def __init__(self, context: ParallelContext, with_others: bool = False, tells_others: bool = False) -> None:
        self.context, self.shares_experts = context, context.config.expert > 1
        self.of_replica = not (with_others or self.shares_experts)
        self.tells_replica = self.of_replica and not tells_others

    def agree(self, tally: Tally) -> Tally:
        """The sum over the ranks that take their steps together."""
        return Tally(*collectives.sum_over_processes(list(tally), self.of_replica))

    def share_news(self, news: News) -> News:
        """Those of the leader, on every rank of its replica."""
        return collectives.broadcast_from_leader(news)

    def share_shape(self, step: Step) -> StepShape:
        """What the step has in common on all ranks that share experts."""
        shape = StepShape.of(step)
        if not self.shares_experts:
            return shape
        # Largest and smallest in one message.
        values = collectives.max_over_world(list(shape._replace(turns=-shape.turns)))
        shape = StepShape(*values)
        return shape._replace(turns=-shape.turns)

    def any_shares(self, mine: bool) -> bool:
        """Whether it is so on this rank or on one that it shares experts with."""
        return any(self.largest([mine]))

    def largest(self, values: list[int]) -> list[int]:
        """The largest on this rank and those that it shares experts with, of each of `values`."""
        return values if not self.shares_experts else collectives.max_over_world(values)

    def any_stepping(self, mine: bool) -> bool:
        """Whether it is so on this rank or on one that takes its steps with it."""
        return collectives.sum_over_processes([int(mine)], self.of_replica)[0] > 0

    def settle(self, failure: Exception | None) -> None:
        """Raise, on every rank, the failure of any.

        Raises:
            UserError, RuntimeError: where there are several processes, naming the rank; the failure itself where it is
                the only one.
        """
        if self.context.world_size == 1:
            if failure is not None:
                raise failure
            return
        mine = None if failure is None else (isinstance(failure, UserError), str(failure), type(failure).__name__)
        for rank, found in collectives.gather_over_processes(mine, self.tells_replica):
            if found is not None:
                _raise(rank, *found, failure)


def _raise(rank: int, by_user: bool, text: str, kind: str, failure: Exception | None) -> NoReturn:
    if by_user:
        named: dict[str, type[UserError]] = {each.__name__: each for each in (NotFiniteError, RequestError)}
        raise named.get(kind, UserError)(f"rank {rank}: {text}") from failure
    raise RuntimeError(f"rank {rank}: {kind}: {text}") from failure
