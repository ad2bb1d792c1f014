"""`python -m fastapi_balancer.config params|schema`: write the reference to standard output."""

from __future__ import annotations

import json
import sys

from fastapi_balancer.config import BalancerConfig
from fastapi_balancer.config.reference import params


def schema() -> str:
    """Write the JSON schema for editors."""
    return json.dumps(BalancerConfig.model_json_schema(), indent=2) + "\n"


def main(arguments: list[str]) -> int:
    """Write what is asked for. Returns the process's exit status."""
    if arguments == ["params"]:
        sys.stdout.write(params(BalancerConfig))
    elif arguments == ["schema"]:
        sys.stdout.write(schema())
    else:
        sys.stderr.write("usage: python -m fastapi_balancer.config params|schema\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
