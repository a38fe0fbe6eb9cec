"""Where an image file is: on the disk, or in memory, as a member of an archive that was read."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """An image file that is in memory already."""

    name: str
    """What messages call it."""
    content: bytes

    def __str__(self) -> str:
        return self.name

    def open(self, mode: str = "rb") -> BytesIO:
        """The content as an open file, to be read."""
        return BytesIO(self.content)


Source = Path | ImageBytes
