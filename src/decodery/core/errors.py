"""Every error decodery raises on purpose, as one tree.

A message is one line: the thing, the value given, what is allowed, and the nearest valid name or
the fix. Anything that is not a `DecoderyError` is a defect of decodery or of a plug-in.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DecoderyError(Exception):
    """The root of the tree. `exit_code` is what the command line exits with."""

    exit_code = 2


class ParameterError(DecoderyError):
    """An unknown name, an impossible value, or a combination that cannot be honoured."""


class UnknownNameError(ParameterError):
    """A method, scorer or model that is not registered."""


class PromptError(DecoderyError):
    """A prompt that cannot be decoded from: empty, too long, or not of this vocabulary."""


class ModelFileError(DecoderyError):
    """A model file or folder that is missing, corrupt, truncated or of an unknown kind."""


class CacheFolderError(DecoderyError):
    """The folder for converted models cannot be used."""


class TemplateError(DecoderyError):
    """A chat template that cannot be rendered safely."""


class MissingPackageError(DecoderyError):
    """An optional package that the request needs is not installed."""


class CapacityError(DecoderyError):
    """A request that needs more cache than the model has, even alone."""


class TraceError(DecoderyError):
    """A trace file that is missing, damaged, or of another format."""


class RowError(DecoderyError):
    """A row that is no distribution: NaN, plus infinity, or nothing allowed."""


class TreeError(DecoderyError):
    """A node was used against the rules of the tree: dropped, foreign, or its row released."""


class BudgetExhausted(DecoderyError):
    """Raised inside a decoder when its budget of calls or seconds is spent.

    A decoder may catch it to return the best it has; uncaught, what was emitted is the result.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the budget is spent: {reason}")
        self.reason = reason


def nearest(name: str, known: Iterable[str]) -> str:
    """A phrase that offers the nearest valid name, or lists a few valid ones.

    >>> nearest("top_q", ["top_k", "temperature"])
    "did you mean 'top_k'?"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"known: {shown}" if names else "none is known"
