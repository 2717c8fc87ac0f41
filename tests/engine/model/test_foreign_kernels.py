"""The kernels run with other vectors than this machine's own: NEON under an emulator, SSE and AVX2.

Every build must keep a token's bits whatever shares its call, and agree with the others up to the
rounding of sums.
"""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from engine.model.ops import native

SOURCES = sorted(map(str, Path(native.__file__).parent.glob("*.c")))
PROGRAM = str(Path(__file__).with_name("check_kernels.c"))
FLAGS = ["-std=gnu11", "-O2", "-ffp-contract=fast", "-fno-math-errno", "-pthread", "-Wno-psabi"]
ARM = "aarch64-linux-gnu-gcc"
IS_X86 = platform.machine() in ("x86_64", "AMD64")

CPU_INFO = Path("/proc/cpuinfo")
CPU_FLAGS = CPU_INFO.read_text().split() if CPU_INFO.exists() else []


def needs(*flags: str) -> pytest.MarkDecorator:
    """Skip a test where the CPU lacks instructions."""
    missing = set(flags) - set(CPU_FLAGS)
    return pytest.mark.skipif(bool(missing), reason=f"the CPU has no {', '.join(sorted(missing))}")


Results = dict[tuple[str, ...], list[float]]  # by operation and form of weights


def run(directory: Path, compiler: list[str], emulator: list[str]) -> Results:
    """Return what the program prints; it fails if a token's bits depend on what shares its call."""
    built = str(directory / "check")
    include = f"-I{Path(native.__file__).parent}"
    command = [*compiler, *FLAGS, include, *SOURCES, PROGRAM, "-o", built, "-lm"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr[:2000]
    outcome = subprocess.run([*emulator, built], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, [line[:200] for line in outcome.stdout.splitlines()]
    lines = [line.split() for line in outcome.stdout.splitlines()]
    return {tuple(words[:2]): [float(word) for word in words[2:]] for words in lines}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Results:
    if not IS_X86 or not shutil.which("gcc"):
        pytest.skip("gcc on x86")
    return run(tmp_path_factory.mktemp("native"), ["gcc", "-march=native"], [])


@pytest.mark.parametrize(
    ("compiler", "emulator"),
    [
        pytest.param(["gcc", "-march=x86-64"], [], id="sse"),
        pytest.param(["gcc", "-march=haswell"], [], id="avx2", marks=needs("avx2")),
        pytest.param(
            ["gcc", "-march=haswell", "-mavxvnni"], [], id="avx_vnni", marks=needs("avx_vnni")
        ),
        pytest.param(
            ["gcc", "-march=skylake-avx512"], [], id="avx512", marks=needs("avx512bw", "avx512vl")
        ),
        pytest.param([ARM, "-march=armv8-a", "-static"], ["qemu-aarch64"], id="neon"),
        pytest.param([ARM, "-march=armv8.2-a+dotprod", "-static"], ["qemu-aarch64"], id="dotprod"),
    ],
)
def test_other_vectors_give_the_same(
    tmp_path: Path, expected: Results, compiler: list[str], emulator: list[str]
) -> None:
    for program in (compiler[0], *emulator):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    actual = run(tmp_path, compiler, emulator)
    assert actual.keys() == expected.keys()
    assert len(expected) == 5 + 2 + 2 + 64
    for case, numbers in expected.items():
        assert actual[case] == pytest.approx(numbers, rel=1e-5, abs=3e-6), case
