"""Three machines with Debian (12, or another: `suite`), its own kernel, systemd, cgroup v2, quotas and NFS, by QEMU (no hardware help is needed, so it is slow): what processes on one machine can't show.

Needs root, mmdebstrap, qemu-system-x86, e2fsprogs and ssh, and a mirror of Debian's for the first run. `ctl` exports the shared directory and is, as the others are, a client of it.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import later

PROJECT = Path(__file__).parent.parent
SHARED = (PROJECT, Path(sys.base_prefix))  # read there under the same paths: the product as it stands here, and its Python
NET, BRIDGE = "10.77.0", "hfdeb"
ADDRESSES = {"ctl": f"{NET}.10", "n1": f"{NET}.11", "n2": f"{NET}.12"}
PACKAGES = (
    "systemd systemd-sysv dbus iproute2 procps ca-certificates python3 openssh-server linux-image-amd64 initramfs-tools udev kmod quota nfs-common nfs-kernel-server uidmap slurmctld slurmd"
    " slurmrestd munge slurm-client slurm-wlm-jwt-plugin podman crun passt slirp4netns busybox-static"
)
NETWORK = r"""[Unit]
Before=ssh.service network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'said() { sed -n "s/.*$1=\\([a-z0-9.]*\\).*/\\1/p" /proc/cmdline; }; i=$(ls /sys/class/net | grep -v lo); hostname $(said hfname); ip addr add $(said hfip)/24 dev $i; ip link set $i up'
[Install]
WantedBy=multi-user.target
"""
UP_S = 600


def missing():
    """What this machine lacks."""
    gone = [name for name in ("mmdebstrap", "qemu-system-x86_64", "qemu-img", "mke2fs", "ssh", "ssh-keygen", "ip") if shutil.which(name) is None]
    return gone if os.geteuid() == 0 else [*gone, "root"]


class Debian:
    """Below `root`; the image of the first run is kept there."""

    def __init__(self, root, suite="bookworm"):
        self.root = Path(root) / suite
        self.suite = suite
        self.processes = {}

    def __enter__(self):
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            if not (self.root / "base.img").exists():
                self._build()
            self._bridge()
            for name in ADDRESSES:
                self.start(name, fresh=True)
            for name in ADDRESSES:
                self.wait(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in list(self.processes):
            self.kill(name)
        subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True)

    def _build(self):
        key, tree = self.root / "key", self.root / "tree"
        for path in (key, key.with_suffix(".pub")):
            path.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        shutil.rmtree(tree, ignore_errors=True)
        later.fetch(self.suite, PACKAGES.split(), tree)
        files = {
            "root/.ssh/authorized_keys": key.with_suffix(".pub").read_text(),
            "etc/hosts": "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in ADDRESSES.items()),
            "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
            "etc/systemd/system/network-here.service": NETWORK,
        }
        for name, text in files.items():
            (tree / name).parent.mkdir(mode=0o700, exist_ok=True)
            (tree / name).write_text(text)
        subprocess.run(["chroot", tree, "systemctl", "enable", "--quiet", "network-here", "ssh"], check=True)
        for name in ("vmlinuz", "initrd.img"):
            shutil.copy(next((tree / "boot").glob(f"{name}-*")), self.root / name)
        fresh = self.root / "base.img.new"
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, fresh, "6G"], check=True)
        fresh.rename(self.root / "base.img")
        shutil.rmtree(tree)

    def _bridge(self):
        subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=False, capture_output=True)
        subprocess.run(["ip", "addr", "replace", f"{NET}.1/24", "dev", BRIDGE], check=True)
        subprocess.run(["ip", "link", "set", BRIDGE, "up"], check=True)

    def start(self, name, *, fresh=False):
        """Switch it on."""
        disk, tap = self.root / f"{name}.img", f"{BRIDGE}-{name}"
        if fresh:
            disk.unlink(missing_ok=True)
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", self.root / "base.img", "-F", "raw", disk], check=True)
        drives = [f"file={disk},if=virtio,format=qcow2"]
        if name == "ctl":
            shared = self.root / "shared.img"
            subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-O", "quota", shared, "1G"], check=True)
            drives.append(f"file={shared},if=virtio,format=raw")
        subprocess.run(["ip", "link", "del", tap], check=False, capture_output=True)
        subprocess.run(["ip", "tuntap", "add", tap, "mode", "tap"], check=True)
        subprocess.run(["ip", "link", "set", tap, "master", BRIDGE, "up"], check=True)
        mac = f"52:54:00:77:00:{int(ADDRESSES[name].rpartition('.')[2]):02x}"
        command = ["qemu-system-x86_64", "-accel", os.environ.get("HEADFRAME_ACCEL", "tcg,thread=multi"), "-cpu", "max", "-m", "2500" if name == "ctl" else "2000", "-smp", "2", "-nographic",
                   "-kernel", self.root / "vmlinuz", "-initrd", self.root / "initrd.img", "-append", f"root=/dev/vda rw console=ttyS0 net.ifnames=0 hfip={ADDRESSES[name]} hfname={name}",
                   "-netdev", f"tap,id=n,ifname={tap},script=no,downscript=no", "-device", f"virtio-net,netdev=n,mac={mac}"]  # fmt: skip
        command += [word for drive in drives for word in ("-drive", drive)]
        for number, path in enumerate(SHARED):
            command += ["-virtfs", f"local,path={path},mount_tag=share{number},security_model=none,readonly=on"]
        with (self.root / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def wait(self, name):
        """Until it answers; then it reads the product."""
        until = time.monotonic() + UP_S
        while self.run(name, "true", check=False).returncode:
            assert time.monotonic() < until, f"{name} does not come up: see {self.root}/{name}.log"
            assert self.processes[name].poll() is None, f"{name} ended: see {self.root}/{name}.log"
            time.sleep(3)
        for number, path in enumerate(SHARED):
            self.run(name, f"mkdir -p {path}; mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=mmap share{number} {path}")

    def ssh(self, name):
        """The beginning of a command there."""
        quiet = (
            "-q",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "ConnectTimeout=5",
            "-o",
            "ServerAliveInterval=5",
        )
        return ["ssh", *quiet, "-i", self.root / "key", f"root@{ADDRESSES[name]}"]

    def run(self, name, script, words="", check=True):
        """A script there, by its sh, with these words."""
        done = subprocess.run([*self.ssh(name), f"sh -es -- {words}"], input=script, capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{name}: {script}\n{done.stdout}\n{done.stderr}"
        return done

    def kill(self, name):
        """Cut its power."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()
        subprocess.run(["ip", "link", "del", f"{BRIDGE}-{name}"], check=False, capture_output=True)
