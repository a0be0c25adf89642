"""Measuring loss geometry: similarity of task gradients, conflicts, edits."""
