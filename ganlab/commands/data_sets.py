"""`ganlab data list` and `fetch`: the sets of images that others publish."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ganlab.commands.fetch import fetch, require_consent, size_of, told
from ganlab.disk import telling_disk
from ganlab.errors import GanlabError, RecipeError
from ganlab.files import MANIFEST
from ganlab.published import Archive, DataSet, data_sets


def as_json(data: DataSet, parent: Path) -> dict[str, Any]:
    """What is known of a set, and whether it is in a folder."""
    return {
        "name": data.name,
        "about": data.about,
        "page": data.page,
        "folders": {
            archive.folder: {
                "images": archive.num_images,
                "size": archive.file.size or None,
                "licence": archive.file.licence,
                "source": archive.file.source,
                "sha256": archive.file.sha256 or None,
                "is_there": (parent / archive.folder).is_dir(),
            }
            for archive in data.archives
        },
    }


def lines(parent: Path) -> Iterator[str]:
    """The sets for people: name, size, images, whether it is here; what it is; the terms."""
    for name, data in data_sets().items():
        number = sum(archive.num_images for archive in data.archives)
        here = all((parent / archive.folder).is_dir() for archive in data.archives)
        yield f"{name:9} {size_of(data.size):>15} {number:5} images  {'here' if here else '-'}"
        yield f"{'':9} {data.about}"
        for licence in dict.fromkeys(archive.file.licence for archive in data.archives):
            yield f"{'':9} terms: {licence}"


def fetch_data(names: tuple[str, ...], parent: Path, is_consented: bool) -> Iterator[str]:
    """Fetch sets into folders below `parent`; yields lines for the user.

    :raises RecipeError: for a name that no set has.
    """
    lacking: list[Archive] = []
    for data in dict.fromkeys(map(_named, names)):
        missing = [each for each in data.archives if not _is_whole(each, parent / each.folder)]
        for archive in data.archives:
            if archive not in missing:
                yield f"{parent / archive.folder}: is there already"
        if missing:
            yield f"{data.name}: {data.about}; {data.page}"
        for archive in missing:
            yield from told(archive.file, parent / archive.folder)
        lacking += missing
    require_consent([archive.file.size for archive in lacking], is_consented or not lacking)
    for archive in lacking:
        yield _made(archive, parent)


def _made(archive: Archive, parent: Path) -> str:
    from ganlab.commands.unpack import unpack  # imports torch; `data list` does without

    folder, packed = parent / archive.folder, parent / archive.file.file_name
    digest = fetch(archive.file, packed, copies=2)  # the archive, and its images beside it
    unpack(packed, archive, folder)
    with telling_disk(packed):
        packed.unlink()
    return f"{folder}: {archive.num_images} images; the archive's sha256 was {digest}"


def _is_whole(archive: Archive, folder: Path) -> bool:
    """Whether the folder is there, with its SHA256SUMS, which is written last.

    :raises GanlabError: when something else is there.
    """
    if (folder / MANIFEST).is_file():
        return True
    if folder.exists() or folder.is_symlink():
        raise GanlabError(
            f"{folder}: is there, and was not made by `ganlab data fetch`; move it away, or choose "
            "another folder with --to"
        )
    return False


def _named(name: str) -> DataSet:
    from ganlab.recipe.file import did_you_mean

    for known, data in data_sets().items():
        if name.lower() in (known.lower(), *(each.folder.lower() for each in data.archives)):
            return data
    raise RecipeError(
        f"no data set is named '{name}'{did_you_mean(name, data_sets()) or '.'} "
        "`ganlab data list` shows what there is"
    )
