"""Where slots, the queue and results are kept."""

from fastapi_balancer.storage.base import Slots, SlotsConfig, Storage, StorageStatus, Ticket

__all__ = ["Slots", "SlotsConfig", "Storage", "StorageStatus", "Ticket"]
