"""Token ids that make `faulty_worker_main` fail; no real plan has them by accident."""

KILLER_TOKEN_ID = 61  # a prompt that begins with it kills the process
RAISING_TOKEN_ID = 62  # a prompt that begins with it makes the step raise
