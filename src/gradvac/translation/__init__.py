"""Multilingual translation: corpora, vocabulary, batches, Transformer, search, scores."""
