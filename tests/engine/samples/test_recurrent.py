"""LSTM, GRU and RNN in a single pass, against one backward per task."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gradvac.engine import SinglePassEngine
from gradvac.errors import GradientError
from gradvac.methods import Joint
from tests.engine.partition import largest_error

EXACT = 1e-10
TASKS = ["a", "b", "c", "a", "c"]
D, H = 3, 4
LENGTHS = [6, 2, 5, 3, 1]


class Recurrent(nn.Module):
    """Uses outputs and last states of a recurrent network between two linear maps."""

    def __init__(self, kind, **options):
        super().__init__()
        self.first = nn.Linear(D, D)
        self.rnn = kind(D, H, **options)
        width = options.get("proj_size") or H
        directions = 2 if options.get("bidirectional") else 1
        self.last = nn.Linear(width * directions, 2)
        self.of_state = nn.Linear(width, 2)
        self.of_cell = nn.Linear(H, 2)

    def forward(self, x):
        out, state = self.rnn(self.first(x))
        y = self.last(out)
        if not self.rnn.batch_first:
            y = y.transpose(0, 1)
        hidden, *cell = state if isinstance(state, tuple) else (state,)
        y = y + self.of_state(hidden).sum(0)[:, None]
        return y + self.of_cell(cell[0]).sum(0)[:, None] if cell else y


def built(*args, **options):
    torch.manual_seed(0)
    return Recurrent(*args, **options).double()


def inputs(batch_first=True, time=6):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, time, D, generator=generator, dtype=torch.float64)
    return x if batch_first else x.transpose(0, 1).contiguous()


@pytest.mark.parametrize("time", [6, 5])  # 5: as many steps as samples
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {"num_layers": 2, "dropout": 0.3, "bidirectional": True}),
        (nn.LSTM, {"proj_size": 2, "bias": False}),
        (nn.GRU, {"num_layers": 3, "dropout": 0.3}),
        (nn.GRU, {"bidirectional": True}),
        (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
        (nn.RNN, {}),
    ],
)
@pytest.mark.parametrize("batch_first", [True, False])
def test_outputs_and_last_states(kind, options, batch_first, time):
    model = built(kind, batch_first=batch_first, **options)
    x = inputs(batch_first, time)
    losses = lambda: (model(x).square().sum(-1), None)
    assert largest_error(model, losses, TASKS, batch_dim=0 if batch_first else 1) < EXACT


class Packed(Recurrent):
    def forward(self, x):
        lengths = torch.tensor(LENGTHS)
        packed = pack_padded_sequence(
            self.first(x), lengths, self.rnn.batch_first, enforce_sorted=False
        )
        out, state = self.rnn(packed)
        out, _ = pad_packed_sequence(out, self.rnn.batch_first)
        y = self.last(out) if self.rnn.batch_first else self.last(out).transpose(0, 1)
        hidden = state[0] if isinstance(state, tuple) else state
        return y + self.of_state(hidden).sum(0)[:, None]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {"num_layers": 2, "dropout": 0.3, "bidirectional": True}),
        (nn.GRU, {"bidirectional": True}),
    ],
)
def test_packed_sequences(kind, options, batch_first):
    torch.manual_seed(0)
    model = Packed(kind, batch_first=batch_first, **options).double()
    x = inputs(batch_first)
    losses = lambda: (model(x).square().sum(-1), None)
    assert largest_error(model, losses, TASKS, batch_dim=0 if batch_first else 1) < EXACT


class Decoder(nn.Module):
    """States from an encoder and learned ones, cells in a loop, a frozen layer between."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(D, H, batch_first=True)
        self.frozen = nn.GRU(H, H).requires_grad_(False)
        self.decoder = nn.LSTM(H, H, batch_first=True)
        self.learned = nn.Parameter(torch.zeros(1, 1, H))
        self.summary = nn.GRU(H, H, batch_first=True)
        self.lstm_cell, self.gru_cell, self.rnn_cell = (
            nn.LSTMCell(H, H),
            nn.GRUCell(H, H),
            nn.RNNCell(H, H),
        )
        self.start = nn.Parameter(torch.zeros(H))

    def forward(self, x):
        out, state = self.encoder(x)
        out = self.frozen(out.transpose(0, 1))[0].transpose(0, 1)
        out, _ = self.decoder(out, state)
        out, last = self.summary(out, self.learned.expand(1, len(x), H).contiguous())
        cell = None
        g = self.start.expand(len(x), H)
        for step in out.unbind(1):
            cell = self.lstm_cell(step, cell)
            g = self.gru_cell(cell[0], g)
        return g + self.rnn_cell(cell[1]) + last[0]


def test_states_handed_on_learned_ones_and_cells():
    torch.manual_seed(0)
    model = Decoder().double()
    x = inputs()
    assert largest_error(model, lambda: (model(x).square().sum(-1), None), TASKS) < EXACT


def test_running_over_the_samples_is_refused():
    model = built(nn.LSTM, batch_first=False)
    engine = SinglePassEngine(model, Joint())
    message = r"'recurrent_layer' in module 'rnn' \(LSTM\): it runs along the dimension of the samp"
    with pytest.raises(GradientError, match=message), engine.tasks(TASKS):
        engine.backward(model(inputs()))  # [B, T, d] given to a network that wants [T, B, d]
