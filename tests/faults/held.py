"""A run that the kernel holds at each of its system calls that change a file, so that it can be killed at exactly one of them.

    calls = held.follow(listener, pid=pid, folder=folder)                  an undisturbed run: 900 calls, and what each changes
    held.follow(listener, pid=pid, folder=folder, kill_at=317)             killed instead of its 317th call

Whatever writes (Python, the C++ of torch.save, the Rust of safetensors and tokenizers), a checkpoint is a sequence of such calls, and each
state in which SIGKILL can leave a folder lies between two of them. The kernel asks through seccomp's user notification
(seccomp_unotify(2)), which needs no rights and reaches threads and children too. Linux alone, on x86_64 and aarch64.
"""

import ctypes
import fcntl
import os
import platform
import select
import signal
import struct
import time
from dataclasses import dataclass
from pathlib import Path

# Of each call that changes files: its number on x86_64 and on aarch64, and which argument is the file: a descriptor ("fd"), or
# a path (its index) below a folder's descriptor (the index before it; None: below the working directory).
CALLS = {
    "write": (1, 64, "fd"),
    "pwrite64": (18, 68, "fd"),
    "writev": (20, 66, "fd"),
    "ftruncate": (77, 46, "fd"),
    "sendfile": (40, 71, "fd"),
    "fallocate": (285, 47, "fd"),
    "fsync": (74, 82, "fd"),
    "openat": (257, 56, 1),
    "open": (2, None, 0),
    "mkdir": (83, None, 0),
    "mkdirat": (258, 34, 1),
    "rmdir": (84, None, 0),
    "unlink": (87, None, 0),
    "unlinkat": (263, 35, 1),
    "rename": (82, None, 0),
    "renameat": (264, 38, 1),
    "renameat2": (316, 276, 1),
    "link": (86, None, 0),
    "linkat": (265, 37, 1),
    "symlink": (88, None, 1),
}
MACHINES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}  # column above, AUDIT_ARCH, seccomp(2)
MACHINE = MACHINES.get(platform.machine())
NAMES = {numbers[MACHINE[0]]: name for name, numbers in CALLS.items()} if MACHINE else {}

# <linux/seccomp.h>, <linux/filter.h> and <sys/prctl.h>
PR_SET_NO_NEW_PRIVS, SECCOMP_SET_MODE_FILTER, NEW_LISTENER = 38, 1, 1 << 3
RET_ALLOW, RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
RECEIVE, SEND, CONTINUE = 0xC0502100, 0xC0182101, 1
REQUEST, RESPONSE = struct.Struct("QIIiIQ6Q"), struct.Struct("QqiI")


@dataclass(frozen=True)
class Call:
    """A system call that was about to change `path`, which is relative to the followed folder."""

    name: str
    path: str

    @property
    def is_of_a_checkpoint(self) -> bool:
        return "checkpoint" in self.path

    @property
    def is_deletion(self) -> bool:
        return self.name.startswith(("unlink", "rmdir"))


class CannotHold(Exception):
    """The kernel, or what this process may do, does not allow it."""


def hold_this_process() -> int:
    """From now on each such call of this process waits for an answer; returns the descriptor that asks for it."""
    if MACHINE is None:
        raise CannotHold(f"system calls of {platform.machine()} are not known")
    program = _program()
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise CannotHold(os.strerror(ctypes.get_errno()))
    listener = libc.syscall(MACHINE[2], SECCOMP_SET_MODE_FILTER, NEW_LISTENER, header)
    if listener < 0:
        raise CannotHold(f"seccomp: {os.strerror(ctypes.get_errno())}")
    return listener


def _program() -> list[tuple[int, int, int, int]]:
    """A filter that hands on the calls of `CALLS`, and of those that open a file the ones that may make it."""
    numbers = [number for number, name in NAMES.items() if number is not None and name not in ("open", "openat")]
    opening = [
        (number, 16 + 8 * (CALLS[name][2] + 1))
        for number, name in NAMES.items()
        if name in ("open", "openat") and number
    ]
    code = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, MACHINE[1]), (RETURN, 0, 0, RET_ALLOW), (LOAD, 0, 0, 0)]
    for number, flags in opening:
        code += [(EQUAL, 0, 4, number), (LOAD, 0, 0, flags), (ANY_BIT, 0, 1, os.O_CREAT | os.O_TRUNC)]
        code += [(RETURN, 0, 0, RET_USER_NOTIF), (RETURN, 0, 0, RET_ALLOW)]
    for number in numbers:
        code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, RET_USER_NOTIF)]
    return [*code, (RETURN, 0, 0, RET_ALLOW)]


def follow(
    listener: int,
    *,
    pid: int,
    folder: Path,
    kill_at: int | None = None,
    number: int = signal.SIGKILL,
    timeout: float = 120,
) -> list[Call]:
    """Answer a held run until it has ended; its calls below `folder`. Instead of call `kill_at` (1, 2 ...) it is killed.

    Another `number` than SIGKILL is sent before that call, which is then made.
    """
    calls: list[Call] = []
    poll, deadline = select.poll(), time.monotonic() + timeout
    poll.register(listener, select.POLLIN)
    try:
        while True:
            ready = poll.poll(1000)
            if ready and ready[0][1] & select.POLLHUP:
                return calls
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {pid} still runs after {timeout} s")
            if ready:
                _answer(listener, pid, folder, calls, kill_at, number)
    finally:
        os.close(listener)


def _answer(listener: int, pid: int, folder: Path, calls: list[Call], kill_at: int | None, number: int) -> None:
    request = bytearray(REQUEST.size)
    try:
        fcntl.ioctl(listener, RECEIVE, request)
        identity, caller, _, call, *_, a, b, c, d, _, _ = REQUEST.unpack(request)
        path = _path(caller, NAMES[call], (a, b, c, d))
        if path.is_relative_to(folder):
            calls.append(Call(NAMES[call], str(path.relative_to(folder))))
            if len(calls) == kill_at:
                os.kill(pid, number)
                if number == signal.SIGKILL:
                    return
        fcntl.ioctl(listener, SEND, bytearray(RESPONSE.pack(identity, 0, 0, CONTINUE)))
    except (FileNotFoundError, ProcessLookupError):
        return  # it was killed or interrupted while it waited


def _path(caller: int, name: str, arguments: tuple[int, ...]) -> Path:
    """What the call is about: the file behind a descriptor, or the path in the caller's memory."""
    place = CALLS[name][2]
    if place == "fd":
        return Path(os.readlink(f"/proc/{caller}/fd/{_signed(arguments[0])}"))
    with open(f"/proc/{caller}/mem", "rb", buffering=0) as memory:
        memory.seek(arguments[place])
        path = os.fsdecode(memory.read(4096 - arguments[place] % 4096).partition(b"\0")[0])
    base = "cwd"
    if name.endswith(("at", "at2")) and _signed(arguments[0]) >= 0:
        base = f"fd/{_signed(arguments[0])}"
    return Path(os.path.normpath(Path(os.readlink(f"/proc/{caller}/{base}"), path)))


def _signed(argument: int) -> int:
    return ctypes.c_int(argument & 0xFFFFFFFF).value
