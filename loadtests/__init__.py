"""How load is made: an open-loop generator on Locust (`locust -f loadtests/locustfile.py`)."""
