"""Training and evaluation of video captioning models; needs the `train` extra (datasets, accelerate, pyyaml)."""
