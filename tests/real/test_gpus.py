"""GPUs as the machine's own NVML library tells of them: a stand-in for the driver's library, compiled here, read by the real probe."""

import shutil
import subprocess

import pytest

from headframe.client import ApiError
from headframe.model.api import GpuBody
from headframe.model.fleet import Grade
from support import Server, wait_for

LIBRARY = r"""
#include <stdio.h>
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { char busIdLegacy[16]; unsigned int domain, bus, device, pciDeviceId, pciSubSystemId; char busId[32]; } pci_t;
int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned f) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int e) { return "not supported"; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)(long)(i + 1); return 0; }
int nvmlDeviceGetUUID(void *h, char *s, unsigned n) { snprintf(s, n, "GPU-0000-%ld", (long)h); return 0; }
int nvmlDeviceGetName(void *h, char *s, unsigned n) { snprintf(s, n, "NVIDIA GeForce RTX 3090"); return 0; }
int nvmlDeviceGetMemoryInfo(void *h, memory_t *m) { m->total = 24576ULL << 20; m->free = m->total; m->used = 0; return 0; }
int nvmlDeviceGetCudaComputeCapability(void *h, int *a, int *b) { *a = 8; *b = 6; return 0; }
int nvmlDeviceGetPciInfo_v3(void *h, pci_t *p) { memset(p, 0, sizeof *p); strcpy(p->busId, "00000000:01:00.0"); return 0; }
int nvmlDeviceGetMaxPcieLinkGeneration(void *h, unsigned *n) { *n = 4; return 0; }
int nvmlDeviceGetCurrPcieLinkWidth(void *h, unsigned *n) { *n = 16; return 0; }
int nvmlDeviceGetEnforcedPowerLimit(void *h, unsigned *n) { *n = 350000; return 0; }
int nvmlDeviceGetP2PStatus(void *a, void *b, int index, int *status) { *status = 0; return 0; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { return 3; }
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gpus(tmp_path_factory):
    """A server on a machine with two RTX 3090, as far as it can tell."""
    root = tmp_path_factory.mktemp("gpus")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make the stand-in with")
    (root / "nvml.c").write_text(LIBRARY)
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", str(root / "libnvidia-ml.so.1"), str(root / "nvml.c")], check=True)
    server = Server(root).start(LD_LIBRARY_PATH=str(root))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def tenant(gpus):
    with gpus.tenant() as client:
        yield client


def file(name, gpu, run="echo got $CUDA_VISIBLE_DEVICES of $HEADFRAME_GPUS_PER_NODE", **more):
    extra = "".join(f"\n{key}: {value}" for key, value in more.items())
    return f"name: {name}\nrun: {run}\nresources: {{gpu: {gpu}, cpu: 0.1, memory: 10MB, disk: 1MB}}{extra}"


def output(tenant, name):
    return [line.text for line in tenant.follow(name) if hasattr(line, "text")]


def test_the_cards_are_enrolled_with_what_nvml_says_and_an_unanswered_question_stays_open(gpus):
    with gpus.operator() as operator:
        cards = next(operator.nodes()).gpus
    assert [(card.id, card.model, card.memory_mib, card.compute_capability, card.driver) for card in cards] == [
        ("GPU-0000-1", "NVIDIA GeForce RTX 3090", 24576, "8.6", ""),
        ("GPU-0000-2", "NVIDIA GeForce RTX 3090", 24576, "8.6", ""),
    ]


@pytest.mark.parametrize(("gpu", "shown"), [("RTX3090:1", 1), ("24GB..:2", 2), ("0.25", 1), ("2", 2), ("0", 0)])
def test_work_sees_the_cards_it_holds_and_no_others(tenant, gpu, shown):
    name = "sees-" + gpu.replace(":", "-").replace(".", "-").lower()
    tenant.submit(file(name, gpu))
    text = output(tenant, name)[0]
    assert text.count("GPU-0000-") == shown
    assert text.endswith(f"of {shown}")


def test_a_card_is_shared_in_fractions_and_priced_by_them(tenant):
    for n in range(4):
        tenant.submit(file(f"quarter-{n}", 0.25, "sleep 30"))
    wait_for(lambda: all(tenant.workload(f"quarter-{n}").workload.state == "running" for n in range(4)))
    held = {
        share.gpu_id for n in range(4) for attempt in tenant.workload(f"quarter-{n}").allocations for part in attempt.parts for share in part.shares
    }
    assert len(held) == 1
    tenant.submit(file("both", 2))
    waits = wait_for(lambda: tenant.workload("both").waits)
    assert str(waits[0]) == "gpu: 1 node refused: needs 2 GPU (any model), best has 1 of 2 free; waits until gpu is released"
    for n in range(4):
        tenant.stop(f"quarter-{n}")
    assert output(tenant, "both")[0].endswith("of 2")


def test_links_and_limits_are_read_and_can_be_asked_for(gpus, tenant):
    with gpus.operator() as operator:
        cards = next(operator.nodes()).gpus
    assert [(card.pcie_gen, card.pcie_width, card.p2p, card.max_w) for card in cards] == [(4, 16, "0", 350)] * 2
    tenant.submit(file("linked", 2, topology="{pcie: '>=16', p2p: required}"))
    assert output(tenant, "linked")[0].endswith("of 2")
    with pytest.raises(ApiError, match=r"grade: 1 node refused: needs train, best has unmeasured"):
        tenant.submit(file("graded", "{count: 1, grade: train}"))
    with gpus.operator() as operator:
        operator.set_gpu(cards[0].id, GpuBody(grade=Grade.TRAIN))
    tenant.submit(file("graded", "{count: 1, grade: train}"))
    assert cards[0].id in output(tenant, "graded")[0]


def test_offers_count_the_free_cards_and_spot_is_cheaper(tenant):
    offer = tenant.offers().items[0]
    assert (offer.model, offer.total, offer.memory_mib) == ("NVIDIA GeForce RTX 3090", 2, 24576)
    assert offer.spot_nano < offer.reserved_nano < offer.on_demand_nano
    firm, spot = (tenant.quote(file("q", 1, tier=tier)).quote.rate_max_nano for tier in ("on-demand", "spot"))
    assert spot < firm


def test_more_than_there_is_or_dearer_than_wanted_is_refused_at_submit(tenant):
    with pytest.raises(ApiError, match=r"needs 3 GPU \(any model\), best has 2 of 2 free"):
        tenant.submit(file("three", 3))
    with pytest.raises(ApiError) as refused:
        tenant.submit(file("dear", 1, max_price="0.01"))
    assert refused.value.problem.code == "max_price_too_low"
