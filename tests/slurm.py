"""A real Slurm of several machines on one: munge, slurmctld, a slurmd for each node, slurmrestd, and on demand MariaDB with slurmdbd.

Everything lies below one directory, every port is a free one, nothing is installed or left running. The nodes are processes on loopback
that claim GPUs which are not there (links to /dev/null stand in for the device files); all else of Slurm is as on a real machine.
"""

import contextlib
import functools
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

PLACES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES = {
    "munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "scontrol": "slurm-client", "slurmrestd": "slurmrestd",
    "slurmdbd": "slurmdbd", "mariadbd": "mariadb-server",
}  # fmt: skip
PLUGINS = {"auth_jwt.so": "slurm-wlm-jwt-plugin", "accounting_storage_mysql.so": "slurm-wlm-mysql-plugin"}
LIMIT_S = 60.0


def which(program):
    """The real build where a distribution has an emulating one beside it."""
    for place in PLACES.split(":"):
        for name in (f"{program}-wlm", program):
            if os.access(f"{place}/{name}", os.X_OK):
                return f"{place}/{name}"
    return None


def missing():
    """The packages that are not installed."""
    folders = [*Path("/usr/lib").glob("*/slurm-wlm"), *Path("/usr/lib").glob("*/slurm")]
    gone = [package for program, package in PACKAGES.items() if which(program) is None]
    return gone + [package for plugin, package in PLUGINS.items() if not any((folder / plugin).exists() for folder in folders)]


@functools.cache
def release():
    """(22, 5) of slurm-wlm 22.05.8."""
    told = subprocess.run([which("slurmctld"), "-V"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in told.split()[-1].split(".")[:2])


class Slurm:
    """`with Slurm(path, nodes=4, gpus="rtx3090:4") as slurm:`"""

    def __init__(self, root, nodes=4, gpus="rtx3090:4", cpus=16, memory_mb=64_000, accounting=False, switches=None, **conf):
        self.root = Path(root)
        self.names = [f"n{k + 1}" for k in range(nodes)]
        self.gpus, self.cpus, self.memory_mb = gpus, cpus, memory_mb
        self.accounting, self.switches, self.conf = accounting, switches or {}, conf
        self.processes = {}
        self.key = self.root / "jwt.key"
        self.url = f"unix:{self.root}/rest/rest.sock"

    def __enter__(self):
        assert len(str(self.root)) < 70, "the sockets below it would have names that are too long"
        for name in ("rest", "log", "state", "spool", "dev", "sbin"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)
        for program in ("slurmctld", "slurmd", "slurmstepd", "slurmdbd", "slurmrestd"):
            if which(program) and not (self.root / "sbin" / program).exists():  # it is what it is called: under another name slurmd knows no GPUs
                (self.root / "sbin" / program).symlink_to(which(program))
        for name, size in (("munge.key", 64), ("jwt.key", 32)):
            (self.root / name).write_bytes(os.urandom(size))
            (self.root / name).chmod(0o600)
        ports = free_ports(5 + len(self.names))
        self.ports = dict(zip(["ctld", "slurmd", "rest", "dbd", "db", *self.names], ports))
        try:
            self._configure()
            self._up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in list(self.processes)[::-1]:
            self.kill(name)
        for line in subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True).stdout.splitlines():
            pid, _, args = line.strip().partition(" ")
            if str(self.root) in args and "slurm" in args:  # what a killed slurmd left
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)

    def run(self, *command, check=True):
        """A client command of Slurm."""
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SLURM_CONF": str(self.root / "slurm.conf")})
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def kill(self, name, number=signal.SIGKILL):
        process = self.processes.pop(name, None)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
            process.wait(20)

    def lose(self, name):
        """The machine is gone: its slurmd and all that it ran, at once."""
        self.kill(f"slurmd-{name}")
        for pid in self.running_on(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def running_on(self, name):
        """Jobs by their environment, and a slurmstepd, which has none, by the log of its slurmd that it holds open."""
        mark, log = f"SLURMD_NODENAME={name}".encode(), f"{self.root}/log/slurmd-{name}.log"
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    yield int(path.name)
                elif (path / "comm").read_text().startswith("slurmstepd") and any(os.readlink(f) == log for f in (path / "fd").iterdir()):
                    yield int(path.name)

    def controller(self):
        """Later ones do not start again after a kill before they first saved everything, which they do every five minutes, unless they are told to (-i)."""
        told = ["-i"] if release() >= (24, 11) else []
        self._spawn("slurmctld", [f"{self.root}/sbin/slurmctld", "-D", *told, "-f", f"{self.root}/slurm.conf"])
        self._until("slurmctld", lambda: " is UP" in self.run("scontrol", "ping", check=False))

    def slurmd(self, name):
        (self.root / "spool" / name).mkdir(exist_ok=True)
        self._spawn(f"slurmd-{name}", [
            f"{self.root}/sbin/slurmd", "-D", "-N", name, "-f", f"{self.root}/slurm.conf", "-d", f"{self.root}/sbin/slurmstepd",
        ])  # fmt: skip

    def slurmdbd(self):
        self._spawn("slurmdbd", [f"{self.root}/sbin/slurmdbd", "-D"])
        self._until("slurmdbd", lambda: _open(self.ports["dbd"]))

    def rest(self):
        """As a user that is neither root nor Slurm's, which it insists on."""
        sock = self.root / "rest/rest.sock"
        sock.unlink(missing_ok=True)
        first = release() < (23, 2)  # one plugin held both a part and its dialect then
        parts = ("openapi/v0.0.38", "openapi/dbv0.0.38") if first else ("slurmctld", "slurmdbd")
        parts = parts if self.accounting else parts[:1]
        command = [f"{self.root}/sbin/slurmrestd", "-f", f"{self.root}/slurm.conf", "-a", "rest_auth/jwt", "-s", ",".join(parts)]
        env = {"SLURM_JWT": "daemon"}
        if os.geteuid() == 0:
            os.chown(sock.parent, 1, 1)
            command += ["-u", "1", "-g", "1"]
        else:
            env["SLURMRESTD_SECURITY"] = "disable_user_check,disable_unshare_files,disable_unshare_sysv"
        self._spawn("slurmrestd", [*command, f"unix:{sock}"], env)
        self._until("slurmrestd", sock.exists)

    def _up(self):
        sock = self.root / "munge.sock"
        self._spawn("munged", [
            which("munged"), "--foreground", "--force", f"--socket={sock}", f"--key-file={self.root}/munge.key", "--num-threads=4",
            f"--pid-file={self.root}/munged.pid", f"--log-file={self.root}/log/munged.log", f"--seed-file={self.root}/munged.seed",
        ])  # fmt: skip
        self._until("munged", sock.exists)
        if self.accounting:
            self._mariadb()
            self.slurmdbd()
            me = self.run("id", "-un").strip()
            for said in (["cluster", "test"], ["account", "default", "cluster=test"], ["user", me, "account=default", "adminlevel=admin"]):
                self.run("sacctmgr", "-i", "add", *said, check=False)
        self.controller()
        for name in self.names:
            self.slurmd(name)
        self.rest()
        self._until("all nodes idle", lambda: self.run("sinfo", "-h", "-N", "-o", "%t", check=False).split().count("idle") == len(self.names))

    def _mariadb(self):
        (self.root / "init.sql").write_text(
            "CREATE DATABASE IF NOT EXISTS slurm_acct;\nCREATE USER IF NOT EXISTS 'slurm'@'%' IDENTIFIED BY 'test';\n"
            "GRANT ALL ON slurm_acct.* TO 'slurm'@'%';\n"
        )
        (self.root / "my.cnf").write_text(
            "[mariadbd]\n" + ("user=root\n" if os.geteuid() == 0 else "") + f"datadir={self.root}/db\nsocket={self.root}/db.sock\n"
            f"pid-file={self.root}/db.pid\nbind-address=127.0.0.1\nport={self.ports['db']}\nskip-name-resolve\ninnodb_buffer_pool_size=64M\n"
            f"innodb_log_file_size=8M\ninnodb_flush_log_at_trx_commit=0\ninnodb_lock_wait_timeout=900\nskip-log-bin\ninit-file={self.root}/init.sql\n"
        )
        subprocess.run(
            [which("mariadb-install-db"), f"--defaults-file={self.root}/my.cnf", "--auth-root-authentication-method=normal", "--skip-test-db"],
            check=True, capture_output=True,
        )  # fmt: skip
        self._spawn("mariadbd", [which("mariadbd"), f"--defaults-file={self.root}/my.cnf"])
        self._until("mariadbd", lambda: _open(self.ports["db"]))

    def _configure(self):
        root, me = self.root, subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip()
        conf = {
            "ClusterName": "test", "SlurmctldHost": f"{socket.gethostname().split('.')[0]}(127.0.0.1)", "SlurmctldPort": self.ports["ctld"],
            "SlurmdPort": self.ports["slurmd"], "SlurmUser": me, "SlurmdUser": me, "AuthType": "auth/munge",
            "AuthInfo": f"socket={root}/munge.sock,cred_expire=5", "AuthAltTypes": "auth/jwt", "AuthAltParameters": f"jwt_key={root}/jwt.key",
            "StateSaveLocation": f"{root}/state", "SlurmdSpoolDir": f"{root}/spool/%n", "SlurmctldPidFile": f"{root}/ctld.pid",
            "SlurmdPidFile": f"{root}/slurmd-%n.pid", "SlurmctldLogFile": f"{root}/log/slurmctld.log", "SlurmdLogFile": f"{root}/log/slurmd-%n.log",
            "SlurmdParameters": "config_overrides", "SelectType": "select/cons_tres", "SelectTypeParameters": "CR_Core_Memory", "GresTypes": "gpu",
            "ProctrackType": "proctrack/linuxproc", "TaskPlugin": "task/none", "JobAcctGatherType": "jobacct_gather/linux", "MpiDefault": "none",
            "ReturnToService": 2, "SlurmdTimeout": 10, "SlurmctldTimeout": 10, "MessageTimeout": 5, "InactiveLimit": 0, "KillWait": 5, "MinJobAge": 300,
            "CompleteWait": 0, "UnkillableStepTimeout": 30, "BatchStartTimeout": 10, "MaxJobCount": 20000, "DefMemPerCPU": 1000,
            "SchedulerType": "sched/backfill", "SchedulerParameters": "sched_min_interval=2000,bf_interval=2,bf_continue,batch_sched_delay=0",
            "AccountingStorageType": "accounting_storage/none",
        }  # fmt: skip
        if self.accounting:
            conf |= {"AccountingStorageType": "accounting_storage/slurmdbd", "AccountingStorageTRES": "gres/gpu", "AccountingStorageHost": "127.0.0.1",
                     "AccountingStoragePort": self.ports["dbd"], "AccountingStoragePass": f"{root}/munge.sock"}  # fmt: skip
            (root / "slurmdbd.conf").write_text(
                f"AuthType=auth/munge\nAuthInfo=socket={root}/munge.sock\nAuthAltTypes=auth/jwt\nAuthAltParameters=jwt_key={root}/jwt.key\n"
                f"DbdHost=localhost\nDbdAddr=127.0.0.1\nDbdPort={self.ports['dbd']}\nSlurmUser={me}\nPidFile={root}/slurmdbd.pid\nCommitDelay=1\n"
                f"LogFile={root}/log/slurmdbd.log\nStorageType=accounting_storage/mysql\nStorageLoc=slurm_acct\nStorageUser=slurm\nStoragePass=test\n"
                f"StorageHost=127.0.0.1\nStoragePort={self.ports['db']}\n"
            )
            (root / "slurmdbd.conf").chmod(0o600)
        if self.switches:
            conf |= {"TopologyPlugin": "topology/tree"}
            rows = [f"SwitchName={name} Nodes={nodes}" for name, nodes in self.switches.items()]
            (root / "topology.conf").write_text("\n".join([*rows, f"SwitchName=spine Switches={','.join(self.switches)}"]) + "\n")
        conf |= self.conf
        gres = ["AutoDetect=off"]
        lines = [f"{key}={value}" for key, value in conf.items()]
        for name in self.names:
            lines.append(f"NodeName={name} NodeAddr=127.0.0.1 Port={self.ports[name]} CPUs={self.cpus} RealMemory={self.memory_mb} TmpDisk=100000"
                         + (f" Gres=gpu:{self.gpus}" if self.gpus else "") + " State=UNKNOWN")  # fmt: skip
            if self.gpus:
                gres.append(self._cards(name))
        lines.append(f"PartitionName=main Nodes={','.join(self.names)} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO")
        (root / "slurm.conf").write_text("\n".join(lines) + "\n")
        (root / "gres.conf").write_text("\n".join(gres) + "\n")
        (root / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

    def _cards(self, name):
        model, _, count = self.gpus.partition(":")
        folder = self.root / "dev" / name
        folder.mkdir()
        for k in range(int(count)):
            (folder / f"nvidia{k}").symlink_to("/dev/null")
        which_ones = f"[0-{int(count) - 1}]" if int(count) > 1 else "0"
        return f"NodeName={name} Name=gpu Type={model} File={folder}/nvidia{which_ones}"

    def _spawn(self, name, command, env=None):
        with (self.root / "log" / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd=self.root,
                env={"PATH": PLACES, "SLURM_CONF": f"{self.root}/slurm.conf", "HOME": os.environ.get("HOME", "/"), **(env or {})},
            )  # fmt: skip

    def _until(self, what, done):
        end = time.monotonic() + LIMIT_S
        while not done():
            gone = [name for name, process in self.processes.items() if process.poll() is not None]
            assert not gone and time.monotonic() < end, f"waiting for {what}, ended {gone}; see {self.root}/log"
            time.sleep(0.02)


def _open(port):
    with contextlib.closing(socket.socket()) as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count):
    """Below the range that the kernel hands out to clients."""
    found, start = [], 20_000 + os.getpid() * 37 % 9000
    for port in range(start, 32_000):
        with contextlib.closing(socket.socket()) as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")
