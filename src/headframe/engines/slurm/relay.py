"""Joins standard input and output with a port at which this very job listens: run in a step of the job, on its machine. It imports nothing of Headframe. Its first line is `ok`, or
why there is no connection.
"""

import os
import select
import socket
import sys

CHUNK = 64 * 1024
GONE_S = 5.0
"""Once nothing more comes from the client, what listens has so long to end, each time it says something."""


def main():
    port = int(sys.argv[1])
    if not listens(port):
        say(f"nothing of this work listens at port {port}")
        return
    try:
        line = socket.create_connection(("127.0.0.1", port), timeout=10)
    except OSError as error:
        say(f"port {port} does not answer: {error.strerror or error}")
        return
    line.settimeout(None)
    say("ok")
    carry(line)


def say(text):
    os.write(1, f"{text}\n".encode())


def listens(port):
    """Whether a process of this job does."""
    inodes = set()
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii") as table:
                fields = [row.split() for row in table.readlines()[1:]]
        except OSError:
            continue
        inodes |= {f"socket:[{each[9]}]" for each in fields if each[3] == "0A" and int(each[1].rpartition(":")[2], 16) == port}
    return bool(inodes) and any(holds(pid, inodes) for pid in os.listdir("/proc") if pid.isdigit())


def holds(pid, inodes):
    job = f"SLURM_JOB_ID={os.environ['SLURM_JOB_ID']}".encode()
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            if job not in environ.read().split(b"\0"):
                return False
        handles = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for handle in handles:
        try:
            if os.readlink(f"/proc/{pid}/fd/{handle}") in inodes:
                return True
        except OSError:
            continue
    return False


def carry(line):
    """Until what listens has said all."""
    typing = True
    while True:
        ready, _, _ = select.select([line, 0] if typing else [line], [], [], None if typing else GONE_S)
        if not ready:
            return
        if 0 in ready:
            data = os.read(0, CHUNK)
            if data:
                line.sendall(data)
            else:
                typing = False
                line.shutdown(socket.SHUT_WR)
        if line in ready:
            data = line.recv(CHUNK)
            if not data:
                return
            while data:
                data = data[os.write(1, data) :]


if __name__ == "__main__":
    try:
        main()
    except OSError:
        pass  # one side left
