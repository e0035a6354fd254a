"""A run: the LightningModule, checkpoints, loggers, and what is left behind."""
