"""A cable that holds frames back and loses some, between two TAP interfaces of the namespace that it is started in.

    wire.py NEAR FAR DELAY_MS LOSS_FRACTION SEED

Prints a line once both interfaces are there; they vanish with the process.
"""

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_MAX_FRAME_BYTES = 1 << 16


def open_tap(name: str) -> int:
    """A file on which frames of a new interface are read and written, one at a time."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return tap


def carry(near: int, far: int, delay_s: float, loss_fraction: float, losses: random.Random) -> None:
    """Carries frames both ways, for ever."""
    other = {near: far, far: near}
    on_the_way: deque[tuple[float, int, bytes]] = deque()  # all take equally long, so they stay in order
    while True:
        wait_s = max(on_the_way[0][0] - time.monotonic(), 0.0) if on_the_way else None
        for tap in select.select(list(other), [], [], wait_s)[0]:
            frame = os.read(tap, _MAX_FRAME_BYTES)
            if losses.random() >= loss_fraction:
                on_the_way.append((time.monotonic() + delay_s, other[tap], frame))
        while on_the_way and on_the_way[0][0] <= time.monotonic():
            _, tap, frame = on_the_way.popleft()
            try:
                os.write(tap, frame)
            except OSError:  # it is down, or its queue is full: lost, as on a real cable
                continue


def main() -> None:
    """See the module."""
    near, far = (open_tap(name) for name in sys.argv[1:3])
    print("ready", flush=True)
    carry(near, far, float(sys.argv[3]) / 1000, float(sys.argv[4]), random.Random(sys.argv[5]))


if __name__ == "__main__":
    main()
