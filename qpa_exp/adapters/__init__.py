"""PEFT methods on a frozen language model, trained as they are or generated."""
