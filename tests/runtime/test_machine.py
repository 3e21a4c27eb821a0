"""The machine probe: cores, quotas and instructions of made-up machines, bandwidth by a made-up clock."""

import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

import psutil
import pytest
import torch

from m7b.runtime import machine as machine_module
from m7b.runtime.machine import as_json, describe_machine, read_bandwidth
from m7b.runtime.processor import (
    cpu_features,
    cpu_name,
    cpu_quota,
    efficiency_cores,
    is_translated,
    memory_quota,
    physical_cores,
)
from tests.support.macs import MACS

MIB = 1 << 20


def made_up(root, files):
    """A tree of the kernel's files below `root`."""
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
    return root


def siblings(*lists):
    """The files that say which hyperthreads share a core, one list for each CPU."""
    return {
        f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": text for n, text in enumerate(lists)
    }


# cores

PAIRS = siblings("0-1", "0-1", "2-3", "2-3", "4-5", "4-5", "6-7", "6-7")
HALVES = siblings("0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7")
V2 = {"proc/self/cgroup": "0::/box/inner"}
V1 = {"proc/self/cgroup": "3:cpu,cpuacct:/box\n2:memory:/box"}


@pytest.mark.parametrize(
    ("files", "affinity", "expected"),
    [
        pytest.param(PAIRS, range(8), 4, id="hyperthreads of a core count once"),
        pytest.param(HALVES, range(4), 4, id="siblings that are not allowed do not count"),
        pytest.param(PAIRS, range(4), 2, id="affinity halves the cores"),
        pytest.param(PAIRS, [3], 1, id="one CPU"),
        pytest.param(PAIRS | V2 | {"sys/fs/cgroup/cpu.max": "max 100000"}, range(8), 4, id="no quota"),
        pytest.param(PAIRS | V2 | {"sys/fs/cgroup/cpu.max": "100000 100000"}, range(8), 1, id="quota of 1"),
        pytest.param(PAIRS | V2 | {"sys/fs/cgroup/box/cpu.max": "250000 100000"}, range(8), 2, id="of 2.5"),
        pytest.param(
            PAIRS | V2 | {"sys/fs/cgroup/box/inner/cpu.max": "50000 100000"}, range(8), 1, id="of half a CPU"
        ),
        pytest.param(
            PAIRS
            | V1
            | {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            range(8),
            3,
            id="quota of 3 in version 1, seen from inside the container",
        ),
        pytest.param(
            PAIRS
            | V1
            | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            range(8),
            4,
            id="no quota in version 1",
        ),
    ],
)
def test_threads_are_never_more_than_the_cores_the_process_may_use(
    tmp_path, monkeypatch, files, affinity, expected
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(affinity), raising=False)
    assert physical_cores(made_up(tmp_path, files)) == expected


# fast cores and slow ones


def capacities(*values):
    """The files that say how much each CPU does, 1024 being the most; no two share a core."""
    folder = "sys/devices/system/cpu"
    shares = {f"{folder}/cpu{n}/cpu_capacity": str(value) for n, value in enumerate(values)}
    return shares | siblings(*map(str, range(len(values))))


def kinds(core, atom, *lists):
    """The files by which Linux tells Intel's fast cores from the others."""
    return siblings(*lists) | {"sys/devices/cpu_core/cpus": core, "sys/devices/cpu_atom/cpus": atom}


BOARD = capacities(414, 414, 414, 414, 1024, 1024, 1024, 1024)  # RK3588: 4 of Cortex-A55, 4 of Cortex-A76
PHONE = capacities(250, 250, 250, 250, 870, 870, 870, 1024)  # a prime core, three large ones, four small ones
OLD_BOARD = capacities(623, 623, 1024, 1024, 1024, 1024)  # S922X at equal clocks: Cortex-A53, Cortex-A73
LAPTOP = kinds("0-3", "4-11", "0-1", "0-1", "2-3", "2-3", *map(str, range(4, 12)))  # 2 of 2 threads, and 8


@pytest.mark.parametrize(
    ("files", "affinity", "expected"),
    [
        pytest.param(BOARD, range(8), (4, 4), id="big and little"),
        pytest.param(BOARD, range(4), (4, 0), id="little ones alone are as fast as it gets"),
        pytest.param(BOARD, [0, 1, 7], (1, 2), id="one big and two little"),
        pytest.param(PHONE, range(8), (4, 4), id="large ones count beside a prime one"),
        pytest.param(OLD_BOARD, range(6), (4, 2), id="three fifths is slow"),
        pytest.param(capacities(1024, 1024, 1024), range(3), (3, 0), id="all alike"),
        pytest.param(
            capacities(1024, 512) | siblings("0", "1", "2"), range(3), (3, 0), id="one says nothing"
        ),
        pytest.param(capacities("", "x"), range(2), (2, 0), id="nonsense"),
        pytest.param(LAPTOP, range(12), (2, 8), id="Intel's hybrids"),
        pytest.param(LAPTOP, range(4, 12), (8, 0), id="none of Intel's fast ones is allowed"),
        pytest.param(LAPTOP, [1, 2, 5], (2, 1), id="some of each"),
        pytest.param(kinds("0-1,4-5", "2,3", *"012345"), range(6), (4, 2), id="a list of ranges"),
        pytest.param(kinds("", "", "0", "1"), range(2), (2, 0), id="no kinds"),
        pytest.param(BOARD | V2 | {"sys/fs/cgroup/cpu.max": "300000 100000"}, range(8), (3, 4), id="quota"),
        pytest.param(
            BOARD | V2 | {"sys/fs/cgroup/cpu.max": "600000 100000"}, range(8), (4, 4), id="wide quota"
        ),
    ],
)
def test_only_fast_cores_are_kept_busy(tmp_path, monkeypatch, files, affinity, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(affinity), raising=False)
    root = made_up(tmp_path, files)
    assert (physical_cores(root), efficiency_cores(root)) == expected


@pytest.fixture
def mac(tmp_path, monkeypatch):
    """A root whose sysctl tells what that of a Mac was published to tell."""

    def install(name):
        monkeypatch.setattr(platform, "system", lambda: "Darwin")
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
        program = (
            made_up(tmp_path, {"usr/sbin/sysctl": '#!/bin/sh\ncat "$0.txt"\nexit 1'}) / "usr/sbin/sysctl"
        )
        program.chmod(0o755)
        program.with_suffix(".txt").write_text(MACS[name].told, encoding="utf-8")
        return tmp_path

    return install


@pytest.mark.skipif(os.name != "posix", reason="sysctl is a script here")
@pytest.mark.parametrize("name", MACS)
def test_macs_are_known_by_what_sysctl_tells(mac, monkeypatch, name):
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8)
    root, expected = mac(name), MACS[name]
    assert (physical_cores(root), efficiency_cores(root)) == expected.cores
    assert cpu_name(root) == expected.cpu
    assert cpu_features(root) == expected.features
    assert is_translated(root) == expected.is_translated


@pytest.mark.parametrize("system", ["Linux", "Darwin", "Windows"])
def test_a_system_without_sysctl_is_asked_otherwise(tmp_path, monkeypatch, system):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 6)
    assert (physical_cores(tmp_path), efficiency_cores(tmp_path), is_translated(tmp_path)) == (6, 0, False)


def test_the_tightest_quota_of_a_group_and_those_around_it_counts(tmp_path):
    files = {"cpu.max": "max 100000", "box/cpu.max": "150000 100000", "box/inner/cpu.max": "400000 100000"}
    root = made_up(tmp_path, V2 | {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert cpu_quota(root) == 1.5


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_process_bound_to_one_cpu_gets_one_core():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from m7b.runtime.machine import describe_machine as d; m = d(); print(m.cores, m.logical_cores)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("1 1\n", "")


# memory


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, None, id="no control groups"),
        pytest.param(V2 | {"sys/fs/cgroup/box/memory.max": "max"}, None, id="no limit"),
        pytest.param(
            V2 | {"sys/fs/cgroup/box/memory.max": "4000", "sys/fs/cgroup/box/memory.current": "1500"},
            (4000, 1500),
            id="a limit",
        ),
        pytest.param(
            V2
            | {
                "sys/fs/cgroup/box/memory.max": "4000",
                "sys/fs/cgroup/box/memory.current": "1500",
                "sys/fs/cgroup/box/memory.stat": "anon 300\ninactive_file 1200\nfile 1200",
            },
            (4000, 300),
            id="cached files are free",
        ),
        pytest.param(
            V2
            | {
                "sys/fs/cgroup/box/memory.max": "4000",
                "sys/fs/cgroup/box/memory.current": "3900",
                "sys/fs/cgroup/box/inner/memory.max": "2000",
                "sys/fs/cgroup/box/inner/memory.current": "0",
            },
            (4000, 3900),
            id="the group that has least left",
        ),
        pytest.param(
            V1
            | {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9000",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000",
                "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 4000",
            },
            (9000, 1000),
            id="version 1",
        ),
    ],
)
def test_memory_is_limited_by_control_groups(tmp_path, files, expected):
    assert memory_quota(made_up(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("quota", "total", "free"),
    [
        ((512 * MIB, 200 * MIB), 512 * MIB, 312 * MIB),
        ((512 * MIB, 600 * MIB), 512 * MIB, 0),
        ((1 << 62, 0), 1 << 34, 1 << 33),
        (None, 1 << 34, 1 << 33),
    ],
)
def test_a_machine_has_no_more_memory_than_its_container(monkeypatch, quota, total, free):
    memory = SimpleNamespace(total=1 << 34, available=1 << 33)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(machine_module, "memory_quota", lambda: quota)
    found = describe_machine()
    assert (found.memory_bytes, found.memory_free_bytes) == (total, free)


# the CPU

XEON = """\
processor: 0
model name : Xeon(R)   CPU
flags : sse2 fma f16c avx2 avx512f avx512_vnni amx_int8

processor: 1
flags : sse2"""
GRAVITON = "processor : 0\nFeatures : fp asimd asimddp sve i8mm\nCPU part : 0xd40"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (XEON, ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "amx_int8")),
        (GRAVITON, ("neon", "dotprod", "i8mm", "sve")),
        ("flags : sse2 sse4_2 avx", ()),
    ],
    ids=["x86", "ARM", "old"],
)
def test_instructions_are_those_of_the_first_processor_that_matter(tmp_path, text, expected):
    assert cpu_features(made_up(tmp_path, {"proc/cpuinfo": text})) == expected


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not hasattr(torch.cpu, "get_capabilities"),
    reason="compares torch's words for x86 with Linux's",
)
def test_without_proc_torch_names_the_same_instructions_and_cpu(tmp_path):
    assert cpu_features(tmp_path) == cpu_features()
    # Torch leaves out what makers add: "Intel Xeon" is Linux's "Intel(R) Xeon(R) Processor".
    assert cpu_name(tmp_path) == re.sub(r"\(R\)|\(TM\)| Processor$", "", cpu_name())


def test_the_name_of_a_cpu_is_one_line_without_padding(tmp_path):
    assert cpu_name(made_up(tmp_path, {"proc/cpuinfo": XEON})) == "Xeon(R) CPU"


# the whole


def test_json_tells_every_field_and_survives_a_round_trip():
    report = as_json(describe_machine())
    assert set(report) == set(machine_module.Machine.__slots__)
    assert json.loads(json.dumps(report)) == report


def test_versions_name_what_is_installed_and_nothing_else(monkeypatch):
    def installed(package):
        if package in ("transformers", "bitsandbytes", "llama-cpp-python"):
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(machine_module, "version", installed)
    versions = describe_machine().versions
    assert {"transformers", "bitsandbytes", "llama-cpp-python"}.isdisjoint(versions)
    assert versions["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        (
            SimpleNamespace(instruction_set=lambda: None, why_missing=lambda: "no compiler"),
            ("none", "no compiler"),
        ),
        (SimpleNamespace(instruction_set=lambda: "avx2"), ("avx2", "")),
    ],
    ids=["not built", "built"],
)
def test_kernels_are_named_or_it_is_said_why_they_are_missing(monkeypatch, kernels, expected):
    monkeypatch.setattr(machine_module, "kernels", kernels)
    found = describe_machine()
    assert (found.kernels, found.kernels_missing) == expected


def test_accelerators_go_by_the_name_that_device_takes(monkeypatch):
    cards = [SimpleNamespace(name="H100", total_memory=80), SimpleNamespace(name="T4", total_memory=16)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    assert as_json(describe_machine())["accelerators"] == [
        {"device": "cuda:0", "name": "H100", "memory_bytes": 80},
        {"device": "cuda:1", "name": "T4", "memory_bytes": 16},
    ]


# bandwidth


class Reader:
    """Native kernels on a clock of their own: each pass over a buffer takes the next of `durations`."""

    def __init__(self, *durations):
        self.now, self.durations, self.buffers, self.threads = 0.0, iter(durations), [], []

    def instruction_set(self):
        return "portable"

    def empty_bytes(self, n):
        return torch.empty(n, dtype=torch.uint8)

    def read_sum(self, buffer):
        self.buffers.append(buffer)
        self.threads.append(torch.get_num_threads())
        self.now += next(self.durations)


@pytest.fixture
def reader(monkeypatch):
    def install(*durations, free=256 * MIB):
        reader = Reader(*durations)
        monkeypatch.setattr(machine_module, "kernels", reader)
        monkeypatch.setattr(machine_module.time, "perf_counter", lambda: reader.now)
        monkeypatch.setattr(machine_module, "free_memory", lambda: free)
        return reader

    return install


def test_bandwidth_is_that_of_the_best_pass(reader):
    reader(0.25, 0.125, 0.5, 0.25)
    assert read_bandwidth(seconds=0.9) == 64 * MIB / 0.125 / 1e9


@pytest.mark.parametrize(
    ("seconds", "n_passes"), [(0.0, 3), (1.0, 4), (2.1, 9)], ids=["at least three", "one", "two and a bit"]
)
def test_passes_are_made_until_the_time_is_over(reader, seconds, n_passes):
    made = reader(*[0.25] * 20)
    read_bandwidth(seconds=seconds)
    assert len(made.buffers) == n_passes


@pytest.mark.parametrize(
    ("free", "expected"),
    [(1 << 35, 512 * MIB), (256 * MIB, 64 * MIB), (0, 32 * MIB)],
    ids=["much", "some", "none"],
)
def test_the_buffer_is_a_quarter_of_free_memory_within_bounds(reader, free, expected):
    made = reader(1, 1, 1, free=free)
    read_bandwidth(seconds=0)
    assert made.buffers[0].nbytes == expected


def test_every_byte_of_the_buffer_was_written(reader):
    """Pages that were never written are one page, and reading it is reading the cache."""
    made = reader(1, 1, 1)
    read_bandwidth(seconds=0)
    assert made.buffers[0].dtype == torch.uint8
    assert made.buffers[0].all()


def test_the_number_of_threads_is_that_of_the_call_and_put_back(reader):
    before = torch.get_num_threads()
    made = reader(1, 1, 1)
    read_bandwidth(threads=before + 1, seconds=0)
    assert (made.threads, torch.get_num_threads()) == ([before + 1] * 3, before)


def test_the_number_of_threads_is_put_back_where_the_probe_fails(reader):
    before = torch.get_num_threads()
    reader()
    with pytest.raises(StopIteration):
        read_bandwidth(threads=before + 1)
    assert torch.get_num_threads() == before


def test_torch_reads_the_whole_buffer_where_kernels_are_missing(monkeypatch):
    sums = []
    original = torch.Tensor.sum

    def summed(tensor, *arguments, **settings):
        result = original(tensor, *arguments, **settings)
        sums.append((tensor.nbytes, int(result) % 2**64))
        return result

    monkeypatch.setattr(machine_module.kernels, "_native", None)
    monkeypatch.setattr(machine_module, "free_memory", lambda: 256 * MIB)
    monkeypatch.setattr(torch.Tensor, "sum", summed)
    assert 0 < read_bandwidth(seconds=0) < float("inf")
    assert sums == [(64 * MIB, 64 * MIB // 8 * 0x0101010101010101 % 2**64)] * 3
