"""Loads bad files and reports what came of it: run by `test_bad_files.py` in a process of its own.

A crash ends this process and nothing else, memory is measured where nobody else allocates, and a
hang can be killed. Jobs come as JSON lines on standard input, what came of each goes to standard
output. Everything that a load imports is imported, and every kind of model loaded once, before the
first job, so that what a job takes is what its file takes.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutations
from good_files import FolderModel, folder_model, gguf_model

from decodery.core.errors import DecoderyError, ModelFileError
from decodery.models import native

SPARE_BYTES = 64 << 20
PROMPT = "hello 12 <think>é"


# -- measuring -------------------------------------------------------------------------------------


class Peak:
    """The largest growth of the resident memory of this process while a block runs.

    Where the system does not let the mark be put back (`clear_refs`), the growth is known only
    when it is the largest so far; then it counts from before the block, and else as 0.
    """

    bytes = 0

    def __enter__(self) -> Peak:
        gc.collect()
        _trim()
        self._exact = _forget_peak()
        self._before, self._most = _status("VmRSS"), _status("VmHWM")
        return self

    def __exit__(self, *_: object) -> None:
        most = _status("VmHWM")
        if self._exact or most > self._most:
            self.bytes = most - self._before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _forget_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _trim() -> None:
    """Give back what was freed, or the next job would take it unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


# -- loading ---------------------------------------------------------------------------------------


def load_and_use(path: Path) -> None:
    """What a user does: load, and generate a little."""
    import decodery

    model = decodery.load(path)
    try:
        model.generate(PROMPT, max_tokens=2, method="greedy")
    except DecoderyError:
        return  # a row of NaN, say: the file loaded, and running it was refused


def load_and_convert(path: Path) -> None:
    from decodery.models.convert import converted

    converted(path, "float32")


def load_floats(path: Path) -> None:
    import decodery

    decodery.load(path, weights="float32")


def read_all(path: Path) -> None:
    """The GGUF reader alone, and everything in the file."""
    from decodery.models import gguf
    from decodery.models.gguf_quants import SUPPORTED

    with gguf.read(path) as file:
        for content in file.metadata.values():
            str(content.tolist() if isinstance(content, gguf.TextArray) else content)
        for name, info in file.tensors.items():
            if info.type in SUPPORTED:
                gguf.dequantise(file, name)


def open_parts(path: Path) -> None:
    """What a folder is opened with, one after the other: a mutation stops only its own part."""
    import torch

    from decodery.models.architecture import Architecture
    from decodery.models.tokenizer import Tokenizer
    from decodery.models.weights import SafetensorsFolder, read_json

    def tensors() -> None:
        with SafetensorsFolder(path) as store:
            for name in store.shapes:
                store.tensor(name).to(torch.float32)

    def text() -> None:
        tokenizer = Tokenizer.from_folder(path)
        tokenizer.decode(tokenizer.encode(PROMPT))
        assert tokenizer.eos_ids is not None

    refusals = []
    for part in (lambda: Architecture.from_config(read_json(path / "config.json")), tensors, text):
        try:
            part()
        except ModelFileError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


def over_allocate(path: Path) -> None:
    """A planted defect: 16 MiB more than allowed."""
    size = 2 * path.stat().st_size + SPARE_BYTES + (16 << 20)
    held = bytearray(b"\1") * size
    raise ModelFileError(f"{path}: held {len(held)}")


def allocate_what_is_allowed(path: Path) -> None:
    """No defect: 8 MiB less."""
    held = bytearray(b"\1") * (2 * path.stat().st_size + SPARE_BYTES - (8 << 20))
    raise ModelFileError(f"{path}: held {len(held)}")


def raise_another(path: Path) -> None:
    raise KeyError(str(path))


def refuse_in_two_lines(path: Path) -> None:
    raise ModelFileError(f"{path}: a\nb")


def hang(path: Path) -> None:
    time.sleep(3600)


def crash(path: Path) -> None:
    ctypes.string_at(0)


ENTRIES: dict[str, Callable[[Path], None]] = {
    function.__name__: function
    for function in (
        load_and_use,
        load_and_convert,
        load_floats,
        read_all,
        open_parts,
        over_allocate,
        allocate_what_is_allowed,
        raise_another,
        refuse_in_two_lines,
        hang,
        crash,
    )
}


def attempt(entry: str, path: Path, size: int) -> dict[str, Any]:
    """Load a file and say what came of it."""
    outcome, message = "loaded", ""
    start = time.perf_counter()
    with Peak() as peak:
        try:
            ENTRIES[entry](path)
        except ModelFileError as error:
            outcome, message = "refused", str(error)
        except BaseException as error:
            outcome, message = type(error).__name__, str(error)[:500]
    seconds = time.perf_counter() - start
    shutil.rmtree(os.environ["DECODERY_CACHE"], ignore_errors=True)
    return {
        "outcome": outcome,
        "message": message,
        "peak": peak.bytes,
        "allowed": 2 * size + SPARE_BYTES,
        "seconds": seconds,
    }


def problem(found: dict[str, Any]) -> str | None:
    """What is wrong with an outcome, if anything."""
    if found["outcome"] not in ("loaded", "refused"):
        return f"raised {found['outcome']}: {found['message']}"
    if found["peak"] > found["allowed"]:
        return f"took {found['peak'] >> 20} MiB, allowed {found['allowed'] >> 20}"
    if len(found["message"].splitlines()) > 1 or len(found["message"]) > 2000:
        return f"a message that is not a line: {found['message'][:200]!r}"
    return None


def size_of(path: Path) -> int:
    """The bytes of a file, or of a folder's files."""
    paths = path.rglob("*") if path.is_dir() else [path]
    return sum(each.stat().st_size for each in paths if each.is_file())


# -- mutations -------------------------------------------------------------------------------------


def mutated_gguf(job: dict[str, Any], folder: Path) -> Callable[[int], Path]:
    raw = gguf_model(job["matrices"], job["kind"]).raw()
    path = folder / "m.gguf"

    def write(seed: int) -> Path:
        rng = random.Random(seed)
        path.write_bytes(rng.choice(mutations.GGUF)(raw, rng))
        return path

    return write


def mutated_folder(job: dict[str, Any], folder: Path) -> Callable[[int], Path]:
    """One file of a folder at a time, the rest as they were."""
    made: FolderModel = folder_model()
    made.write(folder)
    names = [*made.files, "model.safetensors", "model.safetensors"]
    good = {name: (folder / name).read_bytes() for name in names}

    def write(seed: int) -> Path:
        rng = random.Random(seed)
        for name, raw in good.items():
            (folder / name).write_bytes(raw)
        name = rng.choice(names)
        kinds = mutations.SAFETENSORS if name == "model.safetensors" else mutations.JSON
        (folder / name).write_bytes(rng.choice(kinds)(good[name], rng))
        return folder

    return write


def run_mutations(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Seeds from `first` on, until `count` are done; the first problem ends the run."""
    write = {"gguf": mutated_gguf, "folder": mutated_folder}[job["format"]](job, folder)
    counts: dict[str, int] = {}
    slowest = most = 0.0
    for seed in range(job["first"], job["first"] + job["count"]):
        path = write(seed)
        _say({"seed": seed})
        found = attempt(job["entry"], path, size_of(path))
        counts[found["outcome"]] = counts.get(found["outcome"], 0) + 1
        slowest, most = max(slowest, found["seconds"]), max(most, found["peak"] - found["allowed"])
        wrong = problem(found)
        if wrong is not None:
            return {"problem": f"seed {seed}: {wrong}", "counts": counts}
    return {"problem": None, "counts": counts, "slowest": slowest, "most": most}


# -- the process -----------------------------------------------------------------------------------


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _warm_up(folder: Path) -> None:
    """Load each kind of model once: ours from both formats, and one that transformers runs."""
    for kind, matrices in (("llama", "Q4_0"), ("qwen2", "F16")):
        load_and_use(gguf_model(matrices, kind).write(folder))
        load_and_convert(folder / "model.gguf")
        load_floats(folder / "model.gguf")
    made = folder_model().write(folder)
    load_and_use(made)
    fields = {"model_type": "gpt2", "vocab_size": 8, "n_embd": 8, "n_head": 2, "n_layer": 1}
    (folder / "config.json").write_text(json.dumps(fields))
    for _ in range(2):  # the second time nothing is left to import
        attempt("load_and_use", folder, 0)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if sys.argv[1] == "warm":
            native.library()  # compiled into the user's own cache, if it has to be
        os.environ["DECODERY_CACHE"] = str(folder / "cache")
        (folder / "warm").mkdir()
        if sys.argv[1] == "warm":
            _warm_up(folder / "warm")
        gc.collect()
        gc.freeze()  # what is imported needs no looking through again
        _say({"ready": True})
        for line in sys.stdin:
            job = json.loads(line)
            if "format" in job:
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    _say(run_mutations(job, Path(place)))
                continue
            path = Path(job["path"])
            _say(attempt(job["entry"], path, job["size"]))


if __name__ == "__main__":
    main()
