"""How compiled programs and node find their input: as a file, by its descriptor and by its path."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from megatron_ring.errors import UserError
from megatron_ring.rewards.code import judge
from megatron_ring.rewards.sandbox import bwrap
from megatron_ring.rewards.sandbox.images import image_for
from megatron_ring.rewards.sandbox.runner import CodeRunner

pytestmark = pytest.mark.skipif(bwrap.find_problem() is not None, reason="bubblewrap is missing or does not work here")

# Each prints for every way to read what it found there, and whether its input can be changed.
PROGRAMS = {
    "cpp": r"""
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
int main() {
    struct stat about;
    fstat(0, &about);
    printf("%d %lld\n", S_ISREG(about.st_mode), (long long)about.st_size);
    for (int shared : {MAP_PRIVATE, MAP_SHARED}) {
        char *map = about.st_size ? (char *)mmap(0, about.st_size, PROT_READ, shared, 0, 0) : (char *)"";
        printf("%lld %d\n", (long long)about.st_size, map == MAP_FAILED ? -1 : (int)strnlen(map, about.st_size));
    }
    for (const char *path : {"/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"}) {
        std::ifstream file(path);
        std::stringstream all;
        all << file.rdbuf();
        printf("%d %zu\n", (bool)file, all.str().size());
        printf("%d\n", open(path, O_WRONLY) < 0 || stat(path, &about) != 0);
    }
    int written = write(0, "x", 1) + ftruncate(0, 0) + fchmod(0, 0777);
    long lines = 0;
    for (std::string line; std::getline(std::cin, line);) lines++;
    printf("%d %ld %lld\n", written < 0, lines, (long long)lseek(0, 0, SEEK_END));
    freopen("/dev/stdin", "r", stdin);
    lines = 0;
    for (int c; (c = getchar()) != EOF;) lines += c == '\n';
    printf("%ld\n", lines);
}
""",
    "java": r"""
import java.io.*;
import java.nio.file.*;
import java.util.*;
public class Main {
    public static void main(String[] arguments) throws Exception {
        System.out.println(System.in.available());
        for (String path : new String[] {"/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"}) {
            System.out.println(Files.readAllBytes(Paths.get(path)).length);
            System.out.println(new BufferedReader(new FileReader(path)).lines().count());
            boolean changed = true;
            try (OutputStream out = new FileOutputStream(path, true)) {
                out.write(1);
            } catch (IOException e) {
                changed = false;
            }
            System.out.println(changed);
        }
        System.out.println(System.in.readAllBytes().length);
    }
}
""",
    "javascript": r"""
const fs = require('fs');
console.log(fs.fstatSync(0).isFile(), fs.fstatSync(0).size);
for (const path of ['/dev/stdin', '/dev/fd/0', '/proc/self/fd/0']) {
    console.log(fs.existsSync(path), fs.statSync(path).size, fs.readFileSync(path, 'utf8').length);
    try { fs.appendFileSync(path, 'x'); console.log('changed'); } catch (e) { console.log('kept'); }
}
let lines = 0;
require('readline').createInterface({ input: process.stdin }).on('line', () => lines++).on('close', () => {
    console.log(lines);
    console.log(require('fs').readFileSync('/dev/stdin').length);
});
""",
}


def expected(language: str, text: str) -> str:
    size, lines = len(text), text.count("\n")
    if language == "cpp":
        return f"1 {size}\n" + f"{size} {size}\n" * 2 + f"1 {size}\n1\n" * 3 + f"1 {lines} {size}\n{lines}"
    if language == "java":
        return f"{size}\n" + f"{size}\n{lines}\nfalse\n" * 3 + f"{size}"
    return f"true {size}\n" + f"true {size} {size}\nkept\n" * 3 + f"{lines}\n{size}"


@pytest.fixture(scope="module")
def runner() -> Iterator[CodeRunner]:
    with CodeRunner() as shared:
        yield shared


@pytest.mark.parametrize("language", PROGRAMS)
def test_stdin_is_a_file_with_its_usual_names(runner: CodeRunner, language: str) -> None:
    try:
        image_for(language)
    except UserError as error:
        pytest.skip(str(error))
    texts = ["4\n", "", "1 2 3\n" * 700_000]  # the last one is larger than any pipe
    cases = [{"input": text, "output": expected(language, text)} for text in texts]
    # The one without input comes last: `/dev/stdin` is there all the same.
    tests = {"tests": [cases[0], cases[2], cases[1]], "time_limit": 30, "language": language}
    reward = judge(f"```{language}\n{PROGRAMS[language]}\n```", tests, runner)
    assert reward.value == 1, reward


def test_an_input_file_is_sealed_and_whole() -> None:
    content = bytes(range(256)) * 40_000
    descriptor = bwrap.input_file(content)
    again = bwrap.opened_anew(descriptor)
    try:
        assert os.read(descriptor, 3) == content[:3] and os.fstat(descriptor).st_size == len(content)
        assert os.pread(again, len(content), 0) == content and os.lseek(again, 0, os.SEEK_CUR) == 0
        writable = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
        try:
            for change in (lambda: os.write(writable, b"x"), lambda: os.ftruncate(writable, 1 << 30)):
                with pytest.raises(PermissionError):
                    change()
        finally:
            os.close(writable)
    finally:
        os.close(again)
        os.close(descriptor)
