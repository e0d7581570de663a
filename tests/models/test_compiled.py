"""The compiled forward against transformers' own, in float32, on tiny random models.

Driven through the real cache: texts of 300 tokens cross two span borders of the attention (128 and
256), fed at once, in pieces, one by one and as trees. Bitwise laws are in `test_bitwise.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from forwards import Piece, fed, forward, new_cache, path_of, random_parents
from safetensors.torch import load_file, save_file
from small_models import (
    CLOSE,
    COMPILED,
    NOT_COMPILED,
    VOCAB,
    WRONG,
    Make,
    Store,
    real_widths,
    reference,
    text,
    with_config,
)
from torch import Tensor

from decodery.core.errors import ParameterError
from decodery.models import native
from decodery.models.architecture import Architecture
from decodery.models.codes import quantise
from decodery.models.compiled import CompiledTransformer, can_compile
from decodery.models.llama import LlamaTransformer
from decodery.models.quantised_weights import QuantisedWeights
from decodery.models.transformer import Transformer, load_transformer
from decodery.models.weights import SINGLE_FILE

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")

LENGTH = 300
TREE_DEPTHS = (
    5,
    120,
    250,
)  # lengths of the old path; 40 nodes below cross a border from the last two


def _distance(model: Transformer, hidden: Tensor, expected: Tensor) -> float:
    return (model.logits(hidden) - expected).abs().max().item()


@pytest.mark.parametrize("name", COMPILED)
def test_logits_equal_the_reference(make: Make, name: str) -> None:
    """At once, in pieces, and one by one from a depth before the first border."""
    model = load_transformer(make(name), "float32", "cpu")
    assert isinstance(model, CompiledTransformer)
    tokens = text(LENGTH)
    expected = reference(make(name), tokens)
    assert expected.std() > 0.05  # the comparison means something
    for pieces in (None, [120, 1, 1, 17, 161], [100] + [1] * 200):
        hidden = fed(model, tokens, pieces)
        assert hidden.shape == (LENGTH, model.width)
        assert hidden.dtype == torch.float32
        logits = model.logits(hidden)
        assert (logits.shape, logits.dtype) == ((LENGTH, VOCAB), torch.float32)
        assert (logits - expected).abs().max().item() < CLOSE


def _tree_rows(
    model: Transformer, tokens: Tensor, depth: int, parents: list[int], nodes: Tensor
) -> Tensor:
    """Hidden states of a tree of `nodes` grown in one forward below the first `depth` tokens."""
    cache = new_cache(model)
    forward(model, cache, [Piece(tokens[:depth], range(depth))])
    slots = range(depth, depth + len(nodes))
    return forward(model, cache, [Piece(nodes, slots, range(depth), parents)], shuffle=1)[0]


@pytest.mark.parametrize("name", COMPILED)
def test_trees_equal_their_paths(make: Make, name: str) -> None:
    """Every node of random trees against its path as a text, in one padded batch of the peer."""
    model = load_transformer(make(name), "float32", "cpu")
    tokens, nodes = text(250), text(40, seed=8)
    for depth in TREE_DEPTHS:
        parents = random_parents(len(nodes), seed=depth)
        paths = [path_of(parents, node) for node in range(len(nodes))]
        longest = max(map(len, paths))
        padded = torch.zeros((len(nodes), depth + longest), dtype=torch.int64)
        padded[:, :depth] = tokens[:depth]
        for row, path in zip(padded, paths, strict=True):
            row[depth : depth + len(path)] = nodes[path]
        ends = torch.tensor([depth + len(path) - 1 for path in paths])
        expected = reference(make(name), padded)[torch.arange(len(nodes)), ends]
        hidden = _tree_rows(model, tokens, depth, parents, nodes)
        assert _distance(model, hidden, expected) < CLOSE


def test_a_wrong_parent_is_noticed(make: Make) -> None:
    """Negative control: one node of forty hangs on its grandparent; it and its own move."""
    model = load_transformer(make("llama"), "float32", "cpu")
    tokens, nodes = text(250), text(40, seed=8)
    parents = random_parents(len(nodes), seed=250)
    moved = next(node for node in range(20, 40) if parents[node] in parents)
    wrong = [*parents]
    wrong[moved] = parents[parents[moved]]
    right, other = (
        model.logits(_tree_rows(model, tokens, 250, made, nodes)) for made in (parents, wrong)
    )
    differs = (right - other).abs().amax(1)
    for node in range(len(nodes)):
        below = moved in path_of(parents, node)
        assert (differs[node] > CLOSE) == below
        assert below or differs[node] == 0


@pytest.mark.parametrize("window", [2, 64, 127, 128, 129, 200, 256, 299])
def test_windows_cross_span_borders(make: Make, tmp_path: Path, window: int) -> None:
    """At once, one by one, and as a tree whose old path is mostly out of sight."""
    folder = with_config(make("mistral windowed"), tmp_path, sliding_window=window)
    model = load_transformer(folder, "float32", "cpu")
    tokens = text(LENGTH)
    expected = reference(folder, tokens)
    for pieces in (None, [100] + [1] * 200):
        assert _distance(model, fed(model, tokens, pieces), expected) < CLOSE
    off_by_one = reference(
        with_config(make("mistral windowed"), _made(tmp_path / "other"), sliding_window=window + 1),
        tokens,
    )
    assert _distance(model, fed(model, tokens), off_by_one) > CLOSE
    cache = new_cache(model)
    forward(model, cache, [Piece(tokens[:245], range(245))])
    forks = torch.cat((tokens[245:265], tokens[265:266], tokens[3:8]))
    parents = [*range(-1, 19), 19, 19, *range(21, 25)]
    (rows,) = forward(model, cache, [Piece(forks, range(245, 271), range(245), parents)])
    other = reference(folder, torch.cat((tokens[:265], tokens[3:8])))
    assert _distance(model, rows[:21], expected[245:266]) < CLOSE
    assert _distance(model, rows[21:], other[265:]) < CLOSE


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    "wrong", sorted(set(WRONG) - {"heads"})
)  # those heads are no multiple of 8
def test_a_wrong_switch_is_noticed(make: Make, tmp_path: Path, wrong: str) -> None:
    """Negative controls: the same comparison rejects each of these."""
    name, changes = WRONG[wrong]
    model = load_transformer(with_config(make(name), tmp_path, **changes), "float32", "cpu")
    assert isinstance(model, CompiledTransformer)
    tokens = text(LENGTH)
    assert _distance(model, fed(model, tokens), reference(make(name), tokens)) > CLOSE


def test_sharp_attention_is_right(make: Make, tmp_path: Path) -> None:
    """Queries 60 times as large: scores reach hundreds, and most weights underflow to nothing."""
    tensors = load_file(make("llama") / SINGLE_FILE)
    for name in tensors:
        if name.endswith("q_proj.weight"):
            tensors[name] *= 60
    save_file(tensors, tmp_path / SINGLE_FILE, metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((make("llama") / "config.json").read_text())
    model = load_transformer(tmp_path, "float32", "cpu")
    tokens = text(LENGTH)
    expected = reference(tmp_path, tokens)
    assert _distance(model, fed(model, tokens), reference(make("llama"), tokens)) > 0.5
    for pieces in (None, [100] + [1] * 200):
        # An error of 1e-7 in a score of hundreds is one of 1e-5 in its weight.
        assert _distance(model, fed(model, tokens, pieces), expected) < 2e-3


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("name", ["llama wider", "qwen3 biases", "gemma3", "smollm3 windowed"])
def test_other_weights_are_near_their_own_values(make: Make, name: str, weights: str) -> None:
    """Against the float32 forward of the values these weights stand for.

    What is left are keys of 11 bits (6e-4 of the spread of the logits was measured at most) and,
    with codes, inputs of 8 bits (0.03); a group or a scale out of place gives more than 0.5.
    """
    model = load_transformer(make(name), weights, "cpu")
    assert isinstance(model, CompiledTransformer)
    assert model.cache_dtype == torch.float16
    tokens = text(LENGTH)
    exact = _dequantised(make(name), weights)
    expected = exact.logits(fed(exact, tokens))
    off = _spread(model.logits(fed(model, tokens)), expected)
    assert 0 < off < (1e-3 if weights == "bf16" else 0.05)


def _spread(logits: Tensor, expected: Tensor) -> float:
    """Root mean square of the differences, in standard deviations of what is expected."""
    return ((logits - expected).square().mean().sqrt() / expected.std()).item()


def _dequantised(folder: Path, weights: str) -> CompiledTransformer:
    """The float32 model of the values that a folder's weights have as bf16, int8 or int4."""
    from decodery.models.weight_store import open_weights
    from decodery.models.weights import read_json

    architecture = Architecture.from_config(read_json(folder / "config.json"))
    with open_weights(folder) as store:
        if weights == "bf16":
            matrices = {n for n, shape in store.shapes.items() if len(shape) == 2}
            tensors = {
                n: store.tensor(n).bfloat16().float() if n in matrices else store.tensor(n)
                for n in store.shapes
            }
        else:
            quantised = QuantisedWeights(store, int(weights.removeprefix("int")))
            tensors = {n: quantised.tensor(n) for n in store.shapes}
        return CompiledTransformer(architecture, Store(tensors), torch.float32, use_codes=False)


def test_matrices_of_several_kinds_may_stand_side_by_side() -> None:
    """Query and gate have float32 scales, so they are matrices of their own; no value changes."""
    architecture, floats = real_widths("llama")
    joined = {
        name: quantise(floats.tensor(name), 8) if len(shape) == 2 else floats.tensor(name)
        for name, shape in floats.shapes.items()
    }
    apart = dict(joined)
    for name, codes in joined.items():
        if name.endswith(("q_proj.weight", "gate_proj.weight")):
            apart[name] = type(codes)(codes.codes, 8, 32, codes.scale.float(), None)
    mixed = apart | {
        name: tensor.dequantise().clone()
        for name, tensor in joined.items()
        if name.endswith(("v_proj.weight", "up_proj.weight"))
    }
    tokens = text(20)
    models = [
        CompiledTransformer(architecture, Store(tensors), torch.float32, use_codes=True)
        for tensors in (joined, apart, mixed)
    ]
    rows = [fed(model, tokens) for model in models]
    assert torch.equal(rows[0], rows[1])
    assert 0 < (rows[0] - rows[2]).abs().max() < 0.05 * rows[0].abs().max()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_keys_in_half_precision_change_little(make: Make, name: str) -> None:
    """A float32 model with a float16 cache: 4e-4 of the spread of the logits was measured."""
    model = load_transformer(make(name), "float32", "cpu")
    tokens = text(LENGTH)
    plain = model.logits(fed(model, tokens))
    for pieces in (None, [100] + [1] * 200):
        halves = fed(model, tokens, pieces, cache=new_cache(model, torch.float16))
        assert 0 < _spread(model.logits(halves), plain) < 1e-3
        assert _distance(model, halves, plain) < 1e-2


def test_keys_are_rounded_as_torch_rounds_them(make: Make, tmp_path: Path) -> None:
    """From below float16's smallest number to beyond its largest: subnormals, ties, infinity."""
    tensors = load_file(make("llama") / SINGLE_FILE)
    name = "model.layers.0.self_attn.v_proj.weight"
    size = torch.logspace(-10, 6, len(tensors[name]))
    tensors[name] = tensors[name] * size[:, None]
    save_file(tensors, tmp_path / SINGLE_FILE, metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((make("llama") / "config.json").read_text())
    model = load_transformer(tmp_path, "float32", "cpu")
    caches = [new_cache(model, dtype) for dtype in (torch.float32, torch.float16)]
    for cache in caches:
        fed(model, text(LENGTH), cache=cache)
    whole, half = (cache.values[0, :, :LENGTH] for cache in caches)
    assert torch.equal(half, whole.half())
    assert half.isinf().any()
    assert ((half != 0) & (half.abs() < 2.0**-14)).any()
    assert (half == 0).any()
    assert torch.equal(caches[1].keys[0, :, :LENGTH], caches[0].keys[0, :, :LENGTH].half())


@pytest.mark.parametrize("name", sorted(NOT_COMPILED))
def test_heads_that_do_not_fit_a_vector_fall_back(make: Make, name: str) -> None:
    model = load_transformer(make(name), "float32", "cpu", exact=True)
    assert isinstance(model, LlamaTransformer)
    tokens = text(40)
    assert _distance(model, fed(model, tokens), reference(make(name), tokens)) < CLOSE
    with pytest.raises(ParameterError, match="exact is True, and no backend for bf16 on cpu"):
        load_transformer(make(name), "bf16", "cpu", exact=True)


def test_exact_is_what_compiled_kernels_are(make: Make) -> None:
    for weights in ("float32", "bf16", "int8", "int4"):
        model = load_transformer(make("llama"), weights, "cpu", exact=True)
        assert isinstance(model, CompiledTransformer)


def test_only_sizes_of_whole_vectors_are_compiled() -> None:
    config = {
        "model_type": "llama",
        "vocab_size": 11,
        "hidden_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }
    for head_dim, inner, fits in ((8, 16, True), (24, 8, True), (12, 16, False), (8, 12, False)):
        sizes = {"head_dim": head_dim, "intermediate_size": inner}
        assert can_compile(Architecture.from_config(config | sizes)) == fits
