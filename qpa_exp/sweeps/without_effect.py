"""The config keys that change no number of a run."""

WITHOUT_EFFECT = (
    "logger", "resume", "trainer.progress_bar", "trainer.checkpoint_every_n_steps",
    # What is read is in the name by its content, wherever it lies and whatever it is called.
    "data.path", "model.name", "model.base_model",
    # Where and how much is cached; what a plan needs in the place of weights.
    "data.cache_dir", "data.cache_gib", "model.architecture",
    # The recipe's values are in the keys that refer to it.
    "model.recipe",
)  # fmt: skip
"""Keys, and groups of keys, under which a run computes the same numbers."""


def is_without_effect(key: str) -> bool:
    """Return whether :data:`WITHOUT_EFFECT` has this key, or a group that it is in."""
    return any(key == part or key.startswith(f"{part}.") for part in WITHOUT_EFFECT)
