"""Slots shared by all workers through Redis or Valkey."""

from fastapi_balancer.storage.redis.storage import RedisStorage

__all__ = ["RedisStorage"]
