"""Networks of attention in PyTorch."""
