"""Packing of TRL's datasets with the task of each sequence."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from datasets import Dataset
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig

from gradvac.errors import GradientError


def packed_with_tasks(dataset: Any, args: SFTConfig, column: str) -> Any:
    """Pack sequences as TRL's trainer does; each row gets the task of each of its sequences.

    TRL packs every column that holds a value for each token, so the task is one for that long.

    Args:
        dataset: tokenized, with ``input_ids``, ``labels`` and the task of each sequence.
        args: length, strategy, shuffling and seed.
        column: name of the column of tasks.

    Returns:
        The dataset with ``input_ids``, ``labels``, ``seq_lengths`` and, in ``column``, a list of
        tasks as long as ``seq_lengths``.

    Raises:
        GradientError: if no length to pack to is set, or a sequence has no task.
    """
    if args.max_length is None:
        raise GradientError("packing needs a length to pack to; set max_length in SFTConfig")
    options: dict[str, Any] = {}
    if isinstance(dataset, Dataset):  # a stream takes none
        options = {"num_proc": args.dataset_num_proc, "desc": "Packing"}

    def for_each_token(row: dict[str, Any]) -> dict[str, Any]:
        if row[column] is None:
            raise GradientError(f"a row of the dataset has no {column!r}; every row needs its task")
        return {_TOKENS: [row[column]] * len(row["input_ids"])}

    def for_each_sequence(row: dict[str, Any]) -> dict[str, Any]:
        starts = [0, *accumulate(row["seq_lengths"])][:-1]
        return {column: [row[_TOKENS][start] for start in starts]}

    dataset = dataset.map(for_each_token, **options)
    dataset = dataset.select_columns(["input_ids", "labels", _TOKENS])
    if args.shuffle_dataset:
        dataset = dataset.shuffle(seed=args.seed)
    dataset = pack_dataset(dataset, args.max_length, args.packing_strategy, options)
    dataset = dataset.map(for_each_sequence, remove_columns=[_TOKENS], **options)
    return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset


_TOKENS = "task_of_token"
