"""Tars: fetched and unpacked over any number of kills, in the room of one; hostile ones are left alone."""

import gzip
import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m7b.errors import CheckpointNotFound, DamagedCheckpoint, M7bError, OutOfResources
from m7b.hub.progress import Retries
from m7b.hub.sources.originals import RELEASES
from m7b.hub.transfer import members, tarball
from m7b.variants import VARIANTS
from tests.support.http_server import Answer, serving
from tests.support.lengths import N_KILLS
from tests.support.memory import peak_of

ROOT = Path(__file__).parent.parent.parent
CHUNK = 1 << 16
FILES = {
    "consolidated.00.pth": random.Random(5).randbytes(3 * CHUNK + 777),
    "params.json": b'{"dim": 4096}\n',
    "RELEASE": b"",
    "tokenizer.model": random.Random(6).randbytes(2 * CHUNK),
}
CLOSED = "http://127.0.0.1:1/mistral.tar"
ONCE = Retries(limit=0)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(tarball, "CHUNK", CHUNK)


def header(name, data=b"", **fields):
    """A member: its header, and what is in it."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def packed(*found, form=tarfile.GNU_FORMAT):
    """The bytes of a tar of members as `header` makes them."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form) as tar:
        for info, data in found:
            tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def checkpoint(files=FILES, top="", **options):
    folders = [header(top, type=tarfile.DIRTYPE, mode=0o755)] if top else []
    return packed(*folders, *(header(top + name, data) for name, data in files.items()), **options)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "folder"


@pytest.fixture
def tar(tmp_path):
    return tmp_path / "mistral.tar"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("top", ["", "mistral-7B-v0.1/", "./", "./mistral-7B-v0.1/"])
@pytest.mark.parametrize("keep", [False, True], ids=["used up", "kept"])
def test_unpacking_gives_the_files(tar, folder, form, top, keep):
    raw = checkpoint(top=top, form=form)
    tar.write_bytes(raw)
    told = list(tarball.unpack(tar, folder, keep=keep))
    assert contents(folder) == FILES
    assert tar.exists() == keep
    assert not keep or tar.read_bytes() == raw
    total = sum(map(len, FILES.values()))
    assert [progress.done for progress in told] == sorted(progress.done for progress in told)
    assert (told[-1].done, told[-1].total) == (total, total)


def test_folders_below_the_top_are_kept(tar, folder):
    files = {"a/b/c/deep.txt": b"deep", "a/b.txt": b"b", "z.txt": b"z"}
    tar.write_bytes(checkpoint(files))
    list(tarball.unpack(tar, folder))
    assert contents(folder) == files


def test_files_that_are_there_are_replaced(tar, folder):
    folder.mkdir()
    (folder / "params.json").write_bytes(b"an old one, and longer than the new")
    (folder / "mine.txt").write_bytes(b"mine")
    tar.write_bytes(checkpoint())
    list(tarball.unpack(tar, folder))
    assert contents(folder) == FILES | {"mine.txt": b"mine"}


def test_a_file_has_its_name_only_when_it_is_whole(tar, folder):
    tar.write_bytes(checkpoint())
    for _ in tarball.unpack(tar, folder):
        for name, data in contents(folder).items():
            assert name.startswith(".unpack.") or data == FILES[name]


@pytest.mark.parametrize("stale", [b"", bytes(1 << 20)], ids=["empty", "long"])
def test_what_a_call_without_a_record_left_is_not_used(tar, folder, stale):
    tar.write_bytes(checkpoint())
    folder.mkdir()
    for member in members.list_members(tar, folder):
        (folder / f".unpack.{member.offset}").write_bytes(stale)
    list(tarball.unpack(tar, folder))
    assert contents(folder) == FILES


def test_a_chunk_is_settled_before_it_is_cut_off(tar, folder, monkeypatch):
    tar.write_bytes(checkpoint())
    sync, synced = os.fsync, []

    def noted(handle):
        sync(handle)
        synced.append((os.fstat(handle).st_ino, tar.stat().st_size if tar.exists() else 0))

    monkeypatch.setattr(os, "fsync", noted)
    before = tar.stat().st_size
    for progress in tarball.unpack(tar, folder):
        part = next(path for path in folder.glob(".unpack.[0-9]*"))
        assert part.stat().st_size == len(FILES[progress.file])
        for needed in (part, folder):
            assert (needed.stat().st_ino, before) in synced
        before = tar.stat().st_size
        synced.clear()


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_a_tar_is_fetched_checked_and_unpacked(folder, kind):
    raw = checkpoint(top="mistral-7B-v0.1/")
    with serving(raw, Answer(), Answer(drop_after=99_999)) as server:
        told = list(
            tarball.fetch(server.url, folder, checksum=f"{kind}:{hashlib.new(kind, raw).hexdigest()}")
        )
    assert contents(folder) == FILES
    notes = [progress.note for progress in told]
    assert [note for note in dict.fromkeys(notes) if note != "waiting"] == ["", "checking", "unpacking"]
    assert {progress.file for progress in told if not progress.note} == {"model.tar"}
    assert server.sent == len(raw)


def test_no_checksum_is_no_check(folder):
    with serving(checkpoint()) as server:
        told = list(tarball.fetch(server.url, folder, checksum=None))
    assert contents(folder) == FILES
    assert "checking" not in {progress.note for progress in told}


def test_another_checksum_removes_the_tar_and_tells_both(folder):
    raw = checkpoint()
    found = hashlib.md5(raw).hexdigest()
    with serving(raw) as server, pytest.raises(DamagedCheckpoint) as caught:
        list(tarball.fetch(server.url, folder, checksum=f"md5:{'0' * 32}"))
    assert found in str(caught.value)
    assert "0" * 32 in str(caught.value)
    assert contents(folder) == {}


def test_a_fetched_tar_that_is_none_is_removed(folder):
    with serving(b"<html>not here</html>" * 1000) as server, pytest.raises(DamagedCheckpoint):
        list(tarball.fetch(server.url, folder, checksum=None))
    assert contents(folder) == {}


def test_the_releases_are_those_of_the_variants():
    assert RELEASES.keys() == VARIANTS.keys() - {"demo"}
    for release in RELEASES.values():
        assert release.url.startswith(("https://models.mistralcdn.com/", "https://files.mistral-7b-v0-1."))
        if release.checksum:
            assert len(bytes.fromhex(release.checksum.removeprefix("md5:"))) == 16


# Unpacking in the room of one.


def test_unpacking_needs_room_for_one_chunk_only(tar, folder, monkeypatch):
    tar.write_bytes(checkpoint(top="mistral-7B-v0.1/"))
    os.sync()
    size, sync, peaks = tar.stat().st_size, os.fsync, []

    def measured(handle):
        """The disk is fullest when a chunk has been written and not yet been cut off."""
        sync(handle)
        found = [path for path in [tar, *folder.rglob("*")] if path.is_file()]
        peaks.append(sum(path.stat().st_blocks * 512 for path in found))

    monkeypatch.setattr(os, "fsync", measured)
    list(tarball.unpack(tar, folder))
    assert contents(folder) == FILES
    blocks = 4096 * (len(FILES) + 3)  # files end within a block
    assert size < max(peaks) <= size + CHUNK + blocks


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for the tar, a chunk, and an unfilled block of every file."""
    folder = tmp_path / "small"
    folder.mkdir()
    size = len(checkpoint()) + CHUNK + 4096 * (len(FILES) + 6)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


as_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mount"), reason="only root mounts a small disk"
)


@as_root
def test_a_disk_with_room_for_the_tar_and_a_chunk_is_enough(small_disk):
    with serving(checkpoint()) as server:
        list(tarball.fetch(server.url, small_disk, checksum=None))
    assert contents(small_disk) == FILES


@as_root
def test_a_disk_that_fills_up_keeps_everything(small_disk):
    hog = small_disk / "hog"
    with serving(checkpoint()) as server:
        for progress in tarball.fetch(server.url, small_disk, checksum=None):
            if progress.note == "unpacking":
                break
    hog.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(OutOfResources, match=r"No space left.*are free"):
        list(tarball.fetch(CLOSED, small_disk, checksum=None, retries=ONCE))
    hog.unlink()
    list(tarball.fetch(CLOSED, small_disk, checksum=None, retries=ONCE))
    assert contents(small_disk) == FILES


# Kills.

UNPACK = """
import sys
from pathlib import Path
from m7b.hub.transfer import members, tarball
tarball.CHUNK = 1 << 14
for progress in tarball.unpack(Path(sys.argv[1]), Path(sys.argv[2])):
    print(progress.done, flush=True)
    sys.stdin.readline()
"""


def test_kill_9_while_unpacking_loses_nothing(tar, folder):
    files = FILES | {"second.pth": random.Random(8).randbytes(1 << 20)}
    tar.write_bytes(checkpoint(files))
    rng, done = random.Random(9), 0
    for kill in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", UNPACK, tar, folder],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(rng.randrange(1, 6)):
            before, done = done, int(child.stdout.readline())
            assert done >= before, f"kill {kill} undid something"
            child.stdin.write("\n")
            child.stdin.flush()
        time.sleep(rng.random() * 0.003)
        child.kill()
        assert child.wait() == -9
        child.stdin.close()
        child.stdout.close()
    list(tarball.unpack(tar, folder))
    assert contents(folder) == files


# Runs in a process of its own, since it forks: the child dies before the n-th line that it runs of the code.
EVERY_LINE = """
import os, signal, sys
from itertools import count
from pathlib import Path
from m7b.hub.transfer import members, tarball
from tests.hub.test_hub_tarball import FILES, checkpoint, contents

tarball.CHUNK = 1 << 16
os.fsync = lambda handle: None  # nobody cuts the power here
raw = checkpoint(FILES, "mistral-7B-v0.1/")

def dying(n):
    def trace(frame, event, argument):
        nonlocal n
        if "/m7b/hub/" not in frame.f_code.co_filename:
            return None
        n -= event == "line"
        if n == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace
    return trace

for n in count(1):
    place = Path(sys.argv[1]) / str(n)
    place.mkdir()
    tar, folder, state = place / "mistral.tar", place / "folder", place / "folder" / ".unpack.json"
    tar.write_bytes(raw)
    child = os.fork()
    if child == 0:
        sys.settrace(dying(n))
        list(tarball.unpack(tar, folder))
        os._exit(0)
    was_killed = os.waitpid(child, 0)[1] == signal.SIGKILL
    if tar.exists() or state.exists():
        list(tarball.unpack(tar, folder))
    assert contents(folder) == FILES, (n, contents(folder).keys())
    assert not tar.exists()
    if not was_killed:
        break
print(n)
"""


def test_kill_9_before_every_line_loses_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", EVERY_LINE, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 200


FETCH = """
import sys
from pathlib import Path
from m7b.hub.transfer import members, tarball
tarball.CHUNK = 1 << 16
for progress in tarball.fetch(sys.argv[1], Path(sys.argv[2]), checksum=sys.argv[3]):
    print(progress.note, flush=True)
"""


def test_kill_9_while_fetching_a_tar_loses_nothing(folder):
    raw = checkpoint()
    command = [sys.executable, "-c", FETCH]
    rng = random.Random(10)
    with serving(raw, rate=2 << 20) as server:
        arguments = [server.url, folder, f"md5:{hashlib.md5(raw).hexdigest()}"]
        for _ in range(N_KILLS):
            enough = server.sent + rng.randrange(200_000 // N_KILLS)
            child = subprocess.Popen([*command, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
            while server.sent < enough:
                time.sleep(0.001)
                assert child.poll() is None
            child.kill()
            assert child.wait() == -9
        subprocess.run([*command, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert contents(folder) == FILES


def test_what_is_being_unpacked_needs_no_network(folder):
    with serving(checkpoint()) as server:
        for progress in tarball.fetch(server.url, folder, checksum=None):
            if progress.note == "unpacking":
                break
    list(tarball.fetch(CLOSED, folder, checksum="md5:not looked at", retries=ONCE))
    assert contents(folder) == FILES


def half_unpacked(tar, folder):
    tar.write_bytes(checkpoint())
    for progress in tarball.unpack(tar, folder):
        if progress.done > len(FILES["tokenizer.model"]) + CHUNK:
            return


def test_a_part_that_was_deleted_is_missed(tar, folder):
    half_unpacked(tar, folder)
    next(folder.glob(".unpack.[0-9]*")).unlink()
    with pytest.raises(DamagedCheckpoint, match="is gone"):
        list(tarball.unpack(tar, folder))


def test_a_whole_file_that_was_deleted_is_missed(tar, folder):
    half_unpacked(tar, folder)
    (folder / "tokenizer.model").unlink()
    with pytest.raises(DamagedCheckpoint, match=r"tokenizer\.model"):
        list(tarball.unpack(tar, folder))


def test_another_tar_does_not_go_on_where_one_stopped(tar, folder, tmp_path):
    half_unpacked(tar, folder)
    other = tmp_path / "other.tar"
    other.write_bytes(raw := checkpoint())
    with pytest.raises(DamagedCheckpoint, match=r"mistral\.tar"):
        list(tarball.unpack(other, folder))
    assert other.read_bytes() == raw


@pytest.mark.parametrize("state", ["", "{", "[]", "[1, [2]]", '["mistral.tar", [["a", 1]]]', "null"])
def test_a_damaged_record_is_told(tar, folder, state):
    half_unpacked(tar, folder)
    (folder / ".unpack.json").write_text(state)
    with pytest.raises(DamagedCheckpoint, match=r"unpack\.json"):
        list(tarball.unpack(tar, folder))


# Tars that nobody should unpack.


def link(kind, to):
    return header("x", type=kind, linkname=to)


def pax(name, data=b"", **fields):
    info, data = header(name, data)
    info.pax_headers = fields
    return info, data


def gnu_sparse():
    """A file of 1 GiB, of which 512 bytes are in the tar."""
    raw = bytearray(packed(header("x", bytes(512))))
    raw[156:157] = b"S"
    raw[386:398], raw[398:410], raw[483:495] = b"%011o\0" % 0, b"%011o\0" % 512, b"%011o\0" % (1 << 30)
    return resummed(raw)


def resummed(raw):
    """The tar with the checksum of its first header made right."""
    raw = bytearray(raw)
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    return bytes(raw)


def with_size(field, raw=None):
    raw = bytearray(raw or packed(header("x", b"abc")))
    raw[124:136] = field
    return resummed(raw)


def negative(size):
    return size.to_bytes(12, "big", signed=True)


SOUND = header("params.json", b"{}")
HOSTILE = {
    "symlink": packed(SOUND, link(tarfile.SYMTYPE, "params.json")),
    "symlink out": packed(link(tarfile.SYMTYPE, ".."), header("x/params.json", b"{}")),
    "symlink absolute": packed(SOUND, link(tarfile.SYMTYPE, "/etc/passwd")),
    "hard link": packed(SOUND, link(tarfile.LNKTYPE, "params.json")),
    "character device": packed(SOUND, header("x", type=tarfile.CHRTYPE, devmajor=1, devminor=3)),
    "block device": packed(SOUND, header("x", type=tarfile.BLKTYPE)),
    "fifo": packed(SOUND, header("x", type=tarfile.FIFOTYPE)),
    "contiguous": packed(SOUND, header("x", b"x", type=tarfile.CONTTYPE)),
    "unknown kind": packed(SOUND, header("x", b"x", type=b"Z")),
    "parent": packed(SOUND, header("../x", b"x")),
    "only parents": packed(header("../x", b"x"), header("../y", b"y")),
    "hidden parent": packed(SOUND, header("a/../../x", b"x")),
    "parent in a top folder": packed(header("top/params.json", b"{}"), header("top/../../x", b"x")),
    "folder that is a parent": packed(SOUND, header("../x", type=tarfile.DIRTYPE)),
    "absolute": packed(SOUND, header("/tmp/x", b"x")),
    "only absolute": packed(header("/x", b"x"), header("/y", b"y")),
    "absolute by pax": packed(pax("x", b"x", path="/tmp/x"), form=tarfile.PAX_FORMAT),
    "parent by pax": packed(pax("x", b"x", path="../x"), form=tarfile.PAX_FORMAT),
    "twice": packed(SOUND, SOUND),
    "twice by another way": packed(SOUND, header("./params.json", b"{}")),
    "twice but for case": packed(SOUND, header("Params.json", b"{}")),
    "file and folder": packed(header("x", b"x"), header("x/y", b"y")),
    "folder and file": packed(header("x/y", b"y"), header("x", b"x")),
    "file and empty folder": packed(header("x", b"x"), header("x", type=tarfile.DIRTYPE)),
    "control characters": packed(SOUND, header("a\x1b[2Jb", b"x")),
    "newline": packed(SOUND, header("a\nb", b"x")),
    "bidi": packed(SOUND, header("a\u202eb", b"x")),
    "no utf-8": packed(SOUND, header("\udcff", b"x")).replace(b"\xed\xb3\xbf", b"\xff"),
    "long name": packed(SOUND, header("n" * 300, b"x")),
    "endless name": packed(header("n" * 200_000, b"x")),
    "no name": packed(SOUND, header(".", b"x")),
    "our record": packed(SOUND, header(".unpack.json", b"[]")),
    "our part": packed(header("top/.unpack.0", b"[]"), header("top/x", b"x")),
    "our tar": packed(SOUND, header(".download.tar", b"[]")),
    "sparse": gnu_sparse(),
    "sparse by pax 0.1": packed(
        pax("x", bytes(512), **{"GNU.sparse.map": "0,512", "GNU.sparse.size": "1073741824"}),
        form=tarfile.PAX_FORMAT,
    ),
    "sparse by pax 1.0": packed(
        pax(
            "x",
            b"1\n0\n512\n".ljust(512, b"\0") + bytes(512),
            **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1073741824"},
        ),
        form=tarfile.PAX_FORMAT,
    ),
    "sparse by pax, small": packed(
        pax("x", bytes(512), **{"GNU.sparse.map": "0,512", "GNU.sparse.size": "1024"}),
        form=tarfile.PAX_FORMAT,
    ),
    "larger than the tar": with_size(b"77777777777\0"),
    "far larger than the tar": with_size(b"\x80" + b"\x00" * 3 + b"\xff" * 8),
    "negative": with_size(negative(-512)),
    "negative for ever": packed(SOUND)[:1024] + with_size(negative(-512)),
    "negative, into a file": packed(header("a", packed(header("y"))[:1024]))[:1536]
    + with_size(negative(-1536)),
    "larger by pax": packed(pax("x", b"x", size="1000000"), form=tarfile.PAX_FORMAT),
    "negative by pax": packed(pax("x", b"x", size="-1024"), form=tarfile.PAX_FORMAT),
    "nonsense by pax": packed(pax("x", b"x", size="9" * 5000), form=tarfile.PAX_FORMAT),
    "size of nonsense": with_size(b"no number...")[:1024] + bytes(1024),
    "many files": packed(*(header(f"{n}", b"") for n in range(1001))),
    "many folders": packed(SOUND, *(header(f"{n}", type=tarfile.DIRTYPE) for n in range(1001))),
    "no files": packed(header("top", type=tarfile.DIRTYPE)),
    "nothing": packed(),
    "empty": b"",
    "zeros": bytes(4096),
    "text": b"<html>404</html>" * 100,
    "compressed": gzip.compress(packed(SOUND)),
    "cut off in a file": checkpoint()[:99_999],
    "cut off between files": packed(SOUND)[:1024],
    "cut off in a header": packed(SOUND, header("x", b"x"))[:1300],
    "a broken header": packed(SOUND)[:1024] + b"broken".ljust(512, b"!") + bytes(1024),
    "nested headers": packed(pax("x", b"", comment="c"), form=tarfile.PAX_FORMAT)[:1024] * 1500,
}


def everything_below(path):
    return {str(p.relative_to(path)) for p in path.rglob("*")}


@pytest.mark.parametrize("keep", [False, True], ids=["used up", "kept"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tar_is_left_alone(tar, folder, tmp_path, name, keep):
    tar.write_bytes(HOSTILE[name])
    with pytest.raises(DamagedCheckpoint) as caught:
        list(tarball.unpack(tar, folder, keep=keep))
    assert str(caught.value).isprintable()
    assert everything_below(tmp_path) == {"mistral.tar"}
    assert tar.read_bytes() == HOSTILE[name]


def test_a_link_in_the_folder_is_not_followed_out_of_it(tar, folder, tmp_path):
    (tmp_path / "outside").mkdir()
    folder.mkdir()
    (folder / "sub").symlink_to(tmp_path / "outside")
    tar.write_bytes(packed(SOUND, header("sub/x", b"x")))
    with pytest.raises(DamagedCheckpoint, match="outside"):
        list(tarball.unpack(tar, folder))
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_huge_header_costs_no_memory(tar, folder):
    raw = bytearray(packed(pax("x", b"", comment="c" * 60_000), form=tarfile.PAX_FORMAT))
    raw[124:136] = b"%011o\0" % (1 << 28)
    with tar.open("wb") as file:
        file.write(resummed(raw))
        file.truncate(1 << 29)

    def unpack():
        with pytest.raises(DamagedCheckpoint, match="a header of"):
            list(tarball.unpack(tar, folder))

    assert peak_of(unpack) < 1 << 22


def test_no_tar_is_no_checkpoint(tar, folder):
    with pytest.raises(CheckpointNotFound):
        list(tarball.unpack(tar, folder))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=12)), min_size=1, max_size=6
    )
)
def test_damage_gives_files_inside_or_an_error_of_ours(tmp_path_factory, form, changes):
    place = tmp_path_factory.mktemp("damaged")
    tar, folder = place / "mistral.tar", place / "folder"
    raw = bytearray(packed(header("a" * 120, b"a"), header("top/b", b"b" * 600), form=form)[:4096])
    for at, new in changes:
        raw[at : at + len(new)] = new
    for at in range(0, len(raw), 512):  # so that tarfile believes what the headers say
        if raw[at + 257 : at + 262] == b"ustar":
            raw[at : at + 512] = resummed(raw[at : at + 512])
    tar.write_bytes(raw)
    try:
        list(tarball.unpack(tar, folder))
    except M7bError:
        assert everything_below(place) == {"mistral.tar"}
    else:
        assert {path.name for path in place.iterdir()} == {"folder"}
        assert not any(path.is_symlink() for path in folder.rglob("*"))
