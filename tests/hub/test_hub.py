"""Checkpoints from a hub, by the real client library and the real command line, against a hub on loopback."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pytest

from m7b.hub.layouts import choose_files
from tests.support.checkpoints import mistral, write_hf
from tests.support.hub_server import serving_hub
from tests.support.lengths import N_KILLS

REPO = "org/tiny"
BITS = random.Random(0)
SHARDS = {
    "config.json": b'{"model_type": "mistral"}',
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "model-00001-of-00002.safetensors": BITS.randbytes(700_001),
    "model-00002-of-00002.safetensors": BITS.randbytes(300_007),
    "tokenizer.model": BITS.randbytes(5000),
    "consolidated.safetensors": BITS.randbytes(1_000_000),
    "params.json": b"{}",
    "README.md": b"# Tiny",
}
WEIGHTS = [name for name in SHARDS if name.startswith("model-")]
SMALL = {"model.safetensors": BITS.randbytes(400_000), "config.json": b"{}"}


@pytest.fixture
def home(tmp_path):
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "M7B_"))},
        "M7B_HOME": str(tmp_path / "m7b"),
        "HF_HOME": str(tmp_path / "hf"),
        "PYTHONPATH": str(Path(__file__).parent.parent.parent),
    }


def command(home, hub, *arguments):
    environ = home if hub is None else {**home, "HF_ENDPOINT": hub.url}
    return [sys.executable, "-m", "m7b", *arguments], environ


def m7b(home, hub, *arguments):
    words, environ = command(home, hub, *arguments)
    return subprocess.run(words, env=environ, capture_output=True, text=True, timeout=300, check=False)


def start(home, hub, *arguments):
    words, environ = command(home, hub, *arguments)
    return subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def records(home):
    return json.loads(m7b(home, None, "list", "--json").stdout)


def fetched(home):
    """The files of the one record, by name."""
    (record,) = records(home)
    return {file["name"]: (Path(record["folder"]) / file["name"]).read_bytes() for file in record["files"]}


def blobs(home):
    return sorted(Path(home["HF_HOME"]).glob("hub/models--*/blobs/*"))


def test_exactly_one_copy_of_the_weights_is_fetched(home):
    with serving_hub(REPO, SHARDS) as hub:
        done = m7b(home, hub, "download", REPO)
    assert done.returncode == 0, done.stderr
    names = {name for name in SHARDS if name not in ("consolidated.safetensors", "params.json", "README.md")}
    assert fetched(home) == {name: SHARDS[name] for name in names}
    assert set(hub.sent) == names


def test_the_native_copy_is_fetched_where_it_is_asked_for(home):
    with serving_hub(REPO, SHARDS) as hub:
        assert m7b(home, hub, "download", REPO, "--format", "native").returncode == 0
    assert set(fetched(home)) == {"consolidated.safetensors", "params.json", "tokenizer.model"}


def test_other_programs_find_it_in_the_cache_and_m7b_by_its_id(home, tmp_path):
    folder = write_hf(mistral(window=4), tmp_path / "written", max_shard_size="20kB")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(files) > 4
    with serving_hub(REPO, files) as hub:
        assert m7b(home, hub, "download", REPO).returncode == 0
    told = json.loads(m7b(home, None, "info", "-m", REPO, "--json").stdout)
    assert told["name"] == REPO
    assert told["config"]["sliding_window"] == 4
    program = f"import transformers; transformers.AutoModelForCausalLM.from_pretrained({REPO!r})"
    offline = {**home, "HF_HUB_OFFLINE": "1"}
    assert subprocess.run([sys.executable, "-c", program], env=offline, check=False).returncode == 0


def test_what_another_program_has_fetched_is_checked_and_not_fetched_again(home):
    with serving_hub(REPO, SHARDS) as hub:
        program = (
            f"import huggingface_hub as h\nfor name in {list(SHARDS)}: h.hf_hub_download({REPO!r}, name)"
        )
        subprocess.run(
            [sys.executable, "-c", program],
            env={**home, "HF_ENDPOINT": hub.url},
            check=True,
            capture_output=True,
        )
        hub.sent.clear()
        assert m7b(home, hub, "download", REPO).returncode == 0
        assert not hub.sent
    assert len(records(home)) == 1


def test_a_gated_repository_tells_the_page_and_the_command(home):
    with serving_hub(REPO, SHARDS, token="hf_right", gated=True) as hub:
        done = m7b(home, hub, "download", REPO)
        assert done.returncode == 3
        assert f"{hub.url}/{REPO}" in done.stderr
        assert "hf auth login" in done.stderr
        assert done.stderr.count("\n") == 1
        refused = m7b({**home, "HF_TOKEN": "hf_wrong"}, hub, "download", REPO)
        assert refused.returncode == 3
        assert "token" in refused.stderr
        assert not hub.sent
        assert m7b({**home, "HF_TOKEN": "hf_right"}, hub, "download", REPO).returncode == 0
    shown = [headers for _, path, headers in hub.requests if path.startswith("/cdn/")]
    assert shown
    assert not any("authorization" in map(str.lower, headers) for headers in shown)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["org/other"], 3, "org/other"),
        ([REPO, "--revision", "no-such"], 3, "revision"),
        (["no//id"], 2, "no//id"),
        ([REPO, "--format", "gguf"], 3, "gguf"),
        ([REPO, "--include", "x*"], 2, "x*"),
        ([REPO, "--variant", "demo"], 2, "both"),
        ([], 2, "nothing"),
        ([REPO, "--source", "cdn"], 2, "no tarball"),
        ([REPO, "--source", "nowhere"], 2, "nowhere"),
        ([REPO, "--copy"], 2, "--copy"),
        (["--variant", "base-v0.1", "--source", "cdn", "--format", "hf"], 2, "--format"),
        (["--variant", "instruct-v0.2", "--source", "torrent"], 2, "torrent"),
    ],
)
def test_what_is_not_there_or_means_nothing_is_told_in_one_line(home, arguments, code, word):
    with serving_hub(REPO, SHARDS) as hub:
        done = m7b(home, hub, "download", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert word in done.stderr
    assert not records(home)


def test_no_hub_at_all_is_told_after_some_tries(home):
    with serving_hub(REPO, SHARDS) as hub:
        pass
    done = subprocess.run(
        [sys.executable, "-c", _IMPATIENT, REPO],
        env={**home, "HF_ENDPOINT": hub.url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert hub.url in done.stderr.splitlines()[-1]


_IMPATIENT = """
import sys
from m7b import hub
from m7b.cli import main
hub.Retries.__init__.__defaults__ = (2, 0.01, 0.02)
sys.exit(main(["download", *sys.argv[1:]]))
"""


def test_busy_servers_are_asked_again(home):
    with serving_hub(REPO, SMALL) as hub:
        hub.faults += [("^/api/", 500), ("^/api/", 429), ("^/cdn/", 503), ("^/cdn/", 429), ("/resolve/", 502)]
        done = m7b(home, hub, "download", REPO)
    assert done.returncode == 0, done.stderr
    assert not hub.faults
    assert fetched(home) == SMALL


def test_a_line_that_breaks_again_and_again_costs_no_byte_twice(home):
    positions = [BITS.randrange(1, 30_000) for _ in range(20)]
    with serving_hub(REPO, SMALL) as hub:
        hub.faults += [("^/cdn/model", ("drop", position)) for position in positions]
        done = m7b(home, hub, "download", REPO)
    assert done.returncode == 0, done.stderr
    assert fetched(home) == SMALL
    assert hub.sent["model.safetensors"] == len(SMALL["model.safetensors"])


def test_a_corrupt_file_is_fetched_once_more(home):
    with serving_hub(REPO, SMALL) as hub:
        hub.faults += [("^/cdn/model", "corrupt")]
        assert m7b(home, hub, "download", REPO).returncode == 0
    assert fetched(home) == SMALL


def test_a_file_that_stays_corrupt_is_refused_and_leaves_nothing_to_load(home):
    with serving_hub(REPO, SMALL) as hub:
        hub.announced["model.safetensors"] = "0" * 64
        done = m7b(home, hub, "download", REPO)
    assert done.returncode == 4
    assert "sha256" in done.stderr.splitlines()[-1]
    assert "0" * 64 in done.stderr
    assert not records(home)
    assert not [blob for blob in blobs(home) if blob.stat().st_size == len(SMALL["model.safetensors"])]


def test_a_file_of_another_length_is_refused_with_both(home):
    with serving_hub(REPO, SMALL) as hub:
        hub.faults += [("^/cdn/model", "another length")]
        done = m7b(home, hub, "download", REPO)
    assert done.returncode == 4
    assert "400,000" in done.stderr
    assert "400,004" in done.stderr


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("../../evil.gguf", None),
        ("/etc/evil.gguf", None),
        ("a\\..\\evil.gguf", None),
        ("evil\x1b[31m.gguf", None),
        ("evil.gguf", -1),
        ("evil.gguf", 1 << 60),
        ("evil.gguf", "9"),
    ],
)
def test_listings_that_cannot_be_are_refused(home, name, size):
    with serving_hub(REPO, {name: b"GGUF"}) as hub:
        if size is not None:
            hub.sizes[name] = size
        done = m7b(home, hub, "download", REPO)
    assert done.returncode == 4, done.stderr
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr
    assert not hub.sent


def test_a_checksum_that_is_a_path_is_refused(home):
    with serving_hub(REPO, SMALL) as hub:
        hub.announced["model.safetensors"] = "../../../../evil"
        assert m7b(home, hub, "download", REPO).returncode == 4
        assert not hub.sent


def test_a_commit_that_is_a_path_is_refused(home):
    with serving_hub(REPO, SMALL) as hub:
        hub.commit = "../../../../evil"
        assert m7b(home, hub, "download", REPO).returncode == 4
        assert not hub.sent


def test_a_disk_without_links_holds_the_files_themselves(home):
    unlinked = {**home, "HF_HUB_DISABLE_SYMLINKS": "1"}
    with serving_hub(REPO, SMALL) as hub:
        assert m7b(unlinked, hub, "download", REPO).returncode == 0
        assert fetched(home) == SMALL
        assert m7b(home, None, "rm", REPO, "-y").returncode == 0
        m7b(unlinked, hub, "download", REPO)
        hub.sent.clear()
        Path(records(home)[0]["folder"], "config.json").write_bytes(b"damaged")
        assert m7b(unlinked, hub, "verify", REPO, "--repair").returncode == 0
        assert set(hub.sent) == {"config.json"}


def test_links_planted_in_the_cache_lead_nowhere(home, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    with serving_hub(REPO, SMALL) as hub:
        cache = Path(home["HF_HOME"]) / "hub" / "models--org--tiny"
        digest = hub.announced["model.safetensors"]
        for link in (
            cache / "blobs" / f"{digest}.m7b-part",
            cache / "blobs" / f"{digest}.m7b-part.etag",
            cache / "snapshots" / hub.commit / "model.safetensors",
        ):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(victim)
        assert m7b(home, hub, "download", REPO).returncode == 0
    assert victim.read_bytes() == b"precious"
    assert fetched(home) == SMALL


def test_of_several_gguf_files_one_has_to_be_chosen(home):
    files = {"a.Q4_0.gguf": b"GGUF4", "a.Q8_0.gguf": b"GGUF8"}
    with serving_hub(REPO, files) as hub:
        undecided = m7b(home, hub, "download", REPO)
        assert undecided.returncode == 2
        assert "a.Q8_0.gguf" in undecided.stderr
        assert "--include" in undecided.stderr
        assert m7b(home, hub, "download", REPO, "--include", "*Q8_0*").returncode == 0
    assert fetched(home) == {"a.Q8_0.gguf": b"GGUF8"}
    assert records(home)[0]["path"].endswith("a.Q8_0.gguf")


def test_several_gguf_files_of_a_repository_stand_side_by_side(home):
    """Found: the second was "here already" and never came; its address told to fetch what was here."""
    files = {"a.Q4_0.gguf": b"GGUF4", "a.Q8_0.gguf": b"GGUF8", "a.Q6_K.gguf": b"GGUF6"}
    with serving_hub(REPO, files) as hub:
        assert m7b(home, hub, "download", f"hf.co/{REPO}:Q4_0").returncode == 0
        assert m7b(home, hub, "download", f"{REPO}:Q8_0").returncode == 0
        assert m7b(home, hub, "download", REPO, "--include", "*Q6_K*").returncode == 0
        hub.requests.clear()
        again = m7b(home, hub, "download", f"{REPO}:Q4_0")
        assert not hub.requests
    assert "is here already" in again.stderr
    assert again.stderr.strip().endswith("a.Q4_0.gguf")
    assert [Path(one["path"]).name for one in records(home)] == ["a.Q6_K.gguf", "a.Q8_0.gguf", "a.Q4_0.gguf"]
    assert m7b(home, None, "verify", f"{REPO}:Q8_0").stdout.count("sound") == 1
    gone = m7b(home, None, "rm", f"hf.co/{REPO}:Q8_0", "-y")
    assert gone.returncode == 0, gone.stderr
    assert sorted(blob.read_bytes() for blob in blobs(home)) == [b"GGUF4", b"GGUF6"]
    assert m7b(home, None, "rm", f"{REPO}:Q8_0", "-y").returncode == 2
    assert m7b(home, None, "verify", REPO).stdout.count("sound") == 2
    assert m7b(home, None, "rm", REPO, "-y").returncode == 0
    assert not records(home)
    assert not blobs(home)


def test_an_address_of_another_revision_is_not_what_is_here(home):
    """Found: `verify`, `rm` and `-m` took the revision that was here."""
    with serving_hub(REPO, SMALL) as hub:
        assert m7b(home, hub, "download", REPO, "--revision", "main").returncode == 0
        hub.requests.clear()
        for revision in ("main", hub.commit, hub.commit[:12]):
            again = m7b(home, hub, "download", REPO, "--revision", revision)
            assert "is here already" in again.stderr, again.stderr
            assert m7b(home, None, "verify", f"https://hf.co/{REPO}/tree/{revision}").returncode == 0
        assert not hub.requests
    for revision in ("v2", "f" * 40, hub.commit[:6]):
        assert m7b(home, None, "rm", f"https://hf.co/{REPO}/tree/{revision}", "-y").returncode == 2
    assert fetched(home) == SMALL


SPLIT = {f"Q4/a.Q4_0-0000{n}-of-00003.gguf": b"GGUF%d" % n for n in (1, 2, 3)}


@pytest.mark.parametrize("include", [[], ["--include", "*Q4_0*"], ["--include", "*-00002-of-*"]])
def test_all_parts_of_a_split_are_one_checkpoint(home, include):
    """Found: one part was fetched, recorded as whole, and lacked most of its tensors."""
    others = {"b.Q8_0-00001-of-00002.gguf": b"x", "b.Q8_0-00002-of-00002.gguf": b"y"} if include[:1] else {}
    include = ["--include", "Q4/" + include[1]] if include else []
    with serving_hub(REPO, {**SPLIT, **others}) as hub:
        done = m7b(home, hub, "download", REPO, *include)
        assert done.returncode == 0, done.stderr
        assert fetched(home) == SPLIT
        (record,) = records(home)
        assert record["path"].endswith("Q4/a.Q4_0-00001-of-00003.gguf")
        Path(record["folder"], "Q4/a.Q4_0-00003-of-00003.gguf").resolve().write_bytes(b"damaged")
        hub.sent.clear()
        assert "00003-of-00003" in m7b(home, None, "verify", REPO).stdout
        assert m7b(home, hub, "verify", REPO, "--repair").returncode == 0
        assert set(hub.sent) == {"Q4/a.Q4_0-00003-of-00003.gguf"}
    assert fetched(home) == SPLIT
    assert m7b(home, None, "rm", REPO, "-y").returncode == 0
    assert not blobs(home)


def test_the_address_of_one_part_fetches_all(home):
    with serving_hub(REPO, {**SPLIT, "b.gguf": b"GGUF"}) as hub:
        address = f"https://huggingface.co/{REPO}/blob/main/Q4/a.Q4_0-00002-of-00003.gguf?download=true"
        refused = m7b(home, hub, "download", address, "--include", "*")
        assert refused.returncode == 2
        assert "--include" in refused.stderr
        assert m7b(home, hub, "download", address).returncode == 0
    assert fetched(home) == SPLIT
    assert records(home)[0]["name"] == REPO


def test_splits_are_offered_as_one_file_each(home):
    with serving_hub(REPO, {**SPLIT, "b.gguf": b"GGUF"}) as hub:
        done = m7b(home, hub, "download", REPO)
    assert done.returncode == 2
    assert "2 GGUF files: Q4/a.Q4_0-00001-of-00003.gguf (3 parts), b.gguf" in done.stderr


def test_a_split_that_lacks_a_part_on_the_hub_is_refused_by_its_name(home):
    files = {name: data for name, data in SPLIT.items() if "-00002-" not in name}
    with serving_hub(REPO, files) as hub:
        done = m7b(home, hub, "download", REPO)
        assert not hub.sent
    assert done.returncode == 3
    assert "part 2 of 3: Q4/a.Q4_0-00002-of-00003.gguf" in done.stderr


def test_killed_at_any_moment_it_goes_on_where_it_stopped(home):
    """A kill can cost what the server had sent and the client had not written."""
    draw, n_kills = random.Random(7), N_KILLS
    size = len(SMALL["model.safetensors"])
    with serving_hub(REPO, SMALL, rate=600_000 / n_kills) as hub:
        assert sum(_killed(home, hub, 0.4 + draw.random() * 0.6) for _ in range(n_kills)) > n_kills / 2
        hub.rate = None
        done = m7b(home, hub, "download", REPO)
        assert done.returncode == 0, done.stderr
    assert fetched(home) == SMALL
    assert hub.sent["model.safetensors"] <= size + n_kills * (1 << 16)


@contextmanager
def _started(home, hub):
    """A download whose first bytes have come, however busy the machine is."""
    with start(home, hub, "download", REPO) as process:
        while not any("part" in blob.name for blob in blobs(home)):
            assert process.poll() is None
            time.sleep(0.02)
        yield process


def _killed(home, hub, after_s):
    """Whether a download was still at work `after_s` seconds after its start."""
    process = start(home, hub, "download", REPO)
    try:
        process.wait(after_s)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        if records(home):  # it was whole at that moment
            assert fetched(home) == SMALL
            return False
        return True


def test_interrupted_it_says_nothing_and_goes_on_later(home):
    with serving_hub(REPO, SMALL, rate=400_000) as hub:
        words, environ = command(home, hub, "download", REPO)
        process = subprocess.Popen(words, env=environ, stderr=subprocess.PIPE, text=True)
        while not hub.sent["model.safetensors"]:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 130
        assert "Traceback" not in errors
        hub.rate = None
        assert m7b(home, hub, "download", REPO).returncode == 0
    assert fetched(home) == SMALL


def test_two_starts_at_once_fetch_everything_once(home):
    with serving_hub(REPO, SMALL, rate=400_000) as hub:
        both = [start(home, hub, "download", REPO) for _ in range(2)]
        assert [process.wait(60) for process in both] == [0, 0]
    assert hub.sent["model.safetensors"] == len(SMALL["model.safetensors"])
    assert fetched(home) == SMALL


LIBRARY = f"import huggingface_hub as h\nfor name in {list(SMALL)}: h.hf_hub_download({REPO!r}, name)"
OFFICIAL = "mistralai/Mistral-7B-Instruct-v0.3"


def test_two_homes_fetch_into_one_cache_once(home, tmp_path):
    """Found: they fetched up to four times the bytes, and one died."""
    other, third = ({**home, "M7B_HOME": str(tmp_path / name)} for name in ("other", "third"))
    with serving_hub(REPO, SMALL, rate=400_000) as hub:
        all_ = [start(one, hub, "download", REPO) for one in (home, other, third)]
        assert [process.wait(60) for process in all_] == [0, 0, 0]
    assert hub.sent == {name: len(data) for name, data in SMALL.items()}
    assert fetched(home) == fetched(other) == SMALL


def test_a_variant_and_its_hub_id_are_fetched_once(home):
    with serving_hub(OFFICIAL, SMALL, rate=400_000) as hub:
        both = [start(home, hub, "download", *how) for how in ((OFFICIAL,), ("--variant", "instruct-v0.3"))]
        assert [process.wait(60) for process in both] == [0, 0]
    assert hub.sent == {name: len(data) for name, data in SMALL.items()}
    assert {record["name"] for record in records(home)} == {OFFICIAL, "instruct-v0.3"}


def test_another_program_and_m7b_fetch_into_one_cache_once(home):
    with serving_hub(REPO, SMALL, rate=200_000) as hub:
        environ = {**home, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        with _started(home, hub) as ours:
            assert subprocess.run([sys.executable, "-c", LIBRARY], env=environ, check=False).returncode == 0
            assert ours.wait(60) == 0
    assert hub.sent == {name: len(data) for name, data in SMALL.items()}


def test_prune_spares_what_another_home_is_fetching(home, tmp_path):
    with serving_hub(REPO, SMALL, rate=20_000) as hub, _started(home, hub) as ours:
        done = m7b({**home, "M7B_HOME": str(tmp_path / "other")}, None, "prune", "-y")
        assert "nothing to prune" in done.stderr
        hub.rate = None
        assert ours.wait(60) == 0
    assert fetched(home) == SMALL


def test_verify_names_damaged_files_and_repair_fetches_only_those(home):
    with serving_hub(REPO, SHARDS) as hub:
        m7b(home, hub, "download", REPO)
        hub.sent.clear()
        damaged = Path(records(home)[0]["folder"]) / WEIGHTS[1]
        with damaged.resolve().open("r+b") as file:
            file.seek(1000)
            file.write(b"\0\0\0\0")
        found = m7b(home, None, "verify", REPO)
        assert found.returncode == 4
        assert WEIGHTS[1] in found.stdout
        assert WEIGHTS[0] not in found.stdout
        repaired = m7b(home, hub, "verify", REPO, "--repair")
        assert repaired.returncode == 0, repaired.stderr
        assert set(hub.sent) == {WEIGHTS[1]}
    assert m7b(home, None, "verify").stdout.endswith("sound\n")


def test_rm_says_what_it_frees_and_spares_what_is_shared(home):
    with serving_hub(REPO, SHARDS) as hub:
        m7b(home, hub, "download", REPO)
        hub.commit = "f" * 40
        hub.files = hub.files | {"config.json": b'{"model_type": "mistral", "new": 1}'}
        hub.sizes["config.json"] = len(hub.files["config.json"])
        assert m7b(home, hub, "download", REPO, "--revision", "main", "-y").returncode == 0
    kept = records(home)
    assert [record["revision"] for record in kept] == ["f" * 40]
    unasked = m7b(home, None, "rm", REPO)
    assert unasked.returncode == 2
    assert records(home) == kept
    done = m7b(home, None, "rm", REPO, "-y")
    assert done.returncode == 0, done.stderr
    assert "0.0 MB" in done.stderr
    assert not records(home)
    assert blobs(home)


def test_offline_nothing_is_asked(home):
    with serving_hub(REPO, SMALL) as hub:
        for environ, options in (
            ({"M7B_OFFLINE": "1"}, []),
            ({}, ["--offline"]),
            ({"HF_HUB_OFFLINE": "1"}, []),
        ):
            done = m7b({**home, **environ}, hub, "download", REPO, *options)
            assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
        assert not hub.requests
        assert m7b(home, hub, "download", REPO).returncode == 0
        hub.requests.clear()
        assert m7b(home, hub, "download", REPO, "--offline").returncode == 0
        assert not hub.requests


def test_a_full_disk_is_told_and_gone_on_with(home, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(disk)], check=True)
    try:
        small = {**home, "HF_HOME": str(disk)}
        with serving_hub(REPO, SHARDS) as hub:
            refused = m7b(small, hub, "download", REPO)
            assert refused.returncode == 5
            assert "GB are free" in refused.stderr
            assert not hub.sent
            (disk / "ballast").write_bytes(bytes(500_000))
            full = m7b(small, hub, "download", REPO, "--force")
            assert full.returncode == 5, full.stderr
            assert not records(home)
            (disk / "ballast").unlink()
            assert m7b(small, hub, "download", REPO, "--force").returncode == 0
            assert sum(hub.sent.values()) < sum(map(len, SHARDS.values()))
        assert fetched(home)[WEIGHTS[0]] == SHARDS[WEIGHTS[0]]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_on_a_terminal_it_shows_the_plan_and_asks(home):
    with serving_hub(REPO, SMALL) as hub:
        for answer, code in (("n", 3), ("y", 0)):
            words, environ = command(home, hub, "complete", "-m", REPO, "Hello")
            if answer == "y":
                words = [*words[:3], "download", REPO]
            child = pexpect.spawn(words[0], words[1:], env=environ, encoding="utf-8", timeout=300)
            child.expect("model.safetensors")
            child.expect("free in")
            child.expect(r"\[Y/n\]")
            child.sendline(answer)
            child.expect(pexpect.EOF)
            child.close()
            assert child.exitstatus == code
    assert fetched(home) == SMALL


def test_elsewhere_what_is_absent_ends_with_the_command_that_helps(home):
    done = m7b(home, None, "complete", "-m", REPO, "Hello")
    assert done.returncode == 3
    assert f"m7b download {REPO}" in done.stderr


def test_prune_removes_what_never_ended(home):
    with serving_hub(REPO, SMALL, rate=400_000) as hub, _started(home, hub) as process:
        process.kill()
    assert m7b(home, None, "prune", "-y").returncode == 0
    assert not any("part" in blob.name for blob in blobs(home))
    assert "nothing to prune" in m7b(home, None, "prune").stderr


def test_the_settings_of_old_four_bit_folders_come_with_their_weights():
    names = ["README.md", "config.json", "gptq_model-4bit-128g.safetensors", "quantize_config.json"]
    assert choose_files(names, REPO, None, None) == ("hf", [names[2], names[1], names[3]])


def test_every_layout_leaves_out_the_copies_of_the_others():
    names = [*SHARDS, "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "x.gguf"]
    chosen = [choose_files(names, REPO, format, None)[1] for format in ("hf", "native", "gguf")]
    weights = [{name for name in part if name.endswith((".safetensors", ".bin", ".gguf"))} for part in chosen]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(weights, 2))
