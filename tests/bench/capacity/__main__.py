"""How many engines a load needs, how far the model is off, and what a picture costs Redis.

    python -m tests.bench.capacity plan --fixed-ms 2 --per-image-ms 3 --rate 100 1000 \\
        --p 0.99 --within-ms 60 --besides-ms 8 --price 2.50
    python -m tests.bench.capacity check          # the model against the simulation
    python -m tests.bench.capacity redis --out bench-results/redis.json
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import orjson

from tests.bench.capacity import check, redis_rate
from tests.bench.capacity.load import EngineTime
from tests.bench.capacity.plan import OutOfReach, Promise, plan


def main() -> int:
    """Read the command line, print the answer."""
    options = _parser().parse_args()
    commands = {"plan": _plan, "check": _check, "redis": _redis}
    return commands[options.command](options)


def _plan(options: argparse.Namespace) -> int:
    engine = EngineTime(options.fixed_ms / 1000, options.per_image_ms / 1000, options.max_batch)
    promise = Promise(options.p, options.within_ms / 1000, options.besides_ms / 1000)
    print(
        f"engine: {engine.images_per_s:.0f} pictures/s in batches of {options.max_batch}, "
        f"{1 / engine.batch_s(1):.0f} one by one; promise: p{100 * options.p:g} within "
        f"{options.within_ms:g} ms, {options.besides_ms:g} of them outside the engines"
    )
    print("     rate/s  engines   busy  batch   p50 ms   p95 ms   p99 ms     per hour  per 1,000")
    num_failed = 0
    for rate in options.rate:
        try:
            found = plan(
                engine, rate, promise, num_spare=options.spare, price_per_hour=options.price
            )
        except OutOfReach as error:
            print(f"{rate:11,.0f}  {error}")
            num_failed += 1
            continue
        latencies = (
            1000 * (found.steady.latency_s(q) + promise.besides_s) for q in check.QUANTILES
        )
        print(
            f"{rate:11,.0f}{found.num_replicas:9,}{found.steady.utilisation:7.0%}"
            f"{found.steady.mean_batch_size:7.2f}"
            + "".join(f"{latency:9.1f}" for latency in latencies)
            + f"{found.cost_per_hour:13,.2f}{found.cost_per_thousand:11.5f}"
        )
    return 1 if num_failed else 0


def _check(options: argparse.Namespace) -> int:
    rows = list(check.compare(options.jobs))
    for line in check.lines(rows):
        print(line)
    return 0


def _redis(options: argparse.Namespace) -> int:
    shape = redis_rate.Shape(
        options.open, options.workers, options.owners, options.batch, options.picture_bytes
    )
    found = asyncio.run(redis_rate.measure(shape, options.seconds))
    for line in redis_rate.lines(found):
        print(line)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")
        print(f"written to {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.capacity",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("plan", help="engines and cost for each rate")
    one.add_argument("--fixed-ms", type=_positive, required=True, help="of a batch, whatever size")
    one.add_argument("--per-image-ms", type=_positive, required=True, help="more for each picture")
    one.add_argument("--max-batch", type=int, default=8)
    one.add_argument("--rate", type=_positive, nargs="+", required=True, help="pictures/s")
    one.add_argument("--p", type=_share, default=0.99, help="the share that is promised")
    one.add_argument("--within-ms", type=_positive, required=True)
    one.add_argument("--besides-ms", type=float, default=0.0, help="HTTP, encoding, queue's trips")
    one.add_argument("--spare", type=int, default=0, help="engines more than the promise needs")
    one.add_argument("--price", type=float, default=0.0, help="of one engine, per hour")
    two = commands.add_parser("check", help="the model against the simulation")
    two.add_argument("--jobs", type=int, default=60_000, help="simulated for each load")
    three = commands.add_parser("redis", help="commands, processor and bytes per picture")
    three.add_argument("--seconds", type=_positive, default=5.0)
    three.add_argument("--open", type=int, default=64, help="pictures asked for at once")
    three.add_argument("--workers", type=int, default=1)
    three.add_argument("--owners", type=int, default=1, help="whose pictures they are")
    three.add_argument("--batch", type=int, default=8)
    three.add_argument("--picture-bytes", type=int, default=68_000)
    three.add_argument("--out", type=Path)
    return parser


def _positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _share(text: str) -> float:
    if not 0 < (value := float(text)) < 1:
        raise argparse.ArgumentTypeError("must lie between 0 and 1, like 0.99")
    return value


if __name__ == "__main__":
    sys.exit(main())
