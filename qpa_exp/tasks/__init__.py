"""What a run trains for: the loss of a batch, its metrics, and the one that ranks runs."""
