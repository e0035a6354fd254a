"""Text in, padded lines or packed blocks of token ids out."""
