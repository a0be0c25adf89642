"""MultiDDS-S to the letter: every training gradient anew for every validation gradient."""

import torch


def literal_rewards(loss_of, parameters, dev, train):
    """R_i = mean_j cos(d_j, g_i) by N (N + 1) backward passes, as the authors' code does it."""

    def gradient(batch):
        for p in parameters:
            p.grad = None
        loss_of(batch).backward()
        return [p.grad.clone() for p in parameters]

    rewards = torch.zeros(len(train), dtype=torch.float64)
    for dev_batch in dev:
        d = gradient(dev_batch)
        for i, train_batch in enumerate(train):
            g = gradient(train_batch)
            dot = sum((a.double() * b.double()).sum() for a, b in zip(d, g, strict=True))
            norms = [sum(x.double().square().sum() for x in v).sqrt() for v in (d, g)]
            rewards[i] += dot / (norms[0] * norms[1]) / len(dev)
    return rewards


def literal_scorer(size, learning_rate):
    """The logits and their optimizer, before they are fitted to anything."""
    psi = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    return psi, torch.optim.Adam([psi], lr=learning_rate)


def literal_update(psi, optimizer, rewards, steps):
    """Adam on -sum_i R_i log softmax(psi)_i; returns the new distribution."""
    for _ in range(steps):
        optimizer.zero_grad()
        (-rewards * torch.log_softmax(psi, 0)).sum().backward()
        optimizer.step()
    return torch.softmax(psi.detach(), 0)


def literal_fit(psi, target):
    """The authors' start: Adam at 1e-3 until the mean squared error is below 1e-6."""
    optimizer, error = torch.optim.Adam([psi], lr=1e-3), torch.inf
    while error > 1e-6:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(torch.softmax(psi, 0), target)
        loss.backward()
        optimizer.step()
        error = loss.item()
