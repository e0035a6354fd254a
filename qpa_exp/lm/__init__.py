"""The frozen language model: loading it, and the losses of its predictions."""
