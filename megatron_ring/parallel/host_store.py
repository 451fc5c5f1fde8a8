"""Tensors that make room on the device for a while. Their storages are emptied and later filled again, so that every view of
them and every reference to them stays what it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

PIECE = 1 << 26  # bytes; torch rounds what it page-locks up to a power of two, which would nearly double a large tensor
ALIGNMENT = 512  # bytes between the starts of two tensors


class HostStore:
    """Room in host memory, page-locked for CUDA tensors and kept from one time to the next.

    Copies queue on the current stream, behind what the device has been given before and ahead of what it is given later; the
    host does not wait for them.
    """

    def __init__(self, piece: int = PIECE) -> None:
        """`piece`: bytes of each of the allocations that the room is made of; a multiple of ALIGNMENT."""
        if piece % ALIGNMENT:
            raise ValueError(f"pieces of {piece} bytes: not a multiple of {ALIGNMENT}")
        self._piece = piece
        self._room: list[torch.Tensor] = []
        self._sent: list[tuple[torch.Tensor, int, int]] = []  # tensor, where its bytes begin, how many they are

    @property
    def away(self) -> bool:
        """Whether there are tensors here."""
        return bool(self._sent)

    @property
    def bytes(self) -> int:
        """Of the tensors that are here."""
        return sum(size for _, _, size in self._sent)

    @property
    def room(self) -> int:
        """Bytes of host memory taken, whatever is here."""
        return sum(piece.numel() for piece in self._room)

    @torch.no_grad()
    def send(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy the storages of `tensors` here and free them. Each tensor has one of its own, and none is used before
        `bring_back`.

        Raises:
            MemoryError: there is no room on the host; what has not been sent stays where it is.
        """
        begin = sum(_aligned(size) for _, _, size in self._sent)
        for tensor in tensors:
            held = _bytes(tensor)
            for host, part in self._places(begin, held):
                host.copy_(part, non_blocking=True)
            self._sent.append((tensor, begin, held.numel()))
            begin += _aligned(held.numel())
            # Freed while its copy is on the way: the stream reuses the memory behind it.
            tensor.untyped_storage().resize_(0)

    @torch.no_grad()
    def bring_back(self) -> None:
        """Give the tensors memory again, and what was in it. Where there is none left, those that are not back stay here."""
        while self._sent:
            tensor, begin, size = self._sent[-1]
            tensor.untyped_storage().resize_(size)
            for host, part in self._places(begin, _bytes(tensor)):
                part.copy_(host, non_blocking=True)
            self._sent.pop()

    def _places(self, begin: int, held: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The room from byte `begin` on and the bytes of `held` that belong there, piece by piece."""
        done = 0
        while done < held.numel():
            number, start = divmod(begin + done, self._piece)
            if number == len(self._room):
                try:
                    self._room.append(torch.empty(self._piece, dtype=torch.uint8, pin_memory=held.is_cuda))
                except RuntimeError as error:  # torch's way to say so
                    raise MemoryError(f"no {self._piece} bytes more than {self.room}") from error
            count = min(self._piece - start, held.numel() - done)
            yield self._room[number][start : start + count], held[done : done + count]
            done += count


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The whole storage of `tensor`, as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())  # type: ignore[call-overload,no-any-return]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
