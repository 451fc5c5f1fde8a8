"""Responses scored by the verifiers that RL uses: those with a wrong answer go."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType

from megatron_ring.curation.options import Verify
from megatron_ring.curation.store import Row, ShardWriter
from megatron_ring.errors import UserError
from megatron_ring.rewards.interface import MACHINE_FAILURE, Reward, ScoreRequest
from megatron_ring.rewards.pool import RewardPool

_EVIDENCE = 300  # characters of a verifier's reason


class ResponseVerifier:
    """Scores them with so many workers. Use as a context manager."""

    def __init__(self, options: Verify, workers: int) -> None:
        self._options = options
        self._pool = RewardPool(workers, unsafe_code=options.unsafe_code)

    def __enter__(self) -> ResponseVerifier:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.close()

    def run(self, rows: Sequence[Row], writer: ShardWriter) -> None:
        """Keep or drop each row, in order.

        Raises:
            UserError: a domain has no verifier, there is no sandbox on this machine, or the machine fails.
        """
        verdicts = [self._submit(row) for row in rows]
        for row, verdict in zip(rows, verdicts, strict=True):
            if verdict is None:
                writer.drop(row, "missing_response", "the row has no response")
                continue
            reward = verdict.result()
            if MACHINE_FAILURE in reward.detail:
                raise UserError(f"verify: {row['id']}: {reward.reason}: run the same command again")
            if reward.value >= self._options.least:
                writer.keep(row)
            else:
                writer.drop(row, "wrong_response", f"reward {reward.value:g}: {reward.reason}"[:_EVIDENCE])

    def _submit(self, row: Row) -> Future[Reward] | None:
        if not isinstance(row.get("response"), str):
            return None
        try:
            return self._pool.submit(ScoreRequest(row["domain"], row["prompt"], row["response"], row["answer"]))
        except UserError as error:
            raise UserError(f"verify: {row['id']}: {error}") from None
