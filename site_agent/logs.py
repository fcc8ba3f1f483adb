"""How the agent's log reads: one JSON object a line, for people with ``jq`` and for log collectors."""

import json
import logging
import time
from pathlib import Path
from typing import TextIO


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "from": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_json(target: TextIO | Path, level: int = logging.INFO) -> logging.Handler:
    """Send the log of this process to a stream, or to the end of a file; returns the handler."""
    handler = (
        logging.FileHandler(target, encoding="utf-8")
        if isinstance(target, Path)
        else logging.StreamHandler(target)
    )
    handler.setFormatter(_JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
    return handler
