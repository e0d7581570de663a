"""The engine against transformers on the same weights, on every layout of the tree.

How close is equal: on the embedded model transformers' float32 logits are themselves 1.7e-4 away
from its float64 ones, and its eager and sdpa attention differ by 1.1e-4. So 512 positions are held
to 1e-4 in log-probability against float64 on average rows and to transformers' own error at the
worst one, and the other layouts to 4e-4 of its float32 logits (a wrong position, mask or slot is
off by more than 1). Small models are held to 1e-4 in `test_compiled.py`, `test_transformer.py` and
below. Text is equal token for token. What is bitwise the same is in `test_determinism.py`, how near
other weights come in `test_quality.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from driving import drive

import decodery as dc
from decodery.api.language_model import LanguageModel
from decodery.core.decoder import Task
from decodery.core.requests import Grow, Open
from decodery.core.rng import Stream
from decodery.core.runner import Runner, run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.core.tree import Node
from decodery.models import compiled
from decodery.models.causal import CausalModel
from decodery.models.transformer import load_transformer

TOLERANCE = 4e-4
SMALL_MODEL_TOLERANCE = 1e-4
TEXT = (Path(__file__).parents[2] / "LICENSE").read_text()


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan() -> Iterator[None]:
    """New tensors are filled with NaN, so that a number nobody wrote cannot go unnoticed."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def peer(embedded_folder: Path) -> torch.nn.Module:
    """transformers' own model on the same float32 weights."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(embedded_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokens(lm: LanguageModel) -> list[int]:
    return lm.tokenizer.encode(TEXT)[:600]


def peer_rows(peer: torch.nn.Module, tokens: Sequence[int]) -> np.ndarray:
    with torch.inference_mode():
        return peer(torch.tensor([list(tokens)])).logits[0].float().numpy()


def distance(rows: Sequence[np.ndarray] | np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The largest difference in each row."""
    return np.abs(np.asarray(rows, dtype=np.float64) - expected).max(axis=1)


def assert_close(
    rows: Sequence[np.ndarray], expected: np.ndarray, tolerance: float = TOLERANCE
) -> None:
    assert distance(rows, expected).max() < tolerance


def test_chain_rows_equal_transformers_over_512_positions(
    lm: LanguageModel, peer: torch.nn.Module, tokens: list[int]
) -> None:
    """Prompt of one token, then 511 nodes in one request: one forward, one causal clump."""
    found: list[np.ndarray] = []

    def body(task: Task) -> Iterator[object]:
        tip: Node = yield Open(task.policy, task.prompt)
        found.append(tip.row.scores)
        nodes = []
        for token in tokens[1:512]:
            tip = tip.child(token)
            nodes.append(tip)
        yield Grow(nodes)
        found.extend(node.row.scores for node in nodes)

    drive(lm, tokens[:1], body)
    theirs = peer_rows(peer, tokens[:512])
    exact_peer = copy.deepcopy(peer).double()
    with torch.inference_mode():
        exact = exact_peer(torch.tensor([tokens[:512]])).logits[0].numpy()
    ours_off, theirs_off = distance(found, exact), distance(theirs, exact)
    assert np.median(ours_off) < 1e-4
    assert ours_off.max() < 1.5 * theirs_off.max()
    assert_close(found, theirs)


def test_one_by_one_rows_equal_transformers(
    lm: LanguageModel, peer: torch.nn.Module, tokens: list[int]
) -> None:
    found: list[np.ndarray] = []

    def body(task: Task) -> Iterator[object]:
        tip: Node = yield Open(task.policy, task.prompt)
        found.append(tip.row.scores)
        for token in tokens[20:60]:
            tip = tip.child(token)
            yield Grow([tip])
            found.append(tip.row.scores)

    drive(lm, tokens[:20], body)
    assert_close(found, peer_rows(peer, tokens[:60])[19:60])


def test_long_prompt_in_chunks_equals_transformers(
    lm: LanguageModel, peer: torch.nn.Module, tokens: list[int]
) -> None:
    """600 tokens are two chunks: the second attends to the first through the cache."""
    found: list[np.ndarray] = []

    def body(task: Task) -> Iterator[object]:
        root: Node = yield Open(task.policy, task.prompt)
        found.append(root.row.scores)

    drive(lm, tokens, body)
    assert_close(found, peer_rows(peer, tokens)[-1:])


def test_tree_in_one_request_equals_separate_paths(
    lm: LanguageModel, peer: torch.nn.Module, tokens: list[int]
) -> None:
    """A ragged forest grown in one forward; then pruned, and grown on below a survivor.

    One child of the root has no child of its own: it shares the prompt with rows that have a part
    of their own already.
    """
    prompt = tokens[:30]
    paths: dict[tuple[int, ...], np.ndarray] = {}

    def body(task: Task) -> Iterator[object]:
        root: Node = yield Open(task.policy, task.prompt)
        a, b, alone = root.child(11), root.child(12), root.child(13)
        a1, a2, b1 = a.child(21), a.child(22), b.child(23)
        a11, a12 = a1.child(31), a1.child(32)
        nodes = [a, b, a1, alone, a2, b1, a11, a12]
        yield Grow(nodes)
        paths.update({tuple(node.generated): node.row.scores for node in nodes})
        b.drop()
        a2.drop()
        a11.drop()
        deeper = [a12.child(41)]
        deeper.append(deeper[0].child(42))
        yield Grow(deeper)
        paths.update({tuple(node.generated): node.row.scores for node in deeper})
        last = deeper[-1].child(51)
        yield Grow([last])
        paths[tuple(last.generated)] = last.row.scores

    drive(lm, prompt, body)
    assert len(paths) == 11
    for path, row in paths.items():
        assert_close([row], peer_rows(peer, [*prompt, *path])[-1:])


def test_branches_and_beams_equal_separate_paths(
    lm: LanguageModel, peer: torch.nn.Module, tokens: list[int]
) -> None:
    """A frontier that forks and dies at random for 30 steps: fragmented paths stay right."""
    prompt = tokens[:25]
    generator = np.random.default_rng(11)
    checks: list[tuple[list[int], np.ndarray]] = []

    def body(task: Task) -> Iterator[object]:
        root: Node = yield Open(task.policy, task.prompt)
        frontier = [root]
        for step in range(30):
            parents = [frontier[i] for i in generator.integers(len(frontier), size=4)]
            children = [parent.child(int(generator.integers(1000))) for parent in parents]
            for node in frontier:
                if not node.children:
                    node.abandon()
            yield Grow(children)
            frontier = children
            if step % 6 == 5:
                checks.extend((node.tokens, node.row.scores) for node in frontier)

    drive(lm, prompt, body)
    for path, row in checks:
        assert_close([row], peer_rows(peer, path)[-1:])


@pytest.mark.parametrize("prompt", ["Why is the sea salty?", "Write a haiku about rain."])
def test_greedy_text_equals_transformers(
    lm: LanguageModel, peer: torch.nn.Module, prompt: str
) -> None:
    ids = lm.read(prompt).tokens
    with torch.inference_mode():
        expected = peer.generate(
            torch.tensor([ids]), max_new_tokens=64, do_sample=False, eos_token_id=list(lm.eos_ids)
        )[0, len(ids) :].tolist()
    assert list(lm.generate(prompt, method="greedy", max_tokens=64).tokens) == expected


def test_hidden_state_is_the_last_norms_output(
    lm: LanguageModel, peer: torch.nn.Module, tokens: list[int]
) -> None:
    found: list[np.ndarray] = []

    def body(task: Task) -> Iterator[object]:
        root: Node = yield Open(task.policy, task.prompt)
        assert root.hidden is None
        node = root.child(tokens[10])
        yield Grow([node], hidden=True)
        found.append(node.hidden)

    drive(lm, tokens[:10], body)
    with torch.inference_mode():
        hidden = peer.model(torch.tensor([tokens[:11]])).last_hidden_state[0, -1].numpy()
    np.testing.assert_allclose(found[0], hidden, atol=1e-3)


def test_prompt_is_stored_once_and_slots_return(lm: LanguageModel) -> None:
    seen: list[int] = []

    def body(task: Task) -> Iterator[object]:
        root: Node = yield Open(task.policy, task.prompt)
        children = [root.child(token) for token in range(16)]
        yield Grow(children)
        seen.append(lm.cache.slots - lm.cache.free)
        for child in children[4:]:
            child.drop()
        yield Grow([children[0].child(5)])
        seen.append(lm.cache.slots - lm.cache.free)

    drive(lm, range(100, 140), body)
    assert seen == [40 + 16, 40 + 4 + 1]


def tiny(folder: Path, cache_tokens: int, **changes: object) -> CausalModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        **changes,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    transformer = load_transformer(folder, "float32", "cpu")
    return CausalModel(transformer, name="tiny", cache_tokens=cache_tokens)


def test_full_cache_queues_refuses_and_recovers(tmp_path: Path) -> None:
    """Capacity for two requests at a time: nine run through it, one too large is refused."""
    model = tiny(tmp_path, cache_tokens=50)
    runner = Runner()
    tasks = [Task(Policy(model), (1, 2, 3, 4), Stopping(20), Stream(seed)) for seed in range(9)]
    handles = [runner.submit(dc.sample(), task) for task in tasks]
    with pytest.raises(dc.DecoderyError, match="may need 60 cache slots and tiny has 50"):
        runner.submit(dc.sample(), Task(Policy(model), (1,) * 10, Stopping(50)))
    runner.run()
    assert [len(handle.result()[0].tokens) for handle in handles] == [20] * 9
    assert model.cache.free == 50
    apart = [run_alone(dc.sample(), task)[0].tokens for task in tasks]
    assert apart == [handle.result()[0].tokens for handle in handles]


def test_fragmented_cache_gives_the_same_rows(tmp_path: Path) -> None:
    """Claims fill a cache of exactly the slots that are needed; scattered slots are as good."""
    wide = tiny(tmp_path, cache_tokens=5000)
    tight = CausalModel(wide.transformer, name="tight", cache_tokens=8 + 6 * 12)
    task = [
        Task(Policy(model), tuple(range(8)), Stopping(12), Stream(4)) for model in (wide, tight)
    ]
    found = [run_alone(dc.sample(n=6), item) for item in task]
    assert found[0] == found[1]
    assert tight.cache.free == tight.cache.slots


def test_nan_weights_are_named_at_their_row(tmp_path: Path) -> None:
    model = tiny(tmp_path, cache_tokens=100)
    whole = model.transformer.logits

    def broken(hidden: torch.Tensor) -> torch.Tensor:
        scores = whole(hidden)
        scores[0, 7] = torch.nan
        return scores

    model.transformer.logits = broken  # type: ignore[method-assign]
    with pytest.raises(dc.DecoderyError, match="tiny at step 0: the row holds NaN"):
        run_alone(dc.sample(), Task(Policy(model), (1, 2), Stopping(3)))
    assert model.cache.free == 100


@pytest.mark.parametrize("kernels", ["compiled", "torch"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_small_models_on_trees_equal_separate_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, kernels: str
) -> None:
    """Sliding windows shorter than the path: trees, chains and single nodes against the peer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if kernels == "torch":
        monkeypatch.setattr(compiled, "can_compile", lambda _: False)
    torch.manual_seed(2)
    config = AutoConfig.for_model(
        kind,
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        **({} if kind == "llama" else {"sliding_window": 9}),
    )
    peer = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    peer.save_pretrained(tmp_path)
    model = CausalModel(load_transformer(tmp_path, "float32", "cpu"), name=kind)
    prompt = [3 + (7 * i) % 50 for i in range(14)]
    paths: dict[tuple[int, ...], np.ndarray] = {}

    def body(task: Task) -> Iterator[object]:
        root: Node = yield Open(task.policy, task.prompt)
        a, b = root.child(11), root.child(12)
        a1, a2 = a.child(21), a.child(22)
        yield Grow([a, b, a1, a2])
        paths.update({tuple(node.generated): node.row.scores for node in (a, b, a1, a2)})
        b.drop()
        tip = a2
        for token in range(30, 42):
            tip = tip.child(token)
            yield Grow([tip])
        paths[tuple(tip.generated)] = tip.row.scores

    drive(model, prompt, body)
    for path, row in paths.items():
        assert_close([row], peer_rows(peer, [*prompt, *path])[-1:], SMALL_MODEL_TOLERANCE)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gemma2", "phi"])
def test_foreign_models_on_trees_equal_separate_paths(tmp_path: Path, kind: str) -> None:
    """Models that run through transformers' forward with our cache; gemma2 caps its scores."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes: dict[str, dict[str, int]] = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
        "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 128} | common,
        "gemma2": {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 9} | common,
        "phi": {"intermediate_size": 48} | common,
    }
    config = AutoConfig.for_model(kind, vocab_size=61, **sizes[kind])
    peer = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    peer.save_pretrained(tmp_path)
    model = CausalModel(load_transformer(tmp_path, "float32", "cpu"), name=kind)
    prompt = [3 + (7 * i) % 50 for i in range(14)]
    paths: dict[tuple[int, ...], np.ndarray] = {}

    def body(task: Task) -> Iterator[object]:
        root: Node = yield Open(task.policy, task.prompt)
        a, b = root.child(11), root.child(12)
        a1, a2 = a.child(21), a.child(22)
        yield Grow([a, b, a1, a2])
        paths.update({tuple(node.generated): node.row.scores for node in (a, b, a1, a2)})
        b.drop()
        tip = a2.child(33)
        yield Grow([tip, a1.child(34)])
        paths[tuple(tip.generated)] = tip.row.scores
        other = a1.children[0]
        paths[tuple(other.generated)] = other.row.scores

    drive(model, prompt, body)
    for path, row in paths.items():
        assert_close([row], peer_rows(peer, [*prompt, *path])[-1:], SMALL_MODEL_TOLERANCE)
