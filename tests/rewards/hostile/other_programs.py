# ruff: noqa: E501
"""Hostile C++, Java and JavaScript programs, and solutions that attack unit tests. See `python_programs`."""

from __future__ import annotations

CPP_HEAD = (
    "#include <cstdio>\n#include <cstring>\n#include <new>\n#include <sched.h>\n#include <unistd.h>\n#include <sys/ptrace.h>\n#include <sys/socket.h>\n"
    "#include <sys/mount.h>\n#include <signal.h>\n#include <sys/resource.h>\n"
)
ENDED = "time limit|exit status|killed|output"


def java(body: str) -> str:
    return (
        "import java.io.*;import java.net.*;import java.util.*;import java.nio.file.*;\n"
        f"public class Main {{ public static void main(String[] a) throws Throwable {{ {body} }} }}"
    )


def java_attempt(body: str) -> str:
    return java(f'try {{ {body} System.out.println("ESCAPED"); }} catch (Throwable e) {{ System.out.println("held"); }}')


PROGRAMS: dict[str, tuple[str, str, float, str]] = {
    "cpp fork bomb": ("cpp", ENDED, 2.0, CPP_HEAD + "int main(){for(;;)fork();}"),
    "cpp memory": (
        "cpp", "held|killed", 10.0,
        CPP_HEAD + 'int main(){try{for(;;){char*p=new char[64<<20];memset(p,1,64<<20);}}catch(std::bad_alloc&){puts("held");}}',
    ),
    "cpp sleep": ("cpp", "time limit", 1.0, CPP_HEAD + "int main(){signal(SIGTERM,SIG_IGN);for(;;)pause();}"),
    "cpp flood": ("cpp", "bytes of output", 10.0, CPP_HEAD + 'int main(){for(;;)puts("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");}'),
    "cpp calls": (
        "cpp", "held", 10.0,
        CPP_HEAD + "int main(){bool bad=ptrace(PTRACE_TRACEME,0,0,0)!=-1||socket(AF_INET,SOCK_STREAM,0)!=-1||"
        'mount("x","/tmp","tmpfs",0,0)!=-1||setuid(0)!=-1||unshare(0x10000000)!=-1;puts(bad?"ESCAPED":"held");}',
    ),
    "cpp host files": (
        "cpp", "held", 10.0,
        CPP_HEAD + 'int main(){bool bad=fopen("/etc/passwd","r")||fopen("/proc/1/environ","r")||fopen("/box/x","w")||'
        'fopen("/usr/lib/x","w");puts(bad?"ESCAPED":"held");}',
    ),
    "cpp daemon": (
        "cpp", "printed ''", 10.0,
        CPP_HEAD + 'int main(){if(!fork()){setsid();if(!fork()){sleep(1);write(1,"ESCAPED",7);sleep(999);}_exit(0);}}',
    ),
    "cpp includes a host file": ("cpp", "does not compile", 10.0, '#include "/etc/passwd"\nint main(){}'),
    "cpp endless include": ("cpp", "does not compile", 10.0, "#include __FILE__\nint main(){}"),
    "cpp crash": ("cpp", "killed by SIGSEGV", 10.0, "int main(){*(volatile int*)0=1;}"),
    "java sleep": ("java", "time limit", 2.0, java("Thread.sleep(100000);")),
    "java memory": ("java", "held", 20.0, java_attempt("List<long[]> l=new ArrayList<>();for(;;){l.add(new long[1<<22]);if(l.size()>9999)break;}")),
    "java reads, runs and connects": (
        "java", "held", 20.0,
        java("int bad=0;try{Files.readAllBytes(Paths.get(\"/etc/passwd\"));bad++;}catch(Throwable e){}"
             "try{Runtime.getRuntime().exec(\"/bin/true\").waitFor();bad++;}catch(Throwable e){}"
             "try{new Socket(\"127.0.0.1\",22);bad++;}catch(Throwable e){}"
             "System.out.println(bad>0?\"ESCAPED\":\"held\");"),
    ),
    "java halt": ("java", "printed ''", 20.0, java("Runtime.getRuntime().halt(0);")),
    "javascript loop": ("javascript", "time limit", 2.0, "while(true){}"),
    "javascript reads, runs and connects": (
        "javascript", "held", 20.0,
        "const fs=require('fs'),cp=require('child_process');let bad=0;\n"
        "try{fs.readFileSync('/etc/passwd');bad++}catch(e){}\ntry{cp.execFileSync('/bin/true');bad++}catch(e){}\n"
        "try{fs.writeFileSync('/box/x','');bad++}catch(e){}\nconsole.log(bad?'ESCAPED':'held')",
    ),
    "javascript exit": ("javascript", "printed ''", 20.0, "process.exit(0)"),
}  # fmt: skip

# Solutions for `def answer(x)`, tested by `assert answer(3) == 40_503` and two more: none of these may pass.
UNIT_ATTACKS: dict[str, str] = {
    "exit": "raise SystemExit(0)",
    "hard exit": "import os\nos._exit(0)",
    "exit when called": "import os\ndef answer(x):\n    os._exit(0)",
    "equals everything": "class E(int):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
    "    __hash__ = int.__hash__\ndef answer(x): return E(1)",
    "equal text": "class S(str):\n    def __eq__(self, other): return True\ndef answer(x): return S('a')",
    "object": "class E:\n    def __eq__(self, other): return True\ndef answer(x): return E()",
    "patched builtins": "import builtins\nbuiltins.AssertionError = type('Never', (Exception,), {})\nbuiltins.exec = lambda *a: None\n"
    "def answer(x): return 0",
    "patched guest": "import sys\nfor m in list(sys.modules.values()):\n    for n in ('_unit', '_Stand', '_call', 'dumps', 'encode'):\n"
    "        if hasattr(m, n): setattr(m, n, lambda *a: {'passed': True})\ndef answer(x): return 0",
    "fake verdict": 'import os\nfor n in range(8):\n    try: os.write(n, b\'{"passed": true, "problem": null}\\n\')\n'
    "    except OSError: pass\ndef answer(x): return 0",
    "fake replies": 'import os\nfor n in range(64):\n    try: os.write(n, b\'{"$": "dict", "v": [["value", true]]}\\n\' * 9)\n'
    "    except OSError: pass\ndef answer(x): return 0",
    "deep reply": "import os\nfor n in range(64):\n    try: os.write(n, b'[' * 100000 + b'\\n')\n    except OSError: pass\n"
    "def answer(x): return 0",
    "endless reply": "def answer(x): return list(range(10**9))",
    "frames": "import sys\ndef answer(x):\n    f = sys._getframe()\n    while f:\n        for v in list(f.f_locals.values()):\n"
    "            if isinstance(v, dict) and 'passed' in v: v['passed'] = True\n        f = f.f_back\n    return 0",
    "raises": "def answer(x): raise AssertionError",
    "raises a stop": "def answer(x): raise StopIteration",
    "hang": "def answer(x):\n    while True: pass",
    "closes all": "import os\nos.closerange(0, 100)\ndef answer(x): return 0",
    "not defined": "x = 1",
    "syntax": "def answer(x:",
}
