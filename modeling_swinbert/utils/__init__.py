"""Helpers of several folders that are no part of a saved model."""
