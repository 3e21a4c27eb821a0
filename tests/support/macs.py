"""What `sysctl hw machdep.cpu sysctl.proc_translated` tells on Macs, as people have published it.

Each is made of outputs found in public, cut to the lines that matter here; the comments name them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mac:
    """The output, and what is true of the machine."""

    told: str
    cpu: str
    cores: tuple[int, int]  # fast, and for efficiency
    features: tuple[str, ...]
    is_translated: bool = False


MACS = {
    # macOS 11 knew neither levels nor names of Arm's features: issue 38 of archspec, issue 104 of num_cpus.
    "M1 under macOS 11": Mac(
        """\
hw.ncpu: 8
hw.physicalcpu: 8
hw.physicalcpu_max: 8
hw.logicalcpu: 8
hw.cpufamily: 458787763
hw.optional.floatingpoint: 1
hw.optional.watchpoint: 4
hw.optional.breakpoint: 6
hw.optional.neon: 1
hw.optional.neon_hpfp: 1
hw.optional.neon_fp16: 1
hw.optional.armv8_1_atomics: 1
hw.optional.armv8_crc32: 1
hw.optional.armv8_2_fhm: 1
hw.optional.arm64: 1
machdep.cpu.core_count: 8
machdep.cpu.brand_string: Apple M1
""",
        "Apple M1",
        (8, 0),
        ("neon",),
    ),
    # Levels without names: issue 139 of cpufetch. Features of an M1: Mads Ynddal on qemu-devel, 19 June 2023.
    "M1 Pro": Mac(
        """\
hw.ncpu: 10
hw.byteorder: 1234
hw.activecpu: 10
hw.perflevel1.cpusperl2: 2
hw.perflevel1.l2cachesize: 4194304
hw.perflevel1.logicalcpu: 2
hw.perflevel1.physicalcpu: 2
hw.perflevel1.physicalcpu_max: 2
hw.perflevel0.cpusperl2: 4
hw.perflevel0.l2cachesize: 12582912
hw.perflevel0.logicalcpu: 8
hw.perflevel0.physicalcpu: 8
hw.perflevel0.physicalcpu_max: 8
hw.physicalcpu: 10
hw.optional.arm.FEAT_FHM: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_SHA3: 1
hw.optional.arm.FEAT_BF16: 0
hw.optional.arm.FEAT_I8MM: 0
hw.optional.arm.FEAT_FP16: 1
hw.optional.floatingpoint: 1
hw.optional.neon: 1
hw.optional.watchpoint: 4
hw.optional.AdvSIMD: 1
hw.optional.arm64: 1
machdep.cpu.brand_string: Apple M1 Pro
sysctl.proc_translated: 0
""",
        "Apple M1 Pro",
        (8, 2),
        ("neon", "dotprod"),
    ),
    # Its features are those of an M1 and these: "Apple Silicon M2" on Qiita, 26 August 2022, by the tag M2.
    "M2 Max": Mac(
        """\
hw.ncpu: 12
hw.physicalcpu: 12
hw.logicalcpu: 12
hw.perflevel0.physicalcpu: 8
hw.perflevel1.physicalcpu: 4
hw.memsize: 68719476736
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_BTI: 1
hw.optional.neon: 1
hw.optional.AdvSIMD: 1
machdep.cpu.brand_string: Apple M2 Max
sysctl.proc_translated: 0
""",
        "Apple M2 Max",
        (8, 4),
        ("neon", "dotprod", "i8mm", "bf16"),
    ),
    # hw.optional of an M3 in danbev's notes on llama.cpp; its 4 and 4 cores by system_profiler, there too.
    "M3": Mac(
        """\
hw.ncpu: 8
hw.nperflevels: 2
hw.perflevel0.physicalcpu: 4
hw.perflevel0.name: Performance
hw.perflevel1.physicalcpu: 4
hw.perflevel1.name: Efficiency
hw.optional.arm.FEAT_FHM: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_SPECRES: 0
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_SME: 0
hw.optional.arm.FP_SyncExceptions: 1
hw.optional.neon: 1
hw.optional.AdvSIMD: 1
hw.optional.arm64: 1
machdep.cpu.brand_string: Apple M3
sysctl.proc_translated: 0
""",
        "Apple M3",
        (4, 4),
        ("neon", "dotprod", "i8mm", "bf16"),
    ),
    # Issue 201 of archspec; AdvSIMD has moved below arm.
    "M4 Pro": Mac(
        """\
hw.ncpu: 12
hw.memsize: 25769803776
hw.perflevel0.physicalcpu: 8
hw.perflevel0.cpusperl2: 4
hw.perflevel0.name: Performance
hw.perflevel1.physicalcpu: 4
hw.perflevel1.cpusperl2: 4
hw.perflevel1.name: Efficiency
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_EBF16: 0
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.AdvSIMD: 1
hw.optional.arm.FEAT_SME: 1
machdep.cpu.brand_string: Apple M4 Pro
sysctl.proc_translated: 0
""",
        "Apple M4 Pro",
        (8, 4),
        ("neon", "dotprod", "i8mm", "bf16"),
    ),
    # Super cores and performance cores, none for efficiency: 424 of pytorch/cpuinfo, issue 167 of all-smi.
    "M5 Pro": Mac(
        """\
hw.ncpu: 15
hw.nperflevels: 2
hw.perflevel0.physicalcpu: 5
hw.perflevel0.name: Super
hw.perflevel1.physicalcpu: 10
hw.perflevel1.name: Performance
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.AdvSIMD: 1
machdep.cpu.brand_string: Apple M5 Pro
sysctl.proc_translated: 0
""",
        "Apple M5 Pro",
        (15, 0),
        ("neon", "dotprod", "i8mm", "bf16"),
    ),
    # A program for Intel on such a Mac: Rosetta names the processor so.
    "translated": Mac(
        """\
hw.ncpu: 8
hw.perflevel0.physicalcpu: 4
hw.perflevel1.physicalcpu: 4
hw.optional.arm64: 1
hw.optional.neon: 1
machdep.cpu.brand_string: VirtualApple @ 2.50GHz
sysctl.proc_translated: 1
""",
        "VirtualApple @ 2.50GHz",
        (4, 4),
        ("neon",),
        is_translated=True,
    ),
    # Intel's have neither levels nor translation, and psutil counts their cores.
    "Intel": Mac(
        """\
hw.ncpu: 16
hw.physicalcpu: 8
hw.logicalcpu: 16
hw.memsize: 34359738368
hw.optional.avx1_0: 1
hw.optional.avx2_0: 1
hw.optional.f16c: 1
hw.optional.fma: 1
hw.optional.avx512f: 0
machdep.cpu.brand_string: Intel(R) Core(TM) i9-9980HK CPU @ 2.40GHz
""",
        "Intel(R) Core(TM) i9-9980HK CPU @ 2.40GHz",
        (8, 0),
        ("avx2", "fma", "f16c"),
    ),
}
