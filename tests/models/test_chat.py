"""Chat templates: transformers' text, nothing outside the sandbox, nothing without bounds."""

from __future__ import annotations

import contextlib
import enum
import time
import tracemalloc
from typing import Any

import pytest

from decodery.core.errors import TemplateError
from decodery.models import chat, embedded, template_bounds
from decodery.models.chat import prompt_messages, render
from decodery.models.gguf import read

USER = [{"role": "user", "content": "hi"}]
CONVERSATION = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": 'Say "é 你 🙂"\n  twice'},
    {"role": "assistant", "content": "é", "reasoning": "because"},
    {"role": "user", "content": "<|im_end|> again"},
]


def embedded_template() -> str:
    with read(embedded.gguf_path()) as file:
        return str(file.metadata["tokenizer.chat_template"])


def test_the_embedded_template() -> None:
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert render(embedded_template(), prompt_messages("Hi")) == (
        f"<|im_start|>system\n{system}<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(
        embedded_template(), prompt_messages("Hi", system="S"), add_generation_prompt=False
    ) == ("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n")


def test_messages_of_a_prompt() -> None:
    assert prompt_messages("p") == [{"role": "user", "content": "p"}]
    assert prompt_messages("p", "")[0] == {"role": "system", "content": ""}


TEMPLATES = {
    "trimmed blocks": "{% if true %}\n  a\n  {% endif %}\nb\n",
    "loop controls": "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}"
    "{% if i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "loop variables": "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.first }}"
    "{{ loop.last }}{{ loop.revindex }}{{ loop.previtem is defined }}"
    "{{ loop.nextitem.role if not loop.last }}{% else %}none{% endfor %}",
    "loop over a filter": "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    "loop over a dict": "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}",
    "recursive loop": "{% for x in [[1, [2]], [3]] recursive %}"
    "{% if x is iterable %}[{{ loop(x) }}]{% else %}{{ x }}{% endif %}{% endfor %}",
    "loop over nothing": "{% for x in missing %}a{% else %}b{% endfor %}",
    "tojson": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}"
    "{{ {'b': '<é>', 'a': 1} | tojson(ensure_ascii=true, sort_keys=true) }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% set x = 1 %}"
    "{% endgeneration %}{% endfor %}",
    "macro": "{% macro f(a, b=2) %}{{ a ~ '-' ~ b }}{% endmacro %}{{ f('x') }}{{ f(1, b=3) }}",
    "call": "{% macro f() %}<{{ caller() }}>{% endmacro %}{% call f() %}in{% endcall %}",
    "strings": "{{ messages[0].content.strip().upper().replace('B', 'x') }}{{ 'a,b'.split(',') }}"
    "{{ '%s is %d' % ('a', 5) }}{{ '{}-{:>4}'.format(1, 2) }}{{ 'ab' * 3 }}{{ 'x' | center(5) }}"
    "{{ 'abc'[::-1] }}{{ messages[0]['content'][3:] }}",
    "methods in loops": "{% for m in messages %}{{ m.content.replace('e', 'é', 1).split(' ', 1) }}"
    "{{ ', '.join(['a', m.role]) }}{{ 'a\\tb'.expandtabs(4) }}{{ 'a\\n'.splitlines(true) }}"
    "{{ '{} {x}'.format(1, x=m.role) }}{% set b = namespace(x=m) %}{{ dict(a=b.x).keys() | list }}"
    "{{ m.get('role', 1) }}{{ m.items() | list | length }}{% endfor %}",
    "methods in blocks": "{% block b %}{% for m in messages %}{{ 'ab'.replace('a', m.role) }}"
    "{% endfor %}{% endblock %}{% macro f(x) %}{{ x.join(['a', 'b']) }}{% endmacro %}"
    "{% for m in messages %}{{ f(m.role) }}{% endfor %}{{ self.b() }}",
    "filters with names": "{{ [{'a': 'x'}, {'a': 'y'}] | join(',', attribute='a') }}"
    "{{ [{'a': 1}, {'a': 2}] | sum(attribute='a', start=3) }}"
    "{{ 'aa' | replace('a', 'b', count=1) }}"
    "{{ 'a\\nb' | indent(width=2, first=true) }}{{ [1, 2, 3] | batch(2, fill_with=0) | list }}"
    "{{ 1.25 | round(precision=1) }}{{ messages | selectattr('role', 'in', ['user']) | list }}",
    "numbers": "{{ 2 ** 10 }} {{ 7 % 3 }} {{ 7 // 2 }} {{ 1 / 4 }} {{ 3 * 4 + 1 }}",
    "lists": "{{ [1, 2] + [3] }}{{ (messages | length) }}{{ messages | map(attribute='role') "
    "| join(',') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "dict": "{{ dict(a=1, b='x') }}",
    "tests": "{{ tools is none }}{{ documents is defined }}{{ nothing is defined }}"
    "{{ messages is sequence }}{{ messages is mapping }}{{ messages[0] is mapping }}",
    "special tokens": "{{ bos_token }}|{{ eos_token }}|{{ add_generation_prompt }}",
    "reasoning": "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }};{% endfor %}",
    "variables": "{{ enable_thinking }}{{ tools | tojson if tools }}",
    "undefined": "{{ nothing }}[{{ messages[0].nothing }}]",
    "escapes": "{{ '<b>' }}{{ '<b>' | e }}{{ \"a\\nb\" }}",
    "comments": "a{# no #}\nb {#- no -#}  c",
    "white space": "{%- if true -%}  a  {%- endif -%}  b",
    "constant": "plain\n",
}


@pytest.mark.parametrize("name", [*TEMPLATES, "embedded"])
def test_templates_render_as_in_transformers(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = embedded_template() if name == "embedded" else TEMPLATES[name]
    variables: dict[str, Any] = {"enable_thinking": False}
    for add in (True, False):
        theirs, _ = render_jinja_template(
            [CONVERSATION],
            chat_template=template,
            add_generation_prompt=add,
            bos_token="<s>",
            eos_token="</s>",
            **variables,
        )
        ours = render(
            template,
            CONVERSATION,
            bos_token="<s>",
            eos_token="</s>",
            add_generation_prompt=add,
            **variables,
        )
        assert ours == theirs[0]


def test_the_date() -> None:
    assert render("{{ strftime_now('%Y') }}", USER) == time.strftime("%Y")


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ (''|attr('__class__')).mro() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ lipsum.__globals__['os'].popen('id') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace(__class__=1) }}",
    "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
    "{{ dict.__class__.__mro__ }}",
    "{{ dict.fromkeys.__globals__.x }}",
    "{{ raise_exception.__globals__.x }}",
    "{{ strftime_now.__globals__.x }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{x.__class__.__mro__}'.format_map({'x': ''}) }}",
    "{% for x in range(3) %}{{ loop.__class__.__mro__ }}{% endfor %}",
    "{{ ([''] | map(attribute='__class__') | list)[0].__mro__ }}",
    "{% macro f() %}{% endmacro %}{{ f.__call__.__globals__ }}",
    "{{ (messages | counted).gi_frame.f_globals }}",
    "{{ messages.append(1) }}",
    "{{ messages.clear() }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages[0].setdefault('x', 1) }}",
    "{{ messages.sort() }}",
    "{% include 'chat.py' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{% do messages.append(1) %}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_nothing_reaches_outside_the_sandbox(template: str) -> None:
    """Refused, or an undefined that is nothing; never an object of Python's own."""
    messages = [dict(message) for message in USER]
    try:
        made = render(template, messages)
    except TemplateError as error:
        made = str(error)
        refused = made.startswith("the chat template failed: ") and "\n" not in made
    else:
        refused = made == ""
    assert refused, made
    assert messages == USER


LARGE = [
    "{{ 'a' * 10 ** 9 }}",
    "{{ 10 ** 9 * 'a' }}",
    "{{ [0] * 10 ** 9 }}",
    "{{ 9 ** 99999 }}",
    "{{ (9 ** 999) ** 999 }}",
    "{{ 'a'.ljust(10 ** 12) }}",
    "{{ 'a'.zfill(width=10 ** 12) }}",
    "{{ 'a' | center(1000000000000) }}",
    "{{ 'a' | indent(1000000000000) }}",
    "{{ [1] | batch(1000000000000, 'x') | list }}",
    "{{ '%0999999999999d' % 1 }}",
    "{{ '%*d' % (1000000000000, 1) }}",
    "{{ '%0999999999999d' | format(1) }}",
    "{{ '{:999999999999}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=10 ** 12) }}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}"
    "{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}"
    "{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] | join %}"
    "{% endfor %}",
    "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
    "{% for a in range(90000) %}" + "{{ 'x' * 1000 }}" + "{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ range(10 ** 9) | list }}",
    "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "x" * (chat.MAX_TEMPLATE_CHARS + 1),
]


@pytest.mark.parametrize("template", LARGE, ids=range(len(LARGE)))
def test_what_is_made_is_bounded(template: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render(template, USER)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


NS = "{% set ns = namespace(n=9, s='a', x=[1], y=[1]) %}"
TIMES = "{% for i in range(99999) %}"
BIG = "{% set a = 'a' * 8000000 %}"
ENDLESS = {
    "numbers that square": NS + TIMES + "{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "powers of powers": NS + TIMES + "{% set ns.n = ns.n ** 99 %}{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}"
    "{% endif %}{% endmacro %}{{ f(60) }}",
    "blocks that call each other twice": "".join(
        f"{{% block b{i} %}}{{{{ self.b{i + 1}() }}}}{{{{ self.b{i + 1}() }}}}{{% endblock %}}"
        for i in range(40)
    )
    + "{% block b40 %}x{% endblock %}",
    "a loop that calls itself twice": "{% for x in [1] recursive %}{% if loop.depth < 40 %}"
    "{{ loop([1, 2]) }}{% endif %}{% endfor %}",
    "lists of lists, printed": NS + TIMES + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "dicts of dicts": NS + TIMES + "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}",
    "namespaces of namespaces": NS
    + TIMES
    + "{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}",
    "lists of lists, compared": NS + "{% for i in range(19) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% set ns.y = [ns.y, ns.y] %}{% endfor %}" + TIMES + "{{ ns.x == ns.y }}{% endfor %}",
    "a long body": "{% set a = '' %}" + TIMES + "{{ a }}" * 5000 + "{% endfor %}",
    "a long condition": TIMES + "{% for x in range(9999) if " + "a or " * 90 + "b %}{% endfor %}"
    "{% endfor %}",
    "a search in a long text": BIG + TIMES + "{{ 'ab' in a }}{% endfor %}",
    "a comparison of long texts": BIG + "{% set b = a ~ 'b' %}" + TIMES + "{{ a < b }}{% endfor %}",
    "slices of a long text": BIG + TIMES + "{% set b = a[1:] %}{% endfor %}",
    "a method on a long text": BIG + TIMES + "{% set b = a.title() %}{% endfor %}",
    "a filter on a long text": BIG + TIMES + "{% set b = a | upper %}{% endfor %}",
    "a test on a long text": BIG + TIMES + "{% if a is lower %}{% endif %}{% endfor %}",
    "a text that grows": NS + TIMES + "{% set ns.s = ns.s ~ 'abcdefghij' * 99 %}{% endfor %}",
    "sorting": TIMES + "{% set b = range(99999) | list | sort %}{% endfor %}",
    "maps of maps": NS + TIMES + "{% set ns.x = ns.x | map('upper') %}{% endfor %}"
    "{{ ns.x | list }}" + TIMES + "{{ i | string | list | sort | join }}{% endfor %}",
    "adding lists": "{{ ([[1]] * 99999) | sum(start=[]) }}",
}
HUGE = {
    "replace": BIG + "{{ a.replace('a', a) }}",
    "replace, the filter": BIG + "{{ a | replace('a', a) }}",
    "replace nothing": BIG + "{{ a.replace('', a) }}",
    "join": BIG + "{{ a.join([a] * 99999) }}",
    "join, the filter": BIG + "{{ range(99999) | join(a) }}",
    "join of what is made one by one": BIG + "{{ range(99999) | map('string') | join(a) }}",
    "join of keys": BIG + "{{ a.join(dict(range(9999) | batch(2)).keys()) }}",
    "format": BIG + "{{ ('{0}' * 9999).format(a) }}",
    "format_map": BIG + "{{ ('{x}' * 9999).format_map({'x': a}) }}",
    "percent": BIG + "{{ ('%(x)s' * 9999) % {'x': a} }}",
    "percent, the filter": BIG + "{{ ('%s' * 2) | format(a, a) }}",
    "split": BIG + "{{ a.split() }}",
    "split by a letter": "{% set a = 'a ' * 8000000 %}{{ a.split(' ') }}",
    "lines": "{% set a = '\\n\\r' * 1000000 %}{{ a.splitlines() }}",
    "letters": BIG + "{{ a | list }}",
    "words": BIG + "{{ a | title }}",
    "expandtabs": "{{ ('\t' * 99999).expandtabs(99999) }}",
    "indent": "{{ ('\n' * 9999999) | indent(999) }}",
    "indent by a text": BIG + "{{ ('a\n' * 9999) | indent(a) }}",
    "tojson": "{{ range(99999) | list | tojson(indent=999999) }}",
    "round": "{{ 1.5 | round(16000000, 'floor') }}",
    "slices": "{{ [1] | slice(9999999) | list }}",
    "a block": BIG + "{% set b %}{% for i in range(999) %}{{ a }}{% endfor %}{% endset %}",
    "a macro": BIG + "{% macro f() %}{% for i in range(999) %}{{ a }}{% endfor %}{% endmacro %}"
    "{% set b = f() %}",
    "a list of texts": BIG + "{{ ([a] * 999) | string }}",
    "a list of lists": "{{ [[0] * 9999] * 9999 }}",
    "dates": "{{ strftime_now('%c' * 999999) }}",
    "paragraphs": "{{ lipsum(n=999999) }}",
    "codecs": BIG + "{{ a.encode('punycode') }}",
    "tables": BIG + "{{ a.translate({97: a}) }}",
    "numbers": "{{ (9).to_bytes(16000000, 'big') }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_render_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small part of the work; with all of it, seconds."""
    monkeypatch.setattr(template_bounds, "MAX_WORK", template_bounds.MAX_WORK // 128)
    start = time.monotonic()
    with pytest.raises(TemplateError, match="the chat template failed"):
        render(ENDLESS[name], USER)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("name", HUGE)
def test_nothing_huge_is_made_in_a_step(name: str) -> None:
    tracemalloc.start()
    with pytest.raises(TemplateError, match="the chat template failed"):
        render(HUGE[name], USER)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


NESTED = {
    "loops": ("{% for a in b %}", "{% endfor %}"),
    "conditions": ("{% if b %}", "{% endif %}"),
    "macros": ("{% macro b() %}", "{% endmacro %}"),
    "brackets": ("{{ ", " }}"),
}


@pytest.mark.parametrize("depth", [19, 90])
@pytest.mark.parametrize("name", NESTED)
def test_compiling_ends(name: str, depth: int) -> None:
    """A long template, nested as deep as Python's compiler takes, and deeper."""
    begin, end = NESTED[name]
    if name == "brackets":
        template = ("{{ " + "(" * depth + "a" + ")" * depth + " }}{{ " + "a+" * depth + "a }}") * 60
    else:
        template = begin * depth + "{{ b }}" * 1500 + end * depth
    start = time.monotonic()
    with contextlib.suppress(TemplateError):
        render(template, USER)
    assert time.monotonic() - start < 60


def test_a_long_conversation_is_far_from_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 messages of 4,000 characters, with what templates do to each: a tenth of the work."""
    monkeypatch.setattr(template_bounds, "MAX_WORK", template_bounds.MAX_WORK // 2)
    template = (
        "{% for m in messages[0:] %}{% if '</think>' in m.content %}"
        "{% set c = m.content.split('</think>')[-1].lstrip() %}{% else %}"
        "{% set c = m.content | trim %}{% endif %}{% if loop.index0 == messages | length - 1 %}!"
        "{% endif %}{{ '<|' + m['role'] + '|>' + c + '\n' }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "<think>x</think>" + "hello " * 664}] * 1000
    assert len(render(template, messages)) > 3_900_000


def test_a_later_template_has_all_its_steps() -> None:
    with pytest.raises(TemplateError, match="steps"):
        render("{% for a in range(9999) %}{% for b in range(999) %}{% endfor %}{% endfor %}", USER)
    assert render("{% for a in range(3) %}{{ a }}{% endfor %}", USER) == "012"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('roles\nmust alternate') }}", "roles must alternate"),
        ("{% if %}", "Expected an expression"),
        ("{{ a.b.c }}", "'a' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 'a' + 1 }}", "str"),
        ("{{ messages[0].content() }}", "not callable"),
        ("{{ nothing | nosuchfilter }}", "nosuchfilter"),
    ],
)
def test_a_template_that_fails(template: str, said: str) -> None:
    with pytest.raises(TemplateError, match="the chat template failed") as caught:
        render(template, USER)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_messages_that_are_none() -> None:
    with pytest.raises(TemplateError, match="a message is a str"):
        render("x", ["hi"])  # type: ignore[list-item]


def test_a_template_sees_plain_values_only() -> None:
    class Role(str, enum.Enum):  # noqa: UP042 -- an enum that is a string and prints as its name
        USER = "user"

    class File:
        def write(self) -> str:
            return "written"

    messages = [{"role": Role.USER, "content": [{"image": File()}]}]
    assert render("{{ messages[0].role }}", messages) == "user"
    assert render("{{ messages[0].content[0].image }}", messages) == "<File>"
    with pytest.raises(TemplateError):
        render("{{ messages[0].content[0].image.write() }}", messages)
