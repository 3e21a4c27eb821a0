"""`m7b doctor`: the arithmetic of what fits and how fast, the warnings, the report in its shapes."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from math import prod

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m7b import hub
from m7b.commands.shared.advice import advice_on
from m7b.hub.sources.pypi import DEMO_FILE
from m7b.models.fit import FORMATS, cache_read_bytes, list_fits, read_bytes, weight_bytes
from m7b.runtime import machine as machine_module
from m7b.runtime.backends.eager import TORCH
from m7b.runtime.machine import Accelerator, describe_machine
from m7b.runtime.model.config import ModelConfig
from m7b.runtime.model.transformer import Linear, Transformer
from m7b.variants import VARIANTS
from tests.support.terminal import Terminal
from tests.support.tiny import call

GIB = 1 << 30
CONFIGS = {name: ModelConfig.of_variant(variant) for name, variant in VARIANTS.items()}
QUANTIZED = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0}


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """No test depends on what this machine has downloaded, and none waits for the probe."""
    monkeypatch.setenv("M7B_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(machine_module, "read_bandwidth", lambda: 40.0)
    return tmp_path / "home"


# what a model takes


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_weights_in_bf16_are_those_of_the_module_tree(config):
    with torch.device("meta"):
        model = Transformer(config, Linear, Linear, TORCH)
    assert weight_bytes(config, "bf16") == 2 * sum(tensor.numel() for tensor in model.parameters())


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_quantized_matrices_take_what_the_gguf_package_says(config, name):
    block, block_bytes = gguf.GGML_QUANT_SIZES[QUANTIZED[name]]
    difference = sum(
        2 * prod(shape) - prod(shape) // block * block_bytes
        for tensor, shape in config.tensor_shapes().items()
        if len(shape) == 2 and (config.tied_embeddings or tensor != "tok_embeddings.weight")
    )
    assert weight_bytes(config, "bf16") - weight_bytes(config, name) == difference


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_token_reads_all_weights_but_one_row_of_the_embedding(config, format):
    stored = {"q4_k_m": "Q4_K", "q5_k_m": "Q5_K", "q6_k": "Q6_K"}.get(format, "BF16")
    if stored != "BF16" and config.tied_embeddings:
        stored = "Q8_0"  # as for the output of a model whose rows are no multiple of 256
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[stored]]
    row = config.dim // block * block_bytes
    unread = 0 if config.tied_embeddings else (config.vocab_size - 1) * row
    extra = row if config.tied_embeddings else 0  # the row once more, as an embedding
    assert read_bytes(config, format) == weight_bytes(config, format) - unread + extra


@pytest.mark.parametrize(
    ("format", "gigabytes"),
    [("bf16", 14.23), ("int8", 7.56), ("q8_0", 7.56), ("q4_k_m", 4.30), ("q4_0", 4.00), ("nf4", 4.00)],
)
def test_a_token_of_the_7b_reads_the_known_gigabytes(format, gigabytes):
    assert read_bytes(CONFIGS["base-v0.3"], format) / 1e9 == pytest.approx(gigabytes, rel=0.003)


@pytest.mark.parametrize(
    ("window", "depth", "n_seen"), [(None, 4096, 4096), (4096, 32768, 4096), (4096, 100, 100), (None, 0, 0)]
)
def test_a_token_reads_the_cache_of_what_its_window_sees(window, depth, n_seen):
    config = replace(CONFIGS["base-v0.1"], sliding_window=window)
    assert cache_read_bytes(config, depth) == n_seen * 131_072


# what fits


def test_every_variant_has_one_row_in_every_format():
    rows = [(name, fit.format) for fit in list_fits(GIB, 1.0) for name in fit.variants]
    assert sorted(rows) == sorted((name, format) for name in VARIANTS for format in FORMATS)


def test_variants_that_share_a_row_have_one_configuration():
    shared = [{CONFIGS[name] for name in fit.variants} for fit in list_fits(GIB, 1.0)]
    assert {len(configs) for configs in shared} == {1}


@settings(deadline=None)
@given(free=st.integers(0, 40 * GIB))
def test_the_context_that_fits_is_the_longest_in_steps_of_256(free):
    for fit in list_fits(free, 1.0):
        config = CONFIGS[fit.variants[0]]

        def needed(ctx_size, config=config, fit=fit):
            return fit.weight_bytes + config.cache_slots(ctx_size, 512) * config.cache_bytes_per_token(2)

        if fit.ctx_size is None:
            assert needed(256) > free
        else:
            assert needed(fit.ctx_size) <= free
            assert fit.ctx_size == fit.context or needed(fit.ctx_size + 256) > free


def test_limits_are_the_bandwidth_over_what_a_token_reads():
    fit = next(fit for fit in list_fits(GIB, 79.0) if "base-v0.3" in fit.variants and fit.format == "bf16")
    assert fit.limit_tps == pytest.approx({0: 79 / 14.23, 4096: 79 / (14.23 + 0.537)}, rel=0.001)


# warnings

FITTING = list_fits(64 * GIB, 40.0)


@pytest.fixture(scope="module")
def sound():
    """A machine that nothing hinders."""
    return replace(
        describe_machine(),
        cores=8,
        efficiency_cores=0,
        threads=8,
        is_translated=False,
        cpu_features=("avx2", "fma"),
        kernels="avx2",
        kernels_missing="",
        memory_free_bytes=64 * GIB,
        accelerators=(),
    )


def test_a_sound_machine_gets_no_warning(sound):
    assert advice_on(sound, FITTING, {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "8"}) == []


@pytest.mark.parametrize(
    ("changes", "environment", "problem", "way_out"),
    [
        pytest.param(
            {"kernels": "none", "kernels_missing": "no compiler"},
            {},
            "not in use (no compiler)",
            "--force-reinstall",
            id="no kernels",
        ),
        pytest.param(
            {
                "cpu_features": ("avx2", "fma", "avx512_bf16"),
                "versions": {"bitsandbytes": "0.48"},
            },
            {},
            "nf4 and fp4 run on the kernel that bitsandbytes brings",
            "pip install kernels",
            id="no kernel from the hub of bitsandbytes",
        ),
        pytest.param({}, {"OMP_WAIT_POLICY": "ACTIVE"}, "spin", "unset OMP_WAIT_POLICY", id="spinning"),
        pytest.param(
            {"threads": 16},
            {"OMP_NUM_THREADS": "16"},
            "16 threads, more than the 8 cores",
            "unset OMP_NUM_THREADS",
            id="too many threads, by a variable",
        ),
        pytest.param(
            {"threads": 1},
            {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            "1 thread, fewer than the 8 cores",
            "unset OMP_NUM_THREADS MKL_NUM_THREADS",
            id="too few threads",
        ),
        pytest.param(
            {"accelerators": (Accelerator("cuda:0", "A card", 24 * GIB),)},
            {},
            "on cuda:0 CUDA graphs, nf4, int8, the memory plan and speed are unproven",
            "tests/device/run.sh",
            id="a card",
        ),
        pytest.param(
            {"threads": 2, "cores": 1}, {}, "more than the 1 core ", "--threads 1", id="more than the quota"
        ),
    ],
)
def test_what_hinders_a_machine_is_told_with_the_way_out(sound, changes, environment, problem, way_out):
    (advice,) = advice_on(replace(sound, **changes), FITTING, environment)
    assert problem in advice.problem
    assert way_out in advice.way_out


ARM = ("neon", "dotprod", "i8mm", "bf16")
XEON = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "amx_int8")


@pytest.mark.parametrize(
    ("features", "in_use", "better"),
    [
        (ARM, "portable", "i8mm"),
        (ARM, "neon", "i8mm"),
        (ARM[:2], "neon", "dotprod"),
        (ARM[:1], "portable", "neon"),
        (XEON, "avx512vnni", "amx"),
        (XEON[:-1], "avx2", "avx512vnni"),
        (XEON[:3], "portable", "avx2"),
    ],
)
def test_a_better_build_is_told_where_the_processor_could_run_it(
    sound, monkeypatch, features, in_use, better
):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64" if "neon" in features else "x86_64")
    (advice,) = advice_on(replace(sound, cpu_features=features, kernels=in_use), FITTING, {})
    assert f"run on {in_use};" in advice.problem
    assert f"what {better} needs" in advice.problem
    assert "pip install" in advice.way_out


@pytest.mark.parametrize(
    ("features", "in_use"),
    [
        (ARM, "i8mm"),
        (ARM[:2], "dotprod"),
        (ARM[:1], "neon"),
        (XEON, "amx"),
        (XEON[:3], "avx2"),
        ((), "portable"),
    ],
)
def test_the_best_kernels_there_are_get_no_advice(sound, monkeypatch, features, in_use):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert advice_on(replace(sound, cpu_features=features, kernels=in_use), FITTING, {}) == []


@pytest.mark.parametrize(
    ("changes", "system", "environment", "way_out"),
    [
        (
            {"kernels": "none", "kernels_missing": "M7B_KERNELS is off"},
            "Linux",
            {"M7B_KERNELS": "off"},
            "unset",
        ),
        ({"kernels": "neon", "cpu_features": ARM}, "Linux", {"M7B_KERNELS": "neon"}, "unset M7B_KERNELS"),
        ({"kernels": "none", "kernels_missing": "not built"}, "Linux", {}, "install g++ "),
        ({"kernels": "none", "kernels_missing": "not built"}, "Darwin", {}, "xcode-select --install"),
        ({"kernels": "none", "kernels_missing": "not built"}, "Windows", {}, "wsl --install"),
        ({"is_translated": True, "kernels": "portable"}, "Darwin", {}, "Python for arm64"),
        ({"is_translated": True, "cpu_features": (), "kernels": "avx2"}, "Darwin", {}, "Python for arm64"),
    ],
    ids=["off", "forced", "Linux", "macOS", "Windows", "Rosetta", "Rosetta without AVX2"],
)
def test_the_way_to_better_kernels_is_that_of_the_system(
    sound, monkeypatch, changes, system, environment, way_out
):
    """All were told to install a C++ compiler: with kernels switched off, and where none can be built."""
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64" if "is_translated" in changes else "aarch64")
    (advice,) = advice_on(replace(sound, **changes), FITTING, environment)
    assert way_out in advice.way_out


def test_slow_cores_that_torch_counts_by_itself_are_no_reason_to_warn(sound):
    found = replace(sound, cores=4, efficiency_cores=4, threads=8)
    assert advice_on(found, FITTING, {}) == []
    (advice,) = advice_on(found, FITTING, {"OMP_NUM_THREADS": "8"})
    assert advice.way_out == "unset OMP_NUM_THREADS"


@pytest.mark.parametrize(
    ("architecture", "features", "n_warnings"),
    [("x86_64", ("f16c",), 1), ("AMD64", (), 1), ("x86_64", ("avx2",), 0), ("aarch64", ("neon",), 0)],
)
def test_avx2_is_missed_where_the_architecture_could_have_it(
    sound, monkeypatch, architecture, features, n_warnings
):
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    found = advice_on(replace(sound, cpu_features=features), FITTING, {})
    assert ["AVX2" in advice.problem for advice in found] == [True] * n_warnings


@pytest.mark.parametrize(("free", "n_warnings"), [(3 * GIB, 1), (5 * GIB, 0)])
def test_memory_is_little_where_no_7b_fits(sound, free, n_warnings):
    found = advice_on(replace(sound, memory_free_bytes=free), list_fits(free, 40.0), {})
    assert [f"{free / GIB:.1f} GiB" in advice.problem for advice in found] == [True] * n_warnings


# the report


@pytest.fixture
def machine(sound, monkeypatch):
    """The machine that the command finds, without asking this one."""

    def install(**changes):
        found = replace(sound, **changes)
        monkeypatch.setattr(machine_module, "describe_machine", lambda: found)
        return found

    return install


def test_json_is_one_object_with_every_fact(machine, home):
    found = machine(memory_free_bytes=16 * GIB)
    ran = call("doctor", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.answer["machine"] == json.loads(json.dumps(machine_module.as_json(found)))
    assert ran.answer["read_gbs"] == 40.0
    assert ran.answer["data"]["folder"] == str(home)
    assert ran.answer["warnings"] == []
    assert [row["ctx_size"] for row in ran.answer["models"] if "instruct-v0.2" in row["variants"]][:2] == [
        (16 * GIB - weight_bytes(CONFIGS["instruct-v0.2"], "bf16")) // 131_072 // 256 * 256,
        32768,
    ]


def test_text_has_the_figures_of_json(machine):
    machine(memory_free_bytes=16 * GIB)
    text, report = call("doctor").out, call("doctor", "--json").answer
    for row in report["models"]:
        line = next(
            line
            for line in text.splitlines()
            if line.startswith(", ".join(row["variants"]) + " ") and f" {row['format']} " in line
        )
        limits = [f"{limit:.1f}" for limit in row["limit_tps"].values()]
        assert line.split()[-2:] == limits
        assert f"{row['weight_bytes'] / GIB:.1f}" in line.split()
    assert "avx2 fma\n" in text
    assert "40.0 GB/s" in text


@pytest.mark.parametrize(
    ("slow", "text"), [(0, ", 8 cores (12 logical)"), (4, ", 8 cores, 4 slower ones left alone (12 logical)")]
)
def test_text_tells_of_cores_that_are_left_alone(machine, slow, text):
    machine(efficiency_cores=slow, logical_cores=12)
    assert text in call("doctor").out


@pytest.mark.parametrize(
    ("free", "context"), [(64 * GIB, "32768"), (16 * GIB, "20480 of 32768"), (GIB, "none fits")]
)
def test_text_tells_the_context_that_fits(machine, free, context):
    machine(memory_free_bytes=free)
    line = next(line for line in call("doctor").out.splitlines() if line.startswith("instruct-v0.2 "))
    assert f"  {context}  " in line


def test_a_machine_with_warnings_is_reported_with_success(machine):
    machine(memory_free_bytes=GIB, kernels="none", kernels_missing="no compiler", threads=9)
    ran = call("doctor")
    assert (ran.code, ran.err, ran.out.count("\nwarning ")) == (0, "", 3)


def test_what_was_downloaded_is_listed_with_its_size(machine, monkeypatch, demo_home):
    machine()
    monkeypatch.setenv("M7B_HOME", str(demo_home))
    (found,) = call("doctor", "--json").answer["data"]["downloaded"]
    assert found == {"variant": "demo", "path": str(hub.find_path("demo")), "bytes": DEMO_FILE.size}
    assert f"{DEMO_FILE.size:,} bytes" in call("doctor").out


def test_nothing_is_made_where_nothing_was_downloaded(machine, home):
    machine()
    assert "m7b download --variant demo" in call("doctor").out
    assert not home.exists()


# the process


def test_a_hostile_environment_is_told_of():
    environment = os.environ | {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": ""}
    command = [sys.executable, "-m", "m7b", "doctor", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    ways_out = [warning["way_out"] for warning in report["warnings"]]
    assert "unset OMP_WAIT_POLICY" in ways_out
    assert ("unset OMP_NUM_THREADS" in ways_out) == (report["machine"]["cores"] > 1)
    assert report["read_gbs"] > 0


def test_a_terminal_of_80_columns_shows_each_model_in_one_line(tmp_path):
    environment = os.environ | {"M7B_HOME": str(tmp_path), "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "m7b", "doctor"]
    with Terminal(command, env=environment, cwd=str(tmp_path)) as terminal:
        assert terminal.exit_code() == 0
        lines = terminal.lines
    table = lines[next(n for n, line in enumerate(lines) if line.startswith("model ")) :]
    assert len(table) == 2 + len(list_fits(GIB, 1.0))
    assert all(line.split()[-1].replace(".", "").isdigit() for line in table[2:])
