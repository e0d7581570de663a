"""From names and values to a run: which decoder, which sampler chain, which limits, and why.

Every door (Python, command line, server) gives the same thing: a method's name and a flat mapping
of parameter values. A plan finds the owner of each value, refuses what has none or would have no
effect, and remembers where every effective value came from.

The default chain applies samplers by the `place` on their cards: penalties, masks, temperature,
then truncation. `sampler_order` names another order.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from decodery.core import registry
from decodery.core.card import Method
from decodery.core.decoder import Decoder
from decodery.core.errors import ParameterError, nearest
from decodery.core.params import Parameters, make, parameter
from decodery.core.sampler import Chain, chain
from decodery.core.source import Recipe

Origin = Literal["user", "model", "default", "random"]
DEFAULT_DECODER = "sample"
DEFAULT_MAX_TOKENS = 256
AUTO, OFF = "auto", "off"
AUTO_METHOD = "speculate"  # what speculation auto is
SPECULATIVE = "speculative"  # the family
PLAIN = ("sample", "greedy")  # the decoders that speculation makes faster


class RunParams(Parameters):
    """Parameters of every run, whatever its method."""

    max_tokens: int | None = parameter(
        None,
        ge=1,
        le=1_000_000,
        unit="tokens",
        help=f"Most tokens of an answer; default {DEFAULT_MAX_TOKENS}, or what the context leaves.",
    )
    seed: int | None = parameter(
        None, ge=0, lt=2**63, help="Seed of all random draws; default: a random one, reported."
    )
    stop: tuple[str, ...] = parameter((), help="Strings before which the text is cut.")
    stop_ids: tuple[int, ...] = parameter((), help="Token ids that end an answer.")
    ignore_eos: bool = parameter(False, help="Treat end tokens as ordinary tokens.")
    max_calls: int | None = parameter(
        None, ge=1, unit="forwards", help="Most model calls the run may take part in."
    )
    max_seconds: float | None = parameter(
        None, gt=0, unit="seconds", help="Wall time after which the run ends with what it has."
    )
    sampler_order: tuple[str, ...] = parameter(
        (), help="Names of the samplers in the order to apply them; default: by their place."
    )
    speculation: str | None = parameter(
        None,
        help="Draft tokens and verify several in one forward: auto (as far as it pays, the text"
        " stays the same), off, or an exact method. Default: off; of `decodery run`: auto.",
    )
    blend: str | None = parameter(
        None, help="Decode from this blend over the model; `--method BLEND` does so by itself."
    )
    cache_salt: str | None = parameter(
        None,
        help="Share cached prompts only with runs of the same salt, such as a tenant's secret.",
    )


@dataclass(frozen=True)
class Effective:
    """A value in force and where it came from."""

    value: Any
    origin: Origin


@dataclass(frozen=True)
class Plan:
    """A run, ready: parts built, parameters checked, nothing executed."""

    method: str
    decoder: Decoder
    recipe: Recipe | None
    sampler: Chain
    run: RunParams
    seed: int
    parameters: dict[str, Effective]

    def describe(self) -> dict[str, dict[str, Any]]:
        """The effective parameters as JSON: name -> {"value", "from"}."""
        return {
            name: {"value": _plain(item.value), "from": item.origin}
            for name, item in self.parameters.items()
        }


def make_plan(
    method: str | Decoder | None,
    values: Mapping[str, Any],
    recommended: Mapping[str, Any] | None = None,
) -> Plan:
    """Build a plan or raise `ParameterError` before anything runs.

    `recommended` are the model's own settings. They are used only where the user names neither a
    method nor any sampler parameter, and then they are reported as coming from the model.
    """
    rest = dict(values)
    run_values = {name: rest.pop(name) for name in RunParams.model_fields if name in rest}
    run = make(RunParams, run_values, "run")
    decoder_method, blend, samplers = _parts(method, run.blend)
    speculative = _speculative(decoder_method, run.speculation)
    decoder_values = _own(speculative or decoder_method, rest)
    blend_values = _own(blend, rest)
    taken = [item for item in (decoder_method, speculative, blend) if item]
    chosen = _assign(rest, taken, samplers)
    origin: Origin = "user"
    if method is None and blend is None and not chosen and recommended:
        chosen = _assign(dict(recommended), [], [])
        origin = "model"
    order = _ordered(chosen, run.sampler_order)

    parameters: dict[str, Effective] = {}
    _note_run(parameters, run, run_values)
    if speculative is None and run.speculation == AUTO:
        del parameters["speculation"]  # it has no place here
    stages: list[Any] = []
    for sampler, given in order:
        params = make(sampler.params, given, sampler.name)
        _note(parameters, params, given, origin)
        stages.append(sampler.build(params))
    if decoder_method is None:
        assert isinstance(method, Decoder)
        decoder, name = method, type(method).__name__
    else:
        made = speculative or decoder_method
        params = make(made.params, decoder_values, made.name)
        shown = made.params.model_fields
        if speculative is not None and run.speculation == AUTO:
            shown = decoder_values  # how it drafts changes nothing of the text
        _note(parameters, params, decoder_values, "user", shown)
        decoder = made.build(params)
        if speculative is not None and decoder_method.name == "greedy":
            decoder = _greedy(decoder)
        name = method if isinstance(method, str) else decoder_method.name
    recipe = None
    if blend is not None:
        params = make(blend.params, blend_values, blend.name)
        _note(parameters, params, blend_values, "user")
        recipe = blend.build(params)
    refuse_idle(decoder, chain(stages))
    seed = secrets.randbits(32) if run.seed is None else run.seed
    parameters["seed"] = Effective(seed, "random" if run.seed is None else "user")
    return Plan(name, decoder, recipe, chain(stages), run, seed, parameters)


def _parts(
    method: str | Decoder | None, blend: str | None
) -> tuple[Method | None, Method | None, list[Method]]:
    """The decoder's method (None for a decoder object), the blend, and samplers by name."""
    source = None if blend is None else registry.get(blend, "blend")
    if isinstance(method, Decoder):
        return None, source, []
    found = registry.get(method or _own_decoder(source))
    if found.card.kind == "decoder":
        return found, source, []
    if found.card.kind == "sampler":
        return registry.get(DEFAULT_DECODER), source, [found]
    if found.card.kind == "blend":
        if source is not None:
            raise ParameterError(
                f"method {found.name} and blend {source.name} are both blends; name one, and a"
                " decoder or a sampler as the method"
            )
        return registry.get(_own_decoder(found)), found, []
    raise ParameterError(
        f"{found.name} is a {found.card.kind} and cannot decode alone; name a decoder or a sampler"
        f" (for a scorer: method best_of_n with scorer={found.name})"
    )


def _speculative(decoder: Method | None, speculation: str | None) -> Method | None:
    """The speculative method that takes the decoder's place, if any does."""
    if speculation in (None, OFF):
        return None
    if decoder is None or decoder.name not in PLAIN:
        if speculation == AUTO:
            return None  # as far as it pays: here it has no place
        raise ParameterError(
            f"speculation {speculation} makes methods {' and '.join(PLAIN)} faster, not"
            f" {'a decoder object' if decoder is None else decoder.name}"
        )
    if speculation == AUTO:
        return registry.get(AUTO_METHOD, "decoder")
    found = [item for item in registry.of_kind("decoder") if item.card.family == SPECULATIVE]
    names = [item.name for item in found if item.card.guarantee == "exact"]
    if speculation not in names:
        if speculation in [item.name for item in found]:
            raise ParameterError(
                f"speculation {speculation} would not keep the law of {decoder.name}; name it as"
                " the method"
            )
        raise ParameterError(
            f"speculation is {speculation!r}; {nearest(speculation, [AUTO, OFF, *names])}"
        )
    return registry.get(speculation, "decoder")


def _greedy(decoder: Decoder) -> Decoder:
    if decoder.sequences > 1:
        raise ParameterError(f"n is {decoder.sequences}; greedy decoding has one answer")
    return decoder.certain()


def _own_decoder(blend: Method | None) -> str:
    """What decodes when the run names no decoder."""
    return DEFAULT_DECODER if blend is None else blend.card.decoder or DEFAULT_DECODER


def _own(method: Method | None, rest: dict[str, Any]) -> dict[str, Any]:
    """Take the values out of `rest` that are a method's own parameters."""
    fields = {} if method is None else method.params.model_fields
    return {name: rest.pop(name) for name in fields if name in rest}


def _assign(
    values: Mapping[str, Any], taken: Sequence[Method], wanted: Sequence[Method]
) -> dict[str, tuple[Method, dict[str, Any]]]:
    """Each value to the sampler that owns its name; the wanted samplers come in any case."""
    chosen: dict[str, tuple[Method, dict[str, Any]]] = {item.name: (item, {}) for item in wanted}
    owners = _owners(wanted)
    for name, value in values.items():
        if name not in owners:
            known = [*RunParams.model_fields, *owners]
            known += [name for method in taken for name in method.params.model_fields]
            names = " and ".join(repr(method.name) for method in taken)
            who = f"method {names}" if taken else "this run"
            raise ParameterError(f"{who} knows no parameter {name!r}; {nearest(name, known)}")
        owner = owners[name]
        chosen.setdefault(owner.name, (owner, {}))[1][name] = value
    return chosen


def _owners(wanted: Sequence[Method]) -> dict[str, Method]:
    """Which sampler a parameter name belongs to; a sampler asked for by name comes first."""
    owners: dict[str, Method] = {}
    for sampler in [*wanted, *registry.of_kind("sampler")]:
        for name in sampler.params.model_fields:
            owners.setdefault(name, sampler)
    return owners


def _ordered(
    chosen: Mapping[str, tuple[Method, dict[str, Any]]], order: Sequence[str]
) -> list[tuple[Method, dict[str, Any]]]:
    if not order:
        return sorted(chosen.values(), key=lambda item: (item[0].card.place, item[0].name))
    missing = [name for name in chosen if name not in order]
    extra = [name for name in order if name not in chosen]
    if missing or extra or len(set(order)) != len(order):
        raise ParameterError(
            f"sampler_order is {', '.join(order)}; it must name each active sampler once:"
            f" {', '.join(sorted(chosen)) or 'none is active'}"
        )
    return [chosen[name] for name in order]


def refuse_idle(decoder: Decoder, sampler: Chain) -> None:
    """A sampler that keeps the argmax does nothing under a decoder that reads nothing else."""
    if not decoder.reads_argmax_only:
        return
    for stage in sampler.stages:
        if stage.keeps_argmax:
            raise ParameterError(
                f"{stage!r} has no effect under {decoder!r}, which takes the most probable token;"
                " leave it out, or use method sample"
            )


def _note(
    noted: dict[str, Effective],
    params: Parameters,
    given: Mapping[str, Any],
    origin: Origin,
    shown: Iterable[str] | None = None,
) -> None:
    for name in type(params).model_fields if shown is None else shown:
        noted[name] = Effective(getattr(params, name), origin if name in given else "default")


def _note_run(noted: dict[str, Effective], run: RunParams, given: Mapping[str, Any]) -> None:
    for name in RunParams.model_fields:
        if name == "cache_salt":
            continue  # a secret, and without effect on the answer: never in reports
        if name != "seed" and (name in given or name == "max_tokens"):
            noted[name] = Effective(getattr(run, name), "user" if name in given else "default")


def _plain(value: Any) -> Any:
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return getattr(value, "name", repr(value))
