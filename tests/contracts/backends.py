"""Where ledgers of either kind live in tests, and how another process opens the same one."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.store.ledger import Ledger
from coordinator.store.redis import RedisLedger
from coordinator.store.sqlite import SqliteLedger

_ROOT = Path(__file__).parents[2]
_OPEN = """
import sys
from pathlib import Path
from coordinator.store.ledger import Add, Delete, Expect, Put, Transaction
kind, argument = sys.argv[1:3]
if kind == "sqlite":
    from coordinator.store.sqlite import SqliteLedger
else:
    from coordinator.store.redis import RedisLedger
def say(*words):
    print(*words, flush=True)
say("loaded")
sys.stdin.readline()
ledger = SqliteLedger(Path(argument)) if kind == "sqlite" else RedisLedger(argument)
"""


@dataclass
class Backend:
    """A place for a ledger.

    Attributes:
        kind: sqlite or redis.
        argument: a path, or a URL.
    """

    kind: str
    argument: str
    _opened: list[Ledger] = field(default_factory=list)
    _children: list["subprocess.Popen[str]"] = field(default_factory=list)

    def open(self) -> Ledger:
        """One more ledger on the same data, as another process would have."""
        ledger: Ledger = SqliteLedger(Path(self.argument)) if self.kind == "sqlite" else RedisLedger(self.argument)
        self._opened.append(ledger)
        return ledger

    def child(self, code: str, *arguments: str, starts: bool = True) -> "subprocess.Popen[str]":
        """A process that has the ledger open as `ledger`, its arguments from `sys.argv[3]`; it prints with `say`.

        Without `starts` it has loaded its modules, and opens the ledger at the first line that it reads.
        """
        child = subprocess.Popen(
            [sys.executable, "-c", _OPEN + code, self.kind, self.argument, *arguments],
            cwd=_ROOT,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "loaded\n"
        if starts:
            tell(child)
        return child

    def close(self) -> None:
        """Ends everything that was opened."""
        for child in self._children:
            child.kill()
            child.communicate()
        for ledger in self._opened:
            ledger.close()


def tell(child: "subprocess.Popen[str]") -> None:
    """A line for a child."""
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def heard(child: "subprocess.Popen[str]") -> str:
    """The next line of a child, empty at its end."""
    assert child.stdout is not None
    return child.stdout.readline().strip()
