"""gateway, endpoint, chat."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from headframe.cli.jobs import COLOURS, Json, ProjectOption
from headframe.cli.session import client, err, fail, login, out, refusals, show, table
from headframe.client.chat import ChatRefused, Talk
from headframe.model.serving import Pricing
from headframe.model.serving_api import EndpointList, EndpointView
from headframe.model.states import WORKLOAD_ENDS
from headframe.model.text import printable
from headframe.model.units import duration, money

endpoint_app = typer.Typer(no_args_is_help=True, help="Served models: list, look, stop.")


def add(app: typer.Typer) -> None:
    """Register this module's verbs."""
    app.command()(gateway)
    app.command()(chat)
    app.add_typer(endpoint_app, name="endpoint")


def complete_endpoint(incomplete: str) -> list[str]:
    """Names of endpoints, for the shell's tab."""
    try:
        with client() as cloud:
            return [each.endpoint.name for each in cloud.endpoints().items if each.endpoint.name.startswith(incomplete)]
    except SystemExit:
        return []


Name = Annotated[str, typer.Argument(help="An endpoint, by name or id.", autocompletion=complete_endpoint)]


def gateway(
    *, server: Annotated[list[str], typer.Option(help="The control plane; again for each where there are several.")], data: Annotated[Path, typer.Option(help="Where it keeps what it knows and what was served.")],
    pepper: Annotated[Path, typer.Option(help="The control plane's file with the secret that keys are hashed under.")],
    key_file: Annotated[Path | None, typer.Option(help="A file with a key of scope gateway: `headframe key create edge --scope gateway`.")] = None,
    host: Annotated[str, typer.Option(help="Address to bind; other than loopback needs TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7071, ca: Annotated[str, typer.Option(help="The control plane's certificate, where it is self-signed.")] = "",
    tls_cert: Annotated[Path | None, typer.Option(exists=True, dir_okay=False)] = None, tls_key: Annotated[Path | None, typer.Option(exists=True, dir_okay=False)] = None,
    shared_port: Annotated[bool, typer.Option(help="Several gateways of this machine share the port (SO_REUSEPORT), each with its own --data.")] = False,
) -> None:  # fmt: skip
    """Carry requests to served models: OpenAI's API, limits, routing, metering. Goes on while the control plane is away; many may run."""
    from headframe.gateway.door import COMPILED
    from headframe.gateway.records import Config
    from headframe.gateway.run import run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        key = key_file.read_text().strip() if key_file else login().key
    except OSError as error:
        fail(f"{key_file} can't be read: {error.strerror}", "`headframe key create edge --scope gateway` makes a key", 2)
    config = Config(
        data=data.resolve(),
        servers=tuple(each.rstrip("/") for each in server),
        key=key,
        pepper=pepper,
        host=host,
        port=port,
        ca=ca,
        tls_cert=tls_cert,
        tls_key=tls_key,
        shared_port=shared_port,
    )
    with refusals():
        run(config, lambda: logging.getLogger("headframe.gateway").info("gateway at %s:%s%s", host, port, ", compiled" if COMPILED else ""))


@endpoint_app.command("ls")
def endpoint_ls(*, project: ProjectOption = "", json: Json = False) -> None:
    """What is served: replicas, load, US$ per hour."""
    with client() as cloud:
        found = cloud.endpoints(project)
    show(found, json, lambda: _show_all(found))


@endpoint_app.command("show")
def endpoint_show(name: Name, *, json: Json = False) -> None:
    """One endpoint: its replicas, load, tokens per second, cold starts, money, and how clients reach it."""
    with client() as cloud:
        found = cloud.endpoint(name)
    show(found, json, lambda: show_one(found))


@endpoint_app.command("stop")
def endpoint_stop(name: Name, *, json: Json = False) -> None:
    """End an endpoint and its replicas."""
    with client() as cloud:
        found = cloud.stop_endpoint(name)
    show(found, json, lambda: out.print(f"{found.endpoint.name} is {found.endpoint.state}"))


def chat(
    name: Name, message: Annotated[str, typer.Argument(help="What to say; without it, a conversation (an empty line ends it).")] = "", *,
    system: Annotated[str, typer.Option(help="What the model is told first.")] = "", max_tokens: Annotated[int, typer.Option(min=1)] = 512,
) -> None:  # fmt: skip
    """Talk to a served model."""
    kept = login()
    with client() as cloud:
        found = cloud.endpoint(name)
    if not found.base_url:
        fail("this server has no gateway", "start it without --no-gateway, or name one: `headframe up --gateway-url`")
    talk = Talk(found.base_url, kept.key, found.endpoint.serving.model or found.endpoint.name, system=system, max_tokens=max_tokens, ca=kept.ca)
    try:
        while True:
            said = message or _prompt()
            if not said:
                return
            for part in talk.say(said):
                sys.stdout.write(printable(part))
                sys.stdout.flush()
            sys.stdout.write("\n")
            err.print(f"{talk.prompt} tokens in, {talk.completion} out{_cost(found, talk)}", style="dim", markup=False)
            if message:
                return
    except ChatRefused as error:
        fail(str(error))
    except KeyboardInterrupt:
        out.print()
        raise SystemExit(130) from None


def _prompt() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _cost(found: EndpointView, talk: Talk) -> str:
    from headframe.model.serving import tokens_nano

    cost = tokens_nano(found.endpoint.serving, talk.prompt, talk.completion)
    return f", {money(cost)}" if cost else ""


def _show_all(found: EndpointList) -> None:
    if not found.items:
        out.print("nothing is served; `headframe apply -f endpoint.yaml` serves a model")
        return
    rows = table("name", "model", ">replicas", ">requests now", ">tokens/s", ">per hour", ">cost", ">earned", "")
    for each in found.items:
        row, last = each.endpoint, each.moments[-1] if each.moments else None
        ready = sum(replica.ready for replica in each.replicas)
        rows.add_row(
            row.name, row.serving.model or row.name, f"{ready} of {row.wanted}", str(last.in_flight + last.held) if last else "–", f"{last.tokens_s:.0f}" if last else "–",
            money(each.rate_nano), money(each.cost_nano), money(row.earned_nano) if row.serving.pricing is Pricing.PER_TOKEN else "–", escape(printable(row.why)),
        )  # fmt: skip
    out.print(rows)


def show_one(found: EndpointView) -> None:
    """An endpoint, for people."""
    row, serving = found.endpoint, found.endpoint.serving
    out.print(
        f"[bold]{row.name}[/] ({row.id}) {row.state}, revision {row.revision}, {serving.replicas_min} to {serving.replicas_max} replicas, {row.wanted} wanted"
    )
    if found.base_url:
        out.print(f"  base_url={found.base_url}  model={serving.model or row.name}", markup=False)
        out.print(f"  anything else it serves: {found.base_url.removesuffix('/v1')}/endpoints/{row.name}/…", style="dim", markup=False)
    price = (
        f"{money(serving.input_nano)} in, {money(serving.output_nano)} out per million tokens"
        if serving.pricing is Pricing.PER_TOKEN
        else "by the replica's second"
    )
    out.print(
        f"  sold: {price}; {money(found.rate_nano)}/h now, {money(found.cost_nano)} so far"
        + (f", earned {money(row.earned_nano)}" if row.earned_nano else ""),
        markup=False,
    )
    total = found.total
    if total.requests:
        first = f", first byte after {total.first_ms / max(1, total.requests - total.failed):.0f} ms" if total.requests > total.failed else ""
        out.print(
            f"  {total.requests:,} requests ({total.failed:,} failed), {total.prompt:,} tokens in, {total.completion:,} out{first}, {total.cold_starts} cold starts",
            markup=False,
        )
    if not found.gateways:
        out.print("  no gateway speaks: nobody can ask it", style="yellow")
    if row.why:
        out.print(f"  {printable(row.why)}", style="yellow", markup=False)
    rows = table("replica", "state", "node", ">requests", ">per hour", ">cost", "why")
    for each in found.replicas:
        if each.workload.state in WORKLOAD_ENDS:
            continue
        state = "ready" if each.ready and not each.workload.drain_ms else "draining" if each.workload.drain_ms else each.workload.state
        why = str(each.waits[0]) if each.waits else each.why
        rows.add_row(
            each.workload.name,
            f"[{COLOURS.get(each.workload.state, 'dim')}]{state}[/]",
            each.node,
            str(each.in_flight),
            money(each.rate_nano),
            money(each.accrued_nano),
            escape(printable(why)),
        )
    out.print(rows) if found.replicas else out.print(
        f"  no replica; one starts with the first request, within {duration(serving.start_s * 1000)}", style="dim"
    )
