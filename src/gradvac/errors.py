"""Every error gradvac raises on purpose.

GradvacError
├── CorpusError     text that cannot be read or aligned; the message starts with ``file:line``
├── RecipeError     a recipe key that is unknown, misplaced or out of range; names the dotted key
├── RunError        a run folder, checkpoint or vocabulary that does not fit
├── RankError       another rank of a distributed run failed, is gone or runs something else
└── GradientError   misuse of the engine, or a gradient that is not finite; names the task
    └── NotFiniteError  the latter: the step may be skipped and training go on
"""


class GradvacError(Exception):
    """Base of every error gradvac raises on purpose; the command line prints it and exits 2."""


class CorpusError(GradvacError):
    """Text that cannot be read or aligned. The message starts with ``file:line``."""


class RecipeError(GradvacError):
    """A recipe key that is unknown, misplaced or out of range. Names file and dotted key."""


class RunError(GradvacError):
    """A run folder, checkpoint or vocabulary that does not fit what is asked of it."""


class RankError(GradvacError):
    """Another rank of a distributed run failed, is gone or runs something else. Names the rank."""


class GradientError(GradvacError):
    """Misuse of the engine, or a gradient that is not finite. Names the task."""


class NotFiniteError(GradientError):
    """A loss or gradient that is not finite. Nothing has changed: the step may be skipped.

    Attributes:
        task: the first task it was found in; empty if the loss is not of one task.
        group: the parameter group of a bad gradient; empty if the loss itself is bad.
    """

    def __init__(self, message: str, task: str = "", group: str = "") -> None:
        super().__init__(message)
        self.task = task
        self.group = group
