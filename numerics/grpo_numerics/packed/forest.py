"""The prefix forest of a batch: every sequence is a path, and what begins alike is one path until it parts.

A turn of a rollout continues an earlier one, completions of one prompt may begin alike, two prompts may have a system prompt in
common: all of that is the same thing here. A sequence that ends inside another one needs no node of its own, since the rows
before its end do not see what comes after.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Tokens: TypeAlias = npt.NDArray[np.int32]

# Sequences that part again and again are followed this far; what is left of one then stands alone. It bounds the work of laying
# out a batch, and no batch that was seen needs a tenth of it.
_MAX_FORKS = 256


@dataclass(eq=False, slots=True)
class Node:
    """`tokens` at positions depth, depth + 1, ...; all of them are before each of the children.

    heir: who has the tokens of a node that was dissolved into its children.
    """

    depth: int
    tokens: Tokens
    parent: Node | None
    children: list[Node] = field(default_factory=lambda: [])
    by_first: dict[int, Node] = field(default_factory=lambda: {})
    heir: Node | None = None

    @property
    def end(self) -> int:
        return self.depth + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Place:
    """Behind `length` tokens of the path that leads to `node`, and through it."""

    node: Node
    length: int

    def resolved(self) -> Place:
        """The same place in the forest as it is now: nodes are cut in two, and dissolved, while others are added."""
        node = self.node
        while node.heir is not None:
            node = node.heir
        while node.parent is not None and self.length <= node.depth:
            node = node.parent
        return Place(node, self.length)


class Forest:
    """Sequences added one by one. `root` has no tokens; its children are the trees. tokens: of all nodes, as added."""

    def __init__(self) -> None:
        self.root = Node(0, np.zeros(0, np.int32), None)
        self.start = Place(self.root, 0)
        self.tokens = 0

    def add(self, after: Place, tokens: Tokens) -> Place:
        """Go on from a place with these tokens, as far as others went that way before, then alone. Returns where it ends."""
        place = after.resolved()
        node, forks = place.node, 0
        begun, length = place.length, place.length + len(tokens)
        while begun < length:
            rest = tokens[begun - after.length :]
            begun += common_prefix(node.tokens[begun - node.depth :], rest)
            if begun == length:
                break
            rest = tokens[begun - after.length :]
            if begun < node.end:
                node = _cut(node, begun)
            elif node.parent is not None and not node.children:  # nobody parts here: the path is just longer
                node.tokens = np.concatenate([node.tokens, rest])
                self.tokens += len(rest)
                break
            forks += 1
            child = node.by_first.get(int(rest[0])) if forks < _MAX_FORKS else None
            if child is None:
                node = self._append(node, rest, shared=forks < _MAX_FORKS)
                break
            node = child
        return Place(node, length)

    def add_apart(self, after: Place, tokens: Tokens) -> Place:
        """A node of its own for these tokens, whatever others there are."""
        if len(tokens) == 0:
            return after
        return Place(self._append(after.node, tokens, shared=False), after.length + len(tokens))

    def nodes(self) -> Iterator[Node]:
        """All nodes, each before its children and next to them; those without children first, the short before the long, so
        that segments of one length lie side by side."""
        stack = _reversed(self.root.children)
        while stack:
            node = stack.pop()
            yield node
            stack += _reversed(node.children)

    def _append(self, node: Node, tokens: Tokens, *, shared: bool) -> Node:
        child = Node(node.end, tokens, node)
        node.children.append(child)
        if shared:
            node.by_first[int(tokens[0])] = child
        self.tokens += len(tokens)
        return child


def _reversed(nodes: list[Node]) -> list[Node]:
    return sorted(nodes, key=lambda n: (bool(n.children), len(n.tokens)), reverse=True)


def _cut(node: Node, at: int) -> Node:
    """Two nodes in place of one, parted at position `at`. Returns the first; the second is `node` itself, and keeps what is
    below."""
    parent, tokens = node.parent, node.tokens
    assert parent is not None
    upper = Node(node.depth, tokens[: at - node.depth], parent, [node])
    parent.children[parent.children.index(node)] = upper
    first = int(tokens[0])
    if parent.by_first.get(first) is node:
        parent.by_first[first] = upper
    node.parent, node.depth, node.tokens = upper, at, tokens[at - upper.depth :]
    upper.by_first[int(node.tokens[0])] = node
    return upper


def dissolve(node: Node) -> None:
    """Every child gets its own copy of the node's tokens."""
    parent = node.parent
    assert parent is not None
    assert node.children
    parent.children.remove(node)
    for child in node.children:
        child.tokens = np.concatenate([node.tokens, child.tokens])
        child.depth, child.parent = node.depth, parent
        parent.children.append(child)
    node.heir = node.children[0]


def common_prefix(a: Tokens, b: Tokens) -> int:
    """How many leading tokens two sequences share."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
