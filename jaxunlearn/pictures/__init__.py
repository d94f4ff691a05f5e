"""Relevance as pictures: heat maps of examples, and the path through a network."""

from jaxunlearn.pictures.heatmaps import save_heatmaps
from jaxunlearn.pictures.path import save_path

__all__ = ["save_heatmaps", "save_path"]
