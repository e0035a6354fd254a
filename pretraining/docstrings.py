"""The text that the bundled model learns from: docstrings of installed open-source packages.

The packages are read with :mod:`ast`, never imported or executed. The Python Language Reference
(``pydoc_data.topics``) is the evaluation corpus: it is read here only to drop every docstring
that shares a long line with it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qpa_exp.errors import InputError

# Package, also the name of its distribution -> licence of its text. Permissive licences only.
# Scientific packages alone: the standard library's docstrings are close kin of the evaluation
# corpus, and a benchmark of adaptation needs a distance for the adapter to cover.
SOURCES = {
    "networkx": "BSD-3-Clause",
    "numpy": "BSD-3-Clause",
    "scipy": "BSD-3-Clause",
    "sympy": "BSD-3-Clause",
    "torch": "BSD-3-Clause",
}
# Test modules hold little prose; pydoc_data is the evaluation corpus itself.
SKIPPED_DIRS = frozenset({"pydoc_data", "test", "testing", "tests"})
DOC_CALLS = ("add_docstr", "add_newdoc")
MIN_CALL_STRING = 40  # shorter string arguments of such calls are names, not documentation
MIN_SHARED_LINE = 50  # characters of a whitespace-normalised line that count as contamination


def installed_roots() -> dict[str, Path]:
    """Return the folder of each source; looking for a package does not import it.

    Raises:
        InputError: a source is not installed.
    """
    specs = {name: importlib.util.find_spec(name) for name in SOURCES}
    roots = {name: Path(spec.origin).parent for name, spec in specs.items() if spec and spec.origin}
    if missing := ", ".join(sorted(SOURCES.keys() - roots.keys())):
        raise InputError(
            f"The training text needs packages that are not installed ({missing}): "
            "pip install -e '.[pretrain]' gets them."
        )
    return roots


def evaluation_texts() -> list[str]:
    """Return the evaluation corpus, read for decontamination only.

    Raises:
        InputError: this Python lacks it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError(
            "This Python was installed without pydoc_data.topics, which must be kept out of the "
            "training text: use one that has it."
        ) from error
    return [topics[name] for name in sorted(topics)]


def gather_corpus(roots: Mapping[str, Path]) -> tuple[list[str], dict[str, Any]]:
    """Training texts of these sources and a description of where they come from."""
    reference = evaluation_texts()
    texts: list[str] = []
    sources: dict[str, Any] = {}
    for source, docs in collect_docstrings(roots).items():
        kept, dropped = decontaminate(docs, reference)
        texts += kept
        sources[source] = {
            "version": importlib.metadata.version(source),
            "licence": SOURCES[source],
            "docstrings": len(kept),
            "characters": sum(map(len, kept)),
            "sha256": hashlib.sha256("\0".join(kept).encode()).hexdigest(),
            "dropped_as_contaminated": dropped,
        }
    counts = ("docstrings", "characters", "dropped_as_contaminated")
    totals = {key: sum(about[key] for about in sources.values()) for key in counts}
    return texts, {**totals, "sources": sources}


def collect_docstrings(roots: Mapping[str, Path]) -> dict[str, list[str]]:
    """Docstrings by source, exact duplicates (also across sources) kept only once."""
    seen: set[str] = set()
    collected: dict[str, list[str]] = {}
    for source in sorted(roots):
        found = (text for path in source_files(roots[source]) for text in file_docstrings(path))
        collected[source] = [text for text in dict.fromkeys(found) if text not in seen]
        seen.update(collected[source])
    return collected


def source_files(root: Path) -> list[Path]:
    """Python files below `root`, in sorted order."""
    relative = (path.relative_to(root) for path in root.rglob("*.py"))
    wanted = (path for path in relative if SKIPPED_DIRS.isdisjoint(path.parent.parts))
    return [root / path for path in sorted(wanted, key=Path.as_posix)]


def file_docstrings(path: Path) -> list[str]:
    """All documentation strings of one source file; none if it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError):
        return []
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(ast.get_docstring(node) or "")
        elif isinstance(node, ast.Call):
            found += _call_strings(node)
    return [text for text in map(str.strip, found) if text]


def _call_strings(call: ast.Call) -> Iterator[str]:
    """Documentation strings handed to calls such as ``add_newdoc(place, name, doc)``."""
    name: str = getattr(call.func, "attr", "") or getattr(call.func, "id", "")
    if not any(part in name for part in DOC_CALLS):
        return
    for node in ast.walk(call):
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, str) and len(value) >= MIN_CALL_STRING:
            yield inspect.cleandoc(value)


def decontaminate(docs: Sequence[str], reference: Iterable[str]) -> tuple[list[str], int]:
    """Drop each docstring that shares a long line with `reference`; also count the dropped."""
    forbidden = set().union(*map(_long_lines, reference))
    kept = [text for text in docs if forbidden.isdisjoint(_long_lines(text))]
    return kept, len(docs) - len(kept)


def _long_lines(text: str) -> set[str]:
    lines = (" ".join(line.split()) for line in text.splitlines())
    return {line for line in lines if len(line) >= MIN_SHARED_LINE}


def split_held_out(
    texts: Iterable[str], seed: int, percent: int = 1
) -> tuple[list[str], list[str]]:
    """Shuffled (training, held-out) texts; a hash of seed and text decides which side."""
    parts: tuple[list[str], list[str]] = ([], [])
    for text in texts:
        digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
        parts[int.from_bytes(digest[:8], "big") % 100 < percent].append(text)
    for part in parts:
        random.Random(seed).shuffle(part)
    return parts
