"""Changes to a card that are not on it yet: pages in memory over what is there."""

from collections.abc import Iterator

from broker_coordinator.flash.partitions import ReadAt
from fl_protocol.errors import StorageError

__all__ = ["Overlay"]

PAGE = 4096


class Overlay:
    """Reads through to ``read``, and keeps writes; ``changes`` are what has to be written."""

    def __init__(self, read: ReadAt) -> None:
        self._read = read
        self._pages: dict[int, bytearray] = {}

    def read(self, offset: int, length: int) -> bytes:
        """Bytes with all changes so far; fewer than asked for where the card ends."""
        content = bytearray(self._read(offset, length))
        for number in range(offset // PAGE, -(-(offset + length) // PAGE)):
            page = self._pages.get(number)
            if page is None:
                continue
            begin, end = max(offset, number * PAGE), min(offset + len(content), number * PAGE + len(page))
            if begin < end:
                content[begin - offset : end - offset] = page[begin - number * PAGE : end - number * PAGE]
        return bytes(content)

    def write(self, offset: int, content: bytes) -> None:
        """Change bytes that the card has; raises StorageError if it has not."""
        view = memoryview(content)
        while view:
            number, within = divmod(offset, PAGE)
            if number not in self._pages:
                self._pages[number] = bytearray(self._read(number * PAGE, PAGE))
            page = self._pages[number]
            taken = min(len(view), PAGE - within)
            if within + taken > len(page):
                raise StorageError(
                    f"the image's FAT is damaged: byte {offset + taken} is behind the image's end",
                    hint="download the image anew",
                )
            page[within : within + taken] = view[:taken]
            view, offset = view[taken:], offset + taken

    def changes(self) -> Iterator[tuple[int, bytes]]:
        """``(offset, bytes)`` of every page that was written to, ascending."""
        for number in sorted(self._pages):
            yield number * PAGE, bytes(self._pages[number])
