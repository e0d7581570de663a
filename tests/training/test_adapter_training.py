"""Training an adapter: what counts of a text, that it learns, what an interruption changes."""

from __future__ import annotations

import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

import decodery as dc
from decodery.cli import main
from decodery.core.errors import ModelFileError, ParameterError
from decodery.models.adapters import TENSORS, read_adapter
from decodery.models.language import TokenizerLanguage
from decodery.models.tokenizer import Tokenizer
from decodery.training import frame
from decodery.training.adapter import Params
from decodery.training.adapter.fit import _loss, factor
from decodery.training.adapter.low_rank import LowRank, add_low_rank
from decodery.training.adapter.texts import Example, Tokens, read_texts, split, tokenised
from decodery.training.run import Run
from decodery.training.tools import hidden_states

LETTERS = "~ abcdefghijklmnopqrstuvwxyz!?.|"  # ~ ends a text
TEMPLATE = "{{ messages[-1]['content'] }}|"
TRAINING = frame.get("adapter")
QUICK = {"rank": 4, "steps": 12, "batch": 4, "warmup": 2, "learning_rate": 0.02}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A model this small is slower with more, many times so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny random Llama that reads letters, with a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(LETTERS), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, eos_token_id=0,
        initializer_range=0.4,  # 0.02: logits below 1, no loss far below ln 32
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("letters")
    LlamaForCausalLM(config).save_pretrained(folder)
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(LETTERS)}, merges=[]))
    backend.decoder = decoders.Fuse()
    backend.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "~", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def language(base) -> TokenizerLanguage:
    return TokenizerLanguage(Tokenizer.from_folder(base), "letters", len(LETTERS))


@pytest.fixture
def texts(tmp_path) -> Path:
    path = tmp_path / "texts.jsonl"
    words = "sea", "ship", "sail", "wind", "rope", "star", "map", "fish", "crew", "gold"
    records = [{"prompt": f"{word}?", "response": f"{word} ahoy!"} for word in words]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def ids(text: str) -> tuple[int, ...]:
    return tuple(LETTERS.index(letter) for letter in text)


def train(base, texts, out, progress=None, resume=False, **changed):
    values = {} if resume else {"model": str(base), "texts": (str(texts),), **QUICK, **changed}
    return frame.train(TRAINING, values, out, resume=resume, progress=progress)


# -- texts ---------------------------------------------------------------------------------------


def test_files_of_both_kinds(tmp_path):
    lines, records = tmp_path / "lines.txt", tmp_path / "records.jsonl"
    lines.write_text("one text\n\n  \nanother {text}\n")
    records.write_text('{"prompt": "why?", "response": "so.", "id": 3}\n\n{"text": "all of it"}\n')
    assert read_texts([str(lines), str(records)]) == [
        Example("", "one text"),
        Example("", "another {text}"),
        Example("why?", "so."),
        Example("", "all of it"),
    ]


@pytest.mark.parametrize(("content", "words"), [
    ("not json", "line 1 is not JSON"),
    ('{"text": "a"}\n[1]', "line 2 has neither prompt and response nor text"),
    ('{"prompt": "a"}', "line 1 has neither"),
    ('{"prompt": "a", "response": 3}', "must be texts"),
    ('{"prompt": "a", "response": " "}', "must be texts"),
    ("[" * 100_000, "is not JSON"),
])  # fmt: skip
def test_records_that_are_none(tmp_path, content, words):
    path = tmp_path / "texts.jsonl"
    path.write_text(content)
    with pytest.raises(ModelFileError, match=words):
        read_texts([str(path)])


def test_files_without_a_text(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(ParameterError, match="hold no text"):
        read_texts([str(empty)])
    (tmp_path / "other").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelFileError, match="not UTF-8"):
        read_texts([str(tmp_path / "other")])
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_texts([str(tmp_path / "missing")])


def test_of_a_conversation_the_answer_counts(language):
    found, cut = tokenised([Example("why?", "so."), Example("", "so.")], language, 32)
    assert found == [Tokens(ids("why?|so.~"), 5), Tokens(ids("so.~"), 1)]
    assert cut == 0
    found, cut = tokenised([Example("why?", "so.")], language, 7)
    assert (found, cut) == ([Tokens(ids("why?|so"), 5)], 1)
    with pytest.raises(ParameterError, match="has 5 tokens before what is learnt; text_tokens is"):
        tokenised([Example("why?", "so.")], language, 5)


def test_one_text_in_ten_is_held_out():
    texts = [Tokens((number, 0), 1) for number in range(25)]
    learnt, held = split(texts)
    assert [item.tokens[0] for item in held] == [9, 19]
    assert len(learnt) == 23
    assert split(texts[:9]) == (texts[:9], texts[:9])


# -- the sum -------------------------------------------------------------------------------------


def loaded(base):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def test_it_begins_as_the_model_is(base):
    model, plain = loaded(base), loaded(base)
    added = add_low_rank(model, ("q_proj", "down_proj"), 4, 8.0, seed=3)
    assert sorted(name.split(".", 3)[-1] for name in added) == sorted(
        ["mlp.down_proj.weight", "self_attn.q_proj.weight"] * 2
    )
    tokens = torch.tensor([ids("why?|so.")])
    assert torch.equal(model(tokens).logits, plain(tokens).logits)
    learning = {name for name, part in model.named_parameters() if part.requires_grad}
    assert all(name.endswith((".first", ".second")) for name in learning)
    assert len(learning) == 8
    firsts = [item.first for item in added.values()]
    assert not torch.equal(firsts[0], firsts[2])  # each has a start of its own
    again = add_low_rank(loaded(base), ("q_proj", "down_proj"), 4, 8.0, seed=3)
    assert all(torch.equal(added[name].first, again[name].first) for name in added)


@pytest.mark.parametrize(("matrices", "rank", "words"), [
    (("q_prj",), 4, "did you mean 'q_proj'"),
    ((), 4, "matrices is empty"),
    (("k_proj",), 17, "rank is 17, more than"),
])  # fmt: skip
def test_sums_that_cannot_be(base, matrices, rank, words):
    with pytest.raises(ParameterError, match=words):
        add_low_rank(loaded(base), matrices, rank, 8.0, seed=0)


def test_the_gradient_is_that_of_the_sum():
    """By finite differences, in float64."""
    linear = torch.nn.Linear(3, 2, bias=False).double().requires_grad_(False)
    layer = LowRank(linear, 2, 0.5, seed=1).double()
    with torch.no_grad():
        layer.second.normal_()
    x = torch.randn(4, 3, dtype=torch.float64)

    def f(first, second):
        return torch.func.functional_call(layer, {"first": first, "second": second}, (x,))

    assert torch.autograd.gradcheck(f, (layer.first, layer.second))
    merged = linear.weight + 0.5 * layer.second @ layer.first
    torch.testing.assert_close(layer(x), x @ merged.T)


def test_the_loss_by_hand(base):
    """-ln p of the learnt tokens alone, whatever pads the batch."""
    model = loaded(base)
    texts = [Tokens(ids("why?|so.~"), 5), Tokens(ids("so.~"), 1)]
    total, count = _loss(model, texts)
    wanted = 0.0
    for text in texts:
        logs = model(torch.tensor([text.tokens])).logits[0].log_softmax(-1)
        wanted -= sum(logs[i - 1, text.tokens[i]] for i in range(text.first, len(text.tokens)))
    assert count == 4 + 3
    torch.testing.assert_close(total, wanted)


def test_the_learning_rate_rises_and_falls():
    factors = [factor(step, 100, 10) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert all(one >= other for one, other in pairwise(factors[9:]))
    assert 0 < factors[-1] < 0.01
    assert factor(0, 1, 0) == 1.0


# -- the training --------------------------------------------------------------------------------


def test_it_learns_and_the_engine_agrees(base, texts, tmp_path):
    """The merged model gives held-out answers the loss that the training measured."""
    seen = []
    result = train(base, texts, tmp_path / "out", lambda phase, *_: seen.append(phase), steps=60)
    before = result.facts["held-out loss before, nats a token"]
    after = result.facts["held-out loss after, nats a token"]
    assert result.part == tmp_path / "out"
    assert after < before - 1.0
    assert {"measuring", "training"} <= set(seen)
    lm = dc.load(base, adapter=result.part, weights="float32")
    language = TokenizerLanguage(lm.tokenizer, "letters", len(LETTERS))
    examples, _ = tokenised(read_texts([str(texts)]), language, 256)
    total = count = 0.0
    for text in split(examples)[1]:
        logs = lm.transformer.logits(hidden_states(lm.transformer, text.tokens)).log_softmax(-1)
        for place in range(text.first, len(text.tokens)):
            total -= float(logs[place - 1, text.tokens[place]])
            count += 1
    assert total / count == pytest.approx(after, abs=1e-3)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"run.json", "report.json", "adapter_config.json", "adapter_model.safetensors"}


def test_an_interrupted_run_ends_as_it_would_have(base, texts, tmp_path):
    whole = train(base, texts, tmp_path / "whole")

    def interrupt(phase, done, total, note=""):
        if phase == "training" and done == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(base, texts, tmp_path / "torn", interrupt)
    steps = []

    def count(phase, done, total, note=""):
        if phase == "training":
            steps.append(done)

    resumed = train(base, texts, tmp_path / "torn", count, resume=True)
    assert min(steps) >= 5
    assert steps[-1] == QUICK["steps"]
    assert (whole.part / TENSORS).read_bytes() == (resumed.part / TENSORS).read_bytes()
    assert whole.facts == resumed.facts


def test_a_changed_text_is_not_gone_on_with(base, texts, tmp_path):
    def interrupt(phase, done, total, note=""):
        if phase == "training" and done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(base, texts, tmp_path / "out", interrupt)
    texts.write_text(texts.read_text() + '\n{"text": "more"}')
    with pytest.raises(ParameterError, match=r"texts is .* began"):
        train(base, texts, tmp_path / "out", resume=True)


def test_another_seed_is_another_adapter(base, texts, tmp_path):
    one, two = (train(base, texts, tmp_path / str(seed), seed=seed, steps=2) for seed in (0, 1))
    assert (one.part / TENSORS).read_bytes() != (two.part / TENSORS).read_bytes()
    assert read_adapter(one.part).config.base == str(base.resolve())


def test_other_architectures_are_refused(texts, tmp_path):
    folder = tmp_path / "gpt2"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises((ParameterError, ModelFileError)):
        train(folder, texts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parameters_are_described():
    with pytest.raises(ParameterError, match="adapter needs texts"):
        frame.train(TRAINING, {}, Path("nowhere"))
    assert Params(texts=("a",)).rank == 8


def test_from_the_command_line(base, texts, tmp_path, capsys):
    """Train, then decode with the adapter, by its folder."""
    out = tmp_path / "ahoy"
    code = main.run_command(
        ["train", "adapter", "--model", str(base), "--texts", str(texts), "--out", str(out),
         "--rank", "4", "--steps", "60", "--batch", "4", "--learning-rate", "0.02"]
    )  # fmt: skip
    assert code == 0
    capsys.readouterr()
    code = main.run_command(
        ["run", "sail?", "--model", str(base), "--adapter", str(out), "--method", "greedy",
         "--max-tokens", "12"]
    )  # fmt: skip
    printed = capsys.readouterr()
    assert code == 0
    assert "ahoy!" in printed.out
    assert "greedy" in printed.err
    code = main.run_command(["run", "sail?", "--model", str(base), "--adapter", str(base)])
    assert code == 2
    assert "holds no adapter" in capsys.readouterr().err


def test_a_run_that_has_not_begun_leaves_no_folder(base, tmp_path):
    with pytest.raises(ModelFileError):
        train(base, tmp_path / "missing.txt", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ParameterError, match="holds no run to resume"):
        Run(tmp_path / "out", "adapter", resume=True)
