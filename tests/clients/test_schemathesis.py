"""Requests that schemathesis makes up from our own OpenAPI schema: no 5xx, and every answer as the schema says.

SCHEMATHESIS_EXAMPLES=900 make test-clients PYTEST_FLAGS="-k schemathesis -s"      more than 10,000 requests
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_generated_requests_get_the_answers_that_the_schema_promises(url: str, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{url}/openapi.json"]
    command += ["--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--seed", "1"]
    command += ["-n", os.environ.get("SCHEMATHESIS_EXAMPLES", "20")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    print(done.stdout[-2000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Test cases:" in done.stdout
