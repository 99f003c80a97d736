"""HiveOS flight sheets become filler files that the server reads; what a sheet can't say is marked."""

import json

import pytest

from headframe.client.flight_sheet import MINERS, filler_files
from headframe.model.errors import BadRequest
from headframe.model.power import ADAPTERS
from headframe.server.power_file import filler

WALLETS = json.dumps({"data": [{"id": 7, "wal": "RXwallet123", "name": "mine"}, "nonsense", {"id": 8, "wal": "$(reboot)"}]})


def sheet(miner="t-rex", **more):
    item = {
        "coin": "RVN",
        "pool_urls": ["pool.example:3333"],
        "miner": miner,
        "miner_config": {"algo": "kawpow", "template": "%WAL%.%WORKER_NAME%"},
        "wal_id": 7,
        **more,
    }
    return json.dumps({"name": "My sheet", "items": [item]})


@pytest.mark.parametrize("miner", sorted(MINERS))
def test_each_known_miner_becomes_a_file_that_is_read_and_its_stats_have_an_adapter(miner):
    ((name, text),) = filler_files(sheet(miner), WALLETS).items()
    read = filler(text)
    assert (read.name, read.coin) == (name, "RVN") == ("my-sheet-rvn", "RVN")
    assert read.stats in ADAPTERS
    assert read.program in read.run
    assert "RXwallet123.$HOSTNAME" in read.run
    assert "pool.example:3333" in read.run
    assert "127.0.0.1" in read.run or miner in {"lolminer", "srbminer"}
    assert text.count("FILLIN") == 3  # the heading, the program, the figures


def test_what_is_missing_is_marked_and_nothing_of_a_sheet_reaches_a_shell():
    text = filler_files(sheet("mystery", pool_urls=["x; rm -rf /"], wal_id=8, miner_config={"algo": "a b"}), WALLETS)["my-sheet-rvn"]
    assert "the miner's command line" in text
    assert "the wallet" in text
    text = filler_files(sheet("t-rex", pool_urls=["x; rm -rf /"], wal_id=8, miner_config={"algo": "$(x)", "template": "`id`"}), WALLETS)[
        "my-sheet-rvn"
    ]
    assert "rm -rf" not in text
    assert "$(" not in text
    assert "`id`" not in text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"items": []}', '{"items": [3]}', "{"])
def test_what_is_no_flight_sheet_is_refused(text):
    with pytest.raises(BadRequest):
        filler_files(text)


def test_two_items_of_one_coin_have_two_names():
    told = json.loads(sheet())
    told["items"] *= 2
    assert len(filler_files(json.dumps(told), WALLETS)) == 2
