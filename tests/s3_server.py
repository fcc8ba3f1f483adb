"""How do tests get a storage that speaks S3? They start moto's server, a process of its own."""

import contextlib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest
from free_ports import free_port

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "sprachbund",
    "AWS_SECRET_ACCESS_KEY": "not-so-secret-key",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "eu-north-1",
}


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of a storage with one bucket, ``blobs``. Sets the environment that clients need."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{endpoint}/moto-api/"):
                break
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in ENVIRONMENT.items():
                patch.setenv(name, value)
            import boto3

            boto3.client("s3", endpoint_url=endpoint).create_bucket(
                Bucket="blobs", CreateBucketConfiguration={"LocationConstraint": "eu-north-1"}
            )
            yield endpoint
    finally:
        process.kill()
        process.wait()
