"""The vendor's compiler in an environment of its own: made, checked, remembered, removed.

rknn-toolkit2 pins numpy, onnx, protobuf and torch to versions that can't live beside today's, so it is never
imported by vitedge: `client.py` talks to it in a subprocess.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from vitedge import documents
from vitedge.errors import VitedgeError, printable
from vitedge.files import clean, make_folder, temporary_name, write_error, write_json
from vitedge.workers import WorkerFailed, call, ended

DEFAULT_VERSION = "2.5.0"
# The toolkit has wheels for these Pythons alone.
PYTHONS = ("3.12", "3.11", "3.10", "3.9", "3.8")
# The environment takes 5.6 GB (torch with its CUDA packages), and pip unpacks beside it.
SPACE = 9 * 10**9
PYTHON_VARIABLE = "VITEDGE_RKNN_PYTHON"
INSTALL_COMMAND = "vitedge toolchain install rknn"
# In each environment that `install` has made; `remove` deletes no other.
MARKER = ".vitedge-toolchain.json"
# Seconds: for the version of an interpreter's toolkit, for importing it, and for pip.
PROBE_S, IMPORT_S, INSTALL_S = 30.0, 180.0, 4 * 3600.0


@dataclass(frozen=True)
class Toolchain:
    """A vendor's environment.

    Attributes:
        python: its interpreter.
        version: of rknn-toolkit2.
        folder: the environment's folder where vitedge made it, else empty: what `remove` deletes.
        source: what named it: "installed", "--rknn-python" or the environment variable.
    """

    python: str
    version: str
    folder: str = ""
    source: str = "installed"


def home() -> Path:
    """Where vitedge keeps what outlives a run: VITEDGE_HOME, or the XDG data folder."""
    if named := os.environ.get("VITEDGE_HOME"):
        return Path(named)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "vitedge"


def _registry() -> Path:
    return home() / "toolchains.json"


def installed() -> list[Toolchain]:
    """The environments that vitedge made or was told of, the newest last; an unreadable list counts as empty."""
    try:
        return documents.load(_registry(), dict[str, list[Toolchain]]).get("rknn", [])
    except VitedgeError:
        return []


def _remember(toolchains: list[Toolchain]) -> None:
    write_json(_registry(), {"rknn": [asdict(t) for t in toolchains]})


def is_ours(folder: Path) -> bool:
    """Whether `install` has made this folder: it holds our marker, which no link stands for."""
    return (folder / MARKER).is_file() and not (folder / MARKER).is_symlink() and not folder.is_symlink()


def check(toolchain: Toolchain) -> None:
    """Raises VitedgeError where the environment does not import the compiler. It takes seconds: for `doctor`."""
    try:
        code, said = call([toolchain.python, "-c", "import rknn.api"], IMPORT_S, env=vendor_environment())
    except (OSError, WorkerFailed) as error:
        code, said = 1, str(error)
    if code:
        raise VitedgeError(
            f"The RKNN toolchain in '{toolchain.folder or toolchain.python}' is broken.",
            (said.strip().splitlines() or [f"It ended with {ended(code)}."])[-1],
            f"Install it again: `{INSTALL_COMMAND}`.",
            exit_code=1,
        )


def vendor_environment() -> dict[str, str]:
    """Our environment without the user's own packages and settings: they stay out of the vendor's."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def not_started(python: str, error: OSError) -> VitedgeError:
    """The error for an interpreter that the system does not run."""
    return VitedgeError(
        f"The interpreter '{python}' can't be started.",
        f"{error.strerror or error}.",
        f"It is to be the Python of an environment with rknn-toolkit2; `{INSTALL_COMMAND}` makes one.",
        exit_code=1,
    )


def find(rknn_python: str | None = None) -> Toolchain:
    """The environment to use: the one named, the environment variable's, or the newest installed.

    Raises VitedgeError (with the command that fixes it) where there is none or its interpreter is gone.
    """
    for named, source in ((rknn_python, "--rknn-python"), (os.environ.get(PYTHON_VARIABLE), PYTHON_VARIABLE)):
        if named:
            return Toolchain(_existing(named, source), _version(named), source=source)
    if not (known := installed()):
        raise VitedgeError(
            "The RKNN compiler (rknn-toolkit2) is not installed.",
            "It needs an environment of its own, since it pins other versions of numpy, onnx and torch.",
            f"Install it with `{INSTALL_COMMAND}`, or name an existing one with --rknn-python.",
            exit_code=1,
        )
    if not Path(known[-1].python).exists():
        raise VitedgeError(
            f"The RKNN toolchain in '{known[-1].folder or known[-1].python}' is gone.",
            f"There is no '{known[-1].python}' any more.",
            f"Install it again with `{INSTALL_COMMAND}`.",
            exit_code=1,
        )
    return known[-1]


def adopt(toolchain: Toolchain) -> None:
    """Remembers an environment that the user named and that has built something, where none is installed: what was
    built with it is then measured with it too. It is never deleted."""
    if toolchain.source == "--rknn-python" and not installed():
        _remember([Toolchain(toolchain.python, toolchain.version, source=toolchain.source)])


def _existing(python: str, source: str) -> str:
    path = Path(python)
    if path.is_dir():
        path = path / "bin" / "python"
    found = str(path) if path.is_file() else shutil.which(python)
    if not found:
        raise VitedgeError(
            f"{source} names '{python}', which does not exist.",
            "It is to be the Python of an environment with rknn-toolkit2.",
            f"Correct it, or make one with `{INSTALL_COMMAND}`.",
        )
    return found


def _version(python: str) -> str:
    """The toolkit's version from its metadata, without importing it (that takes seconds)."""
    code = "from importlib.metadata import version; print('rknn-toolkit2', version('rknn-toolkit2'))"
    try:
        status, said = call([_existing(python, "the path"), "-c", code], PROBE_S, env=vendor_environment())
    except OSError as error:
        raise not_started(python, error) from error
    except WorkerFailed as failed:
        raise VitedgeError(
            f"'{python}' does not answer as a Python does.",
            f"Asked for the version of rknn-toolkit2, {failed.words}; it was stopped.",
            f"Name another interpreter, or make an environment with `{INSTALL_COMMAND}`.",
            exit_code=1,
        ) from failed
    lines = said.strip().splitlines() or [ended(status)]
    if status or not (found := re.fullmatch(r"rknn-toolkit2 ([\w.+-]{1,40})", lines[-1].strip())):
        raise VitedgeError(
            f"'{python}' has no rknn-toolkit2.",
            printable(lines[-1]),
            f"Install it there, or make an environment with `{INSTALL_COMMAND}`.",
            exit_code=1,
        )
    return found[1]


def install(
    version: str = DEFAULT_VERSION,
    into: Path | None = None,
    python: str | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Toolchain:
    """Makes the environment, builds a small model in it, and remembers it.

    into: its folder; by default below `home()`.
    python: an interpreter of one of PYTHONS; by default the first that is found.
    Raises VitedgeError with pip's or the compiler's own words; nothing half-made is left.
    """
    from vitedge.targets.rknn.client import selftest

    base = python or find_python()
    folder = (into or home() / f"rknn-toolkit2-{version}").absolute()
    if folder.exists() and any(folder.iterdir()):
        known = [t for t in installed() if t.folder == str(folder) and t.version == version]
        if known:
            try:
                selftest(known[0])
                return known[0]
            except VitedgeError as error:
                progress(f"{error.what} {error.why} It is made again.")
        # What a killed `remove` or `install` left: ours by its marker, or by the registry.
        if known or is_ours(folder):
            delete(folder)
    if folder.exists() and any(folder.iterdir()):
        raise VitedgeError(
            f"'{folder}' is not empty.", "", "Remove it with `vitedge toolchain remove rknn`, or choose --into."
        )
    make_folder(folder.parent)
    if (free := shutil.disk_usage(folder.parent).free) < SPACE:
        raise VitedgeError(
            f"There is no space for the RKNN toolchain in '{folder.parent}'.",
            f"It needs {SPACE / 1e9:.0f} GB while it is installed; {free / 1e9:.1f} GB are free.",
            "Free some, or choose another folder with --into.",
            exit_code=1,
        )
    try:
        progress(f"Making an environment in {folder} with {base}")
        write_json(folder / MARKER, {"made_by": "vitedge", "toolkit": version})
        _run([base, "-m", "venv", str(folder)], "The environment could not be made.")
        inside = str(folder / "bin" / "python")
        progress(f"Installing rknn-toolkit2 {version} (several GB; minutes)")
        # The toolkit imports pkg_resources, which setuptools 81 no longer has.
        pip = [inside, "-m", "pip", "install", "--disable-pip-version-check"]
        # pip unpacks gigabytes; a /tmp in memory is too small for that.
        scratch = make_folder(folder / "tmp")
        packages = [f"rknn-toolkit2=={version}", "setuptools<81"]
        _run([*pip, *packages], f"rknn-toolkit2 {version} could not be installed.", TMPDIR=str(scratch))
        shutil.rmtree(scratch, ignore_errors=True)
        progress("Building a small model in it")
        toolchain = Toolchain(inside, version, str(folder))
        selftest(toolchain)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _remember([t for t in installed() if t.folder != str(folder)] + [toolchain])
    return toolchain


def remove(folder: str | None = None) -> list[Toolchain]:
    """Deletes the environments that vitedge made (or the one in `folder`), and forgets them; returns them."""
    known = installed()
    gone = [t for t in known if folder in (None, t.folder)]
    if not gone:
        raise VitedgeError(
            f"There is no RKNN toolchain in '{folder}'." if folder else "No RKNN toolchain is installed.",
            "",
            "`vitedge toolchain list` shows what there is.",
        )
    for toolchain in gone:
        # Only what still looks like an environment: the folder may have been given to something else.
        where = Path(toolchain.folder)
        if toolchain.folder and (is_ours(where) or _is_environment(where)):
            delete(where)
        # Each is forgotten when it is gone: killed in between, the next call goes on.
        _remember([t for t in installed() if t != toolchain])
    return gone


def _is_environment(folder: Path) -> bool:
    # Earlier versions made no marker: a virtual environment that the registry knows, or what a killed `remove` left of
    # one in our own folder.
    own = folder.parent == home() and folder.name.startswith("rknn-toolkit2-")
    return folder.is_dir() and not folder.is_symlink() and (own or (folder / "pyvenv.cfg").is_file())


def delete(folder: Path) -> None:
    """Deletes an environment: renamed first, so that nobody finds half of one. Raises VitedgeError."""
    try:
        clean(folder.parent)
        aside = folder.with_name(temporary_name(folder.name))
        os.rename(folder, aside)
        shutil.rmtree(aside)
    except OSError as error:
        raise write_error(error, folder) or error from error


def find_python() -> str:
    """An interpreter that the toolkit has wheels for; raises VitedgeError where there is none."""
    if "{}.{}".format(*sys.version_info) in PYTHONS:
        return sys.executable
    for version in PYTHONS:
        # A name on the path may be a version manager's shim that does not run.
        if found := shutil.which(f"python{version}"):
            with contextlib.suppress(OSError, WorkerFailed):
                if call([found, "-m", "venv", "-h"], PROBE_S)[0] == 0:
                    return found
    raise VitedgeError(
        "There is no Python that rknn-toolkit2 runs on.",
        f"It has packages for Python {', '.join(reversed(PYTHONS))} alone.",
        "Install one of these, and name it with --python.",
        exit_code=1,
    )


def _run(command: list[str], what: str, **variables: str) -> None:
    try:
        status, said = call(command, INSTALL_S, most=2**26, env=os.environ | variables)
    except OSError as error:
        raise not_started(command[0], error) from error
    except WorkerFailed as failed:
        status, said = 1, failed.words
    if status:
        raise VitedgeError(what, " ".join(said.strip().splitlines()[-3:]), "Fix that, then run it again.", exit_code=1)
