"""What the tests of metrics, dashboards and alerts stand on: Prometheus and a fleet with faults."""
