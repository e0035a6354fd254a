"""The head's loss and gradients against torch's own cross entropy on all logits at once."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qpa_exp.fast_head import logit_passes
from qpa_exp.fast_head import low_rank_loss as module
from qpa_exp.fast_head.accelerator import any_head_loss
from qpa_exp.fast_head.low_rank_loss import FinalLogits, FrozenHead, Update, dora, low_rank_loss
from qpa_exp.lm.losses import IGNORED

KINDS = ("base", "lora", "dropout", "dora", "hidden", "changed", "shared")
"""What a method does: nothing; it adds a product; one of other inputs; gives lengths; changes the
input; or the weight; or multiplies what comes out, for a changed input."""
SCALING = 0.7


class Problem:
    """A random head, hidden states, an update of the head, and the same in torch's own terms."""

    def __init__(self, seed, kind, tokens, vocab, width, rank, dtype, bias, final, size, low=None):
        stream = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(shape, generator=stream)

        self.kind = kind
        # Rows with something in common give the logits an offset, as GPT-2's have.
        self.weight = (0.3 * draw(vocab, width) + draw(width)).to(dtype)
        self.bias = draw(vocab).to(dtype) if bias else None
        self.head = FrozenHead(self.weight, self.bias, final, low)
        self.hidden = (size * draw(tokens, width)).to(dtype)
        self.inputs = 2 * self.hidden if kind == "dropout" else None
        self.targets = torch.randint(vocab, (tokens,), generator=stream)
        self.targets[torch.rand(tokens, generator=stream) < 0.2] = IGNORED
        self.weights = torch.rand(tokens, generator=stream)
        a, b, m = draw(rank, width), draw(vocab, rank), 1 + draw(vocab).abs()
        self.tensors = {
            "base": [], "hidden": [self.hidden], "dora": [a, b, m], "shared": [self.hidden, m],
            "changed": [self.weight + 0.1 * draw(vocab, width)],
        }.get(kind, [a, b])  # fmt: skip

    @property
    def is_well_conditioned(self):
        """Whether no row of DoRA's W + s B A is the rest of two that take each other away.

        Its direction, which float32 holds to as many digits less, is what the logits are made of.
        """
        if self.kind != "dora":
            return True
        a, b, _ = self.tensors
        added = SCALING * b @ a
        rest = (self.weight + added).norm(dim=1)
        return bool((rest > 0.1 * (self.weight.norm(dim=1) + added.norm(dim=1))).all())

    def ours(self, **options):
        leaves = [t.clone().requires_grad_() for t in self.tensors]
        update = self.update(leaves)
        loss, nats = low_rank_loss(self.head, update, self.targets, self.weights, **options)
        if leaves:
            (3 * loss).backward()
        return loss.detach(), nats, [leaf.grad for leaf in leaves]

    def update(self, leaves):
        if self.kind == "hidden":
            return Update(*leaves, bias=self.bias)
        if self.kind == "shared":
            return Update(leaves[0], share=leaves[1], bias=self.bias)
        if self.kind == "changed":
            if self.head.dtype.itemsize == 2:
                return Update(self.hidden, self.hidden, leaves[0] - self.weight, None, self.bias)
            return Update(None, self.hidden, leaves[0], None, self.bias)
        if self.kind == "dora":
            return dora(self.head, self.hidden, leaves[0], leaves[1], SCALING, leaves[2])
        if not leaves:
            return Update(self.hidden, bias=self.bias)
        given = self.hidden if self.inputs is None else self.inputs
        u = SCALING * given.float() @ leaves[0].T
        return Update(self.hidden, u, leaves[1], None, self.bias)

    def torchs(self):
        """In float64, from the same numbers."""
        leaves = [t.double().requires_grad_() for t in self.tensors]
        hidden = leaves[0] if self.kind in ("hidden", "shared") else self.hidden.double()
        weight = leaves[0] if self.kind == "changed" else self.weight.double()
        logits = hidden @ weight.T
        if self.kind == "shared":
            logits = logits * leaves[1]
        if self.kind in ("lora", "dropout", "dora"):
            a, b = leaves[:2]
            given = hidden if self.inputs is None else self.inputs.double()
            logits = logits + SCALING * (given @ a.T) @ b.T
            if self.kind == "dora":
                logits = logits * (leaves[2] / (weight + SCALING * b @ a).norm(dim=1).detach())
        if self.bias is not None:
            logits = logits + self.bias.double()
        logits = self.head.final(logits)
        nats = F.cross_entropy(logits, self.targets, ignore_index=IGNORED, reduction="none")
        loss = (nats * self.weights).sum()
        if leaves:
            (3 * loss).backward()
        return loss.detach(), nats.detach(), [leaf.grad for leaf in leaves]

    def check(self, tolerance, **options):
        loss, nats, gradients = self.ours(**options)
        expected_loss, expected_nats, expected = self.torchs()
        assert nats.dtype == torch.float32
        torch.testing.assert_close(loss.double(), expected_loss, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(nats.double(), expected_nats, rtol=tolerance, atol=tolerance)
        for ours, theirs in zip(gradients, expected, strict=True):
            scale = theirs.abs().max().clamp_min(1e-3)
            assert (ours.double() - theirs).abs().max() <= tolerance * scale


def by(way, patch):
    """In the compiled kernels, which a CPU takes, or in torch's operations, which all others do."""
    if way == "torch":
        patch.setattr(module, "can_compile", lambda *_: False)


finals = st.builds(FinalLogits, st.sampled_from([1.0, 0.25]), st.sampled_from([None, 5.0, 30.0]))


@pytest.mark.parametrize("way", ["compiled", "torch"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**16),
    tokens=st.integers(1, 9),
    vocab=st.integers(2, 70),
    width=st.integers(1, 12),
    rank=st.integers(1, 9),  # above 6 torch does what the kernels do below
    bias=st.booleans(),
    final=finals,
    size=st.sampled_from([0.1, 1.0]),
    block=st.sampled_from([1, 40, 2**19]),
    buffer_bytes=st.sampled_from([1, 2000, 2**28]),
)
def test_it_is_torchs_cross_entropy_to_1e_5(block, buffer_bytes, kind, way, **given_shape):
    problem = Problem(kind=kind, dtype=torch.float32, **given_shape)
    assume(problem.is_well_conditioned)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(logit_passes.BLOCKS, "cpu", block)
        by(way, patch)
        problem.check(1e-5, buffer_bytes=buffer_bytes)


@pytest.mark.parametrize("way", ["compiled", "torch"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("final", [FinalLogits(), FinalLogits(soft_cap=30.0)])
@pytest.mark.parametrize(("bias", "rank"), [(True, 3), (False, 3), (False, 9)])
@pytest.mark.parametrize(
    ("dtype", "low"),
    [(torch.bfloat16, None), (torch.float16, None), (torch.float32, torch.bfloat16)],
)
def test_products_in_16_bits_round_no_more_than_those_do(
    way, kind, final, bias, dtype, low, rank, monkeypatch
):
    monkeypatch.setattr(module, "_NARROW_IN_16_BITS", 8)
    by(way, monkeypatch)
    problem = Problem(7, kind, 40, 300, 32, rank, dtype, bias, final, 0.5, low)
    problem.check(0.03)


def test_an_offset_common_to_all_logits_costs_no_accuracy_in_16_bits():
    """GPT-2's logits lie around -100: bfloat16 has steps of 1/2 there."""
    problem = Problem(3, "base", 64, 500, 32, 1, torch.float32, False, FinalLogits(), 1.0)
    direction = F.normalize(torch.randn(32, generator=torch.Generator().manual_seed(1)), dim=0)
    problem.weight = 0.3 * problem.weight + 20 * direction
    problem.hidden = problem.hidden - (problem.hidden @ direction)[:, None] * direction
    problem.hidden -= 5 * direction
    for weight, low in ((problem.weight, torch.bfloat16), (problem.weight.bfloat16(), None)):
        problem.weight = weight
        problem.head = FrozenHead(weight, None, FinalLogits(), low)
        if low is None:
            problem.hidden = problem.hidden.bfloat16()
        _, nats, _ = problem.ours()
        _, expected, _ = problem.torchs()
        assert (nats - expected).abs().mean() < 0.05
        assert (nats.mean() / expected.mean() - 1).abs() < 2e-3


def test_logits_far_above_those_of_the_first_block_are_no_trouble(monkeypatch):
    monkeypatch.setitem(logit_passes.BLOCKS, "cpu", 8)
    problem = Problem(1, "lora", 6, 50, 4, 2, torch.float32, False, FinalLogits(), 1.0)
    problem.weight[:10] = 0
    problem.weight[40] = 300 * torch.sign(problem.hidden[0])
    problem.targets[:] = torch.arange(6)
    problem.check(1e-5)


def test_without_targets_there_is_no_loss_and_no_gradient():
    problem = Problem(1, "lora", 5, 20, 4, 2, torch.float32, True, FinalLogits(), 1.0)
    problem.targets[:] = IGNORED
    loss, nats, gradients = problem.ours()
    assert loss == nats.abs().sum() == sum(g.abs().sum() for g in gradients) == 0


@pytest.mark.parametrize("way", ["compiled", "torch"])
def test_not_a_number_is_said_and_not_hidden(way, monkeypatch):
    by(way, monkeypatch)
    problem = Problem(1, "lora", 5, 20, 4, 2, torch.float32, True, FinalLogits(), 1.0)
    problem.tensors[1][3, 0] = torch.nan
    loss, _, _ = problem.ours()
    assert loss.isnan()


@pytest.mark.parametrize("way", ["compiled", "torch"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_update_of_zero_gives_the_bits_of_the_base_model(kind, way, monkeypatch):
    by(way, monkeypatch)
    problem = Problem(5, kind, 30, 400, 16, 3, torch.float32, False, FinalLogits(), 1.0)
    problem.tensors[1].zero_()
    if kind == "dora":
        problem.tensors[2].copy_(torch.linalg.norm(problem.weight, dim=1))
    _, adapted, _ = problem.ours()
    problem.kind, problem.tensors = "base", []
    _, base, _ = problem.ours()
    assert torch.equal(adapted, base)


# --- sums over a large vocabulary -------------------------------------------------------------


def large_problem(vocab, confident):
    """Few tokens over many words; the confident ones' targets have nearly all of it, and lie early.

    Then what is left for the others is small beside the largest, which is summed first.
    """
    problem = Problem(2, "base", 8, vocab, 16, 1, torch.float32, False, FinalLogits(), 1.0)
    problem.weight = 0.1 * (problem.weight - problem.weight.mean(0))
    problem.targets[:] = torch.arange(8)
    if confident:
        problem.weight[:8] = 0
        raised = torch.linalg.pinv(problem.hidden).T * (math.log(vocab) + 5)
        problem.weight[:8] = raised
    problem.head = FrozenHead(problem.weight)
    return problem


@pytest.mark.parametrize("way", ["compiled", "torch"])
@pytest.mark.parametrize("confident", [False, True])
@pytest.mark.parametrize("vocab", [1000, 16_000, 256_000])
def test_the_loss_is_as_exact_as_torchs_whatever_the_vocabulary(way, confident, vocab, monkeypatch):
    by(way, monkeypatch)
    problem = large_problem(vocab, confident)
    _, nats, _ = problem.ours()
    _, exact, _ = problem.torchs()
    logits = problem.hidden @ problem.weight.T
    torchs = F.cross_entropy(logits, problem.targets, reduction="none").double()
    off, torchs_off = ((found.double() - exact).abs().max() for found in (nats, torchs))
    assert off <= min(5e-6, 3 * torchs_off + 1e-6)


def test_the_loss_does_not_depend_on_the_number_of_threads(monkeypatch):
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        problem = large_problem(40_000, confident=False)
        problem.kind, stream = "lora", torch.Generator().manual_seed(3)
        shapes = (2, 16), (40_000, 2)
        problem.tensors = [0.1 * torch.randn(shape, generator=stream) for shape in shapes]
        found.append(problem.ours())
    for loss, nats, gradients in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(nats, found[0][1])
        assert all(map(torch.equal, gradients, found[0][2]))


# --- the rest ---------------------------------------------------------------------------------


def test_room_for_products_is_asked_for_once():
    head = Problem(1, "base", 5, 20, 4, 2, torch.float32, False, FinalLogits(), 1.0).head
    first = head.room(64)
    assert head.room(32).data_ptr() == first.data_ptr()
    assert head.room(65).numel() == 65


# --- any head ---------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**16), tokens=st.integers(1, 20), most=st.integers(1, 30), final=finals)
def test_any_head_in_chunks_is_the_whole_one(seed, tokens, most, final):
    stream = torch.Generator().manual_seed(seed)
    hidden, shift = (torch.randn(*s, generator=stream) for s in ((tokens, 5), (5,)))
    layer = torch.nn.Linear(5, 11).requires_grad_(False)
    targets = torch.randint(11, (tokens,), generator=stream)
    targets[torch.rand(tokens, generator=stream) < 0.2] = IGNORED
    weights = torch.rand(tokens, generator=stream)

    def run(chunked):
        added = shift.clone().requires_grad_()
        unused = torch.zeros(3, requires_grad=True)

        def head(x):
            return final(layer(torch.tanh(x + added)))

        if chunked:
            size = {"chunk_bytes": 4 * 11 * most}
            trained = [unused, added]
            loss, nats = any_head_loss(head, trained, hidden, targets, weights, 11, **size)
        else:
            nats = F.cross_entropy(head(hidden), targets, ignore_index=-100, reduction="none")
            loss = nats @ weights
        loss.backward()
        return loss.detach(), nats.detach(), added.grad

    for ours, theirs in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# --- on a GPU ---------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("low", [None, torch.bfloat16])
def test_on_a_gpu_it_is_what_it_is_on_a_cpu(kind, low):
    problem = Problem(9, kind, 40, 300, 32, 3, torch.float32, True, FinalLogits(), 0.5, low)
    expected = problem.torchs()
    for name in ("weight", "bias", "hidden", "inputs", "targets", "weights"):
        value = getattr(problem, name)
        setattr(problem, name, None if value is None else value.cuda())
    problem.tensors = [t.cuda() for t in problem.tensors]
    problem.head = FrozenHead(problem.weight, problem.bias, FinalLogits(), low)
    tolerance = 1e-4 if low is None else 0.03
    for ours, theirs in zip(problem.ours()[2], expected[2], strict=True):
        scale = theirs.abs().max().clamp_min(1e-3)
        assert (ours.double().cpu() - theirs).abs().max() <= tolerance * scale
    nats = problem.ours()[1].double().cpu()
    torch.testing.assert_close(nats, expected[1], rtol=tolerance, atol=tolerance)
