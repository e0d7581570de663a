"""A language model with its tokenizer: the source that users hold.

`lm.generate(prompt, method="min_p", min_p=0.1)` plans a run by names; `lm | chain(...)` makes a
policy for `decodery.generate` and `decodery.stream`, which take any policy whose source has text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from decodery.api.generation import Generation, TextEvents, sample
from decodery.api.plan import DEFAULT_MAX_TOKENS, Effective, Plan, make_plan, refuse_idle
from decodery.core.decoder import Decoder, Task
from decodery.core.errors import ParameterError, PromptError
from decodery.core.handle import Budget, Handle
from decodery.core.language import Message
from decodery.core.rng import Stream
from decodery.core.runner import Runner
from decodery.core.source import Blend, Policy, Source
from decodery.core.stopping import Stopping
from decodery.core.trace import Trace
from decodery.models.causal import CausalModel
from decodery.models.chat import prompt_messages
from decodery.models.language import TokenizerLanguage
from decodery.models.parts import MadeFor, read_part, vocabulary_of
from decodery.models.tokenizer import Tokenizer
from decodery.models.transformer import Transformer

Prompt = str | Sequence[Message] | Sequence[int]


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt's tokens, its text with the chat template around it, and its messages if any."""

    tokens: tuple[int, ...]
    text: str
    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        if not self.tokens:
            raise PromptError("the prompt is empty; give at least one token")


class LanguageModel(CausalModel):
    """A causal model that reads and writes text.

    `recommended` are sampler settings its authors publish; a run uses them, and says so, only when
    it names neither a method nor a sampler parameter.
    """

    def __init__(
        self,
        transformer: Transformer,
        tokenizer: Tokenizer,
        *,
        name: str,
        cache_tokens: int | None = None,
        prefix_cache: bool = True,
        recommended: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            transformer,
            name=name,
            eos_ids=tokenizer.eos_ids,
            cache_tokens=cache_tokens,
            prefix_cache=prefix_cache,
        )
        self.tokenizer = tokenizer
        self.language: TokenizerLanguage = TokenizerLanguage(tokenizer, name, self.vocab_size)
        self.recommended = dict(recommended or {})
        self.load_beside: Callable[[str], LanguageModel] | None = None  # set by `load`

    def __repr__(self) -> str:
        size = self.transformer.parameters / 1e6
        return f"LanguageModel({self.name}, {size:.0f}M parameters, {self.transformer.dtype})"

    # -- trained parts ---------------------------------------------------------------------------

    @property
    def identity(self) -> MadeFor:
        """What a part must have been trained for to be this model's."""
        vocabulary = vocabulary_of(tuple(self.language.pieces()))
        return MadeFor(self.name, vocabulary, self.transformer.width)

    def part(self, name: str, file: str | None = None) -> Mapping[str, npt.NDArray[np.floating]]:
        return read_part(name, self.identity, file)

    # -- text ------------------------------------------------------------------------------------

    def read(self, prompt: Prompt, *, system: str | None = None, raw: bool = False) -> ReadPrompt:
        """A prompt as the model reads it.

        A string becomes a user message of the chat template, unless `raw` or the model has none;
        a list of messages goes through the template; a list of ids is taken as it is.
        """
        if not isinstance(prompt, str) and all(isinstance(item, int) for item in prompt):
            if system is not None:
                raise ParameterError("system needs a prompt of text or messages, not of token ids")
            tokens = tuple(int(item) for item in prompt)  # type: ignore[arg-type]
            return ReadPrompt(tokens, self.tokenizer.decode(tokens))
        if isinstance(prompt, str):
            if not prompt.strip() and not raw:
                raise PromptError("the prompt is empty; give some text")
            if raw or not self.language.has_chat:
                if system is not None:
                    raise ParameterError("system needs a chat template, which raw leaves out")
                return ReadPrompt(self.language.encode(prompt), prompt)
            messages = prompt_messages(prompt, system)
        else:
            messages = _with_system([dict(message) for message in prompt], system)  # type: ignore[arg-type]
        text = self.language.chat_text(messages)
        tokens = tuple(self.tokenizer.encode(text, add_special=False))
        return ReadPrompt(tokens, text, tuple(messages))

    # -- running ---------------------------------------------------------------------------------

    @overload
    def generate(self, prompt: str, **options: Any) -> Generation: ...
    @overload
    def generate(self, prompt: Sequence[str], **options: Any) -> list[Generation]: ...
    @overload
    def generate(self, prompt: Sequence[Message] | Sequence[int], **options: Any) -> Generation: ...

    def generate(self, prompt: Any, **options: Any) -> Any:
        """Run to the end. A list of strings is a batch of prompts, answered in one runner.

        All prompts of a batch get the same seed, so each is answered as it would be alone, and
        draws at equal positions share their noise; for independent draws give each its own seed.

        Options: `method`, every parameter of the method and of any sampler, the parameters of
        every run (`max_tokens`, `seed`, `stop`, ...), and `system`, `raw`, `trace`.
        """
        if not isinstance(prompt, str) and prompt and all(isinstance(item, str) for item in prompt):
            return self._batch(list(prompt), options)
        events = self.stream(prompt, **options)
        for _ in events:
            pass
        return events.generation

    def stream(
        self,
        prompt: Prompt,
        *,
        method: str | Decoder | None = None,
        system: str | None = None,
        raw: bool = False,
        trace: Trace | bool = False,
        **parameters: Any,
    ) -> TextEvents:
        """Run and iterate over text as it becomes final; takes what `generate` takes."""
        plan = make_plan(method, parameters, self.recommended)
        runner = Runner()
        handle, finish = self._submit(runner, prompt, plan, system, raw, trace)
        return TextEvents(runner, handle, self.tokenizer, finish)

    def _batch(self, prompts: list[str], options: dict[str, Any]) -> list[Generation]:
        options = dict(options)
        method = options.pop("method", None)
        system, raw = options.pop("system", None), options.pop("raw", False)
        trace = options.pop("trace", False)
        plan = make_plan(method, options, self.recommended)
        runner = Runner()
        try:
            ended = [self._submit(runner, item, plan, system, raw, trace) for item in prompts]
            runner.run()
        finally:
            runner.close()
        return [finish(handle) for handle, finish in ended]

    def _submit(
        self,
        runner: Runner,
        prompt: Prompt,
        plan: Plan,
        system: str | None,
        raw: bool,
        trace: Trace | bool,
    ) -> tuple[Handle, Any]:
        read = self.read(prompt, system=system, raw=raw)
        policy = Policy(self.source(plan), plan.sampler)
        return submit(runner, policy, plan, read, tokenizer=self.tokenizer, trace=trace)

    def source(self, plan: Plan) -> Source:
        """What a plan decodes from: this model, or the blend that the plan names over it."""
        if plan.recipe is None:
            return self
        return plan.recipe.over(self, self.beside)

    def beside(self, name: str) -> LanguageModel:
        """A further model by folder, file or hub id: an adapter is put on this model's base."""
        from decodery.api.load import load  # it imports this module

        return (self.load_beside or load)(name)


def submit(
    runner: Runner,
    policy: Policy,
    plan: Plan,
    read: ReadPrompt,
    *,
    tokenizer: Tokenizer,
    trace: Trace | bool = False,
) -> tuple[Handle, Any]:
    """Queue a planned run; returns its handle and the function that makes its generation."""
    source, run = policy.source, plan.run
    max_tokens, noted = _max_tokens(source, len(read.tokens), run.max_tokens)
    for token in run.stop_ids:
        if not 0 <= token < source.vocab_size:
            raise ParameterError(
                f"stop_ids has {token}, outside the vocabulary of {source.vocab_size}"
            )
    stopping = Stopping(
        max_tokens=max_tokens,
        eos_ids=source.eos_ids,
        stop_ids=frozenset(run.stop_ids),
        stop=run.stop,
        ignore_eos=run.ignore_eos,
        decode=tokenizer.decode,
    )
    task = Task(
        policy,
        read.tokens,
        stopping,
        Stream(plan.seed),
        read.text,
        tokenizer.decode,
        run.cache_salt,
        read.messages,
    )
    record = Trace() if trace is True else (trace if isinstance(trace, Trace) else None)
    decoder = plan.decoder.equipped(text_model(source).beside)
    handle = runner.submit(decoder, task, Budget(run.max_calls, run.max_seconds), trace=record)
    parameters = plan.describe() | {"max_tokens": {"value": noted.value, "from": noted.origin}}
    if record is not None:
        record.about = {
            "method": plan.method,
            "model": source.name,
            "seed": plan.seed,
            "parameters": parameters,
            "prompt": read.text,
        }

    def finish(handle: Handle) -> Generation:
        return Generation(
            samples=tuple(sample(item, tokenizer, stopping) for item in handle.result()),
            method=plan.method,
            model=source.name,
            seed=plan.seed,
            parameters=parameters,
            report=handle.report,
            trace=record,
        )

    return handle, finish


def generate(policy: Policy | Source, prompt: Prompt, **options: Any) -> Generation:
    """Run a policy to the end: any source with text, any sampler chain, any decoder.

    Options: `decoder` (an object or a name), its parameters, run parameters, `system`, `raw`,
    `trace`. Samplers belong into the policy.
    """
    events = stream(policy, prompt, **options)
    for _ in events:
        pass
    return events.generation


def stream(
    policy: Policy | Source,
    prompt: Prompt,
    *,
    decoder: Decoder | str | None = None,
    system: str | None = None,
    raw: bool = False,
    trace: Trace | bool = False,
    **parameters: Any,
) -> TextEvents:
    """Like `generate`, as an iterator over text that is final."""
    policy = policy if isinstance(policy, Policy) else Policy(policy)
    model = text_model(policy.source)
    plan = make_plan(decoder, parameters)
    if plan.recipe is not None:
        raise ParameterError(f"{plan.method} is a blend: make it of its sources, as the policy's")
    if plan.sampler.stages:
        raise ParameterError(
            f"sampler parameters go into the policy: source | chain({plan.sampler.stages[0]!r})"
        )
    refuse_idle(plan.decoder, policy.sampler)
    read = model.read(prompt, system=system, raw=raw)
    runner = Runner()
    handle, finish = submit(runner, policy, plan, read, tokenizer=model.tokenizer, trace=trace)
    return TextEvents(runner, handle, model.tokenizer, finish)


def text_model(source: Source) -> LanguageModel:
    """The first model with a tokenizer under a source."""
    if isinstance(source, LanguageModel):
        return source
    if isinstance(source, Blend):
        return text_model(source.members[0])
    raise ParameterError(f"{source.name} has no tokenizer; run its decoder on a Runner instead")


def _max_tokens(source: Source, prompt: int, asked: int | None) -> tuple[int, Effective]:
    """The token budget: what was asked, or the default, or what is left of the context."""
    if asked is not None:
        return asked, Effective(asked, "user")
    room = DEFAULT_MAX_TOKENS
    if source.context_length is not None:
        room = min(room, source.context_length - prompt)
    if room < 1:
        raise PromptError(
            f"the prompt of {prompt} tokens leaves no room in the context of"
            f" {source.context_length} tokens of {source.name}"
        )
    return room, Effective(room, "default")


def _with_system(messages: list[dict[str, Any]], system: str | None) -> list[dict[str, Any]]:
    if not messages:
        raise PromptError("the prompt is empty; give at least one message")
    if system is None:
        return messages
    if messages[0].get("role") == "system":
        raise ParameterError("system is given twice: as an option and as the first message")
    return [{"role": "system", "content": system}, *messages]
