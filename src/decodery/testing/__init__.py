"""Proof for everyone: exact laws on small tables, statistics, and the laws methods must keep."""

from decodery.testing.enumerate import Law, decoder_law, enumerate_law
from decodery.testing.laws import (
    check_blend,
    check_card,
    check_decoder,
    check_guarantee,
    check_law,
    check_method,
    check_parameters,
    check_reductions,
    check_sampler,
    check_scorer,
)
from decodery.testing.observe import LawBroken
from decodery.testing.statistics import ChiSquare, chi_square, require_law
from decodery.testing.tables import (
    MixtureBlend,
    TableModel,
    WatchedTable,
    edge_table,
    random_policy,
    random_probabilities,
    random_row,
    row_bank,
)

__all__ = [
    "ChiSquare",
    "Law",
    "LawBroken",
    "MixtureBlend",
    "TableModel",
    "WatchedTable",
    "check_blend",
    "check_card",
    "check_decoder",
    "check_guarantee",
    "check_law",
    "check_method",
    "check_parameters",
    "check_reductions",
    "check_sampler",
    "check_scorer",
    "chi_square",
    "decoder_law",
    "edge_table",
    "enumerate_law",
    "random_policy",
    "random_probabilities",
    "random_row",
    "require_law",
    "row_bank",
]
