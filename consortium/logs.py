"""How a program's log reads: one JSON object a line, for people with ``jq`` and for log collectors."""

import json
import logging
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

from consortium.files import disk_errors, make_folder
from consortium.harmless import harmless_json

_ALWAYS_THERE = logging.makeLogRecord({}).__dict__.keys() | {"message", "asctime", "taskName"}


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "from": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in record.__dict__.items() if key not in _ALWAYS_THERE}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return harmless_json(json.dumps(line, ensure_ascii=False, default=str))


def log_json(
    target: TextIO | Path, level: int | str = logging.INFO, bytes_max: int = 0, keep: int = 0
) -> None:
    """Send the log of this process to a stream or file; what callers pass as ``extra`` becomes fields of the line.

    bytes_max  of a file, before it becomes ``<file>.1`` and so on; 0: it grows for ever
    keep       such older files
    Raises Unavailable if the file cannot be opened.
    """
    handler: logging.Handler
    if isinstance(target, Path):
        with disk_errors(target):
            make_folder(target.parent)
            handler = RotatingFileHandler(
                target, maxBytes=bytes_max, backupCount=keep, encoding="utf-8", delay=False
            )
    else:
        handler = logging.StreamHandler(target)
    handler.setFormatter(_JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
    logging.getLogger("apscheduler").setLevel(logging.WARNING)  # else a line at every tick
