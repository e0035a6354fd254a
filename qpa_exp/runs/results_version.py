"""``RESULTS_VERSION``: raise it by one in the change after which a run computes other figures."""

RESULTS_VERSION = 1
"""Part of every run's name: what was made under another version counts as not made. A test pins the
figures of short runs, and fails where they move under the same version."""
