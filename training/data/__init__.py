"""Clips with captions: where they are read from, how they become batches, and what is wrong with them."""
