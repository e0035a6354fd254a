"""Text in; padded lines, blocks or packed rows of token ids out."""
