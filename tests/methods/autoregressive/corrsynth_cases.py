"""What the tests of CorrSynth share: tables whose tokens are letters, and tasks on them."""

from __future__ import annotations

import numpy as np

from decodery.core.decoder import Task
from decodery.core.language import Language
from decodery.core.rng import Stream
from decodery.core.row import Row
from decodery.core.sampler import chain
from decodery.core.source import Policy
from decodery.core.stopping import Stopping
from decodery.testing import TableModel, WatchedTable

END = frozenset({2})
FLAT = {"alpha": 0.0, "floor": 1e-300}  # the bare formula


class Letters(Language):
    """a is token 0, b is 1; other characters are left out."""

    has_chat = True

    def __init__(self, size):
        self.letters = "abcdefghijklmnopqrstuvwxyz"[:size]

    def encode(self, text):
        return tuple(self.letters.index(letter) for letter in text if letter in self.letters)

    def decode(self, tokens):
        return "".join(self.letters[token] for token in tokens)

    def chat(self, messages):
        return self.encode("|".join(message["content"] for message in messages))

    def pieces(self):
        return [letter.encode() for letter in self.letters]

    def same_as(self, other):
        return self.pieces() == other.pieces()


def table(seed, vocab_size=3, eos_ids=END, order=2, **options):
    law = TableModel.random(vocab_size, order, seed=seed).law
    made = WatchedTable(law, vocab_size, order, eos_ids=eos_ids, **options)
    made.language = Letters(vocab_size)
    return made


def task(source, prompt="a", seed=0, max_tokens=5, sampler=None):
    policy = Policy(source, sampler or chain())
    stopping = Stopping(max_tokens, policy.source.eos_ids)
    return Task(policy, source.language.encode(prompt), stopping, Stream(seed), prompt)


def rows_of(*probabilities):
    return [Row.of_probabilities(law) for law in probabilities]


def laws(rows):
    return np.array([row.dense_probabilities() for row in rows])


def random_laws(count, vocab_size, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(vocab_size, 0.7), size=count)


def normalised(weights):
    return weights / weights.sum()
