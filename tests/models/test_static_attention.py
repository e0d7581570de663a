"""Attention in fixed shapes against the plan attention, on random forests, in both layouts.

How close is equal: 1e-5, where values are of size 1 and both sum in float32. Memory that no path
uses is NaN, so anything read from it is seen. The controls at the end are off by far more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from forests import Forest, Kind, cache_for, forest
from torch import Tensor

from decodery.models import static_attention
from decodery.models.attention import Attention, Clump
from decodery.models.cache_slots import SlotCache
from decodery.models.static_attention import (
    Bucket,
    Inputs,
    Packer,
    Sizes,
    StaticAttention,
    split,
    visible,
)
from decodery.models.transformer import LayerAttention

CLOSE = 1e-5
SLOTS = 3000
HEADS, KV_HEADS, HEAD_DIM = 6, 2, 8
SCALE = HEAD_DIM**-0.5
FULL = LayerAttention(None, SCALE, None)

KINDS = {
    "one node": Kind(rows=1),
    "one tree": Kind(rows=7),
    "full rows": Kind(rows=64, requests=9, prompts=2),
    "one prompt": Kind(rows=16, requests=16, depth=300, block=500),
    "many prompts": Kind(rows=33, requests=20, prompts=20),
    "long": Kind(rows=5, requests=3, prompts=3, depth=400, block=50),
    "scattered": Kind(rows=20, requests=6, prompts=3, depth=100, block=1),
    "roots too": Kind(rows=30, requests=10, prompts=4, depth=3),
}
LAYERS = {
    "full": (FULL,),
    "windows": (LayerAttention(9, SCALE, None), LayerAttention(40, SCALE, None)),
    "window of one": (LayerAttention(1, SCALE, None),),
    "mixed": (FULL, LayerAttention(9, SCALE, None), LayerAttention(150, SCALE, None)),
    "softcap": (LayerAttention(None, SCALE, 1.5), LayerAttention(13, 0.3, 2.0)),
}


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def packer(layers: Sequence[LayerAttention], workspace: int = 1 << 28) -> Packer:
    windows = [layer.window for layer in layers]
    bounded = [window for window in windows if window is not None]
    reach = max(bounded) if len(bounded) == len(windows) else None
    return Packer(Sizes(HEADS, KV_HEADS, HEAD_DIM, 4, SLOTS, reach), workspace)


def buckets(made: Forest, layers: Sequence[LayerAttention] = (FULL,)) -> tuple[Bucket, Bucket]:
    """The bucket of a forward in either layout."""
    return packer(layers).choices(made.clumps)


def fresh_cache(made: Forest, layers: Sequence[LayerAttention]) -> SlotCache:
    return cache_for(made, layers=len(layers), kv_heads=KV_HEADS, head_dim=HEAD_DIM, slots=SLOTS)


def states(count: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of `rows` new nodes, random in the first `count`, then zero."""
    generator = torch.Generator().manual_seed(count)
    shapes = [(count, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    query, key, value = (torch.cat((x, x.new_zeros(rows - count, *x.shape[1:]))) for x in made)
    return query, key, value


def by_plan(made: Forest, cache: SlotCache, layers: Sequence[LayerAttention]) -> list[Tensor]:
    attention = Attention(layers, cache, made.slots, made.clumps)
    return [attention(layer, *states(len(made), len(made))) for layer in range(len(layers))]


def by_bucket(
    made: Forest, cache: SlotCache, layers: Sequence[LayerAttention], bucket: Bucket
) -> list[Tensor]:
    """All rows of the bucket, padded ones too."""
    flat = packer(layers).pack(bucket, made.tokens, made.positions, made.slots, made.clumps)
    assert len(flat) == bucket.numbers
    attention = StaticAttention(layers, cache, bucket, split(flat, bucket))
    return [attention(layer, *states(len(made), bucket.rows)) for layer in range(len(layers))]


def error(made: Forest, layers: Sequence[LayerAttention], bucket: Bucket) -> float:
    """The largest difference between the two; infinite where one of them is no number."""
    expected = by_plan(made, fresh_cache(made, layers), layers)
    found = by_bucket(made, fresh_cache(made, layers), layers, bucket)
    differences = [
        (ours[: len(made)] - theirs).abs().nan_to_num(torch.inf).max().item()
        for ours, theirs in zip(found, expected, strict=True)
    ]
    return max(differences)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_buckets_equal_the_plan(kind: str, layers: str) -> None:
    generator = np.random.default_rng(7)
    for _ in range(4):
        made = forest(KINDS[kind], SLOTS, generator)
        for bucket in buckets(made, LAYERS[layers]):
            assert error(made, LAYERS[layers], bucket) < CLOSE


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("keys", [126, 127, 128, 129, 255, 256, 257])
def test_borders_of_the_number_of_keys(keys: int, shared: bool) -> None:
    """A lone chain on one path; a shared bucket keeps one key for its padding."""
    new = 3
    positions = list(range(keys - new, keys))
    made = Forest(tokens=[1] * new, positions=positions, slots=[900, 901, 902])
    base = ((100, 100 + keys - new),)
    made.old.update(range(*base[0]))
    made.clumps.append(Clump(base, [0, 1, 2], [900, 901, 902], [-1, 0, 1]))
    bucket = buckets(made)[shared]
    seen = keys + shared
    assert bucket == Bucket(4, 128 if seen <= 128 else 256 if seen <= 256 else 512, shared)
    assert error(made, (FULL,), bucket) < CLOSE


@pytest.mark.parametrize(("rows", "padded"), [(1, 1), (2, 2), (3, 4), (5, 8), (33, 64), (64, 64)])
def test_rows_are_padded_to_powers_of_two(rows: int, padded: int) -> None:
    made = forest(Kind(rows), SLOTS, np.random.default_rng(1))
    assert {bucket.rows for bucket in buckets(made)} == {padded}


def test_more_rows_than_64_have_no_bucket() -> None:
    made = forest(Kind(65, requests=5), SLOTS, np.random.default_rng(1))
    assert packer((FULL,)).bucket(made.clumps) is None


def test_attention_beyond_the_workspace_has_no_bucket() -> None:
    made = forest(Kind(64, requests=30, prompts=30), SLOTS, np.random.default_rng(1))
    bucket = packer((FULL,)).bucket(made.clumps)
    assert bucket is not None
    needed = packer((FULL,)).sizes.workspace(bucket)
    assert packer((FULL,), needed).bucket(made.clumps) == bucket
    assert len(packer((FULL,), needed).buffer) >= bucket.numbers
    assert packer((FULL,), needed - 1).bucket(made.clumps) is None


def test_a_shared_prompt_is_read_once_and_separate_ones_apart() -> None:
    generator = np.random.default_rng(3)
    together = forest(Kind(16, requests=16, depth=400, block=500), SLOTS, generator)
    apart = forest(Kind(16, requests=16, prompts=16, depth=170), SLOTS, generator)
    assert packer((FULL,)).bucket(together.clumps) == Bucket(16, 512, shared=True)
    assert packer((FULL,)).bucket(apart.clumps) == Bucket(16, 256, shared=False)


def test_windows_of_all_layers_bound_what_is_gathered() -> None:
    made = forest(Kind(8, requests=8, prompts=8, depth=300), SLOTS, np.random.default_rng(4))
    assert buckets(made, LAYERS["windows"])[0].keys == 128
    assert buckets(made, LAYERS["mixed"])[0].keys > 128


@pytest.mark.parametrize("shared", [False, True])
def test_padding_writes_to_the_waste_slot_alone(shared: bool) -> None:
    """Of the whole cache, bit for bit, only the new nodes' slots and the waste slot change."""
    made = forest(Kind(21, requests=4, prompts=2), SLOTS, np.random.default_rng(5))
    bucket = buckets(made)[shared]
    before, after = fresh_cache(made, (FULL,)), fresh_cache(made, (FULL,))
    output = by_bucket(made, after, (FULL,), bucket)[0]
    changed = sorted({*made.slots, SLOTS})
    for old, new in ((before.keys, after.keys), (before.values, after.values)):
        same = (old.view(torch.int32) == new.view(torch.int32)).all(0).all(0).all(-1)
        assert (~same).nonzero().flatten().tolist() == changed
    assert torch.equal(output[21:], torch.zeros(11, HEADS * HEAD_DIM))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_with_the_rows_that_look_at_it(poison: float) -> None:
    """Requests share a bucket; one has a broken value on its path. Only its rows break."""
    generator = np.random.default_rng(6)
    made = forest(Kind(24, requests=8, prompts=8), SLOTS, generator)
    bucket = buckets(made)[True]
    victim = made.clumps[0].base[0][0]
    seers = {
        row
        for clump in made.clumps
        for row in clump.rows
        if any(start <= victim < end for start, end in clump.base)
    }
    clean = by_bucket(made, fresh_cache(made, (FULL,)), (FULL,), bucket)[0]
    broken_cache = fresh_cache(made, (FULL,))
    broken_cache.values[0, :, victim, 3] = poison
    broken = by_bucket(made, broken_cache, (FULL,), bucket)[0]
    assert 0 < len(seers) < 24
    for row in range(24):
        if row in seers:
            assert broken[row].isnan().all()
        else:
            torch.testing.assert_close(broken[row], clean[row], atol=CLOSE, rtol=0)


def test_two_forwards_through_one_packer_do_not_mix() -> None:
    generator = np.random.default_rng(8)
    shared = packer((FULL,))
    for kind in ("full rows", "one tree", "many prompts", "one node"):
        made = forest(KINDS[kind], SLOTS, generator)
        for bucket in buckets(made):
            given = (bucket, made.tokens, made.positions, made.slots, made.clumps)
            assert torch.equal(shared.pack(*given), packer((FULL,)).pack(*given))


# -- negative controls: each is caught by the comparison above ------------------------------------


def _sees_one_less(inputs: Inputs, bucket: Bucket, window: int | None) -> Tensor:
    if not bucket.shared:
        return torch.arange(bucket.keys) < inputs.positions.unsqueeze(1)
    return visible(inputs, bucket, window) & (inputs.positions.unsqueeze(1) > inputs.key_positions)


def _sees_one_more(inputs: Inputs, bucket: Bucket, window: int | None) -> Tensor:
    if not bucket.shared:
        return torch.arange(bucket.keys) <= inputs.positions.unsqueeze(1) + 1
    return visible(inputs, bucket, window) | visible(inputs, bucket, None).roll(-1, 0)


def _sees_the_next_row(inputs: Inputs, bucket: Bucket, window: int | None) -> Tensor:
    return visible(inputs, bucket, window).roll(1, 0)


def _window_too_long(inputs: Inputs, bucket: Bucket, window: int | None) -> Tensor:
    return visible(inputs, bucket, window + 1 if window else None)


def _window_too_short(inputs: Inputs, bucket: Bucket, window: int | None) -> Tensor:
    return visible(inputs, bucket, window - 1 if window else None)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "mask",
    [_sees_one_less, _sees_one_more, _sees_the_next_row, _window_too_long, _window_too_short],
)
def test_a_wrong_mask_is_caught(
    mask: Callable[..., Tensor], shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = (LayerAttention(9, SCALE, None), FULL)
    made = forest(KINDS["many prompts"], SLOTS, np.random.default_rng(9))
    bucket = buckets(made, layers)[shared]
    assert error(made, layers, bucket) < CLOSE
    monkeypatch.setattr(static_attention, "visible", mask)
    assert error(made, layers, bucket) > 100 * CLOSE


@pytest.mark.parametrize("shared", [False, True])
def test_a_padded_row_that_writes_to_a_live_slot_is_caught(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = forest(KINDS["many prompts"], SLOTS, np.random.default_rng(9))
    bucket = buckets(made)[shared]
    live = made.clumps[0].base[0][0]
    monkeypatch.setattr(static_attention, "_WASTE", live - SLOTS)
    assert error(made, (FULL,), bucket) > 100 * CLOSE


@pytest.mark.parametrize("shared", [False, True])
def test_padded_keys_in_unused_memory_are_caught(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masked though they are: 0 * NaN is NaN. The shared layout guards its values against that."""
    made = forest(KINDS["many prompts"], SLOTS, np.random.default_rng(9))
    bucket = buckets(made)[shared]
    unused = min(set(range(SLOTS)) - made.old - set(made.slots))
    monkeypatch.setattr(static_attention, "_NOTHING", unused - SLOTS)
    if shared:
        monkeypatch.setattr(Tensor, "nan_to_num", lambda self, *_: self)
    output = by_bucket(made, fresh_cache(made, (FULL,)), (FULL,), bucket)[0]
    assert output[: len(made)].isnan().any()


def test_keys_at_wrong_positions_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = (LayerAttention(9, SCALE, None),)
    made = forest(KINDS["many prompts"], SLOTS, np.random.default_rng(9))
    bucket = buckets(made, layers)[True]
    right = Packer._lookers

    def wrong(self: Packer, clumps: Sequence[Clump]) -> dict[tuple[int, int, int], int]:
        runs = right(self, clumps).items()
        return {(start, end, position + 1): rows for (start, end, position), rows in runs}

    monkeypatch.setattr(Packer, "_lookers", wrong)
    assert error(made, layers, bucket) > 100 * CLOSE
