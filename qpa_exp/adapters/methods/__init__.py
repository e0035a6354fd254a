"""PEFT methods of this package, one file each; the registry is in ``qpa_exp.adapters.catalogue``.

A file's ``ENTRY`` is a :class:`~qpa_exp.adapters.catalogue.Method`. What begins with ``_`` is no
method: layers that need torch and PEFT, kept apart so that counting needs neither.
"""
