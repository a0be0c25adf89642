"""Experiments of sequence labelling: recipes, run folders, jobs, scores."""
