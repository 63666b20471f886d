"""Simulate a synthesis of any size from measured costs: what limits it, and what it costs.

    python -m benchmarks.scale_simulation --gpus 1000 --shards 1000000

A worker has two shards, the one that it inverts and the next. The driver handles one shard after another: it notes that
one is done and hands out the next. By default costs are those in `benchmarks/results/scale-cpu.jsonl`, and a shard is
128 sparse images of DeiT-B on an H100 (`benchmarks/results/schedule-gpu.jsonl`). Prints one JSON line.
"""

import argparse
import heapq
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.rounds import short

# AWS states these rates for one prefix of a bucket, and these prices for us-west-2, in dollars per 1,000 requests.
_PUTS_PER_S, _GETS_PER_S = 3500, 5500
_PUT_PRICE, _GET_PRICE = 0.005, 0.0004


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of one shard.

    Args:
        shard_s: seconds of a GPU.
        spread: standard deviation of that, relative to it.
        driver_ms: of the driver.
        puts, gets: requests to the store.
    """

    shard_s: float
    spread: float
    driver_ms: float
    puts: float
    gets: float


def simulate(gpus: int, shards: int, costs: Costs, *, seed: int = 0) -> dict[str, float]:
    """Return seconds of the run, and what share of them the GPUs and the driver were busy.

    Args:
        gpus: workers, all there from the start.
        shards: to do.
        costs: of a shard.
        seed: of the seconds that shards take.
    """
    draw = random.Random(seed)
    driver_s = costs.driver_ms / 1000
    driver_free, busy_s, left = 0.0, 0.0, shards
    # (when a worker ends its shard, when the driver had handed it the next one).
    working: list[tuple[float, float]] = []
    for _ in range(min(gpus, shards)):
        driver_free += driver_s
        seconds = max(0.0, draw.gauss(costs.shard_s, costs.spread * costs.shard_s))
        busy_s += seconds
        left -= 1
        heapq.heappush(working, (driver_free + seconds, 0.0))
    end = 0.0
    while working:
        done, handed = heapq.heappop(working)
        end = max(end, done)
        if not left:
            continue
        left -= 1
        seconds = max(0.0, draw.gauss(costs.shard_s, costs.spread * costs.shard_s))
        busy_s += seconds
        begun = max(done, handed)
        # The driver hears of the shard that is done, and hands out one after the one that begins now.
        driver_free = max(driver_free, done) + driver_s
        heapq.heappush(working, (begun + seconds, driver_free))
    return {"seconds": end, "gpus_busy": busy_s / (end * min(gpus, shards)), "driver_busy": shards * driver_s / end}


def report(gpus: int, shards: int, costs: Costs) -> dict[str, object]:
    """Return the JSON line: the run, what it costs, and how many GPUs the driver and the store can serve."""
    run = simulate(gpus, shards, costs)
    rate = shards / run["seconds"]
    return {
        "gpus": gpus,
        "shards": shards,
        **{name: short(value) for name, value in run.items()},
        "gpu_hours": short(gpus * run["seconds"] / 3600),
        "puts_per_s": short(rate * costs.puts),
        "gets_per_s": short(rate * costs.gets),
        "request_dollars": short(shards * (costs.puts * _PUT_PRICE + costs.gets * _GET_PRICE) / 1000),
        "gpus_that_the_driver_serves": round(costs.shard_s / (costs.driver_ms / 1000)),
        "gpus_that_a_prefix_serves": round(
            costs.shard_s * min(_PUTS_PER_S / costs.puts, _GETS_PER_S / max(costs.gets, 1e-9))
        ),
        **asdict(costs),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--shard-s", type=float, default=36.0, help="seconds of a GPU for a shard")
    parser.add_argument("--spread", type=float, default=0.05, help="of these, relative")
    parser.add_argument("--driver-ms", type=float, default=14.3, help="of the driver for a shard")
    parser.add_argument("--puts", type=float, default=1.0, help="requests that write, for a shard")
    parser.add_argument("--gets", type=float, default=4.0, help="other requests, for a shard")
    options = vars(parser.parse_args(argv))
    gpus, shards = options.pop("gpus"), options.pop("shards")
    print(json.dumps(report(gpus, shards, Costs(**options))))


if __name__ == "__main__":
    main()
