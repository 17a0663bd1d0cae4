"""Whether the gateway lives, whether it can serve, and what it counted."""

import trio

from actors.errors import RuntimeFault
from actors.gateway.exchange import Exchange
from actors.gateway.leases import Leases
from actors.gateway.metrics import MEDIA_TYPE, Metrics
from actors.gateway.peers import Peers

READY_S = 1.0  # a scheduler that takes longer to say what is loaded is not ready


class Health:
    """The handlers."""

    def __init__(self, metrics: Metrics, leases: Leases, peers: Peers) -> None:
        self._metrics = metrics
        self._leases = leases
        self._peers = peers

    async def live(self, exchange: Exchange) -> None:
        """GET /livez: 200 as long as anything is answered."""
        await exchange.reply({"status": "ok"})

    async def ready(self, exchange: Exchange) -> None:
        """GET /readyz, /health: 200 when the scheduler answers, too, else 503."""
        with trio.move_on_after(READY_S):
            try:
                loaded = await self._leases.loaded()
            except RuntimeFault as fault:
                await exchange.reply({"status": "unavailable", "reason": fault.message}, 503)
                return
            await exchange.reply({"status": "ok", "n_loaded": len(loaded.models)})
            return
        await exchange.reply({"status": "unavailable", "reason": f"no scheduler within {READY_S:.0f} s"}, 503)

    async def metrics(self, exchange: Exchange) -> None:
        """GET /metrics: our own and the other actors', in Prometheus' text format."""
        others = await self._peers.exposition()
        await exchange.reply_bytes(self._metrics.exposition() + others, MEDIA_TYPE)
