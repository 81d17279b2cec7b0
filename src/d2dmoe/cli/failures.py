"""What a user can mend, told from a fault of ours, without an import of the libraries that fail."""

from d2dmoe.errors import EXTRAS, UserError, full_memory, shortened


def message_of(error: Exception) -> str | None:
    """The one message for the user; None for an error that is not theirs."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if package in EXTRAS:
            return f"{package} is not installed. Run: pip install 'd2dmoe[{EXTRAS[package]}]'"
        return None
    if owner := full_memory(error):
        return f"{owner} memory is full. Lower --batch-size or --max-length, or change --device."
    if isinstance(error, OSError):  # files, disks, the network
        return shortened(f"{type(error).__name__}: {error}")
    return None
