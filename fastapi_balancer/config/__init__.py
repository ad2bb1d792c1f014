"""The configuration as a whole: read, checked, written, documented."""

from fastapi_balancer.config.root import BalancerConfig, load_config

__all__ = ["BalancerConfig", "load_config"]
