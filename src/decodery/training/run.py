"""A run of a training: its folder, its checkpoints, its progress, and Ctrl-C.

    run.json                   the training, its parameters, and what else must not change
    kept/NAME.safetensors      what finished phases made
    state-STEP.safetensors     the checkpoint in force, named with its SHA-256 by
    state.json                 (phase, step, file, digest)
    NAME.safetensors           the trained part, and
    report.json                what was measured, when the run has ended; all above but run.json go

Every file is written beside its place, flushed and renamed, `state.json` after the tensors that it
names: whenever a run dies, what is there is whole. A run that goes on computes, from the last
checkpoint, what it would have computed: that is bitwise so when a training draws by seed and step
(not from a generator that runs along) and hands over all that changes as its state.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from decodery.core.errors import ModelFileError, ParameterError
from decodery.models.bounds import file_bytes, one_line
from decodery.models.parts import write_whole
from decodery.models.weights import read_json

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = Mapping[str, Tensor]

FORMAT = 1
SAVE_SECONDS = 30.0
MAX_CHECKPOINT_BYTES = 16 << 30
_STEMS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


class Progress(Protocol):
    """Told what is done: the phase, how far it is, and a note such as the loss."""

    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None: ...


class Run:
    """The run of one training in one folder; a context manager that holds Ctrl-C back in steps.

    Without `resume` the folder must be new or empty; with it, it must hold a run that has not
    ended. Raises `ParameterError` for either, `ModelFileError` for damaged files.
    """

    def __init__(
        self, folder: Path, name: str, *, resume: bool = False, progress: Progress | None = None
    ) -> None:
        self.folder = folder
        self.name = name
        self.parameters: Mapping[str, Any] = {}
        self.begun = False
        self.note = ""  # shown beside the progress, such as the loss
        self._progress = progress
        self._stepping = self._asked = False
        self._handler: Any = None
        self._before = self._read() if resume else None
        if not resume:
            self._check_empty()

    # -- beginning and ending --------------------------------------------------------------------

    def merged(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values`, and the parameters that the run to be resumed began with."""
        if self._before is None:
            return dict(values)
        known: dict[str, Any] = self._before["parameters"]
        for name, value in values.items():
            now = list(value) if isinstance(value, tuple) else value
            if name in known and known[name] != now:
                raise ParameterError(
                    f"{name} is {value!r} now and was {known[name]!r} when the run in"
                    f" {self.folder} began; leave it out, or begin another run"
                )
        return {**known, **values}

    def begin(self, **pinned: str | int) -> None:
        """Begin the work, when all input is checked. `pinned` may not change until the run ends,
        such as the fingerprints of model and texts."""
        if self._before is None:
            content = {
                "format": FORMAT,
                "training": self.name,
                "parameters": self.parameters,
                "pinned": pinned,
            }
            self._write("run.json", _json(content))
        else:
            for name, value in pinned.items():
                before = self._before["pinned"].get(name)
                if before != value:
                    raise ParameterError(
                        f"{name} is {value} now and was {before} when the run in {self.folder}"
                        " began; begin another run"
                    )
        self.begun = True

    def finish(self, report: Mapping[str, Any], write: Callable[[], None]) -> None:
        """Write the result and the report, then remove what only an unfinished run needs."""
        self.show("writing", 0, 1)
        try:
            write()
        except OSError as error:
            raise self._unwritable(error) from None
        content = {"training": self.name, "parameters": self.parameters, **report}
        self._write("report.json", _json(content))
        shutil.rmtree(self.folder / "kept", ignore_errors=True)
        for path in [*self.folder.glob("state-*.safetensors"), self.folder / "state.json"]:
            path.unlink(missing_ok=True)

    def __enter__(self) -> Run:
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._interrupted)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None

    def _interrupted(self, _number: int, _frame: FrameType | None) -> None:
        """Ctrl-C: within steps it waits for the end of the step; a second one waits for nothing."""
        if not self._stepping or self._asked:
            raise KeyboardInterrupt
        self._asked = True

    # -- working ---------------------------------------------------------------------------------

    def show(self, phase: str, done: int, total: int) -> None:
        """Tell whoever watches how far a phase is."""
        if self._progress is not None:
            self._progress(phase, done, total, self.note)

    def kept(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        """What `make` makes, kept in the folder until the run ends: a resumed run reads it."""
        path = self.folder / "kept" / f"{_checked(name)}.safetensors"
        if self._before is not None and path.exists():
            return _tensors(path, file_bytes(path, MAX_CHECKPOINT_BYTES))
        made = make()
        self._write(f"kept/{path.name}", _bytes(made))
        return made

    def restored(self, phase: str) -> Tensors | None:
        """The state of the checkpoint that a resumed run goes on from; None at a beginning."""
        return self._checkpoint(phase)[1]

    def steps(self, phase: str, total: int, state: Callable[[], Tensors]) -> Iterator[int]:
        """The steps of a phase that are still to be done; `state` gives all that changes in them.

        Between two steps a checkpoint is saved when it is time, and on Ctrl-C, which then ends the
        run with `KeyboardInterrupt`.
        """
        start = self._checkpoint(phase)[0]
        self.show(phase, start, total)
        saved = time.monotonic()
        self._stepping = True
        try:
            for step in range(start, total):
                yield step
                self.show(phase, step + 1, total)
                if self._asked or time.monotonic() - saved > SAVE_SECONDS:
                    self._save(phase, step + 1, state())
                    saved = time.monotonic()
                if self._asked:
                    raise KeyboardInterrupt
        finally:
            self._stepping = False
        if self._asked:  # since the last look
            raise KeyboardInterrupt

    # -- files -----------------------------------------------------------------------------------

    def _check_empty(self) -> None:
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise ParameterError(f"{self.folder} is a file; name a folder")
        unfinished = (self.folder / "run.json").exists()
        unfinished = unfinished and not (self.folder / "report.json").exists()
        if unfinished:
            raise ParameterError(
                f"{self.folder} holds a run that has not ended; resume it, or name another folder"
            )
        if any(self.folder.iterdir()):
            raise ParameterError(f"{self.folder} is not empty; name a new folder")

    def _read(self) -> dict[str, Any]:
        path = self.folder / "run.json"
        if not path.exists():
            raise ParameterError(f"{self.folder} holds no run to resume")
        if (self.folder / "report.json").exists():
            raise ParameterError(f"the run in {self.folder} has ended; begin another one elsewhere")
        content = read_json(path)
        objects = all(isinstance(content.get(key), dict) for key in ("parameters", "pinned"))
        if content.get("format") != FORMAT or not objects:
            raise ModelFileError(f"{path}: is not the run.json of a training of this version")
        if content.get("training") != self.name:
            raise ParameterError(
                f"{self.folder} holds a run of the training {content.get('training')!r}, not of"
                f" {self.name!r}"
            )
        return content

    def _checkpoint(self, phase: str) -> tuple[int, Tensors | None]:
        """The step to go on with and its state; 0 and None where there is no checkpoint yet."""
        place = self.folder / "state.json"
        if self._before is None or not place.exists():
            return 0, None
        content = read_json(place)
        step, digest = content.get("step"), content.get("sha256")
        if type(step) is not int or step < 1 or not isinstance(content.get("phase"), str):
            raise ModelFileError(f"{place}: is not a checkpoint of this version")
        if content["phase"] != phase:
            return 0, None
        path = self.folder / f"state-{step}.safetensors"
        raw = file_bytes(path, MAX_CHECKPOINT_BYTES)
        if hashlib.sha256(raw).hexdigest() != digest:
            raise ModelFileError(f"{path}: is not the checkpoint that {place.name} names")
        return step, _tensors(path, raw)

    def _save(self, phase: str, step: int, tensors: Tensors) -> None:
        raw = _bytes(tensors)
        name = f"state-{step}.safetensors"
        self._write(name, raw)
        digest = hashlib.sha256(raw).hexdigest()
        self._write("state.json", _json({"phase": phase, "step": step, "sha256": digest}))
        for path in self.folder.glob("state-*.safetensors"):
            if path.name != name:
                path.unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all."""
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> ParameterError:
        return ParameterError(f"the folder {self.folder} cannot be written: {error.strerror}")


def _checked(name: str) -> str:
    if not name or not _STEMS.issuperset(name):
        raise ParameterError(f"{name!r} cannot name a file; letters, digits, - and _ can")
    return name


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, allow_nan=False, indent=2) + "\n").encode()


def _bytes(tensors: Tensors) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _tensors(path: Path, raw: bytes) -> Tensors:
    from safetensors.torch import load

    try:
        return load(raw)
    except Exception as error:  # safetensors' own, and torch's about a shape
        raise ModelFileError(
            f"{path}: not a readable safetensors file: {one_line(error)}"
        ) from error
