"""`ganlab hub`: a generator to the Hugging Face Hub, and from there.

The library `huggingface_hub` speaks with the Hub, and keeps the token. The Hub's address is its own
too: HF_ENDPOINT.
"""

import hashlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from ganlab.commands.fetch import require_consent
from ganlab.disk import size
from ganlab.errors import GanlabError, RecipeError, first_line, printable
from ganlab.files import claim, new_folder, remove_stale, sha256_of_file
from ganlab.hub.files import REQUIRED, largest, make_run, require_library
from ganlab.names import check_name

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LISTED = 5  # files that are told


class _Offered(NamedTuple):
    """A file of a repository, as the Hub describes it."""

    size: int
    digest: str
    """Its sha256, or of a small file the sha1 that git gives it."""


def push(
    run: Path,
    repository: str,
    weights: Literal["last", "best"] = "last",
    licence: str = "",
    private: bool = False,
    is_consented: bool = False,
) -> Iterator[str]:
    """Send a run's generator to the Hub; yields lines for the user, the address last.

    :param repository: USER/NAME; it is made where there is none.
    :param private: make it for its owner alone.
    :param is_consented: do not ask.
    :raises RecipeError: when the name is wrong, there is no token, or nobody consents.
    :raises GanlabError: when the Hub refuses it, or there is no connection.
    """
    _check(repository)
    api = _api(needs_token=True)
    from ganlab.hub.generator import Generator

    generator = Generator.of_run(run, weights, licence=licence)
    with TemporaryDirectory() as folder:
        generator.save_pretrained(folder)
        files = sorted(file for file in Path(folder).iterdir() if file.is_file())
        address = f"{api.endpoint}/{repository}"
        yield f"to {address} ({'private' if private else 'public if it is new'}):"
        yield from (f"  {file.name}, {size(file.stat().st_size)}" for file in files)
        total = sum(file.stat().st_size for file in files)
        _require_consent(f"send {size(total)} to {address}", is_consented)
        with _errors_told(address):
            api.create_repo(repository, private=private or None, exist_ok=True)
            is_private = bool(api.model_info(repository).private)
        if private and not is_private:
            raise GanlabError(
                f"{address}: it is there and public; --private is for a new one. Nothing was sent"
            )
        with _errors_told(address):
            sent = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=f"Push {generator.files.about['iteration']:,} iterations of ganlab",
            )
    seen = "private" if is_private else "public"
    yield f"sent: commit {printable(sent.oid)} of {address}, {seen}"


def pull(
    repository: str, output: Path, revision: str = "main", is_consented: bool = False
) -> Iterator[str]:
    """Fetch a generator from the Hub into a new run folder; yields lines for the user.

    All files are of one commit, and are compared with the digests that the Hub has for them.

    :param revision: a branch, a tag or a commit.
    :param is_consented: do not ask before a large download.
    :raises RecipeError: when the name is wrong, or the output is there already.
    :raises GanlabError: when it is not to be had, or is no generator of ganlab.
    """
    _check(repository)
    check_name(output.name, "--output")
    if output.exists():
        raise _exists(output)
    api = _api()
    address = f"{api.endpoint}/{repository}"
    with _errors_told(address):
        info = api.model_info(repository, revision=revision, files_metadata=True)
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit):
        raise GanlabError(f"{address}: the server names no commit, so nothing was fetched")
    offered, others = _offered(address, info)
    yield f"from {address}, commit {commit}:"
    yield from (f"  {name}, {size(file.size)}" for name, file in offered.items())
    if others:
        yield f"  not fetched: {_listed(others)}"
    require_consent([file.size for file in offered.values()], is_consented)
    _fetch(api, repository, commit, offered, output)
    yield f"{output}: pulled, commit {commit}"
    if code := sorted(file.name for file in output.glob("*.py")):
        yield f"  {_listed(code)}: code of a stranger. It runs only after consent: read it first"


def _fetch(
    api: "HfApi", repository: str, commit: str, offered: dict[str, _Offered], output: Path
) -> None:
    """Make the run folder of the files of a commit, whole or not at all."""
    address = f"{api.endpoint}/{repository}"
    output.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(output.parent)
    with new_folder(output.parent) as received, new_folder(output.parent) as made:
        for name, file in offered.items():
            with _errors_told(address):
                api.hf_hub_download(repository, name, revision=commit, local_dir=received)
            _compare(f"{address}: {name}", received / name, file)
        make_run(received, made, {"from": address, "commit": commit})
        try:
            claim(made, output)
        except FileExistsError:
            raise _exists(output) from None


def _exists(output: Path) -> RecipeError:
    return RecipeError(f"{output} exists; choose another folder with --output")


def _api(needs_token: bool = False) -> "HfApi":
    """The library's way to the Hub.

    :raises RecipeError: when the package is missing, or a token that is needed.
    """
    require_library()
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import disable_progress_bars

    if needs_token and not get_token():
        raise RecipeError(
            "the Hub takes files only with a token: `hf auth login` keeps one for you, or set "
            "HF_TOKEN. Nothing was sent"
        )
    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(library_name="ganlab")


def _check(repository: str) -> None:
    if not _REPOSITORY.fullmatch(repository):
        raise RecipeError(
            f"{printable(repository)}: give USER/NAME, such as lab/wgan_gp: letters, digits and "
            ". _ -"
        )


def _require_consent(what: str, is_given: bool) -> None:
    """:raises RecipeError: naming --yes."""
    if is_given:
        return
    if not sys.stdin.isatty():
        raise RecipeError(f"to {what}, type the same command again with --yes")
    if not click.confirm(f"{what}?", err=True):
        raise RecipeError("nothing was sent")


def _offered(address: str, info: "ModelInfo") -> tuple[dict[str, _Offered], list[str]]:
    """The files of a repository that are fetched, and the names of all others.

    :raises GanlabError: when one is lacking, too large, or without a digest.
    """
    offered, others = {}, []
    for file in info.siblings or ():
        name, most = file.rfilename, largest(file.rfilename)
        if most is None:
            others.append(name)
            continue
        digest = (file.lfs.sha256 if file.lfs else file.blob_id) or ""
        if not (isinstance(file.size, int) and digest):
            raise GanlabError(f"{address}: {name}: the server states no size or no digest")
        if file.size > most:
            raise GanlabError(
                f"{address}: {name} has {file.size:,} bytes; at most {most:,} are allowed. Nothing "
                "was fetched"
            )
        offered[name] = _Offered(file.size, digest)
    if lacking := [name for name in REQUIRED if name not in offered]:
        raise GanlabError(
            f"{address}: this is no generator that `ganlab hub push` sent: it lacks "
            f"{' and '.join(lacking)}. Nothing was fetched"
        )
    return dict(sorted(offered.items())), others


def _compare(named: str, file: Path, offered: _Offered) -> None:
    """:raises GanlabError: when a file is not the one that the Hub describes."""
    found = file.stat().st_size
    if found == offered.size and offered.digest in (sha256_of_file(file), _git_digest(file)):
        return
    raise GanlabError(
        f"{named}: what came is not the file that the Hub describes (its digest differs, or its "
        "size); nothing was kept. Type the same command again"
    )


def _git_digest(file: Path) -> str:
    """The name that git gives to the content of a file."""
    digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(printable, names[:_LISTED])) + more


@contextmanager
def _errors_told(address: str) -> Iterator[None]:
    """Context of the library at work: what it raises becomes one message."""
    try:
        yield
    except Exception as error:  # its own, those of the HTTP library below it, those of the disk
        while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # it wraps that of an upload
        raise GanlabError(f"{address}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    told = printable(first_line(Exception(getattr(error, "server_message", None) or "")))
    answered = f"the server answers {status}{f' ({told})' if told != 'Exception' else ''}"
    kinds = {each.__name__ for each in type(error).__mro__}
    if status == 401:
        return (
            f"{answered}: there is no such repository, or it is private and the token is missing "
            "or not accepted. `hf auth login` keeps a new token"
        )
    if status == 403:
        return f"{answered}: the token may not do this; it needs the right to write there"
    if status == 404:
        what = "revision" if "RevisionNotFoundError" in kinds else "repository or file"
        return f"{answered}: there is no such {what}, or it is private and the token is missing"
    if status is not None:
        return f"{answered}; try again later"
    if "OfflineModeIsEnabled" in kinds:
        return "HF_HUB_OFFLINE is set, so no connection was opened"
    if kinds & {"ConnectError", "ConnectTimeout"}:
        return f"no connection: {printable(first_line(error))}; is this machine connected?"
    return f"{printable(first_line(error))}; nothing was kept. Type the same command again"
