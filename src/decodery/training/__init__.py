"""Training what methods need: gates, heads and drafters, by commands that can be interrupted.

A training is a module or package directly below this one that defines `TRAINING` (`frame.py`). It
imports torch inside its functions only, since the command line reads the list of trainings.
"""
