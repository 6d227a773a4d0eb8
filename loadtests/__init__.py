"""Open-loop load generator on Locust (`locust -f loadtests/locustfile.py`)."""
