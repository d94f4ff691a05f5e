"""Kinds of models: one object each says all that a run must know of it."""
