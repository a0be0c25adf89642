"""Parallel text as it is published, turned into a corpus folder."""
