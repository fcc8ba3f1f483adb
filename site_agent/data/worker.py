"""What a process that helps to prepare text does: one task a line on stdin, one answer a line on stdout."""

import os
import queue
import sys
import threading
from functools import partial
from pathlib import Path

from consortium.canonical import decode, encode
from site_agent.data.pool import Hands, Orders
from site_agent.data.schedule import Task
from site_agent.data.words import encoder


def main() -> None:
    """Work until stdin ends; then leave at once, whatever is half done: nobody waits for it."""
    orders = decode(sys.stdin.buffer.readline(), Orders, "orders")
    words = next((plan.words for plan in orders.plans if plan.words is not None), None)
    make = None
    if orders.tokenizer is not None and words is not None:
        make = partial(encoder, Path(orders.tokenizer), words)
    hands = Hands(orders.plans, make)
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin.buffer:
            tasks.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        answer = hands.do(decode(tasks.get(), Task, "task"))
        sys.stdout.buffer.write(encode(answer) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
