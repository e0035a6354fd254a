"""The recipe of the bundled language model: its text, its tokenizer, its training, its files."""
