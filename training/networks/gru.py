"""`gru`: recurrent nets over the bytes of a text, and how a text is decoded byte by byte.

The encoder reads both ways and keeps the largest of each feature over the text (Long et al., 2019,
arXiv:1911.03976). The decoder is a language model that gets z before the first byte and again with
every byte (Bowman et al., 2016, arXiv:1511.06349). The start and the end of a text are the byte 0.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentd.decoding import FORCED
from latentd.training.config import Config

BYTES: Final = 256
"""A row's numbers are bytes. One that the decoder may not see has BYTES added to it."""
_EMBEDDING: Final = 4  # hidden units for each number of a byte's embedding


def build(
    config: Config, shape: tuple[int, ...], posterior: int, outputs: int
) -> tuple[nn.Module, nn.Module]:
    """The encoder and the decoder of texts of shape (length,)."""
    hidden, _ = config.sizes
    (length,), embedding = shape, max(8, hidden // _EMBEDDING)
    return (
        Encoder(hidden, embedding, posterior),
        Decoder(config.latent_size, hidden, embedding, length),
    )


def drop_tokens(x: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Rows (rows, length) of bytes as int16, with BYTES added to this fraction of them: the
    decoder then predicts the next byte without having seen this one."""
    hidden = torch.rand(x.shape, generator=generator, device=x.device) < fraction
    return x.to(torch.int16) + hidden.to(torch.int16) * BYTES


def text_mask(x: Tensor) -> Tensor:
    """Which bytes of rows (rows, length) belong to their texts, the end included: bool."""
    return F.pad(x[:, :-1].int().remainder(BYTES) != 0, (1, 0), value=True)


def trim_padding(x: Tensor) -> Tensor:
    """Rows (rows, length) without the columns that belong to no text. One such column is kept,
    because the last byte of a row has no logits."""
    longest = int(text_mask(x).sum(1).max())
    return x[:, : longest + 1]


class Encoder(nn.Module):
    """Bytes (rows, length) -> (rows, posterior). What follows a text's end does not matter."""

    def __init__(self, hidden: int, embedding: int, posterior: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(BYTES, embedding)
        self.forwards = nn.GRU(embedding, hidden, batch_first=True)
        self.backwards = nn.GRU(embedding, hidden, batch_first=True)
        self.out = nn.Linear(2 * hidden, posterior)

    def forward(self, x: Tensor) -> Tensor:
        read = text_mask(x)
        x = x.long().remainder(BYTES)
        # From the text's end: a bidirectional GRU would begin with the padding behind it.
        end = read.long().sum(1, keepdim=True) - 1
        steps = torch.arange(x.shape[1], device=x.device)
        backwards = x.gather(1, (end - steps).clamp(min=0))
        states, _ = self.forwards(self.embed(x))
        states_back, _ = self.backwards(self.embed(backwards))
        states = torch.cat((states, states_back), dim=2)
        # Features lie in -1..1.
        largest = torch.where(read[:, :, None], states, -1.0).amax(1)
        out: Tensor = self.out(largest)
        return out


class Decoder(nn.Module):
    """z (rows, latents), and the bytes of the texts -> logits of each byte given those before it.

    The last of `length` bytes is always an end, so it has no logits.
    """

    def __init__(self, latents: int, hidden: int, embedding: int, length: int) -> None:
        super().__init__()
        self.latents, self.length = latents, length
        self.embed = nn.Embedding(BYTES + 1, embedding)  # the last one: a byte that is hidden
        self.start = nn.Linear(latents, hidden)
        self.gru = nn.GRU(embedding + latents, hidden, batch_first=True)
        self.out = nn.Linear(hidden, BYTES)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """(rows, length - 1, BYTES), of given bytes (rows, length)."""
        seen = F.pad(x[:, :-2].int().clamp(max=BYTES), (1, 0))  # begins with the byte 0
        inputs = torch.cat((self.embed(seen), z[:, None].expand(-1, seen.shape[1], -1)), dim=2)
        states, _ = self.gru(inputs, self.start(z).tanh()[None])
        logits: Tensor = self.out(states)
        return logits

    def start_state(self, z: Tensor) -> Start:
        """What the first step takes. z: (rows, latents)."""
        embedding = self.embed.embedding_dim
        zero = z[:, :1] * 0
        gates = F.linear(z, dict(self.gru.named_parameters())["weight_ih_l0"][:, embedding:])
        return Start(self.start(z).tanh(), gates, State(zero, zero + 1, zero))

    def decode(self, rows: Tensor) -> Decoded:
        """Decode rows of decoder.onnx's input: float32 (rows, latents + length)."""
        step = Step(self)
        hidden, gates, state = self.start_state(rows[:, : self.latents])
        choices = torch.split(rows[:, self.latents :], 1, dim=1)
        tokens, margin = [], torch.full_like(state.token, torch.inf)
        for choice in choices[:-1]:
            hidden, state, step_margin = step(hidden, gates, state, choice)
            tokens.append(state.token)
            margin = torch.minimum(margin, step_margin)
        x = torch.cat((*tokens, state.token * 0), dim=1).to(torch.uint8)
        return Decoded(x, state.log_p, margin)


class State(NamedTuple):
    """Where a text stands between two steps: each float32 (rows, 1)."""

    token: Tensor  # the last byte
    alive: Tensor  # 1 until the end has been decoded, then 0
    log_p: Tensor  # log p(bytes so far | z)


class Start(NamedTuple):
    """What `Decoder.start_state` makes of z."""

    hidden: Tensor  # (rows, hidden)
    gates: Tensor  # z's part of the gates' inputs, the same in each step: (rows, 3 * hidden)
    state: State


class Decoded(NamedTuple):
    """What `Decoder.decode` gives."""

    x: Tensor  # uint8 (rows, length)
    log_p: Tensor  # log p(x | z) in nats: (rows, 1)
    margin: Tensor  # how near another byte was in any step, at least: (rows, 1)


class Step(nn.Module):
    """One step of decoding: a byte by each row's choice c, a number of shape (rows, 1).

    c < 0: the likeliest byte. 0 <= c < 1: the byte that this uniform number draws. c >= 1: the byte
    c - 1, whatever the net expects. After the end each byte is 0, and nothing is added to log_p.
    The operators are those that ONNX Runtime also runs on a GPU, without copies to the CPU.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        gru, embedding = decoder.gru, decoder.embed.weight[:BYTES]
        weights = dict(gru.named_parameters())
        # A byte's part of the gates' inputs, for each byte.
        table = F.linear(
            embedding, weights["weight_ih_l0"][:, : embedding.shape[1]], weights["bias_ih_l0"]
        )
        self.table = nn.Parameter(table.detach(), requires_grad=False)
        self.recur = nn.Linear(gru.hidden_size, 3 * gru.hidden_size)
        self.recur.weight, self.recur.bias = weights["weight_hh_l0"], weights["bias_hh_l0"]
        self.out = decoder.out
        ids = torch.arange(BYTES, dtype=torch.float32)[None]
        self.ids = nn.Buffer(ids.to(table.device))
        self.sums = nn.Buffer(torch.ones(BYTES, BYTES, device=table.device).triu())

    def forward(
        self, hidden: Tensor, gates: Tensor, state: State, c: Tensor
    ) -> tuple[Tensor, State, Tensor]:
        """hidden, gates: see Start. Returns hidden, the state and the step's margin."""
        hidden = self._next(hidden, gates, state.token)
        logits = self.out(hidden)
        logits = logits - logits.amax(1, keepdim=True)
        odds = logits.exp()
        # A product with ones: CUDA's cumulated sum is slow.
        cumulated = odds @ self.sums
        total = cumulated[:, -1:]
        likeliest = torch.where(logits >= 0, self.ids, float(BYTES)).amin(1, keepdim=True)
        drawn = (cumulated <= c * total).float().sum(1, keepdim=True)
        token = torch.where(c < 0, likeliest, torch.where(c < 1, drawn, c - 1)) * state.alive
        log_p = logits.gather(1, token.long()) - total.log()
        after = State(token, state.alive * (token > 0).float(), state.log_p + log_p * state.alive)
        return hidden, after, self._margin(logits, cumulated / total, c, state.alive)

    def _next(self, hidden: Tensor, gates: Tensor, token: Tensor) -> Tensor:
        """GRU's new state."""
        inputs = F.embedding(token[:, 0].long(), self.table) + gates
        reset_in, update_in, new_in = inputs.chunk(3, dim=1)
        reset, update, new = self.recur(hidden).chunk(3, dim=1)
        candidate = torch.tanh(new_in + torch.sigmoid(reset_in + reset) * new)
        return candidate + torch.sigmoid(update_in + update) * (hidden - candidate)

    def _margin(self, logits: Tensor, cumulated: Tensor, c: Tensor, alive: Tensor) -> Tensor:
        """How far rounding would have to move the step's numbers for another byte: nats between
        the two likeliest bytes, or the distance of the uniform number from a cumulated probability.
        """
        best, second = torch.split(logits.topk(2, dim=1).values, 1, dim=1)
        nearest = (cumulated - c).abs().amin(1, keepdim=True)
        margin = torch.where(c < 0, best - second, torch.where(c < 1, nearest, torch.inf))
        return torch.where(alive > 0, margin, torch.inf)


def teacher_forced(x: Tensor) -> Tensor:
    """The choices that force the bytes x (rows, length): float32."""
    return x.float() + FORCED
