"""Turns published parallel text into a corpus folder."""
