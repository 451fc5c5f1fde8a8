"""What each language needs in the sandbox, as data: paths, commands and limits."""

from __future__ import annotations

import glob
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from megatron_ring.errors import UserError

MIB = 1 << 20
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
LIBRARIES = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one run; None leaves one unset.

    Attributes:
        seconds: wall clock; the whole process tree is killed then.
        total_bytes: memory of all its processes together, with their files and what the kernel holds for them.
        memory_bytes: address space of each process; large for run-time systems that reserve far more than they use.
        data_bytes: of it, what a process may write to and shares with nobody.
        processes: processes and threads together.
        cpus: processors that all of them together may keep busy.
        file_bytes: largest file.
        work_bytes: all files together, on a tmpfs; and `work_files` their number where that can be set.
        output_bytes: of stdout, and of stderr; a run that writes more is ended.
    """

    seconds: float = 6.0
    total_bytes: int = 1024 * MIB
    memory_bytes: int = 1024 * MIB
    data_bytes: int | None = None
    processes: int = 8
    cpus: float = 1.0
    file_bytes: int = 16 * MIB
    open_files: int = 64
    work_bytes: int = 32 * MIB
    work_files: int = 1024
    output_bytes: int = 4 * MIB

    @property
    def cpu_seconds(self) -> int:
        """CPU time of each process: a backstop behind the wall clock."""
        return int(self.seconds) + 2

    def within(self, seconds: float) -> Limits:
        """The same with another time."""
        return replace(self, seconds=seconds)


@dataclass(frozen=True, slots=True)
class Image:
    """One language.

    Attributes:
        source: file that holds the solution; `{main}` is the name of a Java class.
        compile: command, empty where nothing is compiled. `/box` is the directory with the source.
        run: command.
        binds: paths that running needs, read-only; those that do not exist are left out.
        compile_binds: the same for compiling.
        own_proc: it needs a /proc (of its own processes only, read-only).
    """

    name: str
    source: str
    run: tuple[str, ...]
    binds: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)
    compile: tuple[str, ...] = ()
    compile_binds: tuple[str, ...] = ()
    compile_limits: Limits = field(
        default_factory=lambda: Limits(
            seconds=30.0, total_bytes=2048 * MIB, memory_bytes=2048 * MIB, processes=32, file_bytes=64 * MIB, open_files=256
        )
    )
    own_proc: bool = False


JAVA_HEAP = "-Xmx256m"
# One collector thread, no recompilation, no shared files: start-up counts, not long runs. What is not heap is bounded, too.
JAVA_FLAGS = (
    "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-XX:CICompilerCount=1",
    "-XX:MaxDirectMemorySize=128m", "-XX:MaxMetaspaceSize=192m", "-XX:ReservedCodeCacheSize=64m",
)  # fmt: skip
# Run-time systems reserve far more address space than they use; what they may write to is bounded instead.
RESERVES = Limits(memory_bytes=64 << 30, data_bytes=1024 * MIB, cpus=2.0)
# Debian keeps a JDK's settings outside of it.
JAVA_BINDS = (*LIBRARIES, *(f"/etc/java-{version}-openjdk" for version in range(8, 31)))
IMAGES = {
    "cpp": Image(
        name="cpp",
        source="main.cpp",
        compile=("g++", "-O2", "-std=c++17", "-pipe", "-o", "/box/main", "/box/main.cpp"),
        compile_binds=(
            *LIBRARIES, "/usr/bin", "/bin", "/usr/include", "/usr/libexec", "/usr/local/include", "/etc/alternatives",
        ),
        run=("/box/main",),
        binds=LIBRARIES,
    ),
    "java": Image(
        name="java",
        source="{main}.java",
        compile=("javac", f"-J{JAVA_HEAP}", *(f"-J{flag}" for flag in JAVA_FLAGS), "-encoding", "UTF-8", "-nowarn",
                 "-proc:none", "-d", "/box", "/box/{main}.java"),
        compile_binds=JAVA_BINDS,
        compile_limits=replace(RESERVES, seconds=30.0, processes=64, file_bytes=64 * MIB, open_files=1024),
        run=("java", JAVA_HEAP, "-Xss64m", *JAVA_FLAGS, "-cp", "/box", "{main}"),
        binds=JAVA_BINDS,
        limits=replace(RESERVES, data_bytes=3072 * MIB, processes=48, open_files=256),
        own_proc=True,
    ),
    "javascript": Image(
        name="javascript",
        source="main.js",
        run=("node", "--max-old-space-size=256", "--stack-size=30000", "/box/main.js"),
        binds=LIBRARIES,
        limits=replace(RESERVES, processes=32, open_files=128),
    ),
}  # fmt: skip
ALIASES = {
    "python": "python", "python3": "python", "py": "python", "cpp": "cpp", "c++": "cpp", "cc": "cpp", "java": "java",
    "javascript": "javascript", "js": "javascript", "node": "javascript",
}  # fmt: skip
PYTHON_LIMITS = Limits()


def image_for(language: str) -> Image:
    """The image of a compiled or script language other than Python.

    Raises:
        UserError: there is none, or its tools are not installed.
    """
    if language not in IMAGES:
        raise UserError(f"no sandbox image for {language!r}: use python, {', '.join(sorted(IMAGES))}")
    image = IMAGES[language]
    image = replace(image, run=_located(image.run, language), compile=_located(image.compile, language))
    # A tool outside the system's directories brings its own tree.
    homes = [os.path.dirname(os.path.dirname(command[0])) for command in (image.run, image.compile) if command]
    extra = tuple(home for home in homes if home not in ("/", "/usr"))
    # Of /usr/local, which holds much else, a run needs a compiler's libraries at most.
    local = ("/usr/local/lib64", *sorted(glob.glob("/usr/local/lib/*.so*"))) if "/usr/local" in extra else ()
    return replace(
        image,
        binds=(*image.binds, *(home for home in extra if home != "/usr/local"), *local, image.run[0]),
        compile_binds=(*image.compile_binds, *extra, *image.compile[:1]),
    )


def _located(command: tuple[str, ...], language: str) -> tuple[str, ...]:
    """The command with its program's real path: a JDK finds its libraries from there."""
    if not command or command[0].startswith("/"):
        return command
    found = shutil.which(command[0], path=SYSTEM_PATH) or shutil.which(command[0])
    if found is None:
        raise UserError(f"{command[0]} is missing: install what compiles and runs {language}")
    return (os.path.realpath(found), *command[1:])


def python_interpreter() -> tuple[str, tuple[str, ...]]:
    """A Python for solutions, and the paths it needs: the system's, for a virtual environment may lie in a closed home.

    Of a Python outside of /usr solutions see the standard library, and numpy where that is installed; nothing else that is
    installed beside them.
    """
    found = shutil.which("python3", path=SYSTEM_PATH) or sys.executable
    executable = os.path.realpath(found)
    prefix = os.path.dirname(os.path.dirname(executable))
    if prefix == "/usr":
        return executable, (*LIBRARIES, executable)
    return executable, (*LIBRARIES, executable, *_own_library(prefix, os.path.basename(executable)))


def _own_library(prefix: str, name: str) -> Iterator[str]:
    """What a Python of this name needs of a tree of its own, as binds of `bwrap.confinement`."""
    folder = os.path.join(prefix, "lib")
    yield from sorted(glob.glob(os.path.join(glob.escape(folder), "*.so*")))
    versions = [os.path.join(folder, name)]
    if not os.path.isdir(versions[0]):
        versions = sorted(glob.glob(os.path.join(glob.escape(folder), "python3.*")))
    for version in versions:
        yield version
        packages = os.path.join(version, "site-packages")
        yield "-" + packages
        yield from (path for part in ("numpy", "numpy.libs") if os.path.isdir(path := os.path.join(packages, part)))


def java_main(source: str) -> str:
    """The class that holds `main`, which names the file: the public one, or the first."""
    public = re.search(r"\bpublic\s+(?:(?:final|abstract|strictfp)\s+)*class\s+([A-Za-z_]\w*)", source)
    if public:
        return public[1]
    before = source.partition("static void main")[0]
    classes = re.findall(r"\bclass\s+([A-Za-z_]\w*)", before)
    return classes[-1] if classes else "Main"
