"""An accelerator: where the output head alone is adapted, the frozen backbone is computed once."""
