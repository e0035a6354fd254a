"""The benchmark measures the fast head beside the plain way: without that room it is not there."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("qpa_exp.fast_head") else ["test_benchmark.py"]
