"""How many tokens a batch has, by what an engine shares (`contract.Tally`): index work, done before a batch is laid out."""

from __future__ import annotations

from grpo_numerics.packed.forest import Forest, Place

from .contract import Piece


class EveryPiece:
    """Prompts are shared within a piece, and nothing between pieces."""

    def add(self, piece: Piece) -> int:
        return piece.tokens


class EqualPrompts:
    """Equal prompts, and equal completions of them, are computed once."""

    def __init__(self) -> None:
        self._known: dict[bytes, set[bytes]] = {}

    def add(self, piece: Piece) -> int:
        key = piece.prompt.tobytes()
        added = 0 if key in self._known else len(piece.prompt)
        known = self._known.setdefault(key, set())
        for completion in piece.completions:
            if (own := completion.tobytes()) not in known:
                known.add(own)
                added += len(completion)
        return added


class Beginnings:
    """Whatever sequences begin with in common is computed once."""

    def __init__(self) -> None:
        self._forest = Forest()

    def add(self, piece: Piece) -> int:
        before = self._forest.tokens
        prompt: Place = self._forest.add(self._forest.start, piece.prompt)
        for completion in piece.needed(whole=False).completions:
            self._forest.add(prompt, completion)
        return self._forest.tokens - before
