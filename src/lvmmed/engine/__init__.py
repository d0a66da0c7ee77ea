"""The training loop, optimisers and the run folder; knows nothing of images or methods."""
