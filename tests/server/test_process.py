"""A real server process: it drains on SIGTERM, leaves with the right status, and says why it cannot start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpo_client import ReferenceClient
from server_fakes import PATIENCE
from server_process import BODY, ENV, PROGRAM, RAW, Process, post_in_thread
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture
def started(request: pytest.FixtureRequest) -> Iterator[Process]:
    process = Process(**getattr(request, "param", {}))
    yield process
    process.close()


def test_sigterm_finishes_what_was_accepted_refuses_the_new_and_exits_0(started: Process) -> None:
    with started.ready() as client:
        thread, answers = post_in_thread(client)
        started.wait_for("computing")
        started.process.send_signal(signal.SIGTERM)
        started.wait_for("told to end")
        refused = client.post("/v1/logprobs", json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert refused.headers["retry-after"]
        assert client.get("/livez").status_code == 200
        started.go_on()
        thread.join()
    assert [a.status_code for a in answers] == [200]
    assert started.status() == 0


@pytest.mark.parametrize("started", [{"drain_timeout": 0.0}], indirect=True)
def test_a_drain_that_takes_too_long_ends_with_1_and_the_client_is_told(started: Process) -> None:
    with started.ready() as client:
        thread, answers = post_in_thread(client)
        started.wait_for("computing")
        started.process.send_signal(signal.SIGTERM)
        thread.join()  # nothing lets the engine go on: it is left behind
    assert [a.json()["error"]["code"] for a in answers] == ["draining"]
    assert started.status() == 1


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_and_who_waits_gets_a_503(started: Process, first: int, second: int) -> None:
    with started.ready() as client:
        thread, answers = post_in_thread(client)
        started.wait_for("computing")
        started.process.send_signal(first)
        started.wait_for("told to end: new")
        started.process.send_signal(second)
        assert started.status() == 1  # although the engine is still held
        thread.join()
    assert [(a.status_code, a.json()["error"]["code"]) for a in answers] == [(503, "draining")]
    assert answers[0].headers["retry-after"]


def test_two_signals_in_one_breath_cut_nobody_off_without_a_word(started: Process) -> None:
    with started.ready() as client:
        thread, answers = post_in_thread(client)
        started.wait_for("computing")
        started.process.send_signal(signal.SIGTERM)
        started.process.send_signal(signal.SIGTERM)
        started.wait_for("told to end")
        started.go_on()  # signals that arrive as one are one, and then this is answered
        assert started.status() in (0, 1)
        thread.join()
    assert [a.status_code for a in answers] in ([200], [503])


@pytest.mark.parametrize("started", [{"load": "hang"}], indirect=True)
def test_a_server_that_still_loads_ends_at_once(started: Process) -> None:
    started.wait_for("^loading")
    started.process.send_signal(signal.SIGTERM)
    assert started.status() == 0


@pytest.mark.parametrize("started", [{"load": "hang"}], indirect=True)
def test_a_load_that_ends_while_the_server_does_opens_no_door(started: Process) -> None:
    url = started.wait_for(r"listening on (http://\S+);")[1]
    started.wait_for("^loading")
    with socket.create_connection((url.rpartition("//")[2].split(":")[0], int(url.rpartition(":")[2]))) as upload:
        head = (
            f"POST /v1/logprobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(RAW)}\r\n"
        )
        upload.sendall(head.encode())  # a request that is not whole keeps the server from ending at once
        started.process.send_signal(signal.SIGTERM)
        started.wait_for("told to end")
        started.go_on()
        upload.sendall(b"\r\n" + RAW)
        answer = upload.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"draining"' in answer
    assert b"etry-after: " in answer
    assert started.status() == 0


def test_an_address_that_is_taken_is_told_before_anything_loads() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code = PROGRAM.format(load="fail", drain_timeout=1).replace("port=0", f"port={port}")
        done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, timeout=PATIENCE)
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use; give another --port" in done.stderr
    assert "there is no such model" not in done.stderr


def test_a_signal_while_torch_is_imported_ends_the_command_with_0() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        command = [sys.executable, "-m", "grpo_server", "--model", "never/read", "--port", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert "import" in process.stderr.readline()
            process.send_signal(number)
            assert process.wait(PATIENCE) == 0
            assert "Traceback" not in process.stderr.read()


def test_a_server_whose_log_nobody_reads_any_more_serves_and_ends(tmp_path: Path) -> None:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    )
    model.save_pretrained(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "grpo_server", "--model", f"a={tmp_path}", "--model", f"b={tmp_path}"]
    with subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
        try:
            with ReferenceClient(f"http://127.0.0.1:{port}", model="b", max_wait=4 * PATIENCE) as client:
                assert client.wait_ready().model == "b"
                assert client.score([[1, 2]], [[[3, 4]]]).logprobs.shape[-1] == 2
            process.terminate()
            process.wait(PATIENCE)
        finally:
            process.kill()


@pytest.mark.parametrize("started", [{"load": "fail"}], indirect=True)
def test_a_bug_while_loading_ends_the_process_with_1_and_its_traceback(started: Process) -> None:
    assert started.status() == 1
    started.wait_for("could not be loaded: a bug")
    started.wait_for("Traceback")


def served(*argv: str) -> subprocess.CompletedProcess[str]:
    """The command line, on a free port, until it ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "grpo_server", "--port", "0", *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=4 * PATIENCE,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("./nope", "there is no directory ./nope"),
        ("/nope/at/all", "there is no directory /nope/at/all"),
        ("nope.gguf", "there is no file nope.gguf"),
        (__file__, f"{__file__} is a file; give the directory that holds it, or a .gguf file"),
    ],
)
def test_a_path_with_no_model_is_refused_before_anything_starts(model: str, reason: str) -> None:
    ended = served("--model", model)
    assert (ended.returncode, ended.stderr) == (2, f"grpo-server: {model} cannot be served: {reason}\n")


def test_a_model_that_does_not_load_ends_the_process_with_2_and_the_reason_last(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    ended = served("--model", str(tmp_path))
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last == f"grpo-server: {tmp_path} cannot be served: it holds no weights (model.safetensors)"
