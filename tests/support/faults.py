"""What makes `faulty_worker_main` fail: ids that no real plan has by accident."""

KILLER_TOKEN_ID = 61  # a prompt that begins with it takes the process down
RAISING_TOKEN_ID = 62  # a prompt that begins with it makes the step raise
