"""The prefix cache: equal prefixes are stored once, and outlive the requests that evaluated them.

Every evaluated token is an entry of a radix tree over token ids: its path from the top spells the
tokens before it, on which alone its keys and values depend. An edge is one token, because a token
owns one slot; so nothing is ever split. A new prompt takes the longest path it finds, all but its
last token, whose row is needed. Entries are in the tree from the moment they get a slot, so that
requests share while they live, and even inside one forward.

- `refs` of an entry counts the live nodes on it. A node that finds an entry of its own path joins
  it; what it evaluates for its row goes into a slot that is returned after the forward.
- At zero refs an entry stays as *cached*. Cached entries go least recently used first, when slots
  are needed. A path is let go from its tip upwards, so the oldest entry never has another below it.
- What a request pruned while it lives on, such as rejected drafts, gives way to what is grown
  there, so that a path stays in one stretch of slots.
- Live entries are never more than the live nodes, so admission (`Model.reserved`) needs to know
  nothing of the cache: a request runs when it would run without.
- A tree belongs to a salt: entries of different salts are never joined, hence neither the time to
  the first token nor the report tells a tenant what another one asked. Requests without a salt
  share with each other. (How full the cache is can still be felt.)
- What a forward did not finish, or gave NaN rows, leaves the tree at once.

vLLM (Kwon et al. 2023, arXiv:2309.06180) and SGLang (Zheng et al. 2023, arXiv:2312.07104) cache
prefixes in this way; the salt is vLLM's.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from decodery.core.errors import CapacityError
from decodery.models.cache_slots import Area, Runs, SlotCache, Stretch, extend, slots_of

# Evicting one slot for each new token would scatter paths over a full cache. So where no stretch is
# long enough this many go at once, until an eighth of the cache lies unused between the others.
_EVICTION_BATCH = 64


class Entry:
    """One token of a path that has, or is about to have, its keys and values in `slot`.

    `depth` is the number of tokens up to and including it. `listed` says that it can be found in
    the tree, `pruned` that it and all below it were left by requests that lived on. `round` is the
    round of the running forward in which it is evaluated, else 0.
    """

    __slots__ = (
        "area",
        "children",
        "depth",
        "listed",
        "parent",
        "pruned",
        "refs",
        "round",
        "slot",
        "token",
    )

    def __init__(
        self, parent: Entry | None, token: int, slot: int, area: Area | None, *, listed: bool
    ) -> None:
        self.parent = parent
        self.token = token
        self.slot = slot
        self.area = area
        self.listed = listed
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.refs = 0
        self.pruned = False
        self.round = 0
        self.children: dict[int, Entry] = {}

    def __repr__(self) -> str:
        return f"Entry(token={self.token}, depth={self.depth}, slot={self.slot}, refs={self.refs})"


class Top(Entry):
    """The empty path of one salt; it has no slot."""

    __slots__ = ("salt",)

    def __init__(self, salt: str | None, *, listed: bool) -> None:
        super().__init__(None, -1, -1, None, listed=listed)
        self.salt = salt


class Place:
    """What a node holds of the cache: an entry for each of its tokens.

    The first `cached` of them need no evaluation. `slots` is where the forward writes the others,
    from its round `round` on. `runs` are the half-open slot ranges of the whole path in its order;
    the last one ends with this node.
    """

    __slots__ = ("cached", "entries", "round", "runs", "slots")

    def __init__(
        self, entries: Sequence[Entry], cached: int, slots: Sequence[int], runs: Runs, round: int
    ) -> None:
        self.entries = entries
        self.cached = cached
        self.slots = slots
        self.runs = runs
        self.round = round


class PrefixCache:
    """Who holds which slot, and what of it can serve others. Callers take turns.

    `chunk` is how many new tokens of one node a round of a forward evaluates. With `enabled` False
    nothing is found and nothing outlives its node.
    """

    def __init__(self, slots: SlotCache, *, chunk: int, enabled: bool = True) -> None:
        self.slots = slots
        self.chunk = chunk
        self.enabled = enabled
        self._tops: dict[str | None, Top] = {}
        self._cached: OrderedDict[int, Entry] = OrderedDict()  # by slot, the next to go first
        # Of the running forward: the entries it writes, and slots that are returned after it.
        self._written: list[Entry] = []
        self._spare: list[Stretch] = []

    # -- what the engine calls -------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around a forward: what it places becomes valid at its end, or leaves the tree."""
        try:
            yield
        except BaseException:
            for entry in self._written:
                self._cut(entry)
            raise
        finally:
            for entry in self._written:
                entry.round = 0
            for slots, area in self._spare:
                for slot in slots:
                    self.slots.release(slot, area)
            self._written, self._spare = [], []

    def place(self, tokens: Sequence[int], parent: Place | None, salt: str | None) -> Place:
        """Slots for a node's tokens behind its parent's (None for a root). Inside `writing`.

        Raises `CapacityError`, and holds nothing, when live nodes leave too few slots.
        """
        above = self._top(salt) if parent is None else parent.entries[-1]
        found = self._find(above, tokens[:-1])
        for entry in found:
            self._hold(entry)
        tip = found[-1] if found else above
        try:
            new, slots = self._place_rest(tip, tokens[len(found) :])
        except CapacityError:
            self._let_go(reversed(found))
            raise
        entries = [*found, *new]
        runs = extend(parent.runs if parent else (), [entry.slot for entry in entries])
        return Place(entries, len(found), slots, runs, tip.round)

    def release(self, places: Sequence[Place]) -> None:
        """Nodes are dropped: entries that no other node holds become cached, tips first.

        `places` come as one tree gives them up, a node before those below it.
        """
        lives_on = all(place.entries[0].depth > 1 for place in places)  # its root is not among them
        for place in reversed(places):
            self._let_go(reversed(place.entries), pruned=lives_on)

    def reject(self, place: Place) -> None:
        """What a node evaluated is not fit to be found again."""
        self._cut(place.entries[place.cached])

    # -- parts of placing ------------------------------------------------------------------------

    def _top(self, salt: str | None) -> Top:
        return self._tops.get(salt) or Top(salt, listed=self.enabled)

    def _find(self, above: Entry, tokens: Sequence[int]) -> list[Entry]:
        """The entries of the longest known path of `tokens` below `above`."""
        found: list[Entry] = []
        for token in tokens:
            entry = above.children.get(token)
            if entry is None:
                break
            found.append(entry)
            above = entry
        return found

    def _place_rest(
        self, tip: Entry, tokens: Sequence[int]
    ) -> tuple[Sequence[Entry], Sequence[int]]:
        """The entries of `tokens` below `tip`, held, and the slots where they are written."""
        twin = tip.children.get(tokens[0]) if len(tokens) == 1 else None
        if twin is None:
            return self._add(tip, tokens)
        # The path is known as a whole: only its last token is evaluated, for the row. Nobody reads
        # a cached entry, so it is written over with what it holds; this needs no slot beyond the
        # node's own. Beside a live entry the node's own slot is a spare one.
        if twin.refs == 0:
            self._written.append(twin)
            slots: Sequence[int] = [twin.slot]
        else:
            spare = self._take(1, tip)
            self._spare.append(spare)
            slots = spare.slots
        self._hold(twin)
        return [twin], slots

    def _add(self, tip: Entry, tokens: Sequence[int]) -> tuple[Sequence[Entry], Sequence[int]]:
        slots, area = self._take(len(tokens), tip)
        first = tip.round
        entries: list[Entry] = []
        for number, (token, slot) in enumerate(zip(tokens, slots, strict=True)):
            entry = Entry(tip, token, slot, area, listed=tip.listed)
            entry.refs = 1
            entry.round = first + number // self.chunk
            if tip.listed:
                tip.children[token] = entry
                if isinstance(tip, Top):
                    self._tops[tip.salt] = tip
            entries.append(entry)
            tip = entry
        self._written.extend(entries)
        return entries, slots

    def _take(self, count: int, tip: Entry) -> Stretch:
        """Slots for `count` tokens below `tip`: in its branch's area, a new area, or anywhere."""
        slots = self.slots
        if count > slots.free:
            raise CapacityError(
                f"the cache has {slots.free} of {slots.slots} slots free; {count} asked"
            )
        following = slots.following(count, tip.slot, tip.area)
        if following is not None and self._make_way(following):
            return slots.take(following, tip.area)
        after = None if tip.depth == 0 else tip.slot
        area = slots.claim(count, tip.depth + count, after)
        if area is None and slots.unclaimed < max(count, slots.slots // 8):
            batch = min(_EVICTION_BATCH, slots.slots // 16)
            self._evict(max(count - slots.unclaimed, batch))
            area = slots.claim(count, tip.depth + count, after)
        area = area or slots.claim_longest(count)
        if area is None:
            return slots.take(slots.scattered(count), None)
        return slots.take(range(area.start, area.start + count), area)

    def _make_way(self, wanted: range) -> bool:
        """Evict what is cached in slots that a branch would go on in, if it was only pruned."""
        cached = [self._cached[slot] for slot in wanted if slot in self._cached]
        if not all(entry.pruned for entry in cached):
            return False
        for entry in cached:
            self._cut(entry)
        return True

    # -- entries ---------------------------------------------------------------------------------

    def _hold(self, entry: Entry) -> None:
        if entry.refs == 0:
            del self._cached[entry.slot]
            self.slots.revive(entry.slot)
            entry.pruned = False
        entry.refs += 1

    def _let_go(self, entries: Iterable[Entry], *, pruned: bool = False) -> None:
        """One reference less each; tips come first."""
        for entry in entries:
            entry.refs -= 1
            if entry.refs:
                continue
            if entry.listed:
                self.slots.keep(entry.slot, entry.area)
                self._cached[entry.slot] = entry
                entry.pruned = pruned and all(item.pruned for item in entry.children.values())
                self._refresh(entry.parent)
            else:
                self.slots.release(entry.slot, entry.area)
            entry.area = None

    def _refresh(self, entry: Entry | None) -> None:
        """A branch was let go after the path it hangs on: the path goes after it."""
        while entry is not None and entry.slot in self._cached:
            self._cached.move_to_end(entry.slot)
            entry = entry.parent

    def _evict(self, count: int) -> None:
        """Give up the `count` cached entries that were used longest ago, or all there are."""
        goal = max(0, self.slots.cached - count)
        while self.slots.cached > goal:
            self._cut(next(iter(self._cached.values())))

    def _cut(self, entry: Entry) -> None:
        """Take an entry and all below it out of the tree; cached slots become unused."""
        if not entry.listed:
            return
        above = entry.parent
        assert above is not None
        del above.children[entry.token]
        if isinstance(above, Top) and not above.children:
            del self._tops[above.salt]
        below = [entry]
        while below:
            gone = below.pop()
            below.extend(gone.children.values())
            gone.children = {}
            gone.listed = False
            if gone.refs == 0:
                del self._cached[gone.slot]
                self.slots.evict(gone.slot)

    # -- for tests -------------------------------------------------------------------------------

    def check(self, live: Iterable[Place]) -> None:
        """Raise AssertionError unless everything adds up; `live` are the places of all live nodes.

        Costs time in the number of slots; between forwards only.
        """
        live = list(live)
        assert not self._written, "a forward is not at its end"
        assert not self._spare, "a forward left spare slots"
        held = Counter(entry for place in live for entry in place.entries)
        for entry, count in held.items():
            assert entry.refs == count, f"{entry!r} is held by {count} nodes"
        self._check_slots(list(held))
        self._check_tree(held)
        for place in live:
            path: list[int] = []
            entry = place.entries[-1]
            while entry.parent is not None:
                assert entry in held, f"{entry!r} is above a live node and held by none"
                path.append(entry.slot)
                entry = entry.parent
            assert slots_of(place.runs) == path[::-1], "the runs are not those of the path"

    def _check_slots(self, held: Sequence[Entry]) -> None:
        """Every slot is used by one live entry, or holds one cached entry, or is unused."""
        used, cached = self.slots.states()
        assert sorted(entry.slot for entry in held) == sorted(used), "used slots are not the live"
        assert cached == set(self._cached), "cached slots are not those of cached entries"
        assert self.slots.cached == len(cached), "the number of cached slots is wrong"
        assert self.slots.free == self.slots.slots - len(used), "the number of free slots is wrong"
        areas = Counter(entry.area for entry in held if entry.area is not None)
        for area, count in areas.items():
            assert area.live == count, f"an area of {count} live slots counts {area.live}"

    def _check_tree(self, held: Counter[Entry]) -> None:
        """The tree holds what is cached and what is live and listed, and nothing above is lost."""
        age = {entry: place for place, entry in enumerate(self._cached.values())}
        seen: set[Entry] = set()
        for salt, top in self._tops.items():
            assert top.salt == salt
            assert top.children, f"the tree of salt {salt!r} is empty"
            below: list[Entry] = [top]
            while below:
                entry = below.pop()
                for token, child in entry.children.items():
                    assert (child.parent, child.token) == (entry, token), f"{child!r} is misplaced"
                    assert child.listed
                    assert child.refs == held[child], f"{child!r} is held by {held[child]} nodes"
                    assert (child in age) == (child.refs == 0), f"{child!r} is cached and not"
                    assert child.pruned or not entry.pruned, f"{child!r} would go with its parent"
                    if entry in age:
                        assert age.get(child, len(age)) < age[entry], f"{entry!r} goes too early"
                    seen.add(child)
                    below.append(child)
        assert set(age) <= seen, "a cached entry cannot be found"
        assert {entry for entry in held if entry.listed} <= seen, "a live entry cannot be found"
