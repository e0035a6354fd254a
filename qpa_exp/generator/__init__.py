"""The generator: circuit and mapping model together make the m parameters of a PEFT method."""
