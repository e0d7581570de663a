"""Bad model files are refused in a line that names them, and take no more than they are worth.

A file may make decodery take twice its size and 64 MiB, whatever is in it. Every file here is
loaded in a process of its own (`bad_files_child.py`) that measures what it takes: by hand-made
files, each bad in another way, and by seeded mutations of good ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_files_child import problem, size_of
from bad_folders import SAFETENSORS
from bad_gguf_files import GGUF
from good_files import folder_model, gguf_model

import decodery
from decodery.models.gguf_quants import SUPPORTED

SECONDS = 60.0  # for one file; all of them take less than ten on a slow machine
START_SECONDS = 300.0  # for the imports, and where the kernels have to be compiled
HERE = Path(__file__).parent
BAD_FILES = {bad.name: bad for bad in (*GGUF, *SAFETENSORS)}


class Loader:
    """A process that loads files one after another, started again after a crash or a hang."""

    def __init__(self, *, warm: bool = True) -> None:
        self._warm = warm
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()

    def attempt(
        self,
        path: Path,
        entry: str = "load_and_use",
        size: int | None = None,
        seconds: float = SECONDS,
    ) -> Any:
        """What came of loading a file; a crash or a hang is an outcome too."""
        size = size_of(path) if size is None else size
        return self._ask({"path": str(path), "entry": entry, "size": size}, seconds)

    def mutations(self, **job: Any) -> Any:
        """What came of a series of mutations."""
        return self._ask({"entry": "load_and_use", "kind": "llama", **job}, SECONDS)

    def _ask(self, job: dict[str, Any], seconds: float) -> Any:
        process = self._started()
        assert process.stdin is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        last: dict[str, Any] = {}
        while True:
            answer = self._answer(seconds)
            if isinstance(answer, str):
                return {"outcome": f"{answer} {last}", "message": "", "problem": f"{answer} {last}"}
            if "seed" not in answer:
                return answer
            last = answer

    def _answer(self, seconds: float) -> dict[str, Any] | str:
        for _ in range(round(seconds)):  # second by second: both processes may have been paused
            with contextlib.suppress(queue.Empty):
                return self._decoded(self._answers.get(timeout=1.0))
        self.close()
        return f"still at it after {seconds:.0f} s"

    def _decoded(self, line: str | None) -> dict[str, Any] | str:
        if line is not None:
            return json.loads(line)
        assert self._process is not None
        code = self._process.wait()
        self.close()
        return f"crashed with {code}"

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            source = str(Path(decodery.__file__).parents[1])
            paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
            quiet = {"RUST_BACKTRACE": "0", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
            self._answers = queue.Queue()
            # A process that is killed cleans up nothing: its temporary files are below ours.
            self._room = tempfile.TemporaryDirectory()
            quiet["TMPDIR"] = self._room.name
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    str(HERE / "bad_files_child.py"),
                    "warm" if self._warm else "cold",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | quiet | {"PYTHONPATH": os.pathsep.join(paths)},
            )
            reader = threading.Thread(target=_read, args=(self._process, self._answers))
            self._reader = reader
            reader.start()
            assert self._answer(START_SECONDS) == {"ready": True}
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._reader.join()
            with self._process:  # closes its pipes, and waits
                self._process = None
            self._room.cleanup()


def _read(process: subprocess.Popen[str], answers: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        answers.put(line)
    answers.put(None)


@pytest.fixture(scope="module")
def loader() -> Iterator[Loader]:
    made = Loader()
    yield made
    made.close()


# -- by hand ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_in_a_line_that_names_it(
    name: str, loader: Loader, tmp_path: Path
) -> None:
    bad = BAD_FILES[name]
    path = bad.write(tmp_path)
    found = loader.attempt(path, size=size_of(tmp_path))
    assert found["outcome"] == "refused", found
    assert problem(found) is None
    assert bad.said in found["message"]
    assert str(tmp_path) in found["message"]


def test_there_are_forty_bad_files_of_each_format() -> None:
    assert len(GGUF) >= 40
    assert len(SAFETENSORS) >= 40
    assert len(BAD_FILES) == len(GGUF) + len(SAFETENSORS)


@pytest.mark.parametrize("name", [bad.name for bad in GGUF if bad.said in ("shape", "not finite")])
def test_a_bad_file_is_not_converted_either(name: str, loader: Loader, tmp_path: Path) -> None:
    path = BAD_FILES[name].write(tmp_path)
    found = loader.attempt(path, entry="load_and_convert")
    assert found["outcome"] == "refused", found
    assert problem(found) is None
    assert str(path) in found["message"]


def test_the_good_files_load(loader: Loader, tmp_path: Path) -> None:
    for matrices in SUPPORTED:
        found = loader.attempt(gguf_model(matrices).write(tmp_path))
        assert (found["outcome"], problem(found)) == ("loaded", None), matrices
    (tmp_path / "folder").mkdir()
    found = loader.attempt(folder_model().write(tmp_path / "folder"))
    assert (found["outcome"], problem(found)) == ("loaded", None)


# -- mutations -------------------------------------------------------------------------------------

FAST = [
    *({"format": "gguf", "matrices": name, "count": 60} for name in SUPPORTED),
    *({"format": "gguf", "matrices": "Q8_0", "kind": kind} for kind in ("qwen2", "gemma3")),
    {"format": "gguf", "matrices": "Q4_0", "entry": "load_and_convert"},
    {"format": "gguf", "matrices": "Q4_K", "entry": "load_floats"},
    {"format": "gguf", "matrices": "Q4_1", "entry": "read_all", "count": 2000},
    {"format": "folder", "count": 500},
    {"format": "folder", "entry": "open_parts", "count": 1000},
]


@pytest.mark.parametrize("job", FAST, ids=lambda job: " ".join(map(str, job.values())))
def test_a_mutated_file_loads_or_is_refused(job: dict[str, Any], loader: Loader) -> None:
    found = loader.mutations(**{"first": 0, "count": 100} | job)
    assert found["problem"] is None
    assert found["counts"].get("refused", 0) > 0


@pytest.mark.slow
@pytest.mark.parametrize("job", FAST, ids=lambda job: " ".join(map(str, job.values())))
@pytest.mark.parametrize("block", range(2))
def test_many_mutated_files_load_or_are_refused(
    block: int, job: dict[str, Any], loader: Loader
) -> None:
    """500 seeds a block of each kind, none of them in the fast test."""
    found = loader.mutations(**job | {"first": 10_000 + 500 * block, "count": 500})
    assert found["problem"] is None


# -- the harness itself ----------------------------------------------------------------------------


@pytest.fixture
def cold_loader() -> Iterator[Loader]:
    made = Loader(warm=False)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("over_allocate", "MiB, allowed 64"),
        ("raise_another", "raised KeyError"),
        ("refuse_in_two_lines", "not a line"),
        ("crash", "crashed with -11"),
        ("hang", "still at it after 2 s"),
    ],
)
def test_planted_defects_are_caught(
    entry: str, said: str, cold_loader: Loader, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"\0" * 1000)
    found = cold_loader.attempt(path, entry=entry, seconds=2.0 if entry == "hang" else SECONDS)
    assert said in str(problem(found))


def test_what_is_allowed_is_allowed(cold_loader: Loader, tmp_path: Path) -> None:
    """The measure itself takes little: 8 MiB less than the bound pass."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"\0" * 1000)
    found = cold_loader.attempt(path, entry="allocate_what_is_allowed")
    assert problem(found) is None
    assert found["peak"] > found["allowed"] - (16 << 20)
