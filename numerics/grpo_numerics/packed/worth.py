"""Which forks of a forest are worth a cut: each is one more attention call, and one more merge for all rows below it."""

from __future__ import annotations

from collections.abc import Collection

from .forest import Forest, Node, dissolve

# What a cut costs, in rows of the model that could be computed in its place: the calls, and the merge of each row below.
# `python -m benchmarks.forks` measures it; a larger model makes a cut cheaper.
CALLS = 32.0
MERGE = 0.02


def keep_what_pays(forest: Forest, prompts: Collection[Node]) -> None:
    """Dissolve the nodes that save fewer rows than their cut costs, prompts aside, which are always computed once.

    A node of k tokens with n sequences below saves k (n - 1) rows if nothing below it is cut, and k (m - 1) if m of those
    below are. So cuts are chosen from the roots down by the first count, then given up from the leaves up by the second.
    """
    nodes = list(forest.nodes())
    rows: dict[Node, int] = {}  # below each node
    leaves: dict[Node, int] = {}
    for node in reversed(nodes):
        rows[node] = sum(rows[child] + len(child.tokens) for child in node.children)
        leaves[node] = sum(leaves[child] for child in node.children) or 1
    copied: dict[Node, int] = {forest.root: 0}  # tokens that those below would carry copies of, since the last cut
    own: dict[Node, int] = {}  # tokens of each cut
    for node in nodes:
        assert node.parent is not None
        tokens = copied[node.parent] + len(node.tokens)
        if node.children and (node in prompts or tokens * (leaves[node] - 1) >= _cost(rows[node])):
            own[node] = tokens
        copied[node] = 0 if node in own else tokens
    runs: dict[Node, int] = {}  # cuts and leaves right below each node
    for node in reversed(nodes):
        runs[node] = sum(1 if child in own else runs[child] for child in node.children) or 1
        if node in own and node not in prompts and own[node] * (runs[node] - 1) < _cost(rows[node]):
            del own[node]
    for node in nodes:
        if node.children and node not in own:
            dissolve(node)


def _cost(rows: int) -> float:
    return CALLS + MERGE * rows
