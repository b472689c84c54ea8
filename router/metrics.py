"""What operators see of targets, servers and the translator. Labels hold declared names, values are read on a look."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from router.health import Health
from router.load import ServerReading


class HealthMetrics(Collector):
    """The health of every declared target, on the registry it is given; targets that left the catalogue leave it."""

    def __init__(self, registry: CollectorRegistry, health: Health) -> None:
        self._health = health
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges as of now."""
        states = GaugeMetricFamily(
            "penstock_target_health", "1 closed, 0.5 half-open, 0 open, as this process sees it.", labels=["target"]
        )
        calls = GaugeMetricFamily(
            "penstock_target_outstanding", "Calls to a target that are open in this process.", labels=["target"]
        )
        for reading in self._health.readings():
            states.add_metric([reading.target], reading.state)
            calls.add_metric([reading.target], reading.outstanding)
        yield from (states, calls)


class ServerMetrics(Collector):
    """The vLLM servers as they were last seen, on the registry it is given."""

    def __init__(self, registry: CollectorRegistry, readings: Callable[[], Iterable[ServerReading]]) -> None:
        self._readings = readings
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges as of now."""
        label = ["provider"]
        up = GaugeMetricFamily("penstock_server_up", "1 it answers, 0 it does not.", labels=label)
        running = GaugeMetricFamily("penstock_server_requests_running", "Requests at work there.", labels=label)
        waiting = GaugeMetricFamily("penstock_server_requests_waiting", "Requests that wait there.", labels=label)
        for reading in self._readings():
            up.add_metric([reading.provider], float(reading.answers))
            if reading.load is not None:
                running.add_metric([reading.provider], reading.load.running)
                waiting.add_metric([reading.provider], reading.load.waiting)
        yield from (up, running, waiting)


class TranslatorMetrics(Collector):
    """Whether the translator answers, on the registry it is given.

    state: 1 it does, 0.5 it is being started, 0 it could not be; None while nobody needs it, or somebody else runs it.
    """

    def __init__(self, registry: CollectorRegistry, state: Callable[[], float | None]) -> None:
        self._state = state
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauge as of now; without a value while nobody needs the translator."""
        gauge = GaugeMetricFamily("penstock_translator_up", "1 it answers, 0.5 it starts, 0 it does not.", labels=())
        state = self._state()
        if state is not None:
            gauge.add_metric((), state)
        yield gauge
