"""The console's pages Power and Economics."""

from typing import Annotated

from litestar import MediaType, Router, get
from litestar.params import Parameter

from headframe.console.power_page import economics, power
from headframe.model.people import Scope
from headframe.model.units import MS_PER_DAY
from headframe.server.api.power import site_named, survey_of
from headframe.server.context import Context
from headframe.server.pages import Req, frame_of
from headframe.server.power_view import filler_views, models_now, power_view
from headframe.server.profits import By, hourly, kept, profits


@get("/power", opt={"scope": Scope.OPERATOR}, include_in_schema=False, media_type=MediaType.HTML)
async def show(context: Context, request: Req, site: str = "") -> str:
    """What the site's watts are spent on, now and next."""
    survey = survey_of(context, site_named(context.world, site))
    found = power_view(context.world, survey, context.dispatcher)
    return power(frame_of(context, request), found, filler_views(context.world, survey, context.miners.readings))


@get("/economics", opt={"scope": Scope.OPERATOR}, include_in_schema=False, media_type=MediaType.HTML)
async def show_economics(context: Context, request: Req, by: By = By.MODEL, days: Annotated[int, Parameter(ge=1, le=92)] = 7) -> str:
    """What cards brought and cost."""
    now_ms = context.clock_ms()
    rows = await context.read(lambda store: list(kept(store, now_ms - days * MS_PER_DAY, now_ms + 1)))
    now = models_now(context.world, survey_of(context, site_named(context.world, "")))
    return economics(frame_of(context, request), now, hourly(rows), profits(context.world, iter(rows), by), by, days)


ROUTER = Router("/", route_handlers=[show, show_economics])
"""All of this module's routes."""
