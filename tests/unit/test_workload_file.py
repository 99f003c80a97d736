"""The workload file: what people write is understood, and what they got wrong is named, all of it, with its line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headframe.model.errors import BadFile, HeadframeError
from headframe.model.fleet import Grade, Sharing
from headframe.model.serving import Serving
from headframe.model.states import Reason
from headframe.model.units import duration, money, parse_duration_s, parse_mib, parse_usd, usd
from headframe.model.work import GpuRequest, Mount, Network, Tier
from headframe.server.workload_file import parse, parse_gpu

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*/*.yaml"))
WHOLE = """
type: job
name: train-digits
workdir: .
image: ghcr.io/org/image:tag
setup: pip install -r requirements.txt
run: torchrun train.py
env: {EPOCHS: "3"}
nodes: 2
resources: {gpu: RTX3090:4, cpu: 8, memory: 32GB, disk: 50GB}
tier: spot
max_price: 1.50
max_duration: 12h
retry: {on: [preempted, node-lost], attempts: 3}
checkpoint: /checkpoints
priority: 5
"""


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_example_is_understood_without_a_warning(file):
    assert parse(file.read_text()).warnings == ()


def test_every_demand_of_cards_and_machines_is_understood():
    spec = parse("""
run: x
resources:
  gpu: {model: A100, count: 2, compute_capability: ">=8.0", grade: train, mig: 1g.10gb}
  exclusive: node
  arch: arm64
  tolerations: [lab, a]
topology: {network: required, pcie: ">=8", p2p: required}
volumes: [data:/data, other-1:/mnt/x, cache:models:/models]
""").spec
    assert spec.resources.gpu == GpuRequest(
        milli=2000, model="A100", compute_capability="8.0", grade=Grade.TRAIN, mig="1g.10gb", pcie_width=8, p2p=True
    )
    assert (spec.resources.exclusive, spec.resources.arch, spec.resources.tolerations) == (True, "aarch64", ("a", "lab"))
    assert (spec.network, spec.volumes) == (
        Network.REQUIRED,
        (Mount(volume="data", path="/data"), Mount(volume="other-1", path="/mnt/x"), Mount(volume="models", path="/models", cache=True)),
    )
    elastic = parse("run: x\nnodes: 2..8").spec
    assert (elastic.least, elastic.nodes, elastic.size, elastic.resources.gang) == (2, 8, "2..8", True)
    assert parse("run: x\nnodes: 1..2").spec.sized(1).resources.gang is False, "one machine is no gang: any will do"
    assert (parse("run: x\nnodes: 3..3").spec.size, parse("run: x\nnodes: 3").spec.least) == ("3", 3)
    assert parse("run: x\nnodes: 2\nvolumes: ['cache:models:/m']").spec.volumes == (Mount(volume="models", path="/m", cache=True),)
    assert parse("run: x\nvolumes: ['cache:/m']").spec.volumes == (Mount(volume="cache", path="/m"),)
    shared = parse("run: x\nresources: {gpu: {memory: 24gb.., count: 0.5, sharing: mps}}").spec.resources.gpu
    assert shared == GpuRequest(milli=500, memory_min_mib=24 * 1024, sharing=Sharing.MPS)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("volumes: [data]", "volumes"),
        ("nodes: 8..2", "nodes"),
        ("nodes: 0..2", "nodes"),
        ("nodes: 2..", "nodes"),
        ("nodes: 1..2\nvolumes: ['a:/x']", "volumes"),
        ("volumes: ['data:relative']", "volumes"),
        ("volumes: ['a:/x', 'b:/x']", "volumes"),
        ("volumes: {a: '/x:ro'}", "volumes"),
        ("volumes: ['a:/x', 'cache:a:/y']", "volumes"),
        ("volumes: ['a:/x']\nnodes: 2", "volumes"),
        ("volumes: ['cache:m:/x', 'a:/y']\nnodes: 2", "volumes"),
        ("volumes: ['cache:cache:m:/x']", "volumes"),
        ("volumes: ['a:/x']\ncheckpoint: /x", "volumes"),
        ("topology: {pcie: 3}", "topology.pcie"),
        ("topology: {p2p: maybe}", "topology.p2p"),
        ("resources: {gpu: {grade: good}}", "resources.gpu.grade"),
        ("resources: {gpu: {compute_capability: new}}", "resources.gpu.compute_capability"),
        ("resources: {gpu: {modell: A100}}", "resources.gpu.modell"),
        ("resources: {gpu: {count: -1}}", "resources.gpu"),
        ("resources: {exclusive: rack}", "resources.exclusive"),
        ("resources: {arch: mips}", "resources.arch"),
        ("resources: {tolerations: ['A b']}", "resources.tolerations"),
    ],
)
def test_a_demand_that_can_not_be_meant_is_named(text, key):
    with pytest.raises(BadFile) as refused:
        parse("run: x\n" + text)
    assert key in {mistake.key for mistake in refused.value.mistakes}


def test_the_whole_file_of_the_design_is_understood():
    spec = parse(WHOLE).spec
    assert (spec.name, spec.nodes, spec.tier, spec.priority) == ("train-digits", 2, Tier.SPOT, 5)
    assert spec.resources.gpu == GpuRequest(milli=4000, model="RTX3090")
    assert (spec.resources.cpu_milli, spec.resources.memory_mib, spec.resources.disk_mib) == (8000, 32 * 1024, 50 * 1024)
    assert (spec.max_price_nano, spec.max_duration_s) == (1_500_000_000, 43_200)
    assert spec.retry.on == (Reason.PREEMPTED, Reason.NODE_LOST)
    assert parse(WHOLE).warnings == ()


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("RTX3090:4", GpuRequest(milli=4000, model="RTX3090")), ("RTX 3090", GpuRequest(milli=1000, model="RTX 3090")), ("24GB..:2", GpuRequest(milli=2000, memory_min_mib=24576)),
        ("24GB..48GB:1", GpuRequest(milli=1000, memory_min_mib=24576, memory_max_mib=49152)), ("..48GB", GpuRequest(milli=1000, memory_max_mib=49152)),
        ("0.25", GpuRequest(milli=250)), ("0", GpuRequest()), ("8", GpuRequest(milli=8000)), ("H100:0.5", GpuRequest(milli=500, model="H100")),
    ],
)  # fmt: skip
def test_gpus_are_asked_for_by_model_memory_number_or_fraction(text, request_):
    assert parse_gpu(text) == request_


@pytest.mark.parametrize("text", ["", "-1", "1.5", "65", "H100:x", "a/b", "0.00001", "24GB..:", "1e3"])
def test_what_is_no_gpu_request_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - the file reader words it
        parse_gpu(text)


def test_words_of_other_systems_are_read_and_mentioned():
    parsed = parse("type: task\ncommands: [echo a, echo b]\nenvs: {A: 1}\nnum_nodes: 2\nresources: {accelerators: A100, cpus: 4+, mem: 8GB+}")
    assert parsed.spec.run == "set -e\necho a\necho b"
    assert parsed.spec.resources.gpu.model == "A100"
    assert parsed.warnings[0] == "line 1: `type: task` is read as `type: job`"
    assert len(parsed.warnings) == 7
    assert all(warning.startswith("line ") for warning in parsed.warnings)


def mistakes(text):
    with pytest.raises(BadFile) as bad:
        parse(text)
    return {(mistake.line, mistake.key): mistake for mistake in bad.value.mistakes}


def test_every_mistake_is_named_with_its_line_and_the_nearest_spelling():
    found = mistakes(
        "type: job\nnam: x\nrun: y\nnodes: 0\nresources:\n  gpu: 3.7\n  memroy: 1GB\nretry: {on: [preemptd]}\nmax_price: cheap\nmax_duration: soon\nenv: {1A: x}\n"
    )
    assert {key: mistake.nearest for key, mistake in found.items() if mistake.nearest} == {
        (2, "nam"): "name",
        (7, "resources.memroy"): "memory",
        (8, "retry.on"): "preempted",
    }
    assert set(found) == {
        (2, "nam"),
        (4, "nodes"),
        (6, "resources.gpu"),
        (7, "resources.memroy"),
        (8, "retry.on"),
        (9, "max_price"),
        (10, "max_duration"),
        (11, "env.1A"),
    }


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "[]",
        "just text",
        "run: [",
        "a: &x [*x]",
        "run: !!python/name:os.system x",
        "run: x\nrun: y",
        "run: {a: b}",
        "? [a]\n: b",
        "run: x\n\tname: y",
    ],
)
def test_what_is_no_workload_file_is_refused_with_a_line(bad):
    assert all(line >= 1 for line, _ in mistakes(bad))


@given(
    st.text(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=10),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["type", "run", "name", "env", "resources", "gpu", "nodes", "retry", "x"]), inner, max_size=5)
        ),
        max_leaves=12,
    ).map(repr)
)
def test_no_text_makes_the_parser_fail_in_another_way(text):
    try:
        parse(text)
    except HeadframeError as refused:
        assert refused.detail


def test_an_endpoint_says_how_it_is_served():
    spec = parse("""
type: service
name: chat
model: Qwen/Qwen3-8B
run: vllm serve Qwen/Qwen3-8B --host $HEADFRAME_HOST --port $HEADFRAME_PORT
port: 8001
replicas: 0..4
scaling: {metric: tokens_per_s, target: 1500}
probe: /healthz
idle_timeout: 20m
start_timeout: 10m
pricing: {input: 0.20, output: 0.60}
resources: {gpu: RTX3090:1}
""").spec
    assert spec.type == "endpoint"
    assert spec.tier is Tier.SERVED, "its hours are nobody's bill"
    assert spec.serve == Serving(port=8001, model="Qwen/Qwen3-8B", replicas_min=0, replicas_max=4, metric="tokens_per_s", target=1500, probe="/healthz", idle_s=1200, start_s=600,
                                 pricing="per-token", input_nano=200_000_000, output_nano=600_000_000)  # fmt: skip
    assert parse("type: endpoint\nname: x\nrun: y\nreplicas: 3").spec.serve == Serving(replicas_min=3, replicas_max=3)


@pytest.mark.parametrize(
    ("line", "key"),
    [("replicas: 4..2", "replicas"), ("replicas: 0", "replicas"), ("replicas: many", "replicas"), ("port: 0", "port"), ("port: 70000", "port"), ("model: 'a b;c'", "model"),
     ("probe: health", "probe"), ("scaling: {metric: load}", "scaling.metric"), ("scaling: {target: 0}", "scaling.target"), ("scaling: {target: nan}", "scaling.target"),
     ("pricing: per-token", "pricing"), ("pricing: {input: 1}", "pricing.output"), ("pricing: {input: -1, output: 1}", "pricing.input"), ("idle_timeout: soon", "idle_timeout"),
     ("nodes: 2", "nodes"), ("max_duration: 1h", "max_duration"), ("retry: {attempts: 2}", "retry"), ("checkpoint: /c", "checkpoint")],
)  # fmt: skip
def test_what_an_endpoint_can_not_be_is_told_by_its_key(line, key):
    with pytest.raises(BadFile) as refused:
        parse(f"type: endpoint\nname: x\nrun: y\n{line}")
    assert key in {mistake.key for mistake in refused.value.mistakes}


def test_an_endpoint_needs_a_name_and_a_command_and_a_job_has_no_replicas():
    with pytest.raises(BadFile) as refused:
        parse("type: endpoint")
    assert {mistake.key for mistake in refused.value.mistakes} == {"run", "name"}
    with pytest.raises(BadFile) as refused:
        parse("name: x\nrun: y\nreplicas: 2")
    assert "type: endpoint" in str(refused.value)


def test_a_workspace_waits_for_its_user_and_is_given_up_when_nobody_uses_it():
    spec = parse("type: dev-environment\nname: lab\nresources: {gpu: 1}\nvolumes: [home:/home]").spec
    assert (spec.type, spec.run, spec.idle_s) == ("workspace", "exec sleep infinity", 3600)
    assert parse("type: workspace\nname: lab\nrun: jupyter lab\nidle_timeout: 30m").spec.idle_s == 1800
    with pytest.raises(BadFile) as refused:
        parse("type: workspace\nnodes: 2\nreplicas: 3")
    assert {mistake.key for mistake in refused.value.mistakes} == {"name", "nodes", "replicas"}


@pytest.mark.parametrize(("text", "mib"), [("32GB", 32768), ("512MB", 512), ("1TiB", 1048576), ("1.5G", 1536), ("4", 4096), ("1KB", 1)])
def test_sizes_are_powers_of_1024_rounded_up(text, mib):
    assert parse_mib(text) == mib


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("45s", 45), ("30m", 1800), ("12h", 43200), ("1d12h", 129600), ("1.5h", 5400)])
def test_durations_are_read_as_written(text, seconds):
    assert parse_duration_s(text) == seconds


@given(st.integers(0, 10**15))
def test_money_survives_being_written_and_read(nano):
    assert parse_usd(usd(nano, 9).replace(",", "")) == nano


def test_amounts_and_times_are_shown_with_the_places_they_need():
    assert [money(nano) for nano in (0, 5_000, 12_100_000, 12_345_000_000, -2 * 10**10)] == ["$0.00", "$0.000005", "$0.0121", "$12.35", "-$20.00"]
    assert [duration(ms) for ms in (0, 900, 42_000, 185_000, 7_800_000, 273_600_000)] == [
        "0.0 s",
        "0.9 s",
        "42 s",
        "3 min 05 s",
        "2 h 10 min",
        "3 d 4 h",
    ]
