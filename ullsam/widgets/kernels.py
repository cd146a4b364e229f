"""Kernels of the app's server: so many at once and no more, and none for a page that has gone."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

from jupyter_client.session import utcnow
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError
from traitlets import Integer

FULL = "All places of this server are taken; try again in a few minutes."


class PageKernels(AsyncMappingKernelManager):
    """Jupyter's kernel manager for a server whose every page starts a kernel, and whose visitors may not come back."""

    limit = Integer(8, config=True, help="kernels at once")
    abandoned = Integer(60, config=True, help="seconds after which a kernel that no page is connected to ends")

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._starting: set[str] = set()  # identifiers of kernels that are being started

    async def start_kernel(self, **kwargs) -> str:
        """Starts the kernel of a new page.

        Raises:
            HTTPError: 503, where all places are taken.
        """
        if len(self._starting.union(self.list_kernel_ids())) >= self.limit:
            raise HTTPError(503, FULL, reason=FULL)
        kernel_id = str(uuid4())
        self._starting.add(kernel_id)  # before anything is awaited, so that requests at the same moment see it
        try:
            return await super().start_kernel(kernel_id=kernel_id, **kwargs)
        finally:
            self._starting.discard(kernel_id)

    def notify_disconnect(self, kernel_id: str) -> None:
        """Notes when a page leaves its kernel; it may come back, for example where the network failed for a moment."""
        super().notify_disconnect(kernel_id)
        if kernel_id in self:
            self.get_kernel(kernel_id).last_activity = utcnow()

    async def cull_kernel_if_idle(self, kernel_id: str) -> None:
        """Ends a kernel that has nothing to do and no page; with a page it may be idle for `cull_idle_timeout`."""
        if kernel_id in self._starting:
            return
        kernel = self.get_kernel(kernel_id)
        alone = not self._kernel_connections.get(kernel_id, 0)
        long_ago = utcnow() - timedelta(seconds=self.abandoned)
        if alone and kernel.execution_state != "busy" and kernel.last_activity < long_ago:
            self.log.info("Kernel %s ends, its page has gone.", kernel_id)
            await self.shutdown_kernel(kernel_id)
        else:
            await super().cull_kernel_if_idle(kernel_id)
