"""A model of text: its likelihood, its decoding byte by byte, and the objective's parts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical

from latentd.decoding import GREEDY
from latentd.texts import to_rows
from latentd.training import trainer
from latentd.training.config import Config
from latentd.training.dataset import RowSpec
from latentd.training.model import VAE, build, decoded, text_decoder
from latentd.training.networks import gru, resolve_architecture

LENGTH = 7
SPEC = RowSpec((LENGTH,), "uint8", text=True)
TEXTS = to_rows([b"", b"a", b"bc", b"abcdef", "é".encode(), b"zzzzz"], LENGTH)


def model(scale: float = 1.0, **settings: object) -> VAE:
    """scale: of the weights. Large ones make decisions that differ from row to row."""
    config = Config(data="text:no.txt", latent_size=3, hidden_size=16, **settings)  # type: ignore[arg-type]
    net = build(resolve_architecture(config, SPEC.shape), SPEC)
    assert isinstance(net, VAE)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(scale)
    return net.eval()


def latents(rows: int) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(5))


def plain_log_p(net: VAE, z: Tensor, text: bytes) -> float:
    """log p(text | z), one byte after the other, with GRU's own cell."""
    decoder = text_decoder(net)
    weights = [getattr(decoder.gru, f"{name}_l0") for name in ("weight_ih", "weight_hh")]
    biases = [getattr(decoder.gru, f"{name}_l0") for name in ("bias_ih", "bias_hh")]
    hidden, last, total = decoder.start(z[None]).tanh(), 0, 0.0
    for byte in [*text, 0][: LENGTH - 1]:
        inputs = torch.cat((decoder.embed.weight[last][None], z[None]), dim=1)
        hidden = torch.gru_cell(inputs, hidden, *weights, *biases)
        total += float(Categorical(logits=decoder.out(hidden)[0]).log_prob(torch.tensor(byte)))
        last = byte
    return total


@torch.no_grad()
def test_the_likelihood_is_the_sum_over_bytes_up_to_the_end() -> None:
    net, x = model(3), torch.from_numpy(TEXTS)
    z = latents(len(x))
    expected = [
        plain_log_p(net, latent, bytes(row).rstrip(b"\0"))
        for latent, row in zip(z, TEXTS, strict=True)
    ]
    torch.testing.assert_close(-net.distortion(z, x), torch.tensor(expected), atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_probabilities_of_all_short_texts_sum_to_one() -> None:
    spec = RowSpec((2,), "uint8", text=True)
    config = Config(data="text:no.txt", latent_size=3, hidden_size=8)
    net = build(resolve_architecture(config, spec.shape), spec)
    x = torch.stack((torch.arange(256), torch.zeros(256)), dim=1).to(torch.uint8)
    z = latents(1).expand(256, 3)
    torch.testing.assert_close((-net.distortion(z, x)).exp().sum(), torch.tensor(1.0))


@torch.no_grad()
def test_forced_bytes_get_the_likelihood_that_training_has() -> None:
    net, x = model(3), torch.from_numpy(TEXTS)
    z = latents(len(x))
    found = text_decoder(net).decode(torch.cat((z, gru.teacher_forced(x)), dim=1))
    assert torch.equal(found.x, x)
    torch.testing.assert_close(found.log_p[:, 0], -net.distortion(z, x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_greedy_decoding_takes_the_likeliest_byte_after_each() -> None:
    net, z = model(4), latents(50)
    x = decoded(net, z)
    logits = text_decoder(net)(z, x)
    inside = gru.text_mask(x)[:, :-1]
    assert torch.equal(logits.argmax(2)[inside], x[:, :-1].long()[inside])
    assert (x[:, :-1][~inside] == 0).all()
    assert (x[:, -1] == 0).all()
    assert len(x.unique(dim=0)) > 10  # the rows differ


@torch.no_grad()
def test_uniform_numbers_draw_from_the_distribution_of_each_byte() -> None:
    net, rows = model(3), 20_000
    z = latents(1).expand(rows, 3)
    uniform = torch.rand(rows, LENGTH, generator=torch.Generator().manual_seed(1))
    found = text_decoder(net).decode(torch.cat((z, uniform), dim=1))
    expected = text_decoder(net)(z[:1], found.x[:1])[0, 0].softmax(0)
    frequency = torch.bincount(found.x[:, 0].long(), minlength=256) / rows
    assert (frequency - expected).abs().max() < 0.015
    torch.testing.assert_close(found.log_p[:, 0], -net.distortion(z, found.x), atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_the_extreme_uniform_numbers_draw_bytes() -> None:
    net, z = model(), latents(2)
    ends = torch.tensor([[0.5 * 2**-23], [1 - 2**-24]]).expand(2, LENGTH)
    assert text_decoder(net).decode(torch.cat((z, ends), dim=1)).x[:, 0].tolist() == [0, 255]


@torch.no_grad()
def test_rows_of_a_batch_may_draw_decode_and_score() -> None:
    net, x = model(4), torch.from_numpy(TEXTS)
    z, decoder = latents(3), text_decoder(net)
    uniform = torch.full((1, LENGTH), 0.37)
    greedy = torch.full((1, LENGTH), GREEDY)
    rows = torch.cat((z, torch.cat((greedy, uniform, gru.teacher_forced(x[3:4])))), dim=1)
    together = decoder.decode(rows)
    alone = [decoder.decode(row[None]).x for row in rows]
    assert torch.equal(together.x, torch.cat(alone))
    assert torch.equal(together.x[2], x[3])


@torch.no_grad()
def test_the_margin_is_small_where_another_byte_is_near() -> None:
    net, z = model(), latents(1)
    logits = text_decoder(net)(z, torch.zeros(1, LENGTH, dtype=torch.uint8))[0, 0]
    cumulated = logits.softmax(0).cumsum(0)
    rows = torch.cat((z, torch.full((1, LENGTH), float(cumulated[40]) + 1e-5)), dim=1)
    assert 0 < float(text_decoder(net).decode(rows).margin) < 2e-5
    best, second = logits.topk(2).values
    greedy = torch.cat((z, torch.full((1, LENGTH), GREEDY)), dim=1)
    assert float(text_decoder(net).decode(greedy).margin) <= float(best - second) + 1e-6


def test_a_hidden_byte_changes_what_the_decoder_sees_and_nothing_else() -> None:
    net, x = model(3), torch.from_numpy(TEXTS)
    hidden = gru.drop_tokens(x, 0.999, torch.Generator().manual_seed(0))
    assert torch.equal(hidden % 256, x.to(torch.int16))
    assert torch.equal(net.encode(x)[0], net.encode(hidden)[0])
    assert torch.equal(gru.text_mask(x), gru.text_mask(hidden))
    z = latents(len(x))
    assert torch.equal(
        net.distortion(z, x)[:1], net.distortion(z, hidden)[:1]
    )  # nothing before its end
    assert not torch.isclose(net.distortion(z, x)[1:], net.distortion(z, hidden)[1:]).any()


def test_the_fraction_of_hidden_bytes_is_the_one_asked_for() -> None:
    x = torch.zeros(500, 40, dtype=torch.uint8)
    share = (gru.drop_tokens(x, 0.3, torch.Generator().manual_seed(0)) >= 256).float().mean()
    assert abs(float(share) - 0.3) < 0.01


def test_the_encoder_reads_a_text_both_ways_up_to_its_end() -> None:
    net, x = model(3), torch.from_numpy(TEXTS)
    encoder = net.encoder
    assert isinstance(encoder, gru.Encoder)
    largest = []
    for row in TEXTS:
        text = torch.tensor([*bytes(row).rstrip(b"\0"), 0])  # with its end
        forwards, _ = encoder.forwards(encoder.embed(text))
        backwards, _ = encoder.backwards(encoder.embed(text.flip(0)))
        largest.append(torch.cat((forwards, backwards), dim=1).amax(0))
    expected = torch.stack(largest)
    torch.testing.assert_close(encoder(x), encoder.out(expected))


def test_validation_does_not_depend_on_the_rows_in_a_batch() -> None:
    net, x = model(), torch.from_numpy(TEXTS)
    terms = trainer.evaluate(net, x, seed=0)
    assert all(torch.isfinite(torch.tensor(list(terms.values()))))
    assert abs(terms["elbo"] + terms["distortion"] + terms["rate"]) < 1e-4


@torch.no_grad()
def test_what_follows_the_texts_changes_nothing() -> None:
    net, x = model(3), torch.from_numpy(to_rows([b"", b"a", b"bc", "é".encode()], LENGTH))
    short = gru.trim_padding(x)
    assert short.shape[1] == 4, "two bytes, the end, and a column without logits"
    torch.testing.assert_close(net.encode(short), net.encode(x))
    z = latents(len(x))
    torch.testing.assert_close(net.distortion(z, short), net.distortion(z, x))
    assert torch.equal(gru.trim_padding(torch.from_numpy(TEXTS)), torch.from_numpy(TEXTS))
