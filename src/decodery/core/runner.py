"""The runner: holds live decoders, makes one batched forward per model a step, answers everyone.

A step is: let every waiting decoder run until it asks for something; gather what is asked; one
forward per model; one call per scorer; hand out the answers. Budgets, cancellation, accounting and
traces are kept here, once, for every method. A fault in one request (a NaN row, an exception in its
decoder) ends that request only.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeGuard, cast

import numpy as np

from decodery.core.admission import needs
from decodery.core.decoder import Completion, Decoder, Decoding, Task
from decodery.core.errors import (
    BudgetExhausted,
    CapacityError,
    DecoderyError,
    ParameterError,
    RowError,
    TreeError,
)
from decodery.core.handle import Budget, Handle
from decodery.core.recording import (
    note_call,
    note_dropped,
    note_emitted,
    note_end,
    note_grown,
    note_scores,
    watch,
)
from decodery.core.requests import Call, Emit, Grow, Open, Request, Score
from decodery.core.row import Row
from decodery.core.source import (
    Blend,
    Grown,
    Growth,
    Model,
    Policy,
    reserve,
    unreserve,
)
from decodery.core.stopping import FinishReason
from decodery.core.trace import Trace
from decodery.core.tree import Node, Tree


class Runner:
    """Runs any number of requests side by side. Not thread-safe: one thread steps it."""

    def __init__(self) -> None:
        self.waiting: deque[Handle] = deque()
        self.live: dict[Handle, None] = {}  # an ordered set
        self.steps = 0

    # -- what a user calls -----------------------------------------------------------------------

    def submit(
        self,
        decoder: Decoder,
        task: Task,
        budget: Budget | None = None,
        trace: Trace | None = None,
    ) -> Handle:
        """Queue a request. One that could never run is refused here, before any forward."""
        handle = Handle(task, decoder, budget or Budget(), trace, needs(decoder, task))
        for model, need in handle.needs.items():
            if model.capacity is not None and need > model.capacity:
                raise CapacityError(
                    f"the request may need {need} cache slots and {model.name} has"
                    f" {model.capacity}; ask for fewer tokens or a larger cache"
                )
        self.waiting.append(handle)
        return handle

    def run(self) -> None:
        """Step until every request is done."""
        while self.step():
            pass

    def stream(self, handle: Handle) -> Iterator[Emit]:
        """What a request emits, as it emits it; other requests advance along the way."""
        while True:
            while handle.unread:
                yield handle.unread.popleft()
            if handle.done:
                break
            self.step()
        handle.result()

    def close(self) -> None:
        """Cancel everything that waits or runs and return its cache to the models."""
        for handle in [*self.waiting, *self.live]:
            self._finish(handle, _emitted(handle, "cancelled"))
        self.waiting.clear()

    def step(self) -> bool:
        """One round; False when nothing is left to do."""
        self._admit()
        for handle in list(self.live):
            self._advance(handle)
        self._forward()
        self._score()
        self._call()
        self.steps += 1
        return bool(self.live or self.waiting)

    # -- admission -------------------------------------------------------------------------------

    def _admit(self) -> None:
        """First come, first served: a request waits until its whole need is free."""
        for handle in [handle for handle in self.waiting if handle.cancelled]:
            self.waiting.remove(handle)
            self._finish(handle, _emitted(handle, "cancelled"))
        while self.waiting:
            handle = self.waiting[0]
            if not reserve(handle.needs):
                return
            self.waiting.popleft()
            handle.admitted = time.perf_counter()
            handle.report.queue_seconds = handle.admitted - handle.submitted
            handle.decoding = _prepared(handle.decoder, handle.task)
            self.live[handle] = None

    # -- running decoders ------------------------------------------------------------------------

    def _advance(self, handle: Handle) -> None:
        """Let a decoder run until it asks for a forward, a score or a call, or ends."""
        try:
            over = _out_of_time(handle)
            while True:
                requests = self._resume(handle, over)
                for request in requests:
                    if isinstance(request, Emit):
                        _emit(handle, request)
                handle.requests = requests
                handle.answers = [None] * len(requests)
                over = _out_of_calls(handle)
                if over is None and any(not isinstance(request, Emit) for request in requests):
                    self._prepare(handle)
                    return
        except StopIteration as stop:
            self._end(handle, stop.value)
        except BudgetExhausted as stop:
            self._finish(handle, _emitted(handle, cast("FinishReason", stop.reason)))
        except Exception as error:  # a decoder's fault ends its own request, nobody else's
            self._fail(handle, error)

    def _resume(self, handle: Handle, over: BudgetExhausted | None) -> tuple[Request, ...]:
        assert handle.decoding is not None
        if over is not None:
            handle.spent = True
            asked = handle.decoding.throw(over)
        elif not handle.requests:
            asked = next(handle.decoding)
        else:
            asked = handle.decoding.send(handle.answers[0] if handle.single else handle.answers)
        handle.single = not isinstance(asked, tuple)
        requests = asked if isinstance(asked, tuple) else (asked,)
        for request in requests:
            if not isinstance(request, Request):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TreeError(f"{handle.decoder!r} yielded {request!r}, which is no request")
        return requests

    def _prepare(self, handle: Handle) -> None:
        """Plant the trees that are asked for and check what is to be grown."""
        asked: set[int] = set()
        for index, request in enumerate(handle.requests):
            if isinstance(request, Open):
                request.policy.source.check_prompt(request.prompt, 0)
                tree = _plant(request.policy, tuple(request.prompt), handle.task)
                watch(handle, tree)
                handle.trees.append(tree)
                handle.answers[index] = tree.root
            elif isinstance(request, Grow):
                for node in request.nodes:
                    _check_growth(node, asked)
                    asked.add(id(node))
                for node in request.nodes:
                    _release_rows_above(node, request.keep_rows)
                handle.answers[index] = list(request.nodes)

    # -- forwards --------------------------------------------------------------------------------

    def _forward(self) -> None:
        work: dict[Model, list[tuple[Handle, Growth]]] = {}
        for handle in self.live:
            for request, answer in zip(handle.requests, handle.answers, strict=True):
                if isinstance(request, Open):
                    _gather(work, handle, [answer], False)
                elif isinstance(request, Grow):
                    _gather(work, handle, answer, request.hidden)
        self._give_back()
        for model, batch in work.items():
            self._forward_model(model, batch)
        for handle in self.live:
            if handle.error is None and handle.requests:
                self._settle(handle)
        for handle in [handle for handle in self.live if handle.error is not None]:
            self._fail(handle, cast("Exception", handle.error))

    def _forward_model(self, model: Model, batch: list[tuple[Handle, Growth]]) -> None:
        started = time.perf_counter()
        try:
            grown = model.forward([growth for _, growth in batch])
        except Exception as error:  # out of memory, say: it ends the requests of this forward
            for handle, _ in batch:
                handle.error = error
            return
        seconds = time.perf_counter() - started
        if model.costs is not None and all(len(growth.tokens) == 1 for _, growth in batch):
            model.costs.note(len(batch), seconds)
        counts: dict[int, tuple[Handle, list[Growth]]] = {}
        for (handle, growth), result in zip(batch, grown, strict=True):
            counts.setdefault(id(handle), (handle, []))[1].append(growth)
            for share in (handle.report, handle.report.cost(model.name)):
                share.tokens_evaluated += len(growth.tokens) - result.cached
                share.cached_tokens += result.cached
            _receive(handle, model, growth.node, result)
        for handle, growths in counts.values():
            _account(handle, model, seconds)
            note_call(handle, self.steps, model, len(growths), len(batch), seconds)

    def _settle(self, handle: Handle) -> None:
        """Combine blends' rows, check rows and record what was grown."""
        try:
            for request, answer in zip(handle.requests, handle.answers, strict=True):
                if isinstance(request, (Open, Grow)):
                    nodes = [answer] if isinstance(request, Open) else answer
                    for node in cast("list[Node]", nodes):
                        _combine(node)
                        note_grown(handle, self.steps, node)
        except Exception as error:
            handle.error = error

    # -- scores and calls ------------------------------------------------------------------------

    def _score(self) -> None:
        wanted: dict[int, list[tuple[Handle, int, Score]]] = {}
        for handle in self.live:
            for index, request in enumerate(handle.requests):
                if isinstance(request, Score):
                    wanted.setdefault(id(request.scorer), []).append((handle, index, request))
        for group in wanted.values():
            scorer = group[0][2].scorer
            items = [item for _, _, request in group for item in request.candidates]
            try:
                scores = np.asarray(scorer.score(items), dtype=np.float64)
                if scores.shape != (len(items),):
                    raise ParameterError(
                        f"scorer {scorer.name} gave {scores.shape} for {len(items)} candidates"
                    )
            except Exception as error:
                for handle, _, _ in group:
                    self._fail(handle, error)
                continue
            start = 0
            for handle, index, request in group:
                end = start + len(request.candidates)
                handle.answers[index] = scores[start:end]
                handle.report.score_calls += 1
                handle.report.items_scored += len(request.candidates)
                note_scores(handle, scorer, scores[start:end].tolist())
                start = end

    def _call(self) -> None:
        for handle in list(self.live):
            for index, request in enumerate(handle.requests):
                if isinstance(request, Call):
                    started = time.perf_counter()
                    try:
                        handle.answers[index] = request.function(request.model)
                        _account(handle, request.model, time.perf_counter() - started)
                    except Exception as error:
                        self._fail(handle, error)
                        break

    # -- the end of a request --------------------------------------------------------------------

    def _end(self, handle: Handle, value: Any) -> None:
        """A decoder returned: what it gave must be completions."""
        if not _are_completions(value):
            kind = type(value).__name__
            error = DecoderyError(f"{handle.decoder!r} returned {kind}, not a list of completions")
            self._fail(handle, error)
            return
        try:
            handle.report.details = handle.decoder.totals(value)
        except Exception as error:
            self._fail(handle, error)
        else:
            self._finish(handle, value)

    def _finish(self, handle: Handle, completions: list[Completion]) -> None:
        handle.completions = completions
        self._close(handle)

    def _fail(self, handle: Handle, error: Exception) -> None:
        handle.error = error
        self._close(handle)

    def _close(self, handle: Handle) -> None:
        if handle.decoding is not None:
            with contextlib.suppress(Exception):  # a decoder that misbehaves while it is closed
                handle.decoding.close()
        for tree in handle.trees:
            tree.root.drop()
            _release(tree)
        if handle in self.live:
            del self.live[handle]
            unreserve(handle.needs)  # after the slots are back: another thread may take them now
        handle.requests = ()
        handle.answers = [None] * len(handle.answers)  # a kept handle must not keep its nodes
        now = time.perf_counter()
        handle.report.seconds = now - (handle.admitted or now)
        note_end(handle)
        handle.trees = []

    def _give_back(self) -> None:
        for handle in self.live:
            note_dropped(handle)
            for tree in handle.trees:
                _release(tree)


# -- parts of a step -------------------------------------------------------------------------------


def _prepared(decoder: Decoder, task: Task) -> Decoding:
    """The decoder's coroutine, after what its source has to do first."""
    source = yield from task.policy.source.prepare(task)
    if source is not task.policy.source:
        task = replace(task, policy=Policy(source, task.policy.sampler))
    return (yield from decoder.decode(task))


def _account(handle: Handle, model: Model, seconds: float) -> None:
    """A request took part in a forward, or called a function on a model."""
    handle.report.model_calls += 1
    cost = handle.report.cost(model.name)
    cost.calls += 1
    cost.seconds += seconds


def _are_completions(value: Any) -> TypeGuard[list[Completion]]:
    return isinstance(value, list) and all(
        isinstance(item, Completion) for item in cast("list[Any]", value)
    )


def _out_of_time(handle: Handle) -> BudgetExhausted | None:
    if handle.spent:
        return None  # said once; what it still does needs no forward
    if handle.cancelled:
        return BudgetExhausted("cancelled")
    limit = handle.budget.max_seconds
    if limit is not None and time.perf_counter() - handle.admitted >= limit:
        return BudgetExhausted("max_seconds")
    return None


def _out_of_calls(handle: Handle) -> BudgetExhausted | None:
    """Whether what the decoder asks for now needs a forward more than it may have."""
    limit = handle.budget.max_calls
    wants = any(isinstance(request, (Open, Grow, Call)) for request in handle.requests)
    if wants and handle.spent:
        raise TreeError(f"{handle.decoder!r} asks for a forward after its budget was exhausted")
    if limit is not None and wants and handle.report.model_calls >= limit:
        return BudgetExhausted("max_calls")
    return None


def _check_growth(node: Node, asked: set[int]) -> None:
    """A node to be grown is new, alive, asked for once, and hangs on something grown or asked."""
    if node.dropped:
        raise TreeError(f"{node!r} was dropped")
    if node.grown or id(node) in asked:
        raise TreeError(f"{node!r} is grown already")
    if node.parent is None or not (node.parent.grown or id(node.parent) in asked):
        raise TreeError(f"{node!r} hangs on a node that is not grown, nor earlier in the request")


def _plant(policy: Policy, prompt: tuple[int, ...], task: Task) -> Tree:
    source = policy.source
    members: tuple[Tree, ...] = ()
    if isinstance(source, Blend):
        members = tuple(
            _plant(Policy(member), tuple(own), task)
            for member, own in zip(source.members, source.prompts(prompt), strict=True)
        )
    return Tree(policy, prompt, task.stream, members, task.cache_salt)


def _gather(
    work: dict[Model, list[tuple[Handle, Growth]]],
    handle: Handle,
    nodes: Sequence[Node],
    hidden: bool,
) -> None:
    """Break joint nodes into their members, down to the models."""
    for node in nodes:
        if node.members:
            _gather(work, handle, node.members, hidden or node.tree.policy.sampler.needs_hidden)
            continue
        tokens = node.tree.prompt if node.is_root else (node.token,)
        wants = hidden or node.tree.policy.sampler.needs_hidden
        model = cast("Model", node.tree.policy.source)
        work.setdefault(model, []).append((handle, Growth(node, tokens, wants)))


def _receive(handle: Handle, model: Model, node: Node, grown: Grown) -> None:
    try:
        node.receive(Row(grown.scores, model.vocab_size), grown.hidden)
    except RowError as error:
        step = node.depth - len(node.tree.prompt)
        handle.error = RowError(f"{model.name} at step {step}: {error}")


def _combine(node: Node) -> None:
    if not node.members:
        return
    for member in node.members:
        _combine(member)
    blend = cast("Blend", node.tree.policy.source)
    rows = [member.row for member in node.members]
    row = blend.combine(rows, node.blend_state, node.context())
    if not blend.observes_rows:
        node.release_member_rows()
    node.receive(row, node.members[0].hidden)


def _release_rows_above(node: Node, keep: bool) -> None:
    parent = node.parent
    if parent is None or not parent.grown:
        return
    node.settle()  # the parent's row is needed for it, and is let go below
    if keep:
        return
    while parent is not None and parent.has_row:
        parent.release_row()
        parent = parent.parent


def _release(tree: Tree) -> None:
    """Return the handles of dropped nodes to their model, members included."""
    if tree.abandoned:
        cast("Model", tree.policy.source).release(tree.abandoned)
        tree.abandoned = []
    for member in tree.members:
        _release(member)


def _emit(handle: Handle, request: Emit) -> None:
    if not request.tokens:
        return
    report = handle.report
    if report.first_token_seconds is None:
        report.first_token_seconds = time.perf_counter() - handle.admitted
    report.tokens_emitted += len(request.tokens)
    handle.emitted.setdefault(request.sequence, []).extend(request.tokens)
    handle.unread.append(request)
    note_emitted(handle, request)


def _emitted(handle: Handle, reason: FinishReason) -> list[Completion]:
    """What a request that was cut short has to show."""
    return [
        Completion(tuple(tokens), reason, sequence)
        for sequence, tokens in sorted(handle.emitted.items())
    ]


def run_alone(decoder: Decoder, task: Task, **options: Any) -> list[Completion]:
    """Run one request to its end on a runner of its own."""
    runner = Runner()
    handle = runner.submit(decoder, task, **options)
    runner.run()
    return handle.result()
