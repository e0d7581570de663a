"""What the tests of alignment-augmented decoding share: definitions written out, and small runs."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from decodery.core import registry
from decodery.core.decoder import Task
from decodery.core.rng import Stream
from decodery.core.runner import Runner, run_alone
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.methods.speculative.alignment_tree import Limits, Suffixes, grow_tree

METHOD = registry.get("alignment_augmented")
REPEATING = (2, 0, 1, 3, 0, 1, 1, 0, 2, 0, 1)
LOOPING = (0, 1, 2, 0, 1, 1, 0, 1)


def prompts(count=6):
    """Texts over four letters that repeat themselves."""
    for seed in range(count):
        generator = np.random.default_rng(seed)
        once = generator.integers(0, 4, 8).tolist()
        yield (*once, *generator.integers(0, 4, 2).tolist(), *once[:5])


def task_of(policy, prompt=REPEATING, tokens=8, seed=0, **stopping):
    ends = Stopping(tokens, policy.source.eos_ids, **stopping)
    return Task(policy, tuple(prompt), ends, Stream(seed))


def completed(decoder, policy, prompt=REPEATING, tokens=8, seed=0, **stopping):
    return run_alone(decoder, task_of(policy, prompt, tokens, seed, **stopping))


def reported(decoder, task):
    """The completions and the report of one run."""
    runner = Runner()
    handle = runner.submit(decoder, task)
    runner.run()
    return handle.result(), handle.report


# -- retrieval by its definition -------------------------------------------------------------------


def longest_match(text, span, shortest, longest, tail):
    """The longest n-gram at the end of `tail` that is in the span with a token after it."""
    for size in range(min(longest, len(tail)), shortest - 1, -1):
        wanted = list(tail[-size:])
        places = [
            end
            for end in range(span.start + size - 1, span.stop - 1)
            if list(text[end - size + 1 : end + 1]) == wanted
        ]
        if places:
            return size, places
    return 0, []


def trie_counts(text, span, places, depth, ends=frozenset()):
    """Every prefix of every continuation: how often, and where its last token first stands."""
    counts, first = Counter(), {}
    for place in places:
        path = ()
        for position in range(place + 1, min(place + depth, span.stop - 1) + 1):
            path += (text[position],)
            counts[path] += 1
            first.setdefault(path, position)
            if text[position] in ends:
                break
    return counts, first


def most_frequent(text, span, places, depth, nodes, ends=frozenset()):
    counts, first = trie_counts(text, span, places, depth, ends)
    return sorted(counts, key=lambda path: (-counts[path], len(path), first[path]))[:nodes]


def paths_of(root):
    """Every node of a tree as (its tokens, whether it is an alternative, how often it is there)."""
    found = []

    def visit(branch, path):
        for token, child in branch.children.items():
            assert child.token == token
            assert child.depth == len(path) + 1
            found.append(((*path, token), child.is_alternative, len(child.places)))
            visit(child, (*path, token))

    visit(root, ())
    return found


def random_context(generator, letters=3, most=60):
    text = generator.integers(0, letters, generator.integers(2, most)).tolist()
    start = int(generator.integers(0, len(text)))
    stop = int(generator.integers(start, len(text) + 1))
    return text, range(start, stop)


def tree_of(text, span, places, alternatives=None, **limits):
    suffixes = Suffixes(text, span, 1, 16)
    return grow_tree(suffixes, places, alternatives or {}, Limits(**limits))


# -- the threshold by its definition ---------------------------------------------------------------


def threshold(probabilities, slope, base, floor):
    entropy = -sum(p * math.log(p) for p in probabilities if p > 0)
    return min(max(probabilities), max(base - slope * entropy, floor))


def quarters(seed, vocab_size=3, order=2):
    """A table whose probabilities are multiples of 1/4: its decoders' noise can be enumerated."""
    from decodery.testing import TableModel

    def law(context):
        generator = np.random.default_rng([seed, len(context), *context])
        return np.bincount(generator.integers(0, vocab_size, 4), minlength=vocab_size) / 4

    return Policy(TableModel(law, vocab_size, order))
