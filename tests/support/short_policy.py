"""A policy by which a whole rollout takes seconds, for the tests of both platforms."""

from typing import Any


def short_policy(*, rate: int, seconds: int, expected: int) -> dict[str, Any]:
    """Loads of `rate` requests a second for so many `seconds`, `expected` of them in production.

    How late a machine that is busy with other tests sends is not what is tested with it.
    """
    load = {"rate": f"{rate}/s", "duration": f"{seconds}s", "max_lag": "30s"}
    return {
        "environments": {
            "development": {
                "gates": {"response_time": {"requests": 2}},
                "load": {**load, "warmup": "0s", "max_tokens": 2},
            },
            "staging": {
                "gates": {
                    "error_rate": {"limit": "3%"},
                    "load_capacity": {"expected_rate": f"{expected}/s", "unserved": "3%"},
                },
                "soak": False,
                "sign_off": False,
            },
            "production": {
                "replicas": 2,
                "gates": {"smoke": {"url": False}},
                "load": load,
            },
        },
        "ramp": [{"replicas": 1, "hold": "1s"}, {"share": "100%", "hold": "0s"}],
        "watch": {
            "duration": "3s",
            "interval": "200ms",
            "probes": 5,
            "slo": {"within": "3s", "error_rate": "50%"},
            "error_spike": {"within": "3s", "for": "2s"},
        },
        "triggers": {
            "error_rate": {"above": "5%", "for": "1s"},
            "outage": {"for": "1s"},
            "window": "1s",
            "max_gap": "3s",
        },
        "windows": {"enforce": False},
    }
