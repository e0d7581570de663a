"""Honest, scaled-down reproductions: claims as data, measured here, a verdict for each.

A method NAME is reproducible when `decodery.reproductions.NAME` defines `REPRODUCTION`.
"""
