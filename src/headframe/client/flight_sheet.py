"""HiveOS flight sheets to filler files: what the sheet says is filled in, what it can't say is marked for a person.

A sheet is `{name, items: [{coin, pool_urls, miner, miner_config, wal_id}]}`; wallets are listed apart, by id. Flags are those of each miner's own README.
"""

import json
import re
from typing import Any

from headframe.model.errors import BadRequest

STATS_PORT, PLACE = "$HEADFRAME_STATS_PORT", "/opt/miners"
MINERS: dict[str, tuple[str, str, str]] = {
    "t-rex": (
        "t-rex",
        "t-rex",
        "t-rex --algo {algo} --url stratum+tcp://{url} --user {user} --pass x --api-bind-http 127.0.0.1:{port} --no-watchdog",
    ),
    "lolminer": ("lolMiner", "lolminer", "lolMiner --algo {algo} --pool {url} --user {user} --apihost 127.0.0.1 --apiport {port}"),
    "teamredminer": (
        "teamredminer",
        "teamredminer",
        "teamredminer --algo={algo} --url=stratum+tcp://{url} --user={user} --pass=x --api_listen=127.0.0.1:{port} --watchdog_disabled",
    ),
    "gminer": ("miner", "gminer", "miner --algo {algo} --server {url} --user {user} --api 127.0.0.1:{port} --watchdog 0"),
    "bzminer": ("bzminer", "bzminer", "bzminer -a {algo} -p stratum+tcp://{url} -w {user} --http_address 127.0.0.1 --http_port {port}"),
    "rigel": ("rigel", "rigel", "rigel --algorithm {algo} --url stratum+tcp://{url} --username {user} --api-bind 127.0.0.1:{port} --no-watchdog"),
    "srbminer": ("SRBMiner-MULTI", "srbminer", "SRBMiner-MULTI --algorithm {algo} --pool {url} --wallet {user} --api-enable --api-port {port}"),
    "xmrig": ("xmrig", "xmrig", "xmrig --algo {algo} --url {url} --user {user} --http-host 127.0.0.1 --http-port {port}"),
}
_HOST = re.compile(r"^[A-Za-z0-9.-]{1,200}:\d{1,5}$")
_WORD = re.compile(r"^[A-Za-z0-9._:/+-]{1,200}$")


def filler_files(sheet: str, wallets: str = "") -> dict[str, str]:
    """A filler file's text for each item, by the filler's name; BadRequest where the sheet can't be read or an item can't be used."""
    told = _json(sheet, "flight sheet")
    items = told.get("items") if isinstance(told, dict) else None
    if not isinstance(items, list) or not items:
        raise BadRequest("this is no flight sheet: it has no items", "export it from HiveOS as JSON")
    addresses = _addresses(_json(wallets, "list of wallets")) if wallets else {}
    named = _slug(str(told.get("name") or "sheet"))
    made: dict[str, str] = {}
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise BadRequest(f"item {number + 1} of the flight sheet is no object", "export it again")
        name = f"{named}-{_slug(str(item.get('coin') or number + 1))}"[:40].strip("-")
        made[name if name not in made else f"{name}-{number + 1}"] = _file(name, item, addresses)
    return made


def _file(name: str, item: dict[str, Any], addresses: dict[str, str]) -> str:
    miner, config = str(item.get("miner") or ""), item.get("miner_config") if isinstance(item.get("miner_config"), dict) else {}
    assert isinstance(config, dict)
    known = next((value for key, value in MINERS.items() if key in miner.lower().replace("_", "-")), None)
    urls = item.get("pool_urls") if isinstance(item.get("pool_urls"), list) else []
    assert isinstance(urls, list)
    url = str(config.get("url") or (urls[0] if urls else "")).split("\n")[0].removeprefix("stratum+tcp://")
    algo, address = str(config.get("algo") or ""), addresses.get(str(item.get("wal_id")), "")
    user = str(config.get("template") or "%WAL%.%WORKER_NAME%").replace("%WAL%", address or "WALLET").replace("%WORKER_NAME%", "$HOSTNAME")
    lines = [f"# From the HiveOS flight sheet item {name}. What is marked FILLIN needs you."]
    run = _run(known, miner, url, algo, user)
    todo = [what for what, missing in (("the miner's command line", known is None), ("the pool's address", not _HOST.fullmatch(url)), ("the algorithm", not _WORD.fullmatch(algo)),
                                       ("the wallet: give --wallets, or write its address", not address)) if missing]  # fmt: skip
    lines += [f"# FILLIN: {what}" for what in todo]
    coin = str(item.get("coin") or "").upper()
    lines += [
        f"name: {name}",
        f"coin: {coin if re.fullmatch('[A-Z0-9]{2,10}', coin) else 'FILLIN'}",
        f"run: {run}",
        f"stats: {known[1] if known else 'prometheus'}",
    ]
    lines += ["# FILLIN: where the program lies on your machines, and what `sha256sum` says of it", f"program: {PLACE}/{known[0] if known else 'FILLIN'}", f"sha256: '{'0' * 64}'",
              "# FILLIN: hashrate and watts of one card, by model, as your own rigs show them", "models:", "  RTX 3080: {hashrate: 1MH, watts: 220}", ""]  # fmt: skip
    return "\n".join(lines)


def _run(known: tuple[str, str, str] | None, miner: str, url: str, algo: str, user: str) -> str:
    if known is None:
        return f"{PLACE}/FILLIN {_slug(miner)}"
    words = {"algo": algo if _WORD.fullmatch(algo) else "FILLIN", "url": url if _HOST.fullmatch(url) else "FILLIN:0", "port": STATS_PORT}
    return f"exec {PLACE}/" + known[2].format(**words, user=user if re.fullmatch(r"[A-Za-z0-9._:/+$-]{1,300}", user) else "FILLIN")


def _addresses(told: Any) -> dict[str, str]:
    rows = told.get("data") if isinstance(told, dict) else told
    if not isinstance(rows, list):
        raise BadRequest("the list of wallets has no `data`", "save what the farm's wallets address of the HiveOS API answers")
    return {str(row.get("id")): str(row.get("wal")) for row in rows if isinstance(row, dict) and _WORD.fullmatch(str(row.get("wal") or ""))}


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadRequest(f"the {what} is no JSON: {error}", "export it again") from error


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:24].strip("-") or "x"
