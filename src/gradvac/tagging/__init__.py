"""Sequence labelling on pretrained encoders."""
