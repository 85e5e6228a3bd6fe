"""Captions of a split, and their scores."""
