"""Studies: sweeps of runs that skip, resume and share, and what is drawn from them."""
