"""Counterparts of the figures of the papers, drawn from run folders."""

from gradvac.experiment.figures.write import CATALOGUE, write_figures

__all__ = ["CATALOGUE", "write_figures"]
