"Waits of the tests: for what comes, not for a time."

import time


def wait_for(look, seconds=300):
    "What `look` gives, as soon as that is anything."
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return found
