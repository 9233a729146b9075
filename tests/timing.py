"""CPU time compared within one run: how it grows with the input, and against a fixed loop.

Another process on the same core, or the collector of a test suite's heap, can only add to a
measure, so each is the least of several and none is taken with the collector on.
"""

import gc
import time
from collections.abc import Callable

TRIES = 5


def cpu_seconds(work: Callable[[], object]) -> float:
    "CPU seconds of this process for one call of `work`, without the garbage collector."
    gc.collect(0)
    gc.disable()
    started = time.process_time()
    try:
        work()
        return time.process_time() - started
    finally:
        gc.enable()


def grows_linearly(
    work: Callable[[int], object],  # does something with an input of that many units
    n: int,  # units of the smaller input
    *,
    times: int = 4,  # the larger input is as many times the smaller one
    slack: float = 2.5,  # work on the larger input / work on the smaller one / `times`
    spare_seconds: float = 0.05,  # allowed beside it
) -> None:
    "Fail when `times` the input takes more than `slack` x `times` the CPU in each of five tries."
    work(n // 10)
    few = many = float("inf")
    for _ in range(TRIES):
        few = min(few, cpu_seconds(lambda: work(n)))
        many = min(many, cpu_seconds(lambda: work(times * n)))
        if many <= slack * times * few + spare_seconds:
            return
    raise AssertionError(
        f"{n:,} units take {few:.3f} s of CPU and {times * n:,} take {many:.3f} s: "
        f"{many / few:.1f} times the work for {times} times the input, at most {slack * times:g}"
    )


def loop() -> int:
    return sum(n * n % 7 for n in range(1_000_000))


def takes_at_most(work: Callable[[], object], n_loops: float) -> None:
    "Fail when `work` takes more CPU than `n_loops` fixed loops of a million steps beside it."
    least = float("inf")
    for _ in range(3):
        least = min(least, cpu_seconds(work) / cpu_seconds(loop))
        if least <= n_loops:
            return
    raise AssertionError(f"it takes the CPU of {least:.1f} fixed loops, at most {n_loops:g}")
