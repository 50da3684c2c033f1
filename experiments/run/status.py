"""The states of a run."""

from enum import StrEnum


class Status(StrEnum):
    """What is known of a run, in the words that state.json, the launcher and all tables use."""

    NEW = "new"  # nothing was started
    QUEUED = "queued"  # handed to a scheduler
    RUNNING = "running"
    STOPPED = "stopped"  # by a signal or a time limit, with a checkpoint: it can be resumed
    FAILED = "failed"
    TRAINED = "trained"  # its test or an evaluation is missing
    DONE = "done"
    DAMAGED = "damaged"  # a file of its folder cannot be read

    @property
    def is_finished(self) -> bool:
        """Whether there is a trained model that must not be replaced unasked."""
        return self in (Status.TRAINED, Status.DONE)
