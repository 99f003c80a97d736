"""The console's Power page."""

from litestar import MediaType, Router, get

from headframe.console.power_page import power
from headframe.model.people import Scope
from headframe.server.api.power import site_named
from headframe.server.context import Context
from headframe.server.pages import Req, frame_of
from headframe.server.power_view import filler_views, power_view


@get("/power", opt={"scope": Scope.OPERATOR}, include_in_schema=False, media_type=MediaType.HTML)
async def show(context: Context, request: Req, site: str = "") -> str:
    """What the site's watts are spent on, now and next."""
    row, now_ms = site_named(context.world, site), context.clock_ms()
    found = power_view(context.world, row, context.dispatcher, now_ms)
    return power(frame_of(context, request), found, filler_views(context.world, row, context.dispatcher, now_ms))


ROUTER = Router("/", route_handlers=[show])
"""All of this module's routes."""
