"""What one does with a captioner: clips in, captions out."""
