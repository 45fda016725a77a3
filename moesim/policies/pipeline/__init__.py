"""In which order a pipeline stage works on its microbatches, in training."""
