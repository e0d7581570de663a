"""A row of the compiled forward depends on its path alone, bit for bit.

The law is checked for every kind of weights: a text's hidden states and logits are the same at
once, in pieces and one by one, in slots that lie anywhere, beside any mates and in any order of
rows, as one of many branches or as part of a tree, and with any number of threads. The texts cross
the borders of spans (128, 256) and of the blocks of a task (64).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from forwards import SLOTS, Piece, fed, forward, new_cache, path_of, random_parents
from small_models import Make, real_widths, text
from torch import Tensor

from decodery.models import native
from decodery.models.compiled import CompiledTransformer
from decodery.models.llama import LlamaTransformer
from decodery.models.quantised_weights import QuantisedWeights
from decodery.models.transformer import Transformer, load_transformer

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")

WEIGHTS = ("float32", "bf16", "int8", "int4")
# "wider" has codes in every matrix, the others have floats where inputs are no multiple of 32.
REAL = "real widths"  # two layers of the embedded model's sizes
NAMES = ("llama wider", "gemma3", "qwen3 biases", "smollm3 windowed", REAL)
LENGTH = 300
THREADS = (1, 2, 3, 5)


@pytest.fixture(scope="module", params=[(n, w) for w in WEIGHTS for n in NAMES], ids=" ".join)
def model(request: pytest.FixtureRequest, make: Make) -> CompiledTransformer:
    name, weights = request.param
    if name == REAL:
        return _of_real_widths(weights)
    loaded = load_transformer(make(name), weights, "cpu")
    assert isinstance(loaded, CompiledTransformer)
    return loaded


def _of_real_widths(weights: str) -> CompiledTransformer:
    architecture, floats = real_widths("llama")
    bits = {"int4": 4, "int8": 8}.get(weights)
    store = floats if bits is None else QuantisedWeights(floats, bits)
    dtype = torch.bfloat16 if weights == "bf16" else torch.float32
    return CompiledTransformer(architecture, store, dtype, use_codes=True)


@pytest.fixture(autouse=True)
def _threads_restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _cuts(length: int, seed: int) -> list[int]:
    """Lengths of random pieces of a text."""
    borders = torch.randperm(length - 1, generator=_random(seed))[:12].add(1).sort().values
    edges = [0, *borders.tolist(), length]
    return [end - start for start, end in pairwise(edges)]


def _scattered(count: int, seed: int) -> list[int]:
    return torch.randperm(SLOTS, generator=_random(seed))[:count].tolist()


# -- the ways to come to the same rows ------------------------------------------------------------


def in_pieces(model: Transformer, tokens: Tensor) -> Iterator[Tensor]:
    for seed in range(4):
        yield fed(model, tokens, _cuts(len(tokens), seed))


def one_by_one(model: Transformer, tokens: Tensor) -> Iterator[Tensor]:
    yield fed(model, tokens, [1] * len(tokens))


def in_scattered_slots(model: Transformer, tokens: Tensor) -> Iterator[Tensor]:
    """No two keys side by side; and runs of a few, as an old cache has them."""
    yield fed(model, tokens, slots=_scattered(len(tokens), 1))
    yield fed(model, tokens, _cuts(len(tokens), 5), slots=_scattered(len(tokens), 2))
    runs = torch.arange(SLOTS).view(-1, 5)
    mixed = runs[torch.randperm(len(runs), generator=_random(3))].flatten()
    yield fed(model, tokens, [100, 1, 1, len(tokens) - 102], slots=mixed[: len(tokens)].tolist())


def beside_mates(model: Transformer, tokens: Tensor) -> Iterator[Tensor]:
    """In one forward with a longer text, single tokens and a tree; rows in a random order."""
    for seed in range(3):
        cache = new_cache(model)
        places = _scattered(SLOTS, seed)
        own, mate, forks, lone = (
            places[:300], places[300:700], places[700:760], places[760:765]
        )  # fmt: skip
        half = len(tokens) // 2 + seed
        first = [
            Piece(tokens[:half], own[:half]),
            Piece(text(400, seed=seed + 20), mate),
            *(Piece(text(1, seed=slot), [slot]) for slot in lone),
        ]
        start = forward(model, cache, first, shuffle=seed)[0]
        tree = Piece(text(60, seed=31), forks, mate, random_parents(60, seed))
        rest = Piece(tokens[half:], own[half : len(tokens)], own[:half])
        single = [Piece(text(1, seed=slot), [slot], mate[:slot]) for slot in places[765:770]]
        end = forward(model, cache, [tree, *single, rest], shuffle=seed + 9)[-1]
        yield torch.cat((start, end))


def as_one_of_many_branches(model: Transformer, tokens: Tensor) -> Iterator[Tensor]:
    """Branches below a shared prompt, each a piece of its own: ours is in the middle."""
    for depth, count in ((137, 9), (64, 3), (255, 30)):
        cache = new_cache(model)
        start = forward(model, cache, [Piece(tokens[:depth], range(depth))])[0]
        length = min(len(tokens) - depth, 600 // count)
        branches = [
            Piece(
                tokens[depth : depth + length] if number == 1 else text(length, seed=number),
                range(depth + number * length, depth + (number + 1) * length),
                range(depth),
            )
            for number in range(count)
        ]
        own = forward(model, cache, branches, shuffle=count)[1]
        yield torch.cat((start, own))


def inside_a_tree(model: Transformer, tokens: Tensor) -> Iterator[Tensor]:
    """The end of the text is the trunk of a tree from which other nodes fork."""
    for depth in (119, 250):
        cache = new_cache(model)
        start = forward(model, cache, [Piece(tokens[:depth], range(depth))])[0]
        trunk = tokens[depth : depth + 30]
        parents, nodes = [*range(-1, 29)], trunk.tolist()
        for fork in range(40):
            parents.append((7 * fork) % len(nodes))
            nodes.append(int(tokens[fork]))
        slots = _scattered(SLOTS, depth)
        free = [slot for slot in slots if slot >= depth][: len(nodes)]
        piece = Piece(torch.tensor(nodes), free, range(depth), parents)
        rows = forward(model, cache, [piece], shuffle=depth)[0]
        yield torch.cat((start, rows[:30]))


def with_threads(model: Transformer, tokens: Tensor) -> Iterator[Tensor]:
    for threads in THREADS:
        torch.set_num_threads(threads)
        yield fed(model, tokens)
        yield fed(model, tokens, [len(tokens) - 3, 1, 1, 1])


Way = Callable[[Transformer, Tensor], Iterator[Tensor]]
WAYS: tuple[Way, ...] = (
    in_pieces,
    one_by_one,
    in_scattered_slots,
    beside_mates,
    as_one_of_many_branches,
    inside_a_tree,
    with_threads,
)


def _differing(way: Way, model: Transformer, tokens: Tensor) -> int:
    """How many of a way's results are not the text's own rows, bit for bit."""
    whole = fed(model, tokens)
    assert whole.isfinite().all()
    return sum(not torch.equal(rows, whole[: len(rows)]) for rows in way(model, tokens))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_rows_depend_on_their_path_alone(model: CompiledTransformer, way: Way) -> None:
    assert _differing(way, model, text(LENGTH)) == 0


def test_logits_depend_on_their_row_alone(model: CompiledTransformer) -> None:
    hidden = fed(model, text(LENGTH))
    whole = model.logits(hidden)
    for threads in THREADS:
        torch.set_num_threads(threads)
        for count in (1, 2, 3, 4, 5, 7, 64):
            rows = torch.randperm(LENGTH, generator=_random(count))[:count]
            assert torch.equal(model.logits(hidden[rows]), whole[rows])


def test_trees_equal_their_paths_fed_alone(model: CompiledTransformer) -> None:
    """Nodes of random trees below old paths that end before and behind a border."""
    tokens, nodes = text(250), text(40, seed=8)
    for depth in (0, 5, 120, 250):
        parents = random_parents(len(nodes), seed=depth)
        cache = new_cache(model)
        if depth:
            forward(model, cache, [Piece(tokens[:depth], range(depth))])
        piece = Piece(nodes, range(depth, depth + len(nodes)), range(depth), parents)
        rows = forward(model, cache, [piece], shuffle=depth)[0]
        for node in range(3, len(nodes), 6):
            path = torch.cat((tokens[:depth], nodes[path_of(parents, node)]))
            assert torch.equal(fed(model, path)[-1], rows[node])


# -- negative controls: the same comparison rejects each of these ----------------------------------


def test_another_layout_of_torchs_attention_is_caught(make: Make) -> None:
    """torch's path keeps rows apart from their batch, and not from how a path was cut."""
    loaded = load_transformer(make("llama wide heads"), "float32", "cpu")
    assert isinstance(loaded, LlamaTransformer)
    assert _differing(in_pieces, loaded, text(LENGTH)) > 0
    assert _differing(as_one_of_many_branches, loaded, text(LENGTH)) > 0


def test_the_last_bit_of_one_key_is_caught(make: Make) -> None:
    loaded = load_transformer(make("llama wider"), "float32", "cpu")

    def one_bit_off(model: Transformer, tokens: Tensor) -> Iterator[Tensor]:
        cache = new_cache(model)
        start = forward(model, cache, [Piece(tokens[:200], range(200))])[0]
        key = cache.keys[0, 0, 3].clone()
        cache.keys[0, 0, 3] = torch.nextafter(key, torch.full_like(key, torch.inf))
        end = forward(model, cache, [Piece(tokens[200:], range(200, LENGTH), range(200))])[0]
        yield torch.cat((start, end))

    assert _differing(one_bit_off, loaded, text(LENGTH)) == 1


def test_a_slot_out_of_place_is_caught(make: Make) -> None:
    loaded = load_transformer(make("llama wider"), "int4", "cpu")

    def swapped(model: Transformer, tokens: Tensor) -> Iterator[Tensor]:
        for wrong in ([1, 0, *range(2, 200)], [*range(199), 250]):
            cache = new_cache(model)
            start = forward(model, cache, [Piece(tokens[:200], range(200))])[0]
            end = forward(model, cache, [Piece(tokens[200:], range(200, LENGTH), wrong)])[0]
            yield torch.cat((start, end))

    assert _differing(swapped, loaded, text(LENGTH)) == 2
