"""An accelerator: where the output head alone is adapted, the frozen backbone is computed once.

It wraps a task: delete the folder, and every run still works, only slower.
"""

from qpa_exp.fast_head.accelerator import accelerate as accelerate
