"""The table of what is kept of every sampled token: `TokenColumns`, a line for each column.

From it follow the fields of a `Completion` and their check, what a step of the sampler returns, the bytes that change hands
between replicas, and the files of unfinished responses. Adding a column is adding a line, such as how many tokens were
likelier than the one drawn:

    ranks: array[int] = field(
        default_factory=token_array, metadata=filled_by(lambda rows: (rows.logits_nv > rows.logits_n[:, None]).sum(-1))
    )

What fills a column is a function of the rows of one decoding step (`DrawnRows`), a number for each row. It runs on the
device, inside CUDA graphs: it may not wait for the device, nor look at its numbers on the host.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ring.sampler.sampling import DrawnRows

Fill = Callable[["DrawnRows"], "Tensor"]


def token_array(values: Iterable[int] = ()) -> array[int]:
    """Token ids as int32."""
    return array("i", values)


def number_array(values: Iterable[float] = ()) -> array[float]:
    """One number for each token as fp32, the precision that the sampler computes them in and the loss takes them in."""
    return array("f", values)


@dataclass(frozen=True)
class Column:
    """A column that the drawn row fills.

    Attributes:
        typecode: of `array`: int32 or fp32.
        fill: from the rows of a step to a number for each, [N].
    """

    name: str
    typecode: Literal["i", "f"]
    fill: Fill

    @property
    def itemsize(self) -> int:
        """Bytes of a token."""
        return array(self.typecode).itemsize

    def new(self, values: Iterable[Any] = ()) -> array[Any]:
        return array(self.typecode, values)


def filled_by(fill: Fill) -> dict[str, Fill]:
    """Metadata of a field of `TokenColumns` that `fill` fills from what was drawn."""
    return {"fill": fill}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenColumns:
    """What is kept of each token of a response. Any sequences of numbers will do; they are kept as typed arrays.

    Attributes:
        tokens: int32, what was sampled, the token that ended it and the tokens of a stop string included.
        logprobs: fp32, of each token under softmax(logits / temperature) (nats; temperature 1 for greedy decoding): what a
            training forward computes.
        processed_logprobs: fp32, of each token under what it was drawn from: that distribution cut by top-k, top-p, min-p.
        entropies: fp32, of softmax(logits / temperature) at each token (nats).
        versions: spans [weights version, tokens sampled under it], in order; a version is the number of updates before. The
            sampler fills it from the version it is told. Every rank knows it of every response.
        routes: of each token, the experts in the pass that drew it: `model.routes.route_dtype` [tokens, L, k] as bytes, over
            the MoE layers of this process's pipeline stage. The forward pass fills it. Empty where the sampler does not
            note them.
    """

    tokens: array[int] = field(default_factory=token_array, metadata=filled_by(lambda rows: rows.ids))
    logprobs: array[float] = field(default_factory=number_array, metadata=filled_by(lambda rows: rows.logprobs))
    processed_logprobs: array[float] = field(
        default_factory=number_array, metadata=filled_by(lambda rows: rows.processed_logprobs)
    )
    entropies: array[float] = field(default_factory=number_array, metadata=filled_by(lambda rows: rows.entropies))
    versions: list[list[int]] = field(default_factory=list)
    routes: bytes = b""


def _drawn_columns() -> Iterator[Column]:
    whole = TokenColumns()
    for one in dataclasses.fields(TokenColumns):
        if "fill" in one.metadata:
            yield Column(one.name, getattr(whole, one.name).typecode, one.metadata["fill"])


DRAWN = tuple(_drawn_columns())
"""The columns that the drawn row fills, the tokens first."""
NAMES = tuple(column.name for column in DRAWN)
TOKEN_BYTES = sum(column.itemsize for column in DRAWN)
"""Bytes of a token in these columns, its routes apart."""


def fill_columns(rows: DrawnRows) -> Tensor:
    """float64 [columns, N]: what each of `DRAWN` has of the rows of a step."""
    import torch

    return torch.stack([column.fill(rows).double() for column in DRAWN])


def rows_of(drawn: Tensor) -> Iterator[tuple[array[Any], ...]]:
    """For each row of `drawn`, float64 [columns, N, tokens] on the host, its columns as they are kept."""
    import torch

    count = drawn.shape[2]
    columns = []
    for column, part in zip(DRAWN, drawn, strict=True):
        flat = array(column.typecode)
        flat.frombytes(part.to(torch.int32 if column.typecode == "i" else torch.float32).numpy().tobytes())
        columns.append([flat[start : start + count] for start in range(0, len(flat), count)])
    return zip(*columns, strict=True)
