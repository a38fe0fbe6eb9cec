"""Pictures that are refused before their pixels are decoded: too large, too slow, or several."""

from PIL import Image

from ganlab.images.source import Source

MOST_SCANS = 100  # of a progressive JPEG; photographs have about 10


def unfit(image: Image.Image, path: Source) -> str:
    """Why an open picture is not decoded, with the remedy; "" when it is fit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.width * image.height > limit:
        # checked here too: Pillow only warns up to twice its limit
        return (
            f"{image.width} x {image.height} pixels are more than {limit:,}; cut it into smaller "
            "images."
        )
    if frames := _frames(image):
        return f"holds {frames} frames or pages; save the one to use as its own file."
    if (scans := _scans(image, path)) > MOST_SCANS:
        return f"has {scans:,} scans, which would take minutes to decode; save it anew."
    return ""


def _frames(image: Image.Image) -> str:
    """How many pictures a file holds, when there are several."""
    if image.format == "TIFF":
        try:
            # the second only: counting a million takes hours
            image.seek(1)
        except EOFError:
            image.seek(0)
            return ""
        return "2 or more"
    # in a JPEG with more than one picture (MPO) the first is the photo, the second depth or preview
    number = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    return str(number) if number > 1 else ""


def _scans(image: Image.Image, path: Source) -> int:
    """How often the decoder passes over all pixels of a JPEG. A small file may ask for thousands.

    Counted are the markers of a scan, which occur nowhere in compressed pixels. Those of a preview
    inside the file are counted too.
    """
    if image.format not in ("JPEG", "MPO") or not image.info.get("progressive"):
        return 0
    with path.open("rb") as file:
        return sum(piece.count(b"\xff\xda") for piece in iter(lambda: file.read(2**20), b""))
