"""Training: batches, losses, gradients, optimisers."""
