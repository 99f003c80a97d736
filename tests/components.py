"""The real components that tests drive: a browser, a container runtime, PostgreSQL, Slurm, Prometheus' own checker, nginx. In CI what is missing is installed, and
failing to is a failure; elsewhere their tests are skipped with the reason.
"""

import glob
import os
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.dirname(__file__))
import later  # noqa: E402
import slurm  # noqa: E402

PACKAGES = {
    "chromium": "chromium",
    "podman": "podman",
    "runc": "runc",
    "newuidmap": "uidmap",
    "initdb": "postgresql",
    "promtool": "prometheus",
    "nginx": "nginx-light",
    "mmdebstrap": "mmdebstrap",
}


def find(program: str) -> str | None:
    found = shutil.which(program)
    places = [*glob.glob(f"/usr/sbin/{program}"), *sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{program}"))]
    return places[-1] if places else found


def main() -> int:
    return _packages() or _later_slurm()


def _later_slurm() -> int:
    """Debian 13's Slurm, in CI only: a tree of 600 MB."""
    if os.environ.get("CI") != "true" or (later.TREES / later.STABLE).exists():
        return 0
    if later.missing():
        print(f"Debian 13's Slurm can't be had: {', '.join(later.missing())}")
        return 1
    print(f"made {later.tree(later.STABLE)}")
    return 0


def _packages() -> int:
    missing = {program: package for program, package in PACKAGES.items() if find(program) is None}
    missing |= {f"Slurm's {package}": package for package in slurm.missing()}
    if not missing:
        return 0
    wanted = sorted(missing.values())
    if os.environ.get("CI") != "true":
        print(f"note: tests of {', '.join(wanted)} are skipped: not installed (CI=true installs them)")
        return 0
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted, "crun", "runc", "fonts-dejavu-core"],
    ):
        done = subprocess.run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True)
        if done.returncode:
            print(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
            return 1
    still = [*(program for program in PACKAGES if find(program) is None), *slurm.missing()]
    print(f"components still missing after installation: {still}" if still else f"installed {', '.join(wanted)}")
    return 1 if still else 0


if __name__ == "__main__":
    sys.exit(main())
