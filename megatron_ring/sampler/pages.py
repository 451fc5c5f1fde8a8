"""Which pages of the KV cache are in use, and by how many. No tensors."""

from __future__ import annotations

from collections.abc import Iterable

SCRAP = 0  # a page that belongs to nobody: what padding tokens compute is written there


def pages_for(tokens: int, page_size: int) -> int:
    """Pages that `tokens` tokens fill, the last one perhaps in part."""
    return -(-tokens // page_size)


class PagePool:
    """Pages 1..pages, each free or with a number of users. Page 0 is `SCRAP` and never handed out."""

    def __init__(self, pages: int) -> None:
        self._users = [0] * (pages + 1)
        self._free = list(range(pages, 0, -1))

    @property
    def free(self) -> int:
        """Pages that nobody uses."""
        return len(self._free)

    def take(self) -> int:
        """A free page, now with one user. Raises `IndexError` when there is none."""
        page = self._free.pop()
        self._users[page] = 1
        return page

    def share(self, pages: Iterable[int]) -> None:
        """One more user for each of the pages."""
        for page in pages:
            assert self._users[page] > 0, f"page {page} is free"
            self._users[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One user fewer for each of the pages; those without any are free."""
        for page in pages:
            assert self._users[page] > 0, f"page {page} is free already"
            self._users[page] -= 1
            if self._users[page] == 0:
                self._free.append(page)

    def is_shared(self, page: int) -> bool:
        """Whether it has several users: it must not be written to."""
        return self._users[page] > 1
