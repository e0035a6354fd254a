"""The quantum side: from angles to the probabilities of a circuit's basis states."""
