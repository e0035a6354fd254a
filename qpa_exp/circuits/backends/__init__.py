"""The back ends: one file each."""
