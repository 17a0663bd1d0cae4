"""Sequences of one model run side by side, as many as OLLAMA_NUM_PARALLEL says."""

import threading

from actors.protocol import ListLoaded, Loaded
from tests.system.conftest import Runtime


def test_a_model_is_loaded_for_the_configured_number_of_sequences(runtime: Runtime) -> None:
    runtime.chat()
    loaded: Loaded = runtime.ask_actor("scheduler", lambda link: link.ask(ListLoaded(), Loaded))
    assert loaded.models[0].report.n_parallel == 4


def test_a_short_answer_does_not_wait_for_a_long_one(runtime: Runtime) -> None:
    # a penalty far below one makes what was said once the most likely for ever: no end token is reached
    options = {"num_predict": -1, "temperature": 0, "repeat_penalty": 0.01, "stop": []}
    long = {"model": "handbook", "prompt": "once", "raw": True, "options": options}
    began, answered, finished = threading.Event(), threading.Event(), threading.Event()

    def run_long() -> None:
        with runtime.http.stream("POST", "/api/generate", json=long) as response:
            for n, _ in enumerate(response.iter_lines()):
                if n == 5:
                    began.set()
                if answered.is_set():
                    return
        finished.set()

    thread = threading.Thread(target=run_long)
    thread.start()
    try:
        assert began.wait(30)
        assert runtime.chat(num_predict=1)["eval_count"] == 1
        assert not finished.is_set()
    finally:
        answered.set()
        thread.join(120)
