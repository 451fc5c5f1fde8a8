# ruff: noqa: E501
"""Programs that go past a limit of the sandbox, or would: what `check_sandbox.py` runs beside an honest neighbour.

Each prints ESCAPED once it holds what it should not have; that is what its test expects, so a reward of 1 is an escape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MEMORY = "memory|MemoryError|bad_alloc|allocation failed|exit status|held|SIGKILL|SIGSEGV|SIGTRAP|SIGABRT|time limit"
TIME = "time limit"
FILES = "files|held|No space|time limit|exit status"


@dataclass(frozen=True)
class Program:
    """One program.

    Attributes:
        held: what the reason must match where the sandbox holds.
        seconds: its time limit.
        answer: the reference; by default one run without input whose output is ESCAPED.
        soon: its verdict must come within so many seconds, whatever its time limit.
    """

    language: str
    source: str
    held: str
    seconds: float = 4.0
    answer: dict[str, Any] = field(default_factory=lambda: {"tests": [{"input": "", "output": "ESCAPED"}]})
    soon: float | None = None


def attempt(body: str, head: str = "import os, sys, ctypes, socket, mmap, time") -> str:
    lines = "\n".join("    " + line for line in body.strip().splitlines())
    return f"{head}\ntry:\n{lines}\n    print('ESCAPED')\nexcept BaseException as e:\n    print('held', type(e).__name__)\n"


def refused(number: int, *arguments: str) -> str:
    """Python: a system call that must fail with EPERM."""
    call = ", ".join([str(number), *arguments])
    return f"import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nr = libc.syscall({call})\nprint('held' if r == -1 and ctypes.get_errno() == 1 else 'ESCAPED')\n"


def together(body: str, count: int = 6) -> str:
    """Python: so many children do this and hold what they got; ESCAPED once all but one of them have it. Where a child is
    killed for it, the program ends: it would wait for its time limit."""
    lines = "\n".join("        " + line for line in body.splitlines())
    # Where the child itself starts another one and ends, that says nothing.
    ends = "" if "os._exit" in body else "signal.signal(signal.SIGCHLD, lambda *_: os._exit(3))\n"
    return (
        f"import os, signal, time\nr, w = os.pipe()\n{ends}for i in range({count}):\n    if os.fork() == 0:\n{lines}\n"
        f"        os.write(w, b'x')\n        time.sleep(99)\nn = 0\nwhile n < {count - 1}: n += len(os.read(r, 9))\nprint('ESCAPED')\n"
    )


def function(*tests: dict[str, Any]) -> dict[str, Any]:
    return {"fn_name": "f", "tests": list(tests) or [{"args": [1], "expected": 2}]}


def java(body: str, more: str = "") -> str:
    return (
        "import java.io.*;import java.nio.*;import java.nio.file.*;import java.util.*;\n"
        f"public class Main {{ {more} public static void main(String[] a) throws Throwable {{ {body} }} }}"
    )


C = "#include <bits/stdc++.h>\n#include <unistd.h>\n#include <fcntl.h>\n#include <signal.h>\n#include <sched.h>\n#include <thread>\n#include <sys/mman.h>\n#include <sys/socket.h>\n#include <sys/stat.h>\n#include <sys/uio.h>\n#include <sys/wait.h>\n#include <sys/resource.h>\nusing namespace std;\n"
REPLY = "import os\ndef f(*a):\n    data = {}\n    for n in range(3, 64):\n        try:\n            m = memoryview(data)\n            while m: m = m[os.write(n, m):]\n            break\n        except OSError: pass\n    os._exit(0)\n"
ENCODED = 'b\'{"$":"dict","v":[["value",\' + %s + b\']]}\\n\''

PYTHON = {
    "children's memory": Program("python", together("b = bytearray(280 << 20)\nfor k in range(0, len(b), 4096): b[k] = 1"), MEMORY, 10.0),
    "grandchildren's memory": Program("python", together("os.setsid()\nif os.fork(): os._exit(0)\nb = bytearray(560 << 20)\nfor k in range(0, len(b), 4096): b[k] = 1", 3), MEMORY, 10.0),
    "shared memory": Program("python", together("import mmap\nb = mmap.mmap(-1, 280 << 20)\nfor k in range(0, len(b), 4096): b[k] = 1"), MEMORY, 10.0),
    "pipes": Program("python", "import os, fcntl, time\nfor i in range(6):\n    if os.fork() == 0: break\nn = 0\nfor i in range(28):\n    r, w = os.pipe()\n    try: fcntl.fcntl(w, 1031, 1 << 20)\n    except OSError: pass\n    os.set_blocking(w, False)\n    try:\n        while True: n += os.write(w, bytes(65536))\n    except BlockingIOError: pass\ntime.sleep(1)\nprint('ESCAPED' if n > 200 << 20 else 'held')\n", MEMORY, 6.0),
    "socket buffers": Program("python", "import os, socket, time\nfor i in range(6):\n    if os.fork() == 0: break\nn, keep = 0, []\ntry:\n    while True:\n        a, b = socket.socketpair()\n        keep += [a, b]\n        for s in (a, b):\n            s.setblocking(False)\n            \n            try: s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)\n            except OSError: pass\n            try:\n                while True: n += s.send(bytes(4096))\n            except BlockingIOError: pass\nexcept OSError: pass\ntime.sleep(1)\nprint('ESCAPED' if n > 100 << 20 else 'held')\n", MEMORY, 6.0),
    "unlinked files": Program("python", attempt("keep = []\nfor i in range(50):\n    f = open('/tmp/x', 'wb'); os.unlink('/tmp/x'); keep.append(f)\n    f.write(bytes(15 << 20)); f.flush()"), FILES),
    "inodes": Program("python", attempt("for i in range(5000): os.symlink('x', f'/tmp/{i}')"), FILES),
    "directories": Program("python", attempt("for i in range(5000): os.makedirs(f'/tmp/{i}/{i}')"), FILES),
    "busy children": Program("python", "import os\nfor _ in range(7):\n    if os.fork() == 0: break\nwhile True: pass\n", TIME, 2.0),
    "busy threads": Program("python", "import threading, zlib\nd = bytes(1 << 20)\ndef w():\n    while True: zlib.crc32(d)\nfor _ in range(6): threading.Thread(target=w).start()\n", TIME + "|CPU"),
    "busy children that come and go": Program("python", "import os\nwhile True:\n    try:\n        if os.fork() == 0:\n            for _ in range(10 ** 6): pass\n            os._exit(0)\n        os.waitpid(-1, os.WNOHANG)\n    except OSError: pass\n", TIME),
    "slow death": Program("python", "import os, mmap, time, ctypes\nfor i in range(6):\n    if os.fork() == 0: break\nm = mmap.mmap(-1, 120 << 20, flags=0x22)\nfor k in range(0, 120 << 20, 4096): m[k] = 1\nfor c in (lambda: os.nice(19), lambda: os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))):\n    try: c()\n    except OSError: pass\nwhile True: time.sleep(100)\n", TIME, 3.0),
    "sched_idle": Program("python", attempt("os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))"), "held PermissionError"),
    "sched_batch": Program("python", attempt("os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))"), "held PermissionError"),
    "nice": Program("python", attempt("os.nice(19)"), "held PermissionError"),
    "affinity": Program("python", attempt("os.sched_setaffinity(0, [0])"), "held PermissionError"),
    "sched_setattr": Program("python", refused(314, "0", "ctypes.create_string_buffer(64)", "0"), "held"),
    "ioprio": Program("python", refused(251, "1", "0", "0"), "held"),
    "vmsplice": Program("python", refused(278, "1", "0", "0", "0"), "held"),
    "splice": Program("python", refused(275, "0", "0", "1", "0", "1", "0"), "held"),
    "inotify": Program("python", refused(294, "0"), "held"),
    "forged set-up failure": Program("python", "import os, sys\nsys.stderr.write('the sandbox could not be set up: clone: Resource temporarily unavailable\\n')\nsys.stderr.flush()\nos._exit(125)\n", "exit status 125"),
    "forged SIGKILL": Program("python", "import os\nos._exit(137)\n", "exit status 137"),
    "forged report": Program("python", "import os\nfor n in range(3, 256):\n    try: os.write(n, b'{\"status\": 0, \"timed_out\": false}\\n{\"failed\": \"x\"}\\n')\n    except OSError: pass\nos._exit(1)\n", "exit status 1"),
    "kills everything": Program("python", "import os\nos.kill(-1, 9)\n", "printed ''|killed|exit status"),
    "stops its children": Program("python", "import os, signal, time\nfor _ in range(6):\n    pid = os.fork()\n    if pid == 0:\n        while True: pass\n    os.kill(pid, signal.SIGSTOP)\ntime.sleep(99)\n", TIME, 2.0),
    "CPU signals ignored": Program("python", "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass\n", TIME, 2.0),
    "controls in the reason": Program("python", "print('\\x1b[2J\\x07\\u202eab\\u2028c\\x85d')\nraise SystemExit('\\x1b]0;x\\x07')\n", "exit status 1"),
    "colliding integers in a set": Program("python", REPLY.format(ENCODED % "b'{\"$\":\"set\",\"v\":[' + b','.join(str(2305843009213693951 * k).encode() for k in range(1, 150000)) + b']}'"), "cannot be read", 6.0, function()),
    "colliding integers in a dict": Program("python", REPLY.format(ENCODED % "b'{\"$\":\"dict\",\"v\":[' + b','.join(b'[' + str(2305843009213693951 * k).encode() + b',1]' for k in range(1, 100000)) + b']}'"), "cannot be read", 6.0, function()),
    "brackets": Program("python", REPLY.format(ENCODED % "b'[' + b'[],' * 1300000 + b'[]]'"), "more than .* values", 6.0, function()),
    "deep brackets": Program("python", REPLY.format(ENCODED % "b'[' * 100000 + b']' * 100000"), "nested", 6.0, function()),
    "a long integer": Program("python", REPLY.format(ENCODED % "b'9' * 100000"), "cannot be read|no plain value", 6.0, function()),
    "half a reply": Program("python", REPLY.format("b'{\"$\":\"dict\",\"v\":[[\"value\",' + b'1' * 3000000"), "ended the program|exit|status", 6.0, function()),
    "colliding replies to unit tests": Program("python", REPLY.format(ENCODED % "b'{\"$\":\"set\",\"v\":[' + b','.join(str(2305843009213693951 * k).encode() for k in range(1, 150000)) + b']}'"), TIME + "|CandidateGone", 3.0, {"tests": "assert f(1) == 2\n"}),
    "later tests wait": Program("python", "x = input()\nif x == '1': print(1)\nelif x == '2': print('wrong')\nelse:\n    while True: pass\n", "test 2 of 7", 20.0, {"tests": [{"input": str(i), "output": "1"} for i in range(1, 8)]}, soon=10.0),
    "earlier tests wait": Program("python", "x = input()\nif x == '1': print(1)\nelif x == '5': print('wrong')\nelse:\n    import time\n    time.sleep(1 if x in '234' else 99)\n    print(1)\n", "test 5 of 7", 20.0, {"tests": [{"input": str(i), "output": "1"} for i in range(1, 8)]}, soon=12.0),
}  # fmt: skip

CPP = {
    "children's memory": Program("cpp", C + "int r[2];int main(){pipe(r);for(int i=0;i<5;i++)if(!fork()){char*p=(char*)malloc(330<<20);memset(p,1,330<<20); write(r[1],\"x\",1);pause();}char c;for(int i=0;i<4;i++)if(read(r[0],&c,1)!=1)return 1;puts(\"ESCAPED\");}", MEMORY, 6.0),
    "memory under transparent huge pages": Program("cpp", C + "int r[2];int main(){pipe(r);for(int i=0;i<5;i++)if(!fork()){char*q=(char*)mmap(0,330<<20,3,0x22,-1,0);madvise(q,330<<20,14);for(size_t k=0;k<330u<<20;k+=4096)q[k]=1; write(r[1],\"x\",1);pause();}char c;for(int i=0;i<4;i++)if(read(r[0],&c,1)!=1)return 1;puts(\"ESCAPED\");}", MEMORY, 6.0),
    "pages pinned by pipes": Program("cpp", C + "int main(){size_t M=2<<20;long n=0;while(n<(1300L<<20)){int p[2];if(pipe(p))break;fcntl(p[1],1031,1<<20);for(;;){char*q=(char*)mmap(0,2*M,3,0x22,-1,0);if(q==MAP_FAILED)break;char*a=(char*)(((size_t)q+M-1)/M*M);madvise(a,M,14);a[0]=1;iovec v={a,4096};long r=vmsplice(p[1],&v,1,2);munmap(q,2*M);if(r<0)break;n+=M;}}puts(n>(1300L<<20)?\"ESCAPED\":\"held\");}", "held|memory"),
    "shared mappings": Program("cpp", C + "int r[2];int main(){pipe(r);for(int i=0;i<5;i++)if(!fork()){char*p=(char*)mmap(0,330<<20,3,0x21,-1,0);memset(p,1,330<<20); write(r[1],\"x\",1);pause();}char c;for(int i=0;i<4;i++)if(read(r[0],&c,1)!=1)return 1;puts(\"ESCAPED\");}", MEMORY, 6.0),
    "copies on write": Program("cpp", C + "int r[2];int main(){pipe(r);char*p=(char*)malloc(300<<20);memset(p,1,300<<20);for(int i=0;i<5;i++)if(!fork()){memset(p,2,300<<20); write(r[1],\"x\",1);pause();}char c;for(int i=0;i<4;i++)if(read(r[0],&c,1)!=1)return 1;puts(\"ESCAPED\");}", MEMORY, 6.0),
    "inodes": Program("cpp", C + "int main(){char n[32];int i=0;for(;i<300000;i++){sprintf(n,\"/tmp/%d\",i);int f=open(n,O_CREAT|O_WRONLY,0600);if(f<0)break;close(f);}sleep(1);puts(i<300000?\"held\":\"ESCAPED\");}", FILES),
    "hard links and directories": Program("cpp", C + "int main(){char n[32];int i=0;for(;i<200000;i++){sprintf(n,\"/tmp/%d\",i);if(mkdir(n,0700))break;}sleep(1);puts(i<200000?\"held\":\"ESCAPED\");}", FILES),
    "unlinked files": Program("cpp", C + "int main(){static char b[1<<20];long n=0;for(int i=0;i<50;i++){int f=open(\"/tmp/x\",O_CREAT|O_RDWR,0600);unlink(\"/tmp/x\");for(int k=0;k<15;k++){long r=write(f,b,sizeof b);if(r>0)n+=r;}}puts(n>64<<20?\"ESCAPED\":\"held\");}", FILES),
    "socket buffers": Program("cpp", C + "int main(){for(int i=0;i<6;i++)if(!fork())break;static char b[4096];long n=0;int s[2];while(!socketpair(1,1,0,s)){for(int e:s){fcntl(e,F_SETFL,O_NONBLOCK);long r;while((r=write(e,b,4096))>0)n+=r;}}sleep(1);puts(n>100<<20?\"ESCAPED\":\"held\");}", "held|memory"),
    "busy children": Program("cpp", C + "int main(){for(int i=0;i<6;i++)if(!fork())break;for(volatile long k=0;;k++);}", TIME + "|CPU"),
    "busy threads": Program("cpp", C + "int main(){for(int i=0;i<6;i++)thread([]{for(volatile long k=0;;k++);}).detach();for(volatile long k=0;;k++);}", TIME + "|CPU|terminate|SIGABRT|SIGSEGV|SIGKILL"),
    "real time": Program("cpp", C + "int main(){sched_param p{10};bool bad=!sched_setscheduler(0,SCHED_FIFO,&p);p.sched_priority=0;bad|=!sched_setscheduler(0,SCHED_IDLE,&p);bad|=!setpriority(PRIO_PROCESS,0,19);puts(bad?\"ESCAPED\":\"held\");}", "held"),
    "forged bubblewrap failure": Program("cpp", C + "int main(){fputs(\"bwrap: Creating new namespace failed: Resource temporarily unavailable\\n\",stderr);return 1;}", "exit status 1"),
    "forged 125": Program("cpp", C + "int main(){fputs(\"bwrap: setting up uid map: Permission denied\\n\",stderr);return 125;}", "exit status 125"),
    "forged SIGKILL": Program("cpp", C + "int main(){return 137;}", "killed by SIGKILL"),
    "aborts": Program("cpp", C + "int main(){abort();}", "killed by SIG"),
    "uncaught exception": Program("cpp", C + "int main(){throw 1;}", "killed by SIG"),
    "descriptors of its launcher": Program("cpp", C + "int main(){for(int n=3;n<256;n++)if(write(n,\"{\\\"exit-code\\\": 0}\",16)>0){puts(\"ESCAPED\");return 0;}puts(\"held\");}", "held"),
    "zombies": Program("cpp", C + "int main(){int n=0;while(fork()!=-1&&n<1000){n++;}puts(n<1000?\"held\":\"ESCAPED\");}", "held|time limit|output"),
}  # fmt: skip

JAVA = {
    "unsafe memory": Program("java", java("var f=Class.forName(\"sun.misc.Unsafe\").getDeclaredField(\"theUnsafe\");f.setAccessible(true);var u=(sun.misc.Unsafe)f.get(null);for(int i=0;i<13;i++){long p=u.allocateMemory(100L<<20);u.setMemory(p,100L<<20,(byte)1);}System.out.println(\"ESCAPED\");"), MEMORY, 10.0),
    "direct buffers": Program("java", java("List<ByteBuffer> l=new ArrayList<>();for(int i=0;i<30;i++){ByteBuffer b=ByteBuffer.allocateDirect(50<<20);while(b.hasRemaining())b.putLong(1);l.add(b);}System.out.println(\"ESCAPED\");"), MEMORY, 10.0),
    "heap": Program("java", java("List<byte[]> l=new ArrayList<>();for(int i=0;i<1300;i++)l.add(new byte[1<<20]);System.out.println(\"ESCAPED\"+l.size());"), MEMORY, 10.0),
    "thread stacks": Program("java", java("for(int i=0;i<30;i++)new Thread(()->go(0)).start();Thread.sleep(3000);System.out.println(\"ESCAPED\");", "static long go(long n){try{return go(n+1)+1;}catch(StackOverflowError e){try{Thread.sleep(99999);}catch(Exception x){}return 0;}}"), MEMORY, 8.0),
    "busy threads": Program("java", java("for(int i=0;i<30;i++)new Thread(()->{long k=0;while(true)k++;}).start();"), TIME + "|CPU"),
    "memory of pid 1": Program("java", java("int n=0;for(String p:new String[]{\"/proc/1/mem\",\"/proc/self/mem\",\"/proc/1/oom_score_adj\",\"/proc/self/oom_score_adj\",\"/proc/self/comm\"})try(RandomAccessFile f=new RandomAccessFile(p,\"rw\")){n++;}catch(IOException e){}System.out.println(n>0?\"ESCAPED\":\"held\");"), "held", 10.0),
    "other processes": Program("java", java("int n=0;for(File f:new File(\"/proc\").listFiles())if(f.getName().matches(\"[0-9]+\"))n++;System.out.println(n>1?\"ESCAPED\":\"held\");"), "held", 10.0),
    "child machines": Program("java", java("int n=0;for(int i=0;i<40;i++)try{new ProcessBuilder(System.getProperty(\"java.home\")+\"/bin/java\",\"-Xmx200m\",\"-Xms200m\",\"-XX:+AlwaysPreTouch\",\"-cp\",\"/box\",\"Main\").start();n++;}catch(Throwable e){}Thread.sleep(3000);System.out.println(n>10?\"ESCAPED\":\"held\");"), MEMORY + "|printed", 8.0),
    "files": Program("java", java("int i=0;try{for(;i<100000;i++)Files.createFile(Paths.get(\"/tmp/\"+i));}catch(IOException e){}Thread.sleep(1000);System.out.println(i<100000?\"held\":\"ESCAPED\");"), FILES, 12.0),
    "halts as if killed": Program("java", java("Runtime.getRuntime().halt(137);"), "killed by SIGKILL", 10.0),
}  # fmt: skip

JAVASCRIPT = {
    "buffers": Program("javascript", "let l=[];for(let i=0;i<7;i++)l.push(Buffer.alloc(200<<20,1));console.log('ESCAPED')", MEMORY, 8.0),
    "small buffers": Program("javascript", "let l=[];for(let i=0;i<14000;i++)l.push(new Uint8Array(100<<10).fill(1));console.log('ESCAPED')", MEMORY, 8.0),
    "shared buffers": Program("javascript", "let l=[];for(let i=0;i<14;i++)l.push(new Uint8Array(new SharedArrayBuffer(100<<20)).fill(1));console.log('ESCAPED')", MEMORY, 8.0),
    "WebAssembly memory": Program("javascript", "let l=[];for(let i=0;i<14;i++){const m=new WebAssembly.Memory({initial:1600});new Uint8Array(m.buffer).fill(1);l.push(m)}console.log('ESCAPED')", MEMORY, 8.0),
    "workers' memory": Program("javascript", "const {Worker,isMainThread,parentPort}=require('worker_threads');if(isMainThread){let n=0;for(let i=0;i<4;i++)new Worker(__filename).on('message',()=>{if(++n==3){console.log('ESCAPED');process.exit()}})}else{let l=[];for(let i=0;i<4;i++)l.push(Buffer.alloc(100<<20,1));parentPort.postMessage(1);setTimeout(()=>l,99999)}", MEMORY, 8.0),
    "busy workers": Program("javascript", "const {Worker,isMainThread}=require('worker_threads');if(isMainThread)for(let i=0;i<4;i++)new Worker(__filename);while(true);", TIME),
    "children's memory": Program("javascript", "const cp=require('child_process');if(process.argv[2]){let b=Buffer.alloc(250<<20,1);process.stdout.write('x');setTimeout(()=>b,99999)}else{let n=0;for(let i=0;i<6;i++)try{const c=cp.spawn(process.execPath,[__filename,'x'],{stdio:['ignore','pipe','ignore']});c.on('error',()=>{});c.stdout.on('data',()=>{if(++n==5){console.log('ESCAPED');process.exit()}})}catch(e){}}", MEMORY, 12.0),
    "strings": Program("javascript", "let l=[];for(let i=0;i<14;i++)l.push(Buffer.alloc(100<<20,97).toString('latin1'));console.log('ESCAPED')", MEMORY, 8.0),
    "files": Program("javascript", "const fs=require('fs');let i=0;try{for(;i<100000;i++)fs.writeFileSync('/tmp/'+i,'')}catch(e){}setTimeout(()=>console.log(i<100000?'held':'ESCAPED'),1000)", FILES, 8.0),
    "priority": Program("javascript", "try{require('os').setPriority(19);console.log('ESCAPED')}catch(e){console.log('held')}", "held", 8.0),
    "forged bubblewrap failure": Program("javascript", "process.stderr.write(\"bwrap: Can't mount proc on /newroot/proc: Operation not permitted\\n\");process.exitCode=1", "exit status 1", 8.0),
}  # fmt: skip

PROGRAMS = {
    f"{language}: {name}": program
    for language, programs in (("python", PYTHON), ("cpp", CPP), ("java", JAVA), ("javascript", JAVASCRIPT))
    for name, program in programs.items()
}
