"""The token tree: one node a token, the root is the prompt, a sequence is a path.

`node.child(token)` makes a node; it costs nothing until it is grown. A grown node has a row (what
the source says of the next token) and, through the policy's sampler, a policy row (what is sampled
from). Sampler states are computed on the way down and live on the nodes.

Rows are large, so growing below a node releases its row and those of its ancestors; a search that
comes back to inner nodes grows with `keep_rows=True`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from decodery.core.errors import DecoderyError, RowError, TreeError
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.sampler import Context, State
from decodery.core.source import Blend, Policy

_UNSET: Any = object()


class Tree:
    """All nodes that grow from one prompt under one policy.

    `members` are the trees of a blend's members, grown in step. `abandoned` collects the handles
    of dropped nodes until the runner gives them back to the model, `pruned` their indices until it
    has noted them in the trace. `cache_salt` is the task's. `remarks` has what is known of nodes
    that the trace has not noted yet; None unless one is kept.
    """

    __slots__ = (
        "abandoned",
        "alive",
        "cache_salt",
        "members",
        "number",
        "policy",
        "prompt",
        "pruned",
        "remarks",
        "root",
        "stream",
    )

    def __init__(
        self,
        policy: Policy,
        prompt: tuple[int, ...],
        stream: Stream,
        members: tuple[Tree, ...] = (),
        cache_salt: str | None = None,
    ) -> None:
        self.policy = policy
        self.prompt = prompt
        self.stream = stream
        self.members = members
        self.cache_salt = cache_salt
        self.number = 0  # nodes made so far, dropped ones included
        self.alive = 0  # nodes grown and not dropped
        self.abandoned: list[Any] = []
        self.pruned: list[int] = []
        self.remarks: dict[Node, dict[str, float | None]] | None = None
        self.root = Node(
            tree=self,
            parent=None,
            token=prompt[-1],
            depth=len(prompt),
            path=list(prompt),
            sequence=0,
            members=tuple(tree.root for tree in members),
        )


class Node:
    """One token of the tree; the root stands for the whole prompt.

    `depth` is the number of tokens from the start of the prompt up to and including this one, so it
    is also the absolute position of the token that comes next. `sequence` is the key of the random
    draws below this node. `handle` belongs to the model.
    """

    __slots__ = (
        "_blend_state",
        "_noisy_row",
        "_path",
        "_policy_row",
        "_row",
        "_state",
        "children",
        "depth",
        "dropped",
        "grown",
        "handle",
        "hidden",
        "index",
        "members",
        "parent",
        "sequence",
        "token",
        "tree",
    )

    def __init__(
        self,
        *,
        tree: Tree,
        parent: Node | None,
        token: int,
        depth: int,
        path: list[int],
        sequence: int,
        members: tuple[Node, ...] = (),
    ) -> None:
        self.tree = tree
        self.parent = parent
        self.token = token
        self.depth = depth
        self.sequence = sequence
        self.members = members
        self.children: list[Node] = []
        self.grown = False
        self.dropped = False
        self.handle: Any = None
        self.hidden: npt.NDArray[np.floating] | None = None
        self.index = tree.number
        tree.number += 1
        # The path is an append-only list that a node shares with its first child, and the first
        # `depth` entries of it are this node's: a straight sequence costs one append a token.
        self._path = path
        self._row: Row | None = None
        self._policy_row: Row | None = None
        self._noisy_row: tuple[int, Row] | None = None
        self._state: State = _UNSET
        self._blend_state: State = _UNSET

    def __repr__(self) -> str:
        return f"Node(token={self.token}, depth={self.depth}, index={self.index})"

    # -- the path --------------------------------------------------------------------------------

    @property
    def is_root(self) -> bool:
        return self.parent is None

    @property
    def tokens(self) -> list[int]:
        """All tokens from the start of the prompt to this node."""
        return self._path[: self.depth]

    @property
    def generated(self) -> list[int]:
        """The tokens after the prompt, this one included."""
        return self._path[len(self.tree.prompt) : self.depth]

    def tail(self, count: int) -> list[int]:
        """The last `count` tokens after the prompt, or as many as there are."""
        return self._path[max(len(self.tree.prompt), self.depth - count) : self.depth]

    def ancestors(self) -> Iterator[Node]:
        """The parent, its parent, and so on up to the root."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    # -- making and dropping ---------------------------------------------------------------------

    def child(self, token: int, sequence: int | None = None) -> Node:
        """A new node below this one, not grown yet. `sequence` defaults to this node's."""
        if self.dropped:
            raise TreeError(f"{self!r} was dropped; nothing can grow below it")
        if not 0 <= token < self.tree.policy.source.vocab_size:
            raise TreeError(
                f"token {token} is outside the vocabulary of {self.tree.policy.source.vocab_size}"
            )
        path = self._path if len(self._path) == self.depth else self._path[: self.depth]
        path.append(token)
        node = Node(
            tree=self.tree,
            parent=self,
            token=token,
            depth=self.depth + 1,
            path=path,
            sequence=self.sequence if sequence is None else sequence,
            members=tuple(member.child(token) for member in self.members),
        )
        self.children.append(node)
        if self.tree.remarks is not None:
            self.tree.remarks[node] = {"log_p": node.log_chance()}
        return node

    def proposed(self, probability: float) -> None:
        """Say for the trace how probable this token was where it was proposed, before it grows."""
        if self.tree.remarks is not None:
            log_q = math.log(probability) if probability > 0.0 else -math.inf
            self.tree.remarks.setdefault(self, {})["log_q"] = log_q

    def log_chance(self) -> float | None:
        """ln p of this token under the policy; None where the parent has no row, or no policy's."""
        if self.parent is None or not self.parent.has_row:
            return None
        try:
            return self.parent.policy_row(self.sequence).log_probability(self.token)
        except DecoderyError:
            return None

    def drop(self) -> None:
        """Remove this node and everything below it; its cache returns to the model."""
        if self.dropped:
            return
        if self.parent is not None:
            self.parent.children.remove(self)
        stack: list[Node] = [self]
        while stack:
            node = stack.pop()
            stack.extend(node.children)
            node._forget()
        for member in self.members:
            member.drop()

    def abandon(self) -> None:
        """Remove this leaf and every ancestor that no other node needs; the root stays."""
        if self.dropped or self.is_root:
            return
        node = self
        while node.parent is not None and len(node.parent.children) == 1:
            if node.parent.is_root:
                break
            node = node.parent
        node.drop()

    def _forget(self) -> None:
        self.dropped = True
        self.children = []
        self._row = self._policy_row = self._noisy_row = None
        self.hidden = None
        self.tree.pruned.append(self.index)
        if self.grown:
            self.tree.alive -= 1
        if self.handle is not None:
            self.tree.abandoned.append(self.handle)
            self.handle = None

    # -- what the source said --------------------------------------------------------------------

    def receive(self, row: Row, hidden: npt.NDArray[np.floating] | None = None) -> None:
        """Take the source's answer; the runner calls this once for each node."""
        self._row = row
        self.hidden = hidden
        self.grown = True
        self.tree.alive += 1

    @property
    def row(self) -> Row:
        """The source's row at this node."""
        if self._row is None:
            why = "is not grown yet" if not self.grown else "has released its row"
            raise TreeError(f"{self!r} {why}; grow it, or grow its children with keep_rows=True")
        return self._row

    @property
    def has_row(self) -> bool:
        return self._row is not None

    def replace_row(self, row: Row) -> None:
        """Put `row` in the place of the source's: for a decoder that reads several nodes together.

        The policy's samplers see it as what the source said, and states that observe rows do too;
        so it comes before any child is made.
        """
        if self._row is None or self.children:
            raise TreeError(f"{self!r} has no row to replace, or children that came from it")
        self._row, self._policy_row, self._noisy_row = row, None, None

    def release_row(self) -> None:
        """Let go of this node's row, after the children took what their states need of it."""
        for child in self.children:
            child.settle()
        self._row = self._policy_row = self._noisy_row = None
        self.release_member_rows()

    def release_member_rows(self) -> None:
        """Let go of the rows that a blend's row was made of."""
        for member in self.members:
            member.release_row()

    def settle(self) -> None:
        """Compute the states here, while the rows above, which they may need, are there."""
        _ = self.state, self.blend_state

    # -- what the policy makes of it -------------------------------------------------------------

    def context(self, sequence: int | None = None) -> Context:
        """The context a sampler sees at this node."""
        tree = self.tree
        return Context(
            tokens=self.tokens,
            prompt_length=len(tree.prompt),
            eos_ids=tree.policy.source.eos_ids,
            hidden=self.hidden,
            stream=tree.stream,
            sequence=self.sequence if sequence is None else sequence,
        )

    @property
    def state(self) -> State:
        """The sampler's state here: a function of the path alone."""
        if self._state is _UNSET:
            for node in self._from_top("_state"):
                node._state = node._own_state()
        return self._state

    @property
    def blend_state(self) -> State:
        """The blend's state here: a function of the path alone. None where there is no blend."""
        if self._blend_state is _UNSET:
            for node in self._from_top("_blend_state"):
                node._blend_state = node._own_blend_state()
        return self._blend_state

    def _from_top(self, slot: str) -> list[Node]:
        """This node and the ancestors whose `slot` is unset, parents first."""
        pending: list[Node] = []
        node: Node | None = self
        while node is not None and getattr(node, slot) is _UNSET:
            pending.append(node)
            node = node.parent
        return pending[::-1]

    def _own_state(self) -> State:
        sampler = self.tree.policy.sampler
        if not sampler.stages:
            return ()
        if self.parent is None:
            return sampler.start(self.context())
        row = self.parent.row if sampler.observes_rows else None
        context = self.parent.context(self.sequence)
        return sampler.advance(self.parent.state, self.token, row, context)

    def _own_blend_state(self) -> State:
        blend = self.tree.policy.source
        if not isinstance(blend, Blend):
            return None
        if self.parent is None:
            return blend.start(self.context())
        parent = self.parent
        rows = [member.row for member in parent.members] if blend.observes_rows else None
        return blend.advance(parent.blend_state, self.token, rows, parent.context(self.sequence))

    def policy_row(self, sequence: int | None = None) -> Row:
        """The row after the policy's samplers: what a decoder draws from.

        `sequence` matters only for samplers with noise of their own.
        """
        sampler = self.tree.policy.sampler
        if sampler.needs_noise:
            return self._row_with_noise(self.sequence if sequence is None else sequence)
        if self._policy_row is None:
            self._policy_row = self._apply(self.sequence)
        return self._policy_row

    def _row_with_noise(self, sequence: int) -> Row:
        if self._noisy_row is None or self._noisy_row[0] != sequence:
            self._noisy_row = (sequence, self._apply(sequence))
        return self._noisy_row[1]

    def _apply(self, sequence: int) -> Row:
        sampler = self.tree.policy.sampler
        if not sampler.stages:
            return self.row
        try:
            return sampler.apply(self.row, self.state, self.context(sequence))
        except RowError as error:
            step = self.depth - len(self.tree.prompt)
            raise RowError(f"after {sampler!r} at step {step}: {error}") from None

    def draw(self, sequence: int | None = None, purpose: str = "token") -> int:
        """Draw the next token from the policy, keyed by (seed, sequence, position, purpose)."""
        key = self.sequence if sequence is None else sequence
        uniform = self.tree.stream.uniform(key, self.depth, purpose)
        return self.policy_row(key).draw(uniform)
