"""The reported losses against transformers' own, and against a plain loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qpa_exp.lm.losses import token_losses


@pytest.fixture(scope="module")
def logits(make_gpt2, batch):
    with torch.no_grad():
        return make_gpt2()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def ours(logits, batch):
    return token_losses(logits, batch["input_ids"], batch["labels"])


def transformers_loss(model, batch, labels):
    with torch.no_grad():
        return model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss


def test_text_mean_is_transformers_loss_with_the_padding_left_out(make_gpt2, logits, batch):
    expected = transformers_loss(make_gpt2(), batch, batch["labels"])
    torch.testing.assert_close(ours(logits, batch).text_mean, expected, rtol=0, atol=1e-5)


def test_padded_mean_is_transformers_loss_with_the_padding_as_labels(make_gpt2, logits, batch):
    expected = transformers_loss(make_gpt2(), batch, batch["input_ids"])
    torch.testing.assert_close(ours(logits, batch).padded_mean, expected, rtol=0, atol=1e-5)


def test_the_first_token_of_a_row_is_never_counted(logits, batch):
    assert ours(logits, batch).text_count == 11 + 6 + 0


def test_text_sum_and_count_add_up_over_batches(logits, batch):
    whole = ours(logits, batch)
    rows = [
        token_losses(logits[i : i + 1], batch["input_ids"][[i]], batch["labels"][[i]])
        for i in range(3)
    ]
    torch.testing.assert_close(sum(row.text_sum for row in rows), whole.text_sum)
    assert sum(row.text_count for row in rows) == whole.text_count


def test_a_batch_of_padding_alone_has_no_text_and_a_finite_mean(logits, batch):
    losses = token_losses(logits, batch["input_ids"], torch.full_like(batch["labels"], -100))
    assert losses.text_count == 0
    assert losses.text_sum == losses.text_mean == 0
    assert losses.padded_mean > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_taken_in_single_precision(logits, batch, dtype):
    half = logits.to(dtype)
    losses = ours(half, batch)
    assert losses.nats.dtype == torch.float32
    assert torch.equal(losses.nats, ours(half.float(), batch).nats)


def test_the_loss_is_differentiable_and_padding_gets_no_gradient_from_the_text(logits, batch):
    free = logits.clone().requires_grad_()
    ours(free, batch).text_mean.backward()
    assert free.grad[:2].abs().sum() > 0
    assert free.grad[1, 6:].count_nonzero() == free.grad[2].count_nonzero() == 0


@given(
    rows=st.integers(1, 4),
    tokens=st.integers(2, 9),
    vocabulary=st.integers(2, 12),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_every_figure_is_that_of_a_plain_loop(rows, tokens, vocabulary, scale, seed, data):
    stream = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, tokens, vocabulary, generator=stream)
    ids = torch.randint(vocabulary, (rows, tokens), generator=stream)
    lengths = data.draw(st.lists(st.integers(0, tokens), min_size=rows, max_size=rows))
    mask = (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()

    log_p = logits.double().log_softmax(-1)
    text, everything = [], []
    for row in range(rows):
        for position in range(1, tokens):
            nats = -log_p[row, position - 1, ids[row, position]].item()
            everything.append(nats)
            if position < lengths[row]:
                text.append(nats)

    losses = token_losses(logits, ids, ids.masked_fill(mask == 0, -100))
    assert losses.nats.shape == losses.is_text.shape == (rows, tokens - 1)
    assert losses.text_count.item() == len(text)
    assert losses.text_sum.item() == pytest.approx(sum(text), rel=1e-5, abs=1e-4)
    assert losses.text_mean.item() == pytest.approx(
        sum(text) / max(1, len(text)), rel=1e-5, abs=1e-5
    )
    assert losses.padded_mean.item() == pytest.approx(
        sum(everything) / len(everything), rel=1e-5, abs=1e-5
    )
