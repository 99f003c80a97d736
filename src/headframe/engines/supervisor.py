"""One allocation's keeper: a small detached process that starts the work, captures its logs, and journals start and end.

It imports nothing of Headframe and outlives the server. Everything it does is written with fsync before it counts: `journal`
says what happened, the lock on `lock` says that it is alive, `stop.json` is how it is told to end the work. Run as
``python -I -S supervisor.py NOTIFY_SOCKET`` with the directory, which holds `spec.json`, as one line on standard input: a keeper
can so be started ahead of its work, and one whose server goes away before it has any just ends. Slurm's jobs import it and call `main`.
"""

# A third of what a job's keeper cost was imports: of ctypes, json and signal, which bring regular expressions and enumerations, this is what they are written on.
import _ctypes
import _json
import _signal as signal
import fcntl
import os
import select
import stat
import sys
import time

ROOM_BYTES = 4096  # more than any journal takes
LOG_SEGMENT_BYTES, LOG_SEGMENTS_MAX, LINE_BYTES_MAX = 4 * 1024 * 1024, 8, 16 * 1024
DRAIN_S, ANEW_S, END_S, LEASE_LOOK_S, TERM_S = 2.0, 1.0, 10.0, 5.0, 0.1
PR_SET_CHILD_SUBREAPER = 36
LOCK_TRIES = 200
SETUP_FAILED = "setup-failed"


class AsUsual:  # how JSON is read, for its scanner: as `json.loads` does
    strict, object_hook, object_pairs_hook, parse_float, parse_int, parse_constant = True, None, None, float, int, float


def from_json(text):
    """ValueError where that is none."""
    try:
        return _json.make_scanner(AsUsual)(text.strip(), 0)[0]
    except StopIteration as error:
        raise ValueError("it is empty, or cut off") from error


def to_json(fact):
    """Of texts and whole numbers by name."""
    encode = _json.encode_basestring_ascii
    return "{" + ", ".join(f'"{name}": {encode(value) if isinstance(value, str) else int(value)}' for name, value in fact.items()) + "}"


def own_directory(path):
    """Make it, or see that it is this account's alone: where everybody may write, another may have been there first."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise PermissionError(f"{path} is not a directory of its own") from None


def attempt(act, *given):
    """Do it; the error where that can't be."""
    try:
        act(*given)
    except OSError as error:
        return error


def look_anew(directory):
    """Opening a directory asks NFS whether it has changed: else it says for half a minute that a file is not there which is there by now (acdirmin in nfs(5))."""
    os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))


def lock_of(path):
    """A file that anybody may lock and nobody else may change: who comes first makes it, all others only read it. What else may lie there is neither followed nor waited for."""
    how = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, how)
    except FileNotFoundError:
        try:
            made = os.open(path, how | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return os.open(path, how)  # another has come first
        os.fchmod(made, 0o644)  # whatever this process's mask is
        return made


class Keeper:
    """The life of one attempt: setup, run, end."""

    def __init__(self, directory, notify):
        self.directory = directory
        self.notify_path = notify
        self.spec = from_json(self.read("spec.json"))
        self.spec["env"].update({name: os.environ[name] for name in self.spec.get("inherit", ()) if name in os.environ})
        attempt(os.rename, self.path("room"), self.path("journal"))
        self.journal, self.written = os.open(self.path("journal"), os.O_WRONLY | os.O_CREAT, 0o600), 0
        self.log = Log(self.path("log"), self.spec["rank"])
        self.child, self.stopping, self.kill_at, self.began, self.told = 0, None, None, None, False
        self.lease_look = self.beat_at = self.look_at = 0.0

    def path(self, name):
        return os.path.join(self.directory, name)

    def read(self, name):
        with open(self.path(name), encoding="utf-8") as file:
            return file.read()

    def write(self, **fact):
        """One line of the journal, on disk before this returns; then the server is nudged, if it is there. It is written over the spaces of `room`, which whoever gave us the
        work has set aside: where the work has used up all that its disk or its quota has, its end is still told.
        """
        fact["at_ms"] = self.now_ms()
        self.written += os.pwrite(self.journal, (to_json(fact) + "\n").encode(), self.written)
        os.fsync(self.journal)
        if self.spec.get("news"):  # a file of our name there tells a server on another machine, which else looks at everything now and then
            return attempt(os.mknod, os.path.join(self.spec["news"], f"{self.spec['id']}.{self.spec['rank']}"))
        import socket  # only here: a keeper starts for every job, and each module costs it milliseconds

        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nudge:
            nudge.setblocking(False)
            attempt(nudge.sendto, self.spec["id"].encode(), self.notify_path)  # where nobody listens the server reads the journal when it is back

    def now_ms(self):
        """Wall clock at the start, monotonic from there on: a clock that is set back never shortens a bill's time."""
        if self.began is None:
            return int(time.time() * 1000)
        wall, ticks = self.began
        return wall + int((time.monotonic() - ticks) * 1000)

    def run(self):
        signals = {signal.SIGCHLD, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT}
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write)
        for number in signals:
            signal.signal(number, lambda heard, _: self.heard(heard))
        _ctypes.call_function(_ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl"), (PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
        self.began = (int(time.time() * 1000), time.monotonic())
        self.write(event="starting", pid=os.getpid(), boot_id=self.spec["boot_id"])
        try:
            for path in self.spec.get("caches", ()):
                own_directory(os.path.dirname(path))
                own_directory(path)
                os.utime(path)  # it is in use: what was asked to delete it before leaves it alone
        except OSError as error:
            return self.end(1, SETUP_FAILED, f"a cache can't be used: {error}")
        held = self.hold_cards()
        if held:
            return self.end(1, self.spec["on_term"], held)
        if self.spec["setup"]:
            self.log.line("sys", "setup: " + self.spec["setup_shown"])
            code = self.phase(self.spec["setup"], "setup", wake_read)
            if code != 0 or self.stopping:
                return self.end(code, SETUP_FAILED, f"setup exited with {code}: the job itself was not started")
        killed = oom_kills(self.spec["cgroups"])
        code = self.phase(self.spec["run"], "running", wake_read)
        if code and code == self.spec["setup_exit"]:
            return self.end(code, SETUP_FAILED, "setup failed: the job itself was not started")
        reason = "finished" if code == 0 else "failed"
        greedy = "it used more memory than it asked for, " if code and oom_kills(self.spec["cgroups"]) > killed else ""
        return self.end(code, reason, "" if code == 0 else greedy + describe(code))

    def hold_cards(self):
        """Lock each card that Slurm gave us, until nothing of the work is left: a controller that was killed may have forgotten work that still runs, and give its cards out again.
        Why they can't be had, "" where they can.
        """
        node = os.environ.get("SLURMD_NODENAME", "")
        cards = os.environ.get("SLURM_STEP_GPUS") or os.environ.get("SLURM_JOB_GPUS") or ""
        for card in cards.split(",") if cards and self.spec.get("cards") else ():
            try:
                handle = lock_of(f"{self.spec['cards']}-{node}-{card}")
            except OSError as error:
                self.log.line("sys", f"card {card} of {node} can't be locked: {error}")
                continue
            if not locked(handle):
                return f"card {card} of {node} is still held by other work there, which Slurm does not know any more"
            os.set_inheritable(handle, True)  # it outlives this process for as long as what it starts
        return ""

    def heard(self, number):
        """What else runs work here (Slurm) ends it by a signal; a server of ours never does."""
        self.told = self.told or number == signal.SIGTERM

    def end(self, code, reason, detail):
        self.end_tree()
        on_term = self.spec.get("on_term")
        if on_term and not self.told and code in (-signal.SIGTERM, 128 + signal.SIGTERM):
            time.sleep(TERM_S)  # Slurm tells each of a job's processes, this one perhaps last
        if code and not self.stopping and not self.stop_asked() and self.told and on_term:
            self.stopping = {"reason": on_term}
        if self.stopping:
            reason, detail = self.stopping["reason"], f"stopped: {self.stopping['reason']}"
        self.log.close()
        detail = "; ".join(part for part in (detail, self.log.lost and f"lines of its log are lost: {self.log.lost}") if part)
        self.write(event="ended", reason=reason, exit_code=code if code >= 0 else 128 - code, detail=detail)
        return 0 if reason == "finished" else 1

    def phase(self, argv, event, wake):
        """Run one command to its end; its exit code, negative for a signal."""
        if self.stop_asked():
            return -signal.SIGTERM
        out_read, out_write = os.pipe2(os.O_CLOEXEC)
        err_read, err_write = os.pipe2(os.O_CLOEXEC)
        try:
            self.child = self.spawn(argv, out_write, err_write)
        except OSError as error:
            self.log.line("sys", f"can't start {argv[0]}: {error}")
            return 127
        finally:
            os.close(out_write)
            os.close(err_write)
        self.write(event=event, pid=self.child)
        return self.follow({out_read: "out", err_read: "err"}, wake)

    def spawn(self, argv, out, err):
        child = os.fork()
        if child:
            return child
        try:
            os.setsid()
            for group in self.spec["cgroups"]:
                with open(os.path.join(group, "cgroup.procs"), "w", encoding="ascii") as procs:
                    procs.write("0")
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.chdir(self.spec["cwd"])
            os.umask(0o077)
            os.execvpe(argv[0], argv, self.spec["env"])
        except OSError as error:
            os.write(err, f"can't start {argv[0]}: {error}\n".encode())
        finally:
            os._exit(127)

    def follow(self, pipes, wake):
        """Copy output to the log until the work has ended and its pipes are drained; obey stop and the time limit."""
        poller = select.poll()
        for fd in (*pipes, wake):
            poller.register(fd, select.POLLIN)
        open_pipes, code, drain_until = dict(pipes), None, None
        while code is None or (open_pipes and time.monotonic() < drain_until):
            before = len(open_pipes)
            for fd, _ in poller.poll(self.timeout_ms(code, drain_until)):
                if fd == wake:
                    os.read(wake, 4096)
                elif not self.copy(fd, open_pipes[fd]):
                    poller.unregister(fd)
                    os.close(fd)
                    del open_pipes[fd]
            if code is None:
                code = self.reap()  # first, as what has ended by itself was not stopped; but what tells us to end has told the work so too
                drain_until = time.monotonic() + DRAIN_S
                if self.told or (code is None and len(open_pipes) == before):  # a pipe that closes may be its end, of which we hear next
                    self.enforce()
        for fd in open_pipes:
            os.close(fd)
        self.log.flush()
        return code

    def timeout_ms(self, code, drain_until):
        if code is not None:
            return max(0, int((drain_until - time.monotonic()) * 1000))
        deadlines = [at - time.monotonic() for at in (self.kill_at, self.limit_at()) if at is not None]
        return int(max(0.0, min([1.0, *deadlines])) * 1000) + 1

    def limit_at(self):
        limit = self.spec["max_duration_s"]
        return self.began[1] + limit if limit and not self.stopping else None

    def copy(self, fd, stream):
        chunk = os.read(fd, 65536)
        if chunk:
            self.log.feed(stream, chunk)
        return bool(chunk)

    def enforce(self):
        """Stop when told to or when time is up; kill when grace is over."""
        if self.spec.get("news") and time.monotonic() >= self.look_at:
            self.look_at = time.monotonic() + ANEW_S
            attempt(look_anew, self.directory)
            self.log.publish()
        limit = self.limit_at()
        if limit is not None and time.monotonic() >= limit:
            self.begin_stop({"reason": "max-duration", "grace_s": self.spec["grace_s"]})
        elif not self.stopping and self.lease_over():
            self.begin_stop({"reason": "node-lost", "grace_s": self.spec["grace_s"]})
        elif not self.stopping and self.stop_asked():
            self.begin_stop(self.stopping)
        elif not self.stopping and self.told and self.spec.get("on_term"):
            self.begin_stop({"reason": self.spec["on_term"], "grace_s": self.spec["grace_s"]})
        self.beat()
        if self.kill_at is not None and time.monotonic() >= self.kill_at:
            self.kill_tree(signal.SIGKILL)
            self.kill_at = time.monotonic() + 1

    def beat(self):
        """Say that this rank lives, where a gang has to know of one that does not."""
        if self.spec.get("beat_s") and time.monotonic() >= self.beat_at:
            self.beat_at = time.monotonic() + self.spec["beat_s"]
            attempt(os.mknod, self.path("alive"))
            attempt(os.utime, self.path("alive"))

    def lease_over(self):
        """Whether whoever gave us the work counts on it having ended: it may be running elsewhere by now."""
        if not self.spec["lease"] or time.monotonic() < self.lease_look:
            return False
        self.lease_look = time.monotonic() + LEASE_LOOK_S
        try:
            with open(self.spec["lease"], encoding="ascii") as file:
                return time.clock_gettime(time.CLOCK_BOOTTIME) > float(file.read())
        except (OSError, ValueError):
            return True

    def stop_asked(self):
        """Whether `stop.json` is there; what it says is kept."""
        try:
            self.stopping = from_json(self.read("stop.json"))
        except (OSError, ValueError):
            return bool(self.stopping)
        return True

    def begin_stop(self, how):
        self.stopping = how
        self.log.line("sys", f"stopping: {how['reason']}, {how['grace_s']} s of grace")
        self.kill_at = time.monotonic() + how["grace_s"]
        for command in self.spec["on_stop"]:
            os.spawnvp(os.P_NOWAIT, command[0], command)
        self.kill_tree(signal.SIGTERM)

    def reap(self):
        """Collect every child that has ended (orphans of the work come to us); the work's own exit code, if among them."""
        code = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return code if code is not None else (None if self.child else 0)
            if pid == 0:
                return code
            if pid == self.child:
                code = os.waitstatus_to_exitcode(status)
                self.child = 0

    def end_tree(self):
        """Nothing of the work is left when this returns, not even a zombie (unless the kernel itself can't end it)."""
        limit = time.monotonic() + END_S
        while time.monotonic() < limit:
            try:
                if os.waitpid(-1, os.WNOHANG)[0]:
                    continue
            except ChildProcessError:
                return  # whatever descended from us would be a child of ours by now: all of /proc need not be read
            self.kill_tree(signal.SIGKILL)
            time.sleep(0.005)

    def kill_tree(self, number):
        """Everything that descends from us, however it daemonised: we are the reaper of all orphans below."""
        for pid in descendants(os.getpid()):
            attempt(os.kill, pid, number)


class Log:
    """Lines as ``ms rank stream text``, in segments named by the offset of their first byte; the oldest are dropped."""

    def __init__(self, directory, rank):
        self.directory, self.rank, self.partial = directory, rank, {"out": b"", "err": b""}
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self.offset, self.file, self.size, self.lost, self.unseen = 0, None, 0, "", False

    def feed(self, stream, chunk):
        lines = (self.partial[stream] + chunk).split(b"\n")
        self.partial[stream] = lines.pop()
        for line in lines:
            self.write(stream, line)
        while len(self.partial[stream]) > LINE_BYTES_MAX:
            self.write(stream, self.partial[stream][:LINE_BYTES_MAX])
            self.partial[stream] = self.partial[stream][LINE_BYTES_MAX:]

    def line(self, stream, text):
        self.write(stream, text.encode())

    def write(self, stream, text):
        stamp = f"{int(time.time() * 1000)} {self.rank} {stream} ".encode()
        for start in range(0, max(1, len(text)), LINE_BYTES_MAX):
            self.append(stamp + text[start : start + LINE_BYTES_MAX].rstrip(b"\r") + b"\n")

    def append(self, data):
        try:
            if self.file is None or self.size + len(data) > LOG_SEGMENT_BYTES:
                self.rotate()
            os.write(self.file, data)
        except OSError as error:
            return self.see(error)
        self.unseen = True
        self.offset += len(data)
        self.size += len(data)

    def publish(self):
        """Where others look over a network: its file system keeps for itself what is written, for minutes if nobody asks for it."""
        if self.unseen:
            self.unseen = False
            self.see(attempt(os.fdatasync, self.file))

    def see(self, error):
        """A full disk loses log lines, not the work; NFS says only when a file is closed that what was written has no room."""
        self.lost = self.lost or (error.strerror if error else "")

    def rotate(self):
        name = os.path.join(self.directory, f"{self.offset:016d}.log")
        fresh = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.let_go()
        self.file, self.size = fresh, 0
        for old in sorted(os.listdir(self.directory))[:-LOG_SEGMENTS_MAX]:
            os.unlink(os.path.join(self.directory, old))

    def flush(self):
        for stream, rest in self.partial.items():
            if rest:
                self.write(stream, rest)
            self.partial[stream] = b""

    def close(self):
        self.flush()
        self.let_go()

    def let_go(self):
        if self.file is not None:
            self.see(attempt(os.close, self.file))


def descendants(root):
    """Every process below `root`, from one look at /proc."""
    children = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    parent = int(file.read().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(name))
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def own_cgroups():
    """Where this process's memory is counted: by cgroup v2, or v1's controller of memory."""
    with open("/proc/self/cgroup", encoding="ascii") as file:
        rows = [line.rstrip("\n").split(":", 2) for line in file]
    return [f"/sys/fs/cgroup{'/memory' if names else ''}{path}" for _, names, path in rows if names in ("", "memory")]


def oom_kills(groups):
    """How many processes the kernel has ended for their memory in the work's own groups, else in those that whoever started us made for it."""
    found = 0
    for path in [os.path.join(group, name) for group in groups or own_cgroups() for name in ("memory.events", "memory.oom_control")]:
        try:
            with open(path, encoding="ascii") as file:
                found += sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
        except (OSError, ValueError, IndexError):
            continue  # another cgroup's version
    return found


def describe(code):
    if code >= 0:
        return f"exited with {code}"
    from signal import Signals  # their usual names

    return "ended by " + next((each.name for each in Signals if each == -code), f"signal {-code}")


def locked(handle):
    """Take the lock; the server holds it for an instant whenever it looks, so one refusal is no answer."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.005)
        except OSError:
            return True  # a file system without locks: whoever started us has seen to it that we are the only one
        else:
            return True
    return False


def main(notify, directory):
    if not directory:
        return
    sys.stderr = open(os.path.join(directory, "keeper.err"), "a", encoding="utf-8")
    lock = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not locked(lock) or os.path.exists(os.path.join(directory, "journal")):
        return  # another keeper has it, or it was started before, by one that is gone: starting is idempotent, and never twice
    return Keeper(directory, notify).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.stdin.readline().strip()))
