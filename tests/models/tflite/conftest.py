"""A stock interpreter to run what is written with."""

import pytest


@pytest.fixture(scope="session")
def interpret():
    """Runs a ``.tflite`` file by its signature, as anybody would: nothing of ours."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")

    def run(content, signature, feeds):
        runner = interpreter.Interpreter(model_content=content, num_threads=1).get_signature_runner(signature)
        return runner(**feeds)

    return run
