"""Which tokens a drafter chooses from: for each token, its likely successors in the model's laws.

Words are the `vocabulary` tokens that the laws give most mass to, and one more for all others. With
C(x, y) the mass that the laws after x give to y, summed over all positions, and u the law of y over
all of them, the successors of x are those with the highest

    S(x, y) = (C(x, y) + w u(y)) / (C(x) + w),    w = `PRIOR`,

and ln S is given to the head as a feature. A position that is learnt from is left out of its own
feature, or the head would learn to trust it too much.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from decodery.training.drafter.record import TOP, Record

PRIOR = 4.0  # positions that the law over all contexts counts for
_WORDS = 512  # whose successors are sorted at once


@dataclass(frozen=True)
class Shortlists:
    """Words, their successors, and how often each came.

    tokens [words - 1] ids, ascending, of all words but the last; word_of [vocab_size] word of each
    token; successors [words, k] words, ascending; counts [words, k] C of each, totals [words] C(x),
    common [words - 1] u.
    """

    tokens: Tensor
    word_of: Tensor
    successors: Tensor
    counts: Tensor
    totals: Tensor
    common: Tensor

    def features(self) -> Tensor:
        """ln S [words, k]."""
        mass = self.counts + PRIOR * self.common[self.successors]
        return (mass / (self.totals[:, None] + PRIOR)).clamp(min=1e-12).log()

    def others(self, words: Tensor, slots: Tensor, masses: Tensor) -> Tensor:
        """ln S [n, k] of positions after `words` [n], each without its own law.

        That law is `masses` [n, TOP] at `slots` [n, TOP] of the shortlist, -1 for none.
        """
        width = self.counts.shape[1]
        own = torch.zeros(len(words), width + 1).scatter_add_(1, slots % (width + 1), masses)
        counts = (self.counts[words] - own[:, :width]).clamp(min=0.0)
        mass = counts + PRIOR * self.common[self.successors[words]]
        totals = (self.totals[words] - masses.sum(1)).clamp(min=0.0)
        return (mass / (totals[:, None] + PRIOR)).clamp(min=1e-12).log()

    def slots(self, words: Tensor, tokens: Tensor) -> Tensor:
        """Where tokens [n, m] stand in the shortlists of words [n]; -1 where they do not."""
        wanted = self.word_of[tokens]
        lists = self.successors[words]
        places = torch.searchsorted(lists, wanted).clamp(max=lists.shape[1] - 1)
        there = (lists.gather(1, places) == wanted) & (wanted < len(self.tokens))
        return torch.where(there, places, -1)


def laws(record: Record, temperature: float) -> Tensor:
    """The laws [n, TOP] at a temperature of the most probable tokens, normalised over these."""
    return (record.log_chances / temperature).softmax(-1)


def shortlists(
    record: Record, masses: Tensor, vocab_size: int, vocabulary: int, count: int
) -> Shortlists:
    """The shortlists of a record with the laws `masses` [n, TOP]."""
    common = torch.zeros(vocab_size, dtype=torch.float64)
    common.index_add_(0, record.top.flatten(), masses.flatten().double())
    known = min(vocabulary, vocab_size)
    tokens = common.topk(known).indices.sort().values
    word_of = torch.full((vocab_size,), known)
    word_of[tokens] = torch.arange(known)
    common = (common[tokens] / common.sum().clamp(min=1e-12)).float()
    words, after = word_of[record.tokens], word_of[record.top]
    inside = after < known
    keys = (words[:, None] * known + after)[inside]
    pairs, place = keys.unique(return_inverse=True)
    counts = torch.zeros(len(pairs)).index_add_(0, place, masses[inside])
    totals = torch.zeros(known + 1).index_add_(0, words, masses.sum(1))
    successors, taken = _best(pairs, counts, common, known, min(count, known))
    return Shortlists(tokens, word_of, successors, taken, totals, common)


def _best(
    pairs: Tensor, counts: Tensor, common: Tensor, known: int, count: int
) -> tuple[Tensor, Tensor]:
    """The successors [words, count] with the most mass, ascending, and their counts."""
    first, second = pairs // known, pairs % known
    successors, taken = [], []
    for start in range(0, known + 1, _WORDS):
        size = min(_WORDS, known + 1 - start)
        low, high = torch.searchsorted(first, torch.tensor([start, start + size])).tolist()
        dense = torch.zeros(size, known)
        dense[first[low:high] - start, second[low:high]] = counts[low:high]
        chosen = (dense + PRIOR * common).topk(count).indices.sort().values
        successors.append(chosen)
        taken.append(dense.gather(1, chosen))
    return torch.cat(successors), torch.cat(taken)


def targets(lists: Shortlists, record: Record, masses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each position its word [n], and its law's slots [n, TOP] and masses [n, TOP] there.

    What the shortlist does not hold has slot -1 and mass 0.
    """
    assert masses.shape[1] == TOP
    words = lists.word_of[record.tokens]
    slots = lists.slots(words, record.top)
    return words, slots, torch.where(slots >= 0, masses, 0.0)
