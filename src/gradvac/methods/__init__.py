"""Gradient methods: each maps a Gram matrix of task gradients to task weights."""
