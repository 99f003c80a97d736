"""The files of a new Slurm cluster: pure text, from what an operator says of it. Nothing here touches a machine.

Machines are dynamic nodes: none is listed in slurm.conf, so one joins (`slurmd -Z`) and leaves (`scontrol delete`) without a restart, and the file is the same on all of them. What a
machine has is found on it by the script that it runs once. Settings: https://slurm.schedmd.com/dynamic_nodes.html, cgroup.conf.html, jwt.html; tried on 22.05, 24.11 and 26.05.
"""

import base64
import re
import shlex
from pathlib import PurePosixPath

import msgspec

CONTROLLER_PORT, NODE_PORT = 6817, 6818
TIMEOUT_S = 30
"""A machine that has been silent for so long is down; Slurm's own default is 300."""


class NewCluster(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be made. With a `prefix` everything lies below it and nothing needs root: no cgroups, so it isolates nothing, and the account that makes it runs it."""

    name: str
    host: str
    address: str
    account: str = "slurm"
    nodes_max: int = 1024
    prefix: str = ""
    port: int = CONTROLLER_PORT
    node_port: int = NODE_PORT

    def path(self, path: str) -> str:
        """Where something lies."""
        return f"{self.prefix}{path}"

    @property
    def munge_socket(self) -> str:
        """Munge's own place, or one below the prefix."""
        return self.path("/run/munge/munge.socket.2")


CONF, GRES, CGROUP, JOIN, JWT, MUNGE = (
    "/etc/slurm/slurm.conf",
    "/etc/slurm/gres.conf",
    "/etc/slurm/cgroup.conf",
    "/etc/slurm/join.sh",
    "/etc/slurm/jwt_hs256.key",
    "/etc/munge/munge.key",
)
EPILOG, CONTAINER = "/etc/slurm/epilog.sh", "/etc/slurm/job_container.conf"
REST_SOCKET = "/run/slurmrestd/slurmrestd.socket"
CGROUP_CONF = "ConstrainCores=yes\nConstrainDevices=yes\nConstrainRAMSpace=yes\nConstrainSwapSpace=yes\nAllowedSwapSpace=0\n"
"""Work sees its own cards, cores and memory only."""
CONTAINER_CONF = "AutoBasePath=true\nBasePath=/var/lib/slurm/tmp\n"
"""Each job has a /tmp of its own there."""
HAND_OVER_S = 60
EPILOG_TEXT = """#!/bin/sh
# Made by `headframe cluster init`: between two holders of a card nobody is left on it, its clocks are the maker's, and its memory is overwritten. Where that can't be, Slurm drains
# the machine with the reason in its log. Where Headframe is not on the PATH below, say so in headframe.env beside this file; without it nothing of this is done.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/headframe/bin
[ -r "${0%/*}/headframe.env" ] && . "${0%/*}/headframe.env"
[ -n "${SLURM_JOB_GPUS:-}" ] && command -v headframe >/dev/null || exit 0
exec headframe agent clean $(echo "$SLURM_JOB_GPUS" | tr , ' ')
"""


def slurm_conf(new: NewCluster) -> str:
    """The same on all machines."""
    confined = {
        "ProctrackType": "proctrack/cgroup", "TaskPlugin": "task/cgroup,task/affinity", "JobAcctGatherType": "jobacct_gather/cgroup", "PrologFlags": "Contain",
        "JobContainerType": "job_container/tmpfs",
    }  # fmt: skip
    loose = {
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/linux",
        "SlurmdUser": new.account,
    }
    lines = {
        "ClusterName": new.name, "SlurmctldHost": f"{new.host}({new.address})", "SlurmctldPort": new.port, "SlurmdPort": new.node_port, "SlurmUser": new.account,
        "AuthType": "auth/munge", "AuthInfo": f"socket={new.munge_socket}", "AuthAltTypes": "auth/jwt", "AuthAltParameters": f"jwt_key={new.path(JWT)}",
        "StateSaveLocation": new.path("/var/lib/slurm/slurmctld"), "SlurmdSpoolDir": new.path("/var/lib/slurm/slurmd.%n"),
        "SlurmctldPidFile": new.path("/run/slurmctld.pid"), "SlurmdPidFile": new.path("/run/slurmd.%n.pid" if new.prefix else "/run/slurmd.pid"),
        "SlurmctldLogFile": new.path("/var/log/slurm/slurmctld.log"), "SlurmdLogFile": new.path("/var/log/slurm/slurmd.%n.log"),
        "SelectType": "select/cons_tres", "SelectTypeParameters": "CR_Core_Memory", "GresTypes": "gpu", "MpiDefault": "none", **(loose if new.prefix else confined),
        "Epilog": new.path(EPILOG), "PrologEpilogTimeout": HAND_OVER_S, "MaxNodeCount": new.nodes_max, "TreeWidth": 65533, "ReturnToService": 2, "SlurmdTimeout": TIMEOUT_S, "SlurmctldTimeout": TIMEOUT_S, "MessageTimeout": 10,
        "InactiveLimit": 0, "KillWait": 30, "CompleteWait": 0, "MinJobAge": 300, "MaxJobCount": 50_000, "DefMemPerCPU": 1000,
        "SchedulerType": "sched/backfill", "SchedulerParameters": "batch_sched_delay=0,sched_min_interval=100000,bf_interval=5,bf_continue",
    }  # fmt: skip
    head = "# Made by `headframe cluster init`; the same on every machine of the cluster.\n"
    return (
        head
        + "".join(f"{key}={value}\n" for key, value in lines.items())
        + "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO\n"
    )


def interfaces(listed: str) -> list[str]:
    """Of what `slurmrestd -s list` names, what works without slurmdbd, which a new cluster has not: 22.05 does not start with any other, whichever is asked for."""
    return sorted({word for word in re.findall(r"openapi/[\w.]+", listed) if not word.startswith(("openapi/db", "openapi/slurmdbd"))})


def rest_unit(listed: str) -> str:
    """For slurmrestd, which insists on an account that is neither root nor Slurm's: tokens are what it asks for, so its socket may be reached by all of this machine."""
    only = ",".join(interfaces(listed))
    return (
        "[Service]\nEnvironment=SLURM_JWT=daemon\nDynamicUser=yes\nRuntimeDirectory=slurmrestd\nUMask=0000\nExecStart=\n"
        f"ExecStart=/usr/sbin/slurmrestd -a rest_auth/jwt {f'-s {only} ' if only else ''}unix:{REST_SOCKET}\n"
    )


def join_script(new: NewCluster, munge_key: bytes) -> str:
    """What a machine runs once, as root, to join. It holds the cluster's key: whoever can read it can be a machine of the cluster."""
    words = {
        "PREFIX": new.prefix, "CONF_TEXT": slurm_conf(new), "CGROUP_TEXT": CGROUP_CONF, "CONTAINER_TEXT": CONTAINER_CONF, "EPILOG_TEXT": EPILOG_TEXT, "KEY": base64.b64encode(munge_key).decode(),
        "CONTROLLER": new.address, "CONF": new.path(CONF), "MUNGE": new.path(MUNGE), "SLURM": str(PurePosixPath(new.path(CONF)).parent),
    }  # fmt: skip
    return (
        "#!/bin/sh\n# Made by `headframe cluster init`. It holds the cluster's key: keep it secret.\n"
        + "".join(f"{key}={shlex.quote(value)}\n" for key, value in words.items())
        + _JOIN
    )


_JOIN = r"""
set -eu
NAME=$(hostname -s); RACK=; CARDS=/proc/driver/nvidia/gpus; DEV=/dev
while [ $# -gt 0 ]; do
  [ $# -gt 1 ] || { echo "join: $1 needs a value" >&2; exit 2; }
  case $1 in
    --name) NAME=$2 ;; --rack) RACK=$2 ;; --cards) CARDS=$2 ;; --dev) DEV=$2 ;;
    *) echo "join: unknown: $1 (known: --name, --rack, --cards, --dev)" >&2; exit 2 ;;
  esac
  shift 2
done
case $NAME$RACK in *[!A-Za-z0-9._-]*) echo "join: names are letters, digits, dots, dashes and underscores" >&2; exit 2 ;; esac
say() { echo "join: $*" >&2; }

if [ -z "$PREFIX" ]; then
  [ "$(id -u)" = 0 ] || { echo "join: run it as root" >&2; exit 1; }
  if ! command -v slurmd >/dev/null || ! command -v munged >/dev/null; then
    say "installing slurmd and munge"
    DEBIAN_FRONTEND=noninteractive apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y slurmd slurm-client munge python3 >/dev/null
  fi
fi

umask 077
mkdir -p "$SLURM" "$(dirname "$MUNGE")"
printf %s "$KEY" | base64 -d >"$MUNGE.new"
chmod 400 "$MUNGE.new"
[ -n "$PREFIX" ] || chown munge: "$MUNGE.new"
mv "$MUNGE.new" "$MUNGE"
umask 022
printf %s "$CONF_TEXT" >"$CONF.new" && mv "$CONF.new" "$CONF"
[ -n "$PREFIX" ] || { printf %s "$CGROUP_TEXT" >"$SLURM/cgroup.conf"; printf %s "$CONTAINER_TEXT" >"$SLURM/job_container.conf"; }
printf %s "$EPILOG_TEXT" >"$SLURM/epilog.sh.new" && chmod 755 "$SLURM/epilog.sh.new" && mv "$SLURM/epilog.sh.new" "$SLURM/epilog.sh"

# The driver says which cards there are: a type for each model, as letters and digits, and the device files of each.
GRES=$(for card in "$CARDS"/*/information; do
  [ -e "$card" ] || continue
  sed -n 's/^Model:[[:space:]]*//p;s/^Device Minor:[[:space:]]*//p' "$card" | tr '\n' '|'; echo
done | awk -F'|' -v dev="$DEV" 'NF > 1 { type = tolower($1); gsub(/nvidia|geforce|quadro/, "", type); gsub(/[^a-z0-9]/, "", type);
  count[type]++; files[type] = files[type] (files[type] ? "," : "") dev "/nvidia" $2 }
  END { for (type in count) print type, count[type], files[type] }' | sort)
printf '%s' "$GRES" | awk 'NF { print "Name=gpu Type=" $1 " File=" $3 }' >"$SLURM/gres.conf"
HAS=$(printf '%s' "$GRES" | awk 'NF { all = all (all ? "," : "") "gpu:" $1 ":" $2 } END { print all }')
DISK=$(df -Pk /tmp | awk 'NR == 2 { print int($2 / 1024) }')  # Slurm takes a dynamic node to have none unless it is said
SAID="TmpDisk=$DISK${HAS:+ Gres=$HAS}${RACK:+ Feature=rack=$RACK}"
say "$NAME: ${HAS:-no cards that the driver knows}"

# A controller keeps what a machine said when it first joined: one that has other cards by now, or stands elsewhere, has to be forgotten first.
export SLURM_CONF="$CONF"
known() { scontrol -o show node "$NAME" 2>/dev/null | tr ' ' '\n' | sed -n "s/^$1=//p" | sed 's/([^)]*)//g'; }
if scontrol -o show node "$NAME" >/dev/null 2>&1 && [ "$(known Gres)/$(known AvailableFeatures)" != "$HAS/${RACK:+rack=$RACK}" ]; then
  say "the controller knows other cards or another rack of $NAME: it is told anew"
  scontrol delete NodeName="$NAME" || { say "it still runs work: scontrol update NodeName=$NAME State=DRAIN Reason=cards, wait for its end, run this again"; exit 1; }
fi

if [ -n "$PREFIX" ]; then
  mkdir -p "$PREFIX/var/lib/slurm/slurmd.$NAME" "$PREFIX/var/log/slurm" "$PREFIX/run"
  exec slurmd -D -N "$NAME" -f "$CONF" -Z --conf "$SAID"
fi
install -d -m 755 /var/lib/slurm "/var/lib/slurm/slurmd.$NAME" /var/log/slurm /etc/systemd/system/slurmd.service.d
MODE='-D -s'
if systemctl cat slurmd | grep -q '^Type=notify'; then MODE=--systemd; fi  # from 23.11 on it tells systemd itself when it is up
printf '[Service]\nExecStart=\nExecStart=/usr/sbin/slurmd %s -N %s -Z --conf "%s"\n' "$MODE" "$NAME" "$SAID" >/etc/systemd/system/slurmd.service.d/headframe.conf
systemctl daemon-reload
systemctl enable -q munge slurmd
systemctl restart munge slurmd
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
  sleep 2
  case $(sinfo -h -n "$NAME" -o %T 2>/dev/null) in *idle*|*mixed*|*alloc*|*drain*|*compl*) say "$NAME has joined"; exit 0 ;; esac
  systemctl is-active -q slurmd || break
done
journalctl -n 20 --no-pager -u slurmd >&2
say "$NAME has not joined: see above and /var/log/slurm/slurmd.$NAME.log; is $CONTROLLER reachable on the controller's port?"
exit 1
"""
