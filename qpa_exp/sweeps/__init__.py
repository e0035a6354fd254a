"""Sweeps: from a study to runs that skip, resume and share."""
