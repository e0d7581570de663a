"""The prefix cache, one property at a time: what is shared, what goes first, what is never found.

The main proof, on random walks and with wrong caches, is in `test_cache_walks.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_walks import tolerance

import decodery as dc
from decodery.api.language_model import LanguageModel
from decodery.core.decoder import Decoder, Decoding, Task
from decodery.core.errors import CapacityError, ParameterError
from decodery.core.handle import Handle
from decodery.core.requests import Grow, Open
from decodery.core.rng import Stream
from decodery.core.runner import Runner, run_alone
from decodery.core.source import Growth, Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Tree
from decodery.models import causal
from decodery.models.causal import CausalModel
from decodery.models.prefix_cache import PrefixCache
from decodery.models.transformer import Transformer, load_transformer
from decodery.testing import MixtureBlend, TableModel


@pytest.fixture(scope="module")
def transformer(make: Callable[[str], Path]) -> Transformer:
    return load_transformer(make("llama"), "float32", "cpu")


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of the small models take several rounds."""
    monkeypatch.setattr(causal, "PROMPT_CHUNK", 5)


def small(transformer: Transformer, cache_tokens: int = 200, **options: Any) -> CausalModel:
    return CausalModel(transformer, name="small", cache_tokens=cache_tokens, **options)


def task(
    model: CausalModel,
    prompt: Sequence[int],
    length: int = 4,
    salt: str | None = None,
    **given: Any,
) -> Task:
    return Task(Policy(model), tuple(prompt), Stopping(length), cache_salt=salt, **given)


def run(*tasks: Task, decoder: Decoder | None = None) -> list[Handle]:
    """Run tasks side by side."""
    runner = Runner()
    handles = [runner.submit(decoder or dc.greedy(), item) for item in tasks]
    runner.run()
    return handles


def cached(handle: Handle) -> int:
    return handle.report.cached_tokens


# -- what is shared --------------------------------------------------------------------------------


def test_the_next_turn_evaluates_only_what_is_new(transformer: Transformer) -> None:
    """Prompt and answer of one request begin the prompt of the next."""
    model = small(transformer)
    prompt = tuple(range(10, 30))
    (first,) = run(task(model, prompt, length=8))
    answer = first.result()[0].tokens
    assert (cached(first), first.report.tokens_evaluated) == (0, 20 + 7)
    question = (*prompt, *answer, 3, 4, 5)
    (second,) = run(task(model, question, length=8))
    # The last token of an answer is drawn and never evaluated.
    assert cached(second) == 20 + 7
    assert second.report.tokens_evaluated == 1 + 3 + 7
    (apart,) = run(task(small(transformer, prefix_cache=False), question, length=8))
    assert second.result() == apart.result()
    assert cached(apart) == 0


def test_a_known_prompt_evaluates_its_last_token(transformer: Transformer) -> None:
    model = small(transformer)
    prompt = tuple(range(20))
    handles = [run(task(model, prompt))[0] for _ in range(3)]
    assert [cached(handle) for handle in handles] == [0, 19, 19]
    assert [handle.report.tokens_evaluated for handle in handles] == [20 + 3, 1 + 3, 1 + 3]
    assert handles[0].result() == handles[1].result() == handles[2].result()


def test_equal_prompts_of_one_forward_are_evaluated_once(transformer: Transformer) -> None:
    """12 tokens are three rounds; the second request begins in the last of them."""
    model = small(transformer)
    prompt = tuple(range(12))
    handles = run(*[task(model, (*prompt, end)) for end in (1, 1, 2)], task(model, prompt[:7]))
    assert [cached(handle) for handle in handles] == [0, 12, 12, 6]
    alone = small(transformer, prefix_cache=False)
    apart = [run(task(alone, (*prompt, end)))[0] for end in (1, 1, 2)]
    assert [item.result() for item in handles[:3]] == [item.result() for item in apart]


def test_live_requests_share_and_equal_paths_hold_one_slot(transformer: Transformer) -> None:
    """Two requests that say the same: their nodes are entries with two references."""
    model = small(transformer)
    runner = Runner()
    first = runner.submit(dc.greedy(), task(model, range(20), length=6))
    runner.step()
    second = runner.submit(dc.greedy(), task(model, range(20), length=6))
    while not first.done:
        runner.step()
    used = model.cache.slots - model.cache.free
    assert not second.done
    assert used <= 20 + 5
    runner.run()
    assert first.result() == second.result()
    assert cached(second) == 19


def test_branches_that_draw_alike_share(transformer: Transformer) -> None:
    """Every child is the same token: one slot and one spare while they are evaluated."""
    model = small(transformer, cache_tokens=5 + 4)
    peak: list[int] = []

    class Same(Decoder):
        def decode(self, task: Task) -> Decoding:
            root = yield Open(task.policy, task.prompt)
            children = [root.child(7) for _ in range(4)]
            yield Grow(children)
            peak.append(model.cache.slots - model.cache.free)
            first, *others = [child.row.scores for child in children]
            most = max(np.abs(first - row).max() for row in others)
            assert most <= tolerance(transformer)
            return []

        def footprint(self, prompt_length: int, max_tokens: int) -> int:
            return prompt_length + 4

    run_alone(Same(), task(model, range(5)))
    assert peak == [6]


def test_dropped_branches_are_found_again(transformer: Transformer) -> None:
    """The candidates of a search that lost; each may be the answer that the user goes on with."""
    model = small(transformer)
    (handle,) = run(task(model, range(9), length=6, stream=Stream(3)), decoder=dc.sample(n=4))
    for item in handle.result():
        (turn,) = run(task(model, (*range(9), *item.tokens, 1)))
        assert cached(turn) == 9 + 5


def test_members_of_a_blend_see_their_own_prompts(transformer: Transformer) -> None:
    """Two members on one model: each has its own opening, and both are found again."""
    model = small(transformer)
    blend = MixtureBlend(model, model, openings=[(5, 6), (7, 8, 9)])
    made = Task(Policy(blend), tuple(range(10)), Stopping(3), cache_salt="one")
    first, second = run(made)[0], run(made)[0]
    assert (cached(first), cached(second)) == (0, 11 + 12)
    assert first.result() == second.result()
    (other,) = run(Task(Policy(blend), tuple(range(10)), Stopping(3)))
    assert cached(other) == 0


def test_without_a_prefix_cache_nothing_stays(transformer: Transformer) -> None:
    model = small(transformer, prefix_cache=False)
    handles = run(task(model, range(20)), task(model, range(20))) + run(task(model, range(20)))
    assert [cached(handle) for handle in handles] == [0, 0, 0]
    assert (model.cache.cached, model.cache.free) == (0, 200)
    model.prefixes.check(live=())


# -- capacity and order ----------------------------------------------------------------------------


def known(model: CausalModel, path: Sequence[int], salt: str | None = None) -> int:
    """How much of a path is cached; looking does not count as use."""
    return len(model.prefixes._find(model.prefixes._top(salt), path))


def test_least_recently_used_goes_first_and_from_its_tip(transformer: Transformer) -> None:
    """Three paths of 8 fill 24 slots; the first is used again, so the second gives way."""
    model = small(transformer, cache_tokens=24)
    one, two, three = ([start, *range(1, 8)] for start in (10, 20, 30))
    for path in (one, two, three, one):
        run(task(model, path, length=1))
    assert [known(model, path) for path in (one, two, three)] == [8, 8, 8]
    run(task(model, [40, 41, 42], length=1))
    assert [known(model, path) for path in (one, two, three)] == [8, 5, 8]
    run(task(model, [50, *range(1, 10)], length=1))
    assert [known(model, path) for path in (one, two, three)] == [8, 0, 3]


def test_a_shared_prefix_outlives_its_branches(transformer: Transformer) -> None:
    """Ends are let go before what they hang on, however old the beginning is."""
    model = small(transformer, cache_tokens=16)
    begin = list(range(8))
    run(task(model, [*begin, 20, 21, 22], length=1))
    run(task(model, [*begin, 30, 31, 32], length=1))
    assert model.cache.cached == 14
    run(task(model, [50, 51, 52, 53, 54], length=1))
    assert known(model, [*begin, 20, 21, 22]) == 8
    assert known(model, [*begin, 30, 31, 32]) == 11


def test_a_full_cache_never_refuses_what_fits_without(transformer: Transformer) -> None:
    """The request needs every slot there is, and everything is cached by others, or by itself."""
    model = small(transformer, cache_tokens=24)
    for start in range(20, 50):
        run(task(model, [start, *range(7)], length=3))
    assert model.cache.cached == 24
    for _ in range(2):
        (whole,) = run(task(model, range(20), length=4))
        assert len(whole.result()[0].tokens) == 4
        model.prefixes.check(live=())
    assert cached(whole) == 19


def test_what_does_not_fit_holds_nothing(transformer: Transformer) -> None:
    """Admission prevents it; a decoder that grows more than its footprint meets it."""
    model = small(transformer, cache_tokens=10)
    policy = Policy(model)
    live, more = (
        Tree(policy, (*range(8),), Stream(0)),
        Tree(policy, (*range(5), 9, 9, 9), Stream(0)),
    )
    model.forward([Growth(live.root, live.prompt)])
    with pytest.raises(CapacityError, match="2 of 10 slots free; 3 asked"):
        model.forward([Growth(more.root, more.prompt)])
    assert more.root.handle is None
    model.prefixes.check([live.root.handle])
    model.release([live.root.handle])
    model.forward([Growth(more.root, more.prompt)])
    model.prefixes.check([more.root.handle])


def test_what_others_left_does_not_give_way(transformer: Transformer) -> None:
    """A request that shares its prompt with an ended one leaves that one's answer alone."""
    model = small(transformer, cache_tokens=2000)
    first, second = (Tree(Policy(model), tuple(range(20)), Stream(0)) for _ in range(2))
    model.forward([Growth(tree.root, tree.prompt) for tree in (first, second)])
    answer = first.root.child(30)
    model.forward([Growth(answer, (30,)), Growth(answer.child(31), (31,))])
    first.root.drop()
    model.release(first.abandoned)
    other = second.root.child(40)
    model.forward([Growth(other, (40,))])
    assert known(model, (*range(20), 30, 31)) == 22
    model.prefixes.check([second.root.handle, other.handle])


def test_what_lies_in_the_way_of_a_live_branch_gives_way(transformer: Transformer) -> None:
    """Rejected drafts leave a live path in one run of slots."""
    model = small(transformer, cache_tokens=2000)
    runs: list[int] = []

    class Drafts(Decoder):
        def decode(self, task: Task) -> Decoding:
            tip = yield Open(task.policy, task.prompt)
            for step in range(20):
                good = tip.child(step)
                nodes = [good, good.child(50), tip.child(51)]
                nodes.append(nodes[1].child(52))
                yield Grow(nodes)
                for node in nodes[1:]:
                    node.drop()
                tip = good
            runs.append(len(tip.handle.runs))
            return []

        def footprint(self, prompt_length: int, max_tokens: int) -> int:
            return 200

    run_alone(Drafts(), task(model, range(9)))
    assert runs == [1]


def test_a_turn_goes_on_in_the_slots_behind_the_last_one(transformer: Transformer) -> None:
    model = small(transformer, cache_tokens=2000)
    (first,) = run(task(model, range(30), length=5))
    found: list[Any] = []

    class Look(Decoder):
        def decode(self, task: Task) -> Decoding:
            root = yield Open(task.policy, task.prompt)
            found.append(root.handle.runs)
            return []

    run_alone(Look(), task(model, [*range(30), *first.result()[0].tokens, 1, 2, 3]))
    assert len(found[0]) == 1


# -- what must not be found ------------------------------------------------------------------------


def test_tenants_share_nothing(transformer: Transformer) -> None:
    model = small(transformer)
    for salt in ("one", "two", None, "one", "two", None):
        (handle,) = run(task(model, range(20), salt=salt))
        seen = known(model, range(20), salt)
        assert cached(handle) in (0, 19)
        assert seen == 20
    together = run(*[task(model, range(30, 50), salt=salt) for salt in ("one", "two", None, "one")])
    assert [cached(handle) for handle in together] == [0, 0, 0, 19]
    assert len({tuple(handle.result()[0].tokens) for handle in together}) == 1
    first = [run(task(model, range(40, 60), salt=salt))[0] for salt in ("a", "b", None)]
    assert [cached(handle) for handle in first] == [0, 0, 0]


def test_salts_of_nothing_cached_are_forgotten(transformer: Transformer) -> None:
    model = small(transformer, cache_tokens=24)
    for number in range(50):
        run(task(model, range(6), salt=f"tenant {number}"))
    assert len(model.prefixes._tops) <= 4


def test_an_empty_salt_is_refused(transformer: Transformer) -> None:
    with pytest.raises(ParameterError, match="cache_salt is empty"):
        task(small(transformer), range(3), salt="")


def test_a_source_without_a_cache_takes_any_salt() -> None:
    table = TableModel.random(3, seed=1)
    made = [
        Task(Policy(table), (0, 1), Stopping(5), Stream(2), cache_salt=salt) for salt in (None, "a")
    ]
    assert run_alone(dc.sample(), made[0]) == run_alone(dc.sample(), made[1])


def test_what_a_failed_forward_wrote_is_never_found(transformer: Transformer) -> None:
    """The first round of the prompt was evaluated, the second raised."""
    model = small(transformer)
    whole, calls = transformer.hidden, []

    def fails(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return whole(*given)

    transformer.hidden = fails  # type: ignore[method-assign]
    try:
        sick = run(task(model, range(9)), task(model, range(12)))
        assert all("out of memory" in str(handle.error) for handle in sick)
    finally:
        transformer.hidden = whole  # type: ignore[method-assign]
    assert (model.cache.free, model.cache.cached) == (200, 0)
    (well,) = run(task(model, range(9)))
    assert cached(well) == 0


def test_a_path_with_nan_is_never_found(transformer: Transformer) -> None:
    model = small(transformer)
    whole = transformer.logits

    def broken(hidden: torch.Tensor) -> torch.Tensor:
        scores = whole(hidden)
        scores[0, 7] = torch.nan
        return scores

    transformer.logits = broken  # type: ignore[method-assign]
    try:
        sick, well = run(task(model, range(9)), task(model, range(20, 30)))
    finally:
        transformer.logits = whole  # type: ignore[method-assign]
    assert "NaN" in str(sick.error)
    assert known(model, range(9)) == 0
    assert cached(run(task(model, range(20, 30)))[0]) == 9
    assert well.done


# -- the embedded model ----------------------------------------------------------------------------


@pytest.fixture
def _whole_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "PROMPT_CHUNK", 512)


@pytest.mark.usefixtures("_whole_chunks")
def test_a_chat_of_two_turns_on_the_embedded_model(lm: LanguageModel) -> None:
    """The second turn evaluates the end of the answer and the new question, nothing else."""
    options: dict[str, Any] = {"method": "greedy", "max_tokens": 12, "cache_salt": "two turns"}
    chat = [{"role": "user", "content": "Name three birds, and say where each of them lives."}]
    first = lm.generate(chat, **options)
    assert first.report.cached_tokens == 0
    chat += [
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "Which is the largest?"},
    ]
    tokens = lm.read(chat).tokens
    before = (*lm.read(chat[:1]).tokens, *first.tokens)
    assert tokens[: len(before)] == before
    second = lm.generate(chat, **options)
    assert second.report.cached_tokens == len(before) - 1
    assert second.report.tokens_evaluated == len(tokens) - (len(before) - 1) + 11
    apart = LanguageModel(lm.transformer, lm.tokenizer, name="apart", prefix_cache=False)
    again = apart.generate(chat, **options)
    assert again.tokens == second.tokens
    assert again.report.tokens_evaluated == len(tokens) + 11


@pytest.mark.usefixtures("_whole_chunks")
def test_a_salt_goes_through_every_door_and_into_no_report(lm: LanguageModel) -> None:
    options: dict[str, Any] = {"method": "greedy", "max_tokens": 2}
    prompt = "What does a lighthouse keeper do?"
    for salt in ("s3cret of one", "s3cret of two"):
        found = [
            lm.generate(prompt, cache_salt=salt, trace=True, **options),
            dc.generate(Policy(lm), prompt, decoder="greedy", max_tokens=2, cache_salt=salt),
            *lm.generate([prompt, prompt], cache_salt=salt, **options),
        ]
        length = len(lm.read(prompt).tokens)
        assert [item.report.cached_tokens for item in found] == [0, *[length - 1] * 3]
        assert found[0].trace is not None
        assert "s3cret" not in str(found[0].to_dict()) + str(found[0].trace.events)
    with pytest.raises(ParameterError, match="cache_salt is empty"):
        lm.generate(prompt, cache_salt="", **options)


# -- faults are caught, more of them in `test_cache_walks.py` --------------------------------------


def test_an_ignored_salt_is_caught(
    transformer: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = PrefixCache._top

    def ignoring(cache: PrefixCache, salt: str | None) -> Any:
        return top(cache, None)

    monkeypatch.setattr(PrefixCache, "_top", ignoring)
    with pytest.raises(AssertionError):
        test_tenants_share_nothing(transformer)


def test_the_check_sees_a_place_it_is_not_told_of(transformer: Transformer) -> None:
    model = small(transformer)
    tree = Tree(Policy(model), (1, 2, 3), Stream(0))
    model.forward([Growth(tree.root, tree.prompt)])
    model.prefixes.check([tree.root.handle])
    with pytest.raises(AssertionError, match="used slots are not the live"):
        model.prefixes.check(live=())
