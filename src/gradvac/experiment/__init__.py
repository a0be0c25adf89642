"""Recipes, runs, checkpoints, evaluation and reports."""
