"""Trees of candidates from a context: what followed the same tokens, and alternatives to it.

    Suffixes   where the longest suffix of a text occurs in the context
    grow_tree  the continuations of these places as a trie with counts: its most frequent nodes,
               then the alternatives of their places, then more of the trie, up to a budget

Positions are those of the prompt. A trie node knows the places in the context where its token
stands on its path, so a child of it is what came after one of them, and the alternatives of a
place are further children.

Wang et al.: Alignment-Augmented Speculative Decoding with Alignment Sampling and Conditional
Verification (2025), arXiv:2505.13204; for retrieval: github.com/Jikai0Wang/CASD.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field

from decodery.methods.speculative.alignment_pool import Alternatives


class Suffixes:
    """Where n-grams of `shortest` to `longest` tokens end in a span of a text."""

    def __init__(self, text: Sequence[int], span: range, shortest: int, longest: int) -> None:
        self.text = text
        self.span = span
        self.shortest = shortest
        self.longest = longest
        self._ends: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for end in range(span.start + shortest - 1, span.stop - 1):
            self._ends[tuple(text[end - shortest + 1 : end + 1])].append(end)

    def matches(self, tail: Sequence[int]) -> tuple[int, list[int]]:
        """The longest n-gram at the end of `tail` that occurs with a token after it, and where.

        Its length and the places of its last token, ascending; 0 and none without a match.
        """
        places = self._ends.get(tuple(tail[-self.shortest :]), [])
        if not places:
            return 0, []
        size = self.shortest
        for longer in range(size + 1, min(self.longest, len(tail)) + 1):
            kept = [
                end
                for end in places
                if end - longer + 1 >= self.span.start
                and self.text[end - longer + 1] == tail[-longer]
            ]
            if not kept:
                break
            size, places = longer, kept
        return size, places


@dataclass(eq=False)
class Branch:
    """A node of a draft: its token, and where in the context it stands on this path.

    An alternative stands nowhere and is a leaf. The root has the places of the match.
    """

    token: int
    depth: int
    places: Sequence[int] = ()
    children: dict[int, Branch] = field(default_factory=dict[int, "Branch"])
    is_alternative: bool = False

    def below(self) -> Iterator[Branch]:
        """All nodes below, parents first, level by level."""
        level = list(self.children.values())
        while level:
            yield from level
            level = [child for node in level for child in node.children.values()]


@dataclass(frozen=True)
class Limits:
    """At most `nodes` nodes and `depth` levels; `share` of the nodes is the trie's first.

    Nothing comes after the tokens `ends`.
    """

    nodes: int
    depth: int
    share: float = 0.75
    ends: Set[int] = frozenset()


def grow_tree(
    suffixes: Suffixes, places: Sequence[int], alternatives: Alternatives, limits: Limits
) -> Branch:
    """The draft below a match: root, and at most `limits.nodes` nodes."""
    growing = _Growing(suffixes, places, limits)
    growing.retrieve(int(limits.share * limits.nodes))
    growing.augment(alternatives)
    growing.retrieve(limits.nodes)
    return growing.root


class _Growing:
    """A draft in the making. The trie is made as far as it is taken: a child is never more frequent
    than its parent, so the most frequent nodes come out of a heap in their order."""

    def __init__(self, suffixes: Suffixes, places: Sequence[int], limits: Limits) -> None:
        self.text = suffixes.text
        self.stop = suffixes.span.stop
        self.limits = limits
        self.root = Branch(-1, 0, places)
        self.size = 0
        # (-count, depth, first place) of a node to be; no two are equal. Then what it is made of.
        self._waiting: list[tuple[int, int, int, Branch, Sequence[int]]] = []
        self._offer(self.root)

    def retrieve(self, most: int) -> None:
        """The next most frequent nodes of the trie, until the draft has `most`."""
        while self._waiting and self.size < most:
            _, depth, first, parent, places = heapq.heappop(self._waiting)
            token = self.text[first]
            branch = parent.children.get(token)
            if branch is None:
                branch = parent.children[token] = Branch(token, depth, places)
                self.size += 1
            else:  # an alternative that the trie has as well
                branch.places, branch.is_alternative = places, False
            self._offer(branch)

    def augment(self, alternatives: Alternatives) -> None:
        """Alternatives below the nodes there are, by share of the matches times chance."""
        offered: list[tuple[float, int, int, Branch]] = []
        for number, branch in enumerate([self.root, *self.root.below()]):
            for token, weight in self._weights(branch, alternatives).items():
                offered.append((-weight, number, token, branch))
        for _, _, token, branch in sorted(offered, key=lambda item: item[:3]):
            if self.size >= self.limits.nodes:
                return
            branch.children[token] = Branch(token, branch.depth + 1, is_alternative=True)
            self.size += 1

    def _weights(self, branch: Branch, alternatives: Alternatives) -> dict[int, float]:
        weights: dict[int, float] = {}
        if self._is_full(branch):
            return weights
        for place in branch.places:
            for token, chance in alternatives.get(place, ()):
                if token not in branch.children:
                    weights[token] = weights.get(token, 0.0) + chance / len(self.root.places)
        return weights

    def _offer(self, branch: Branch) -> None:
        if self._is_full(branch):
            return
        after: defaultdict[int, list[int]] = defaultdict(list)
        for place in branch.places:
            if place + 1 < self.stop:
                after[self.text[place + 1]].append(place + 1)
        for places in after.values():
            item = (-len(places), branch.depth + 1, places[0], branch, places)
            heapq.heappush(self._waiting, item)

    def _is_full(self, branch: Branch) -> bool:
        """Whether nothing may come below a node."""
        return branch.depth >= self.limits.depth or branch.token in self.limits.ends
