"""Draws docs/generator.svg and docs/qpa.svg: ``python docs/draw_pictures.py``.

The numbers in the first are those of a small generator: 3 qubits, 2 layers, a window of 3 and
chunks of 4, for LoRA of rank 2 on a layer of 6 x 10. Both pictures are dark on a dark page.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

QUBITS, LAYERS, WINDOW, CHUNK = 3, 2, 3, 4
STATES = 2**QUBITS
OUT, RANK, IN = 6, 2, 10
SECONDS = 1.4
"""How long the picture shows each chunk."""

_COLOURS = {
    "ground": ("#ffffff", "#0d1117"), "ink": ("#1f2328", "#e6edf3"), "soft": ("#59636e", "#9198a1"),
    "grid": ("#d8dee4", "#30363d"), "box": ("#f6f8fa", "#161b22"), "qpa": ("#0072b2", "#58a6ff"),
    "tint": ("#dcecf7", "#12304d"), "classical": ("#c14e00", "#f0883e"),
}  # fmt: skip


def style(more: str = "") -> str:
    """Return the colours as classes, light and dark: ``.qpa`` fills, ``.l-qpa`` draws lines."""

    def rules(place: int) -> str:
        return "".join(
            f".{name}{{fill:{pair[place]}}}.l-{name}{{stroke:{pair[place]}}}"
            for name, pair in _COLOURS.items()
        )

    dark = f"@media (prefers-color-scheme:dark){{{rules(1)}}}"
    still = "@media (prefers-reduced-motion:reduce){*{animation:none!important}}"
    return f"<style>{rules(0)}{dark}{more}{still}</style>"


def picture(width: int, height: int, title: str, parts: list[str], more: str = "") -> str:
    """Return a whole SVG."""
    font = "system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',Arial,sans-serif"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="{font}" font-size="13" role="img">',
            f"<title>{title}</title>",
            style(more),
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" class="soft"/></marker></defs>',
            f'<rect width="{width}" height="{height}" class="ground"/>',
            *parts,
            "</svg>\n",
        ]
    )


def text(
    x: float, y: float, words: str, colour: str = "ink", anchor: str = "start", more: str = ""
) -> str:
    """One line of text."""
    return (
        f'<text x="{x:g}" y="{y:g}" class="{colour}" text-anchor="{anchor}" {more}>{words}</text>'
    )


def arrow(path: str) -> str:
    """Return a line with a tip."""
    return (
        f'<path d="{path}" class="l-soft" fill="none" stroke-width="1.5" marker-end="url(#tip)"/>'
    )


def box(x: float, y: float, wide: float, high: float, colour: str, line: str) -> str:
    """Return a rounded box."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{wide:g}" height="{high:g}" rx="6" '
        f'class="{colour} l-{line}" stroke-width="1.3"/>'
    )


# --- the small generator ------------------------------------------------------------------------


def probabilities(theta: np.ndarray) -> np.ndarray:
    """Those of the states: layers of R_Y on every qubit, and a chain of CNOTs.

    Args:
        theta: the angles, (layers, qubits).
    """
    state = np.zeros([2] * QUBITS)
    state[(0,) * QUBITS] = 1
    for layer in theta:
        for qubit, angle in enumerate(layer):
            c, s = np.cos(angle / 2), np.sin(angle / 2)
            state = np.moveaxis(np.tensordot([[c, -s], [s, c]], state, (1, qubit)), 0, qubit)
        for qubit in range(QUBITS - 1):
            on = [slice(None)] * QUBITS
            on[qubit] = 1
            state[tuple(on)] = np.flip(state[tuple(on)], axis=qubit)
    return state.ravel() ** 2


def vector(p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Give the chunks of the generated vector, (states, chunk): a linear map of window and bits."""
    codes = [
        np.concatenate([
            [float(bit) for bit in f"{i:0{QUBITS}b}"],
            np.log1p(STATES * p[(i + np.arange(WINDOW)) % STATES]),
        ])
        for i in range(STATES)
    ]  # fmt: skip
    centred = np.array(codes) - np.mean(codes, axis=0)
    return np.tanh(centred @ weights)


# --- its picture ----------------------------------------------------------------------------------


def generator() -> str:
    """Chunk by chunk: the window over the probabilities, the mapping, the vector, the tensors."""
    draw = np.random.default_rng(3)
    p = probabilities(draw.uniform(0.6, 2.4, (LAYERS, QUBITS)))
    chunks = vector(p, draw.normal(size=(QUBITS + WINDOW, CHUNK)))
    total = SECONDS * STATES
    moves = [
        f"@keyframes fill{i}{{0%,{100 * i / STATES:.2f}%{{opacity:.08}}"
        f"{100 * i / STATES + 1:.2f}%,100%{{opacity:1}}}}"
        f".c{i}{{animation:fill{i} {total:g}s infinite}}"
        f"@keyframes see{i}{{0%,{100 * i / STATES:.2f}%{{opacity:0}}"
        f"{100 * i / STATES + 0.01:.2f}%,{100 * (i + 1) / STATES:.2f}%{{opacity:1}}"
        f"{min(100 * (i + 1) / STATES + 0.01, 100):.2f}%,100%{{opacity:{int(i == STATES - 1)}}}}}"
        f".s{i}{{animation:see{i} {total:g}s infinite;opacity:{int(i == 2)}}}"
        for i in range(STATES)
    ]
    bar, left, base, high = 30, 276, 158, 84
    slide = (
        f"@keyframes slide{{to{{transform:translateX({bar * STATES}px)}}}}"
        f".window{{animation:slide {total:g}s steps({STATES}) infinite}}"
    )
    parts = [*_circuit(16, 58), *_bars(p, left, base, bar, high)]
    parts += [
        f'<clipPath id="chart"><rect x="{left - 2}" y="{base - high - 8}" '
        f'width="{bar * STATES + 4}" height="{high + 30}"/></clipPath>',
        '<g clip-path="url(#chart)"><g class="window">',
        *(
            f'<rect x="{left + shift}" y="{base - high - 6}" width="{bar * WINDOW - 4}" '
            f'height="{high + 26}" rx="5" fill="none" class="l-classical" stroke-width="2.2"/>'
            for shift in (0, -bar * STATES)
        ),
        "</g></g>",
        arrow(f"M226 112H{left - 10}"),
        arrow(f"M{left + bar * STATES + 6} 112H562"),
        box(568, 58, 96, 108, "tint", "qpa"),
        text(616, 100, "mapping", "ink", "middle", 'font-weight="600"'),
        text(616, 117, "model", "ink", "middle", 'font-weight="600"'),
        text(616, 138, "trained", "qpa", "middle"),
        arrow("M670 112H694"),
    ]
    for i in range(STATES):
        bits = f"{i:0{QUBITS}b}"
        parts.append(f'<g class="s{i}">')
        parts.append(
            text(
                left + bar * STATES / 2,
                206,
                f"chunk {i} reads its window and the bits {bits}",
                "classical",
                "middle",
            )
        )
        parts += [_cell(702 + 20 * j, 102, 18, chunks[i, j]) for j in range(CHUNK)]
        parts.append(text(740, 140, f"chunk {i}", "classical", "middle") + "</g>")
    parts += [
        text(16, 24, "1  Circuit", more='font-weight="600"'),
        text(16, 42, f"{QUBITS} qubits, {LAYERS} layers, angles θ", "soft"),
        text(left, 24, "2  Probabilities", more='font-weight="600"'),
        text(left, 42, "one for each basis state", "soft"),
        text(568, 24, "3  A chunk's numbers", more='font-weight="600"'),
        text(568, 42, "from its window and its bits", "soft"),
        *_vector_and_tensors(chunks),
    ]
    title = "How the generator makes LoRA's tensors, chunk by chunk"
    return picture(800, 400, title, parts, "".join(moves) + slide)


def _circuit(x: int, y: int) -> list[str]:
    """Return the wires, R_Y and CNOTs of the layers."""
    gap, parts, step = 40, [], 100
    for qubit in range(QUBITS):
        line = y + 14 + gap * qubit
        parts.append(f'<path d="M{x} {line}H{x + 206}" class="l-soft" stroke-width="1.3"/>')
    for layer in range(LAYERS):
        at = x + 10 + step * layer
        for qubit in range(QUBITS):
            line = y + 14 + gap * qubit
            parts.append(box(at, line - 13, 34, 26, "tint", "qpa"))
            parts.append(
                text(at + 17, line + 4, "R<tspan font-size='9' dy='2'>Y</tspan>", "qpa", "middle")
            )
        for qubit in range(QUBITS - 1):
            line, on = y + 14 + gap * qubit, at + 50 + 22 * qubit
            parts.append(f'<circle cx="{on}" cy="{line}" r="4" class="ink"/>')
            parts.append(
                f'<circle cx="{on}" cy="{line + gap}" r="8" fill="none" class="l-ink" '
                f'stroke-width="1.3"/><path d="M{on} {line}V{line + gap + 8}'
                f'M{on - 8} {line + gap}H{on + 8}" class="l-ink" stroke-width="1.3"/>'
            )
    return parts


def _bars(p: np.ndarray, left: int, base: int, bar: int, high: int) -> list[str]:
    parts = [f'<path d="M{left - 4} {base}H{left + bar * STATES}" class="l-grid"/>']
    for i, height in enumerate(high * p / p.max()):
        x = left + bar * i
        parts.append(
            f'<rect x="{x + 5}" y="{base - height:.1f}" width="{bar - 14}" '
            f'height="{height:.1f}" class="qpa"/>'
        )
        parts.append(
            text(x + 13, base + 15, f"{i:0{QUBITS}b}", "soft", "middle", 'font-size="10.5"')
        )
    return parts


def _cell(x: float, y: float, size: float, value: float) -> str:
    colour = "qpa" if value > 0 else "classical"
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{size}" height="{size}" rx="2" class="{colour} l-grid" '
        f'fill-opacity="{0.12 + 0.85 * abs(value):.2f}" stroke-width="1"/>'
    )


def _vector_and_tensors(chunks: np.ndarray) -> list[str]:
    size, y = 13, 300
    parts = [
        arrow("M740 150V224H24V290"),
        text(36, 252, "4  The vector", more='font-weight="600"'),
        text(36, 270, f"m = r (d + k) = {RANK} ({OUT} + {IN}) numbers, chunk after chunk", "soft"),
    ]
    for i, chunk in enumerate(chunks):
        parts.append(f'<g class="c{i}">')
        parts += [_cell(16 + 58 * i + size * j, y, size - 1, v) for j, v in enumerate(chunk)]
        parts.append("</g>")
        parts.append(text(16 + 58 * i + 26, y + 30, f"{i}", "soft", "middle", 'font-size="10.5"'))
    parts.append(arrow("M486 306H520"))
    parts.append(text(536, 252, "5  LoRA's tensors", more='font-weight="600"'))
    parts.append(text(536, 270, "the vector, cut: B, then A", "soft"))
    flat, inside = chunks.ravel(), OUT * RANK
    for place, value in enumerate(flat):
        if place < inside:
            x, at = 552 + size * (place % RANK), 290 + size * (place // RANK)
        else:
            rest = place - inside
            x, at = 626 + size * (rest % IN), 316 + size * (rest // IN)
        parts.append(f'<g class="c{place // CHUNK}">{_cell(x, at, size - 1, value)}</g>')
    parts += [
        text(565, 388, f"B  {OUT} \u00d7 {RANK}", "soft", "middle"),
        text(690, 388, f"A  {RANK} \u00d7 {IN}", "soft", "middle"),
        text(606, 334, "\u00d7", "ink", "middle", 'font-size="16"'),
        text(
            16, 372, "The random order in which the default puts the numbers is left out.", "soft"
        ),
    ]
    return parts


# --- the whole, on one line ------------------------------------------------------------


def qpa() -> str:
    """Return what is trained, what is frozen, and where the gradient goes."""
    boxes = [
        (8, 128, "tint", "qpa", "circuit", ("N qubits, L layers", "soft"), ("angles θ", "qpa")),
        (166, 138, "box", "soft", "a chunk's code", ("bits of state i,", "soft"),
         ("a window of p", "soft")),
        (334, 132, "tint", "qpa", "mapping model", ("code → n_mlp", "soft"), ("weights", "qpa")),
        (496, 132, "box", "soft", "m numbers", ("cut into the", "soft"),
         ("tensors of LoRA", "soft")),
        (658, 134, "box", "soft", "language model", ("frozen", "soft"), ("", "soft")),
    ]  # fmt: skip
    parts = []
    for x, wide, fill, line, head, one, two in boxes:
        middle = x + wide / 2
        parts.append(box(x, 40, wide, 88, fill, line))
        parts.append(text(middle, 68, head, "ink", "middle", 'font-weight="600"'))
        parts += [
            text(middle, y, *said, "middle") for y, said in ((91, one), (112, two)) if said[0]
        ]
    for (x, wide, *_), (after, *_) in pairwise(boxes):
        parts.append(arrow(f"M{x + wide + 4} 84H{after - 5}"))
    back = 'class="l-qpa" fill="none" stroke-width="1.5" stroke-dasharray="6 4"'
    gradient = "the gradient of the loss: only θ and the mapping model are trained"
    parts += [
        f'<path d="M725 132V168H72V138M400 168V138" {back}/>',
        '<path d="M67 141L72 132L77 141z" class="qpa"/>',
        '<path d="M395 141L400 132L405 141z" class="qpa"/>',
        text(400, 190, gradient, "qpa", "middle"),
        text(562, 26, "after training: a plain PEFT adapter, no circuit", "soft", "middle"),
    ]
    return picture(800, 206, "A circuit and a mapping model generate LoRA's tensors", parts)


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "generator.svg").write_text(generator(), encoding="utf-8")
    (here / "qpa.svg").write_text(qpa(), encoding="utf-8")
