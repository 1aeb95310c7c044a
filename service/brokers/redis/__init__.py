"""The broker in Redis: any number of API and worker processes meet in one queue."""

from service.brokers.redis.broker import RedisBroker
from service.brokers.redis.options import RedisOptions

__all__ = ["RedisBroker", "RedisOptions"]
