"""What training code raised: its text may quote samples, and is for this device alone."""

from types import TracebackType

from fl_protocol.errors import ArtifactError, LichenError, StorageError

__all__ = ["TrainerFault", "training_code"]

_LONGEST_NAME = 64


class TrainerFault(LichenError):
    """The message is the cause's, for the device's log and status; ``told`` is what may leave the device."""

    def __init__(self, cause: Exception, *, told: str) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        if isinstance(cause, LichenError):
            super().__init__(str(cause.args[0]), hint=cause.hint)
            self.retryable = cause.retryable or isinstance(cause, StorageError)
        self.told = told


class training_code:  # noqa: N801 - reads as a function; a generator costs three times as much
    """Whatever is raised within becomes a ``TrainerFault``, but for ``MemoryError``.

    Of a user's code the class of the error is told, and that of its cause. ``own`` is for code of Lichen's:
    the messages of its errors quote no sample (their hints may) and are told; those of a runtime, which an
    ``ArtifactError`` repeats, may name an index out of a row.
    """

    __slots__ = ("_own",)

    def __init__(self, *, own: bool) -> None:
        self._own = own

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, MemoryError | TrainerFault):
            return
        ours = self._own and isinstance(error, LichenError) and not isinstance(error, ArtifactError)
        raise TrainerFault(error, told=str(error.args[0]) if ours else _classes_of(error)) from error


def _classes_of(error: Exception) -> str:
    names = [type(each).__name__[:_LONGEST_NAME] for each in (error, error.__cause__) if each is not None]
    return f"the trainer failed: {' of '.join(names)} (the device's log and status say more)"
