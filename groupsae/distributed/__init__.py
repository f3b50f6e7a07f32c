"""Several processes that work on one run, as ranks of torch.distributed."""
