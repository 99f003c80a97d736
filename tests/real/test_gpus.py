"""GPUs as the machine's own NVML library tells of them: a stand-in for the driver's library, compiled here, read by the real probe."""

import pytest

from headframe.client import ApiError
from headframe.model.api import GpuBody
from headframe.model.fleet import Grade
from support import Server, fake_nvml, wait_for

TWO_3090 = """
-1.count 2
*.name NVIDIA GeForce RTX 3090
0.uuid GPU-0000-1
1.uuid GPU-0000-2
*.memory_mib 24576
*.capability 8.6
0.bus 00000000:01:00.0
1.bus 00000000:02:00.0
*.gen_max 4
*.width 16
*.limit_mw 350000
*.p2p 1
-1.driver -1003
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gpus(tmp_path_factory):
    """A server on a machine with two RTX 3090, as far as it can tell."""
    root = tmp_path_factory.mktemp("gpus")
    library = fake_nvml(root)
    (root / "state").write_text(TWO_3090)
    server = Server(root).start("--no-check-new", LD_LIBRARY_PATH=str(library.parent), FAKE_NVML_STATE=str(root / "state"))
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
