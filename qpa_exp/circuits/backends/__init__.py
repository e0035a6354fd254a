"""What computes a circuit's probabilities (``qpa.backend``): one file each, imported if chosen."""
