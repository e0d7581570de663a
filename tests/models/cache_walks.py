"""Random walks through the life of a cache, beside a model that caches nothing.

`CacheWalk` plays the runner's part by hand: it opens prompts, grows nodes of several trees in one
forward, drops, abandons and finishes, and lets forwards fail. After every step it compares all rows
with the oracle, what came from the cache with what may, and lets the cache check itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from decodery.core.errors import RowError
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.source import Growth, Policy
from decodery.core.tree import Node, Tree
from decodery.models.causal import CausalModel
from decodery.models.compiled import CompiledTransformer
from decodery.models.prefix_cache import Place
from decodery.models.transformer import Transformer


def tolerance(transformer: Transformer) -> float:
    """How far two ways to a row may differ. A wrong slot or prefix is off by 1e-2.

    The compiled kernels make a row from its path alone; torch's round differently for other
    layouts.
    """
    return 0.0 if isinstance(transformer, CompiledTransformer) else 2e-5


class Oracle:
    """Rows of paths, each evaluated alone as one prompt by a model that caches nothing."""

    def __init__(self, transformer: Transformer) -> None:
        self.model = CausalModel(transformer, name="oracle", cache_tokens=256, prefix_cache=False)
        self.rows: dict[tuple[int, ...], np.ndarray] = {}

    def row(self, path: Sequence[int]) -> np.ndarray:
        key = tuple(path)
        if key not in self.rows:
            tree = Tree(Policy(self.model), key, Stream(0))
            self.rows[key] = self.model.forward([Growth(tree.root, key)])[0].scores
            self.model.release([tree.root.handle])
        return self.rows[key]


class CacheWalk:
    """`capacity` nodes may live at once, as admission grants it; `failures` is how often a forward
    raises. With `exact`, what comes from the cache is all that could: nothing is evicted as long as
    the cache is large, only whole trees are dropped and no forward fails."""

    def __init__(
        self,
        model: CausalModel,
        oracle: Oracle,
        seed: int,
        *,
        salts: Sequence[str | None] = (None, "one", "two"),
        letters: int = 3,
        failures: float = 0.0,
        exact: bool = False,
    ) -> None:
        self.model = model
        self.oracle = oracle
        self.tolerance = tolerance(model.transformer)
        self.generator = np.random.default_rng(seed)
        self.salts = salts
        self.letters = letters
        self.failures = failures
        self.exact = exact
        self.trees: list[Tree] = []
        self.prefixes: dict[str | None, set[tuple[int, ...]]] = {salt: set() for salt in salts}
        self.cached = 0  # tokens that came from the cache so far
        self.evaluated = 0

    # -- what lives ------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        return [node for tree in self.trees for node in below(tree.root) if node.grown]

    def live_tokens(self) -> int:
        return sum(len(node.tree.prompt) if node.is_root else 1 for node in self.nodes())

    def places(self) -> list[Place]:
        return [node.handle for node in self.nodes()]

    # -- steps -----------------------------------------------------------------------------------

    def step(self) -> None:
        """One random forward, or one random drop; then everything is checked."""
        if self.trees and self.generator.random() < 0.4:
            self._drop_something()
        else:
            self._forward()
        self.model.prefixes.check(self.places())
        self._spoil_unused()

    def _spoil_unused(self) -> None:
        """What nobody holds becomes NaN, so that a stale slot cannot go unnoticed."""
        used, cached = self.model.cache.states()
        unused = set(range(self.model.cache.slots)) - used - cached
        self.model.cache.keys[:, :, sorted(unused)] = torch.nan

    def finish(self) -> None:
        """Drop every tree; the whole cache can be given out again."""
        for tree in self.trees:
            self._release(tree, tree.root)
        self.trees = []
        self.model.prefixes.check(live=())
        assert self.model.cache.free == self.model.cache.slots

    def _drop_something(self) -> None:
        tree = self.trees[self.generator.integers(len(self.trees))]
        inner = [node for node in below(tree.root) if not node.is_root]
        node = inner[self.generator.integers(len(inner))] if inner else tree.root
        if self.exact or not inner or self.generator.random() < 0.3:
            if self.generator.random() < 0.5:
                node.drop()  # a branch and then all the rest, given back together
            self.trees.remove(tree)
            self._release(tree, tree.root)
            return
        if self.generator.random() < 0.5:
            self._release(tree, node)
            return
        while node.children:
            node = node.children[0]
        node.abandon()
        self._release(tree, None)

    def _release(self, tree: Tree, node: Node | None) -> None:
        if node is not None:
            node.drop()
        self.model.release(tree.abandoned)
        tree.abandoned = []

    def _forward(self) -> None:
        room = (self.model.capacity or 0) - self.live_tokens()
        growths: list[Growth] = []
        for _ in range(int(self.generator.integers(1, 5))):
            growth = self._open() if self.generator.random() < 0.3 else self._child(growths)
            if growth is None or len(growth.tokens) > room:
                continue
            room -= len(growth.tokens)
            growths.append(growth)
            if growth.node.is_root:
                self.trees.append(growth.node.tree)
        for tree in self.trees:
            for node in list(below(tree.root)):
                if not node.grown and all(growth.node is not node for growth in growths):
                    node.drop()  # drawn, and not asked for after all
        if growths and self.generator.random() < self.failures:
            self._fail(growths)
        elif growths:
            self._grow(growths)

    def _open(self) -> Growth:
        """A prompt: something known and more, or something new."""
        salt = self.salts[self.generator.integers(len(self.salts))]
        known = sorted(self.prefixes[salt])
        start: tuple[int, ...] = ()
        if known and self.generator.random() < 0.8:
            start = known[self.generator.integers(len(known))]
        more = self.generator.integers(self.letters, size=self.generator.integers(0, 12))
        prompt = (*start, *map(int, more))[:60] or (0,)
        tree = Tree(Policy(self.model), prompt, Stream(0), cache_salt=salt)
        return Growth(tree.root, prompt)

    def _child(self, growths: Sequence[Growth]) -> Growth | None:
        """A node below a live one, or below one of the same forward that is no prompt."""
        parents = self.nodes() + [growth.node for growth in growths if not growth.node.is_root]
        if not parents:
            return None
        parent = parents[self.generator.integers(len(parents))]
        token = int(self.generator.integers(self.letters))
        return Growth(parent.child(token), (token,))

    def _grow(self, growths: Sequence[Growth]) -> None:
        for growth, grown in zip(growths, self.model.forward(growths), strict=True):
            node, path = growth.node, tuple(growth.node.tokens)
            known = self.prefixes[node.tree.cache_salt]
            most = 0
            if node.is_root:
                most = next((n for n in range(len(path) - 1, 0, -1) if path[:n] in known), 0)
            assert grown.cached <= most, f"{grown.cached} cached, and only {most} were evaluated"
            if self.exact:
                assert grown.cached == most, f"{grown.cached} cached of {most}"
            known.update(path[:n] for n in range(1, len(path) + 1))
            self.cached += grown.cached
            self.evaluated += len(growth.tokens) - grown.cached
            node.receive(Row(grown.scores, self.model.vocab_size))
            off = np.abs(grown.scores - self.oracle.row(path)).max()
            assert off <= self.tolerance, f"the row of {path} is off by {off:.1e}"

    def _fail(self, growths: Sequence[Growth]) -> None:
        """A forward that raises half way ends the requests in it, as the runner does it."""
        transformer, cache = self.model.transformer, self.model.cache
        whole = transformer.hidden

        def raises(tokens: Any, positions: Any, attention: Any) -> Any:
            cache.keys[:, :, attention.slots] = torch.nan
            raise RowError("out of memory, say")

        transformer.hidden = raises  # type: ignore[method-assign]
        try:
            self.model.forward(growths)
        except RowError:
            pass
        finally:
            transformer.hidden = whole  # type: ignore[method-assign]
        for tree in {id(growth.node.tree): growth.node.tree for growth in growths}.values():
            self.trees.remove(tree)
            self._release(tree, tree.root)


def below(root: Node) -> Iterator[Node]:
    """A node and all its descendants."""
    stack = [root]
    while stack:
        node = stack.pop()
        stack.extend(node.children)
        yield node
