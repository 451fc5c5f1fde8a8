"""Groups of rows that are linked, over any number of shards: one number a row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class UnionFind:
    """Disjoint sets of 0 … size − 1. A set is named by its smallest member."""

    def __init__(self, size: int) -> None:
        self._parent = np.arange(size, dtype=np.int64)

    def find(self, member: int) -> int:
        """The smallest member of a set."""
        parent = self._parent
        root = member
        while parent[root] != root:
            root = int(parent[root])
        while parent[member] != root:
            parent[member], member = root, int(parent[member])
        return int(root)

    def roots(self) -> NDArray[np.int64]:
        """[size] the smallest member of each one's set, all found at once."""
        parent = self._parent
        while not np.array_equal(upper := parent[parent], parent):
            parent = upper
        self._parent = parent
        return parent

    def union(self, one: int, other: int) -> None:
        """Join two sets."""
        first, second = self.find(one), self.find(other)
        if first != second:
            self._parent[max(first, second)] = min(first, second)

    def groups(self) -> list[list[int]]:
        """Sets of two members and more, each in ascending order."""
        found: dict[int, list[int]] = {}
        for member in np.flatnonzero(self._parent != np.arange(len(self._parent))).tolist():
            root = self.find(member)
            found.setdefault(root, [root]).append(member)
        return list(found.values())
