"""Names sorted into classes by pairs that belong together."""

from __future__ import annotations


class DisjointSets:
    """Classes of names; a name that was never joined is a class of its own.

    Example:
        >>> sets = DisjointSets()
        >>> sets.join("a", "b")
        >>> sets.of("b")
        'a'
    """

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The name that stands for a class."""
        while self._parent.get(name, name) != name:
            name = self._parent[name]
        return name

    def join(self, a: str, b: str) -> None:
        """Put two names into one class; the one that stands for the first stands for both."""
        self._parent[self.of(b)] = self.of(a)
