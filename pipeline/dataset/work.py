"""Hours of actors and GPUs that a dataset took, and their price."""

from collections.abc import Mapping

from pipeline.checks import check_range


def check_price(gpus_per_actor: float, price_per_hour: float | None) -> None:
    """Refuse an impossible share of a GPU, or an impossible price, of an actor.

    Raises:
        ConfigError: one of them is out of range, or not a number.
    """
    check_range("pool.gpus_per_actor", gpus_per_actor, 0.01, 1)
    check_range("pool.price_per_hour", price_per_hour, 0)


def actors_per_gpu(share: float) -> int:
    """Return how many actors fit on a GPU, given each actor's share of it; Ray counts shares in ten-thousandths."""
    return 10_000 // round(10_000 * share)


def price(actor_hours: float, price_per_hour: float | None) -> dict[str, float]:
    """Return what so many hours of one actor cost, as `cost`; nothing if the price is not known."""
    return {} if price_per_hour is None else {"cost": round(actor_hours * price_per_hour, 2)}


def actor_hours(seconds: Mapping[str | None, float]) -> float:
    """Return the hours of all actors.

    Args:
        seconds: kind of device, as in the index → seconds of the actors on such devices.
    """
    return sum(seconds.values()) / 3600


def work_done(
    seconds: Mapping[str | None, float], *, gpus_per_actor: float, price_per_hour: float | None
) -> dict[str, float]:
    """Return `actor_hours`, and where GPUs took part `gpu_hours`, and `cost` if the price is known.

    Args:
        seconds: kind of device that parts were made on (`cpu`, or a GPU's model, or None if unknown) → seconds of the
            actors on such devices.
        gpus_per_actor: share of a GPU that an actor had. An hour of a GPU that two share is two hours of actors.
        price_per_hour: price of an actor-hour; None if it is not known.
    """
    hours = actor_hours(seconds)
    on_gpus = sum(each for device, each in seconds.items() if device not in (None, "cpu")) / 3600
    shared = {"gpu_hours": round(on_gpus / actors_per_gpu(gpus_per_actor), 4)} if on_gpus else {}
    return {"actor_hours": round(hours, 4), **shared, **price(hours, price_per_hour)}
