"""What the client asks and tells of power: the site's watts and dollars, prices, signals, coins, fillers, mining machines."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from headframe.client.paths import segment
from headframe.model.power import Asic, Coin, Signal
from headframe.model.power_api import (
    AsicBody,
    AsicLimitBody,
    AsicList,
    CoinBody,
    CoinList,
    Explanation,
    FeedList,
    FillerList,
    FillerView,
    MarketBody,
    MarketTold,
    PowerView,
    ProfitList,
    SignalBody,
    SignalList,
    TextBody,
)

T = TypeVar("T")


class PowerCalls(ABC):
    """The client's calls of this part; it knows how to get and send."""

    @abstractmethod
    def _get(self, path: str, kind: type[T], **params: Any) -> T: ...

    @abstractmethod
    def _send(self, method: str, path: str, kind: type[T], body: msgspec.Struct | None = None) -> T: ...

    def power(self, site: str = "") -> PowerView:
        """What a site draws, earns and pays now."""
        return self._get("/v1/power", PowerView, site=site)

    def explain_dispatch(self, subject: str) -> Explanation:
        """Why a card, rack or site does what it does."""
        return self._get(f"/v1/dispatch/{segment(subject)}", Explanation)

    def profits(self, by: str = "model", days: int = 7, month: str = "") -> ProfitList:
        """What cards brought and cost."""
        return self._get("/v1/profits", ProfitList, by=by, days=days, month=month)

    def tell_market(self, body: MarketBody) -> MarketTold:
        """Day-ahead prices."""
        return self._send("PUT", "/v1/market", MarketTold, body)

    def signals(self) -> SignalList:
        """Signals in force or to come."""
        return self._get("/v1/signals", SignalList)

    def signal(self, body: SignalBody) -> Signal:
        """Ask something of a site."""
        return self._send("POST", "/v1/signals", Signal, body)

    def feeds(self) -> FeedList:
        """Where prices and signals are fetched from, and how that fares."""
        return self._get("/v1/feeds", FeedList)

    def coins(self) -> CoinList:
        """Coins and their terms."""
        return self._get("/v1/coins", CoinList)

    def tell_coin(self, coin: str, body: CoinBody) -> Coin:
        """What a coin pays."""
        return self._send("PUT", f"/v1/coins/{segment(coin)}", Coin, body)

    def fillers(self) -> FillerList:
        """What idle cards may do."""
        return self._get("/v1/fillers", FillerList)

    def set_filler(self, file: str) -> FillerView:
        """A filler's file."""
        return self._send("PUT", "/v1/fillers", FillerView, TextBody(file=file))

    def remove_filler(self, name: str) -> FillerView:
        """No card does this any more."""
        return self._send("DELETE", f"/v1/fillers/{segment(name)}", FillerView)

    def asics(self) -> AsicList:
        """Mining machines."""
        return self._get("/v1/asics", AsicList)

    def tell_asics(self, asics: Sequence[Asic]) -> AsicList:
        """Mining machines as they were found."""
        return self._send("PUT", "/v1/asics", AsicList, AsicBody(asics=tuple(asics)))

    def limit_asic(self, name: str, watts: float) -> AsicList:
        """A mining machine is to draw at most so much; 0 as before."""
        return self._send("PUT", f"/v1/asics/{segment(name)}/limit", AsicList, AsicLimitBody(watts=watts))

    def remove_asic(self, name: str) -> AsicList:
        """A mining machine is no longer looked after."""
        return self._send("DELETE", f"/v1/asics/{segment(name)}", AsicList)
