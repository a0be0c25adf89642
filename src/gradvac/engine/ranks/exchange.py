"""Gradients of tasks on several ranks: summed, measured and combined in shards, then gathered.

The columns of a bucket of parameters are cut into R slices, one for each rank. Every rank sends
each other rank that rank's slice of the gradients of its tasks. The receiver sums the gradients of
each task in the order of the ranks, so that it holds its slice of the gradients of all tasks of the
step, and computes their inner products. Their sum over the ranks is the exact Gram matrix, from
which all ranks get the same weights. Each combines its slice, and the slices are gathered.
Parameters sharded by ``fully_shard`` are cut by the rows that each rank keeps, and the combined
slices stay there.

A rank with k of the tasks sends as much as k + 1 gradients: as much as a reduce-scatter of stacked
gradients if every rank has all tasks, and as plain data parallel training if every rank has one.

A bucket goes through these stages while the backward pass computes the next ones. All ranks enter
the stages of all buckets in the same order, whenever the gradients arrive. The host waits for the
device only to get the weights of groups, once for all buckets that end there. On an accelerator it
waits once, at the end of the backward pass, if the slices of all buckets fit into a quarter of the
memory that is free on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from gradvac.engine.gradients.gram import doubts, full_precision, inner
from gradvac.engine.ranks.buckets import Bucket, GradientColumns, Segment
from gradvac.engine.ranks.group import Ranks, Wait, on_host
from gradvac.engine.ranks.slices import Slicing, slicing_of
from gradvac.engine.report import combine, decide_present
from gradvac.engine.setup import Setup
from gradvac.engine.step import Step
from gradvac.errors import NotFiniteError
from gradvac.sending import to_device


@dataclass
class _Round:
    """A range of places of a bucket, of which every rank gets a slice ``width`` wide."""

    start: int
    stop: int
    width: int
    gradients: Tensor  # received, then gradients of all tasks [K, width], then combined
    wait: Wait
    largest: Tensor | None = None  # magnitude by segment and sender's task, known after the sum


@dataclass
class _UnderWay:
    """A bucket between two stages."""

    bucket: Bucket
    slicing: Slicing
    rounds: list[_Round]
    used: Tensor  # by parameter: how many ranks used it, known with the weights
    numbers: Tensor | None = None  # the numbers to sum over the ranks
    wait: Wait | None = None
    decided: bool = False

    def summed(self) -> tuple[Wait, Tensor]:
        """Return the numbers to sum over the ranks, and the wait for the sum."""
        assert self.wait is not None and self.numbers is not None
        return self.wait, self.numbers


class Exchange:
    """The exchange of the gradients of one step; every rank creates one for the same step.

    Args:
        ranks: the ranks that take part.
        setup: the groups, the heads, and the method that gives the weights.
        buckets: all parameters of the groups.
        step: the step, on which the ranks have agreed.
    """

    def __init__(self, ranks: Ranks, setup: Setup, buckets: Sequence[Bucket], step: Step) -> None:
        assert step.agreed is not None
        self.ranks, self.buckets = ranks, buckets
        self.groups, self.heads, self.method = setup.groups, setup.heads, setup.method
        self.agreed = agreed = step.agreed
        self.step = step
        self.launched = 0
        self._under_way: list[_UnderWay] = []
        self._measured = self._settled = 0  # buckets that have passed a stage
        self._ends = self._decisions()
        n_tasks, n_groups = len(agreed.tasks), len(self.groups)
        self._gram = torch.zeros(n_groups, n_tasks, n_tasks, dtype=torch.float64)
        self._weights: dict[int, Tensor] = {}
        self._unread: list[_UnderWay] = []  # settled, but not yet read by the host
        self._losses = self._start_to_sum_losses()
        # Each rank sends a row for each of its tasks: the task and the sender of all rows.
        self._counts = [len(tasks) for tasks in agreed.tasks_of_ranks]
        self._task = torch.tensor([*chain(*agreed.tasks_of_ranks)], dtype=torch.int64)
        self._sender = torch.arange(ranks.size).repeat_interleave(torch.tensor(self._counts))
        self._one_rank_per_task = torch.equal(
            self._task, torch.arange(n_tasks)
        )  # each task is on one rank
        self._places = to_device(self._task, buckets[0].device).split(self._counts)
        self._largest = torch.zeros(n_groups, len(self._task), dtype=torch.float64)

    def _decisions(self) -> list[list[int]]:
        """Return for each bucket the groups whose weights are asked for when it is settled."""
        last, each = len(self.buckets) - 1, len(self.agreed.tasks) / self.ranks.size
        limit = 0.0
        if self.method.needs_all_groups:
            limit = math.inf
        elif self.buckets[0].device.type != "cpu":
            limit = (self.agreed.free or self.ranks.budget) / 4
        ends = {s.group: n for n, bucket in enumerate(self.buckets) for s in bucket.segments}
        found: list[list[int]] = [[] for _ in self.buckets]
        waiting: list[int] = []
        held = 0.0
        for n, bucket in enumerate(self.buckets):
            held += bucket.size * bucket.dtype.itemsize * each
            waiting += [g for g in ends if ends[g] == n]
            if held >= limit or n == last:
                found[n], waiting, held = sorted(waiting), [], 0.0  # in the order of the model
        return found

    def _start_to_sum_losses(self) -> tuple[Wait, Tensor]:
        """Start the sum over the ranks of what each contributes to the losses."""
        own = self.step.added().to(self.buckets[0].device)
        table = self.agreed.table(self.ranks.rank, own)
        return self.ranks.sum(table), table

    def launch(self, sources: Sequence[GradientColumns], used: Sequence[bool]) -> None:
        """Send the gradients of the next bucket, and advance the ones before it by one stage.

        Args:
            sources: this rank's gradients of the bucket.
            used: whether this rank's tasks used each of its parameters.
        """
        bucket = self.buckets[self.launched]
        self.launched += 1
        n_tasks = len(self.agreed.tasks)
        at_once = max(self.ranks.size, self.ranks.budget // (n_tasks * bucket.dtype.itemsize))
        slicing = slicing_of(bucket, self.ranks.rank, self.ranks.size)
        rounds = []
        for start, stop in slicing.rounds(at_once):
            if rounds:  # rounds above the budget are not held at the same time
                self._reduce(rounds[-1], bucket, slicing)
            rounds.append(self._send(slicing, sources, start, stop))
        here = to_device(torch.tensor(used, dtype=torch.float64), bucket.device)
        self._under_way.append(_UnderWay(bucket, slicing, rounds, here))
        if self.launched > 1:
            self._measure()
        if self.launched > 2:
            self._settle()

    def finish(self) -> dict[int, Tensor | None]:
        """Return the combined gradients, by the id of the parameter, None if unused."""
        while self._measured < len(self._under_way):
            self._measure()
        self.heads.add_ranks(self.ranks, self.agreed.tasks)
        self.step.heads_state = self.heads.state()
        while self._settled < len(self._under_way):
            self._settle()
        gradients: dict[int, Tensor | None] = {}
        for way in self._under_way:
            for part in way.rounds:
                part.wait()
            found = way.slicing.gradients(
                [part.gradients[: part.stop - part.start] for part in way.rounds]
            )
            parameters = way.bucket.parameters
            for p, gradient, n in zip(parameters, found, way.used.tolist(), strict=True):
                gradients[id(p)] = gradient.to(p.dtype) if n else None
        return gradients

    def drain(self) -> None:
        """Wait for all pending collectives, after a failure on all ranks."""
        for way in self._under_way:
            for part in way.rounds:
                part.wait()
            if way.wait is not None:
                way.wait()
        self._losses[0]()

    # -- the stages of a bucket -----------------------------------------------------------------

    def _send(
        self, slicing: Slicing, sources: Sequence[GradientColumns], start: int, stop: int
    ) -> _Round:
        """Send this rank's gradients of some places, and start receiving a slice of them."""
        slices = slicing.slices(sources, self._counts[self.ranks.rank], start, stop)
        width = slices.shape[2]
        return _Round(start, stop, width, *self.ranks.exchange(slices, self._counts, width))

    def _reduce(self, part: _Round, bucket: Bucket, slicing: Slicing) -> Tensor:
        """Sum the gradients that ranks sent for the same task, in the order of the ranks.

        Returns the largest magnitude that each sent: zero if all are zeros, not finite if any is
        not.
        """
        part.wait()
        columns = [slicing.columns(segment, part.start, part.stop) for segment in bucket.segments]
        part.largest = torch.stack([_largest(part.gradients[:, own]) for own in columns])
        if not self._one_rank_per_task:
            shard = part.gradients.new_zeros(len(self.agreed.tasks), part.width)
            received = part.gradients.split(self._counts)
            for places, gradients in zip(self._places, received, strict=True):
                shard.index_add_(0, places.to(shard.device), gradients)  # places differ: exact
            part.gradients = shard
        if self.step.loss_scale != 1.0:
            part.gradients.mul_(1 / self.step.loss_scale)
        return part.largest

    def _measure(self) -> None:
        """Start the sum over the ranks of the inner products of the next bucket."""
        way = self._under_way[self._measured]
        self._measured += 1
        found = [
            self._reduce(part, way.bucket, way.slicing) if part.largest is None else part.largest
            for part in way.rounds
        ]
        largest = torch.stack(found).sum(0)
        gradients = [self._gradients(way, segment) for segment in way.bucket.segments]
        grams = torch.stack([self._inner(each, torch.float32) for each in gradients])
        way.numbers = torch.cat([way.used, largest.double().flatten(), grams.flatten()])
        way.wait = self.ranks.sum(way.numbers)

    def _settle(self) -> None:
        """Get the weights of groups that end with the next bucket, combine, and start to gather."""
        way, ends = self._under_way[self._settled], self._ends[self._settled]
        self._settled += 1
        self._unread.append(way)
        if not ends:
            return
        self._read(self._unread)
        self._unread = []
        self._decide(ends)
        for other in self._under_way[: self._settled]:
            if not other.decided and all(s.group in self._weights for s in other.bucket.segments):
                self._combine(other)

    def _read(self, ways: Sequence[_UnderWay]) -> None:
        """Read the sums of some buckets."""
        k, sent = len(self.agreed.tasks), len(self._task)
        others: list[tuple[Wait | None, Tensor]] = []
        state = self.step.heads_state
        if not self.agreed.present:
            others.append(self._losses)
        if state is not None and state.device == self.buckets[0].device:
            others.append((None, state))
        found = on_host([*(way.summed() for way in ways), *others])
        if others and others[-1][1] is state:
            self.step.heads_state = found.pop()
        if len(found) > len(ways):
            self.agreed.read(found.pop())
        for way, numbers in zip(ways, found, strict=True):
            n = len(way.bucket.segments)
            way.used, largest, grams = numbers.split([len(way.used), n * sent, n * k * k])
            parts = zip(
                way.bucket.segments, grams.view(n, k, k), largest.view(n, sent), strict=True
            )
            for segment, gram, found in parts:
                self._gram[segment.group] += gram
                self._largest[segment.group] += found

    def _decide(self, ends: Sequence[int]) -> None:
        """Ask the method for the weights of some groups, whose inner products are complete."""
        numels = [sum(p.numel() for p in self.groups[g].parameters) for g in ends]
        parallel, suspects = doubts(self._gram[list(ends)], torch.tensor(numels))
        for g, near, suspect in zip(ends, parallel, suspects, strict=True):
            sent = self._task[self._largest[g] != 0]
            if bool(near) or bool(torch.isin(suspect.nonzero().flatten(), sent).any()):
                self._gram[g] = self._precise_gram(g)
        names = tuple(self.groups[g].name for g in ends)
        agreed = self.agreed
        try:
            report, weights = decide_present(
                self.method,
                self._gram[list(ends)],
                self.step.task_losses,
                agreed.tasks,
                agreed.present,
                names,
                self.step.number,
                agreed.shares,
            )
        except NotFiniteError as e:
            self.step.failed_everywhere = True
            raise NotFiniteError(f"{e} ({self._culprits(e.task)})", e.task, e.group) from None
        except BaseException:
            self.step.failed_everywhere = True
            raise
        self.step.reports.append(report)
        weights = to_device(weights, self.buckets[0].device)
        self._weights |= dict(zip(ends, weights, strict=True))

    def _precise_gram(self, group: int) -> Tensor:
        """Inner products of a group, fully in float64."""
        k = len(self.agreed.tasks)
        total = torch.zeros(k, k, dtype=torch.float64, device=self.buckets[0].device)
        for way in self._under_way[: self._settled]:
            for segment in way.bucket.segments:
                if segment.group == group:
                    total += self._inner(self._gradients(way, segment), torch.float64)
        return on_host([(self.ranks.sum(total), total)])[0]

    def _culprits(self, task: str) -> str:
        """Name the ranks on which something was not finite."""
        ranks = [self.agreed.bad[task]] if task in self.agreed.bad else []
        ranks = ranks or self._sender[~self._largest.sum(0).isfinite()].unique().tolist()
        if not ranks and task in self.agreed.tasks:
            position = self.agreed.tasks.index(task)
            ranks = [r for r, own in enumerate(self.agreed.tasks_of_ranks) if position in own]
        return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))

    def _combine(self, way: _UnderWay) -> None:
        """Combine this rank's slices of a bucket and begin to gather those of all ranks."""
        way.decided = True
        for part in way.rounds:
            combined = part.gradients.new_zeros(part.width)
            for segment in way.bucket.segments:
                own = way.slicing.columns(segment, part.start, part.stop)
                combined[own] = combine(self._weights[segment.group], part.gradients[:, own])
            part.gradients = combined
            if way.slicing.gathers:
                part.gradients, part.wait = self.ranks.gather(combined)

    def _gradients(self, way: _UnderWay, segment: Segment) -> list[Tensor]:
        """Return this rank's slices of the task gradients of a segment."""
        columns = lambda part: way.slicing.columns(segment, part.start, part.stop)
        return [part.gradients[:, columns(part)] for part in way.rounds]

    def _inner(self, gradients: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        with full_precision(gradients[0].device.type):
            return torch.stack([inner(r, dtype) for r in gradients]).sum(0)


def _largest(gradients: Tensor) -> Tensor:
    """Return the largest magnitude in each row of ``[n, columns]``; NaN if the row holds one."""
    if not gradients.numel():
        return gradients.new_zeros(len(gradients))
    return torch.maximum(gradients.amax(1), -gradients.amin(1))
