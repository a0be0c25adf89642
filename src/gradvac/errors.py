"""The errors that gradvac raises on purpose.

GradvacError
├── CorpusError     text that cannot be read or aligned; the message starts with ``file:line``
├── RecipeError     a recipe key that is unknown, misplaced or out of range; names the dotted key
├── RunError        a run folder, checkpoint or vocabulary that does not fit
├── RankError       another rank of a distributed run failed, is gone or runs something else
└── GradientError   wrong use of the engine, or a gradient that is not finite; names the task
    └── NotFiniteError  a loss or gradient that is not finite; the step may be skipped
"""


class GradvacError(Exception):
    """Base of the errors that gradvac raises on purpose; the command line prints it and exits 2.

    Example:
        >>> import gradvac
        >>> try:
        ...     gradvac.GradVac(beta=2)
        ... except gradvac.GradvacError as error:
        ...     print(error)
        beta is 2; it must lie in [0, 1]
    """


class CorpusError(GradvacError):
    """Text that cannot be read or aligned. The message starts with ``file:line``.

    To do: look at that line of the file. Rows with problems are left out and counted as long as
    ``data.on_problem`` is ``drop``; a file that is not what its name says must be mended.

    Example:
        >>> import gradvac
        >>> try:
        ...     raise gradvac.CorpusError("news.tsv:3: 1 column, the header has 2")
        ... except gradvac.GradvacError as error:
        ...     print(error)
        news.tsv:3: 1 column, the header has 2
    """


class RecipeError(GradvacError):
    """A recipe key that is unknown, misplaced or out of range. Names the file and the dotted key.

    To do: change the key that is named. ``recipes/reference.yaml`` has every key with its default
    and what is allowed; a key given by ``--set`` is checked in the same way.

    Example:
        >>> import gradvac
        >>> try:
        ...     raise gradvac.RecipeError("mine.yaml: training.steps: must be at least 1")
        ... except gradvac.GradvacError as error:
        ...     print(error)
        mine.yaml: training.steps: must be at least 1
    """


class RunError(GradvacError):
    """A run folder, checkpoint or vocabulary that does not fit what is asked of it.

    To do: check that the folder is the right one and its run has finished. A damaged file is named;
    the checkpoint before it is used where there is one. Never mix files of two runs.

    Example:
        >>> import gradvac
        >>> from pathlib import Path
        >>> from gradvac.reading import read_json
        >>> try:
        ...     read_json(Path("nowhere/best.json"))
        ... except gradvac.RunError as error:
        ...     print(error)
        nowhere/best.json: cannot be read: No such file or directory
    """


class RankError(GradvacError):
    """Another rank of a distributed run failed, is gone or runs something else. Names the rank.

    All ranks raise it, or the error that is its cause, in the same step.

    To do: look for the first error in the logs of all ranks, mend its cause, and start all ranks
    again from the last checkpoint.

    Example:
        >>> import gradvac
        >>> try:
        ...     raise gradvac.RankError("rank 1 is gone")
        ... except gradvac.GradvacError as error:
        ...     print(error)
        rank 1 is gone
    """


class GradientError(GradvacError):
    """Wrong use of the engine, or a gradient that is not finite. Names the task.

    To do: compare your loop with the three lines of the front page. Options that are out of range
    are named with what is allowed.

    Example:
        >>> import torch
        >>> import gradvac
        >>> engine = gradvac.Engine(torch.nn.Linear(2, 1), gradvac.GradVac())
        >>> try:
        ...     engine.combine()
        ... except gradvac.GradientError as error:
        ...     print(error)
        combine() needs at least one accumulate() since the last step
    """


class NotFiniteError(GradientError):
    """A loss or gradient that is not finite. Nothing has changed: the step may be skipped.

    To do: skip such steps (``nonfinite="skip"``, ``training.nonfinite=skip``). If they recur, lower
    the learning rate, or train in bfloat16 or float32 instead of float16.

    Attributes:
        task: the first task it was found in; empty if the loss is not of one task.
        group: the parameter group of a bad gradient; empty if the loss itself is bad.

    Example:
        >>> import torch
        >>> import gradvac
        >>> model = torch.nn.Linear(2, 1)
        >>> engine = gradvac.Engine(model, gradvac.GradVac())
        >>> try:
        ...     engine.backward({"fr": model(torch.full([2], torch.inf)).sum()})
        ... except gradvac.NotFiniteError as error:
        ...     print(error.task)
        fr
    """

    def __init__(self, message: str, task: str = "", group: str = "") -> None:
        super().__init__(message)
        self.task = task
        self.group = group
