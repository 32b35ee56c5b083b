"""What becomes of the processes that read data, in a sentence: PyTorch says it in a page."""

from __future__ import annotations

SIGNS = (
    "DataLoader worker",
    "unable to open shared memory",
    "unable to mmap",
    "unable to write to file </torch_",
    "ancdata",
)
"""In what PyTorch says where a process that reads has ended, or cannot hand over what it has read."""


def failed_reading(error: BaseException) -> str | None:
    """Whether an exception comes of the processes of a loader; the sentence for it."""
    text = str(error)
    if not any(sign in text for sign in SIGNS):
        return None
    last = (text.strip().splitlines() or [""])[-1].rstrip(".")
    return (
        f"A process that reads patches has failed ({last[:200]}): killed, or /dev/shm is too small for what it hands over. "
        "Give it more (docker run --shm-size=8g), or read with fewer: --set training.workers=0. The same command goes on "
        "from the last training state."
    )
