"""Clips with captions: reading, caching, augmentation, batches, and checks of datasets."""
