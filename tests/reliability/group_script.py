"""Started by test_launchers.py as one of several processes: takes steps, and goes wrong as told.

Arguments: what goes wrong, on which rank, then NAME=VALUE for the environment of this process.
"""

from __future__ import annotations

import os
import signal
import sys
import time

if __name__ == "__main__":
    os.environ |= dict(pair.split("=", 1) for pair in sys.argv[3:])
    import torch

    from locap.trainer.distributed import Timeouts, agree, process_group, sum_over_ranks
    from locap.trainer.stopping import StopRequests
    from locap.trainer.watchdog import Watchdog
    from locap.utils.errors import UsageError

    what, chosen = sys.argv[1], int(sys.argv[2])
    with process_group(device="cpu", timeouts=Timeouts(20, 60, 60)) as world, StopRequests():
        dog = Watchdog(world, {"step": 3})
        dog.start()
        for step in range(4):
            dog.mark("step", step)
            time.sleep(0.6)
            mine = step == 1 and world.rank == chosen
            if mine and what == "raise":
                raise RuntimeError("broken on purpose")
            if what == "user error":
                raise UsageError("Everybody sees this.", where="here")
            if what == "disagree":
                agree({"config": str(world.rank)}, "the configuration")
            if mine and what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if mine and what == "stop":
                sys.stderr.write(f"stopped at {time.time()}\n")
                os.kill(os.getpid(), signal.SIGSTOP)
            if mine and what == "sleep":
                time.sleep(100)
            if mine and what == "exit0":
                os._exit(0)
            if mine and what == "leave":
                break
            if step == 1 and what == "wait":
                dog.mark("without a limit", 1)
                sys.stderr.write(f"pid {os.getpid()}\n")
                sys.stderr.flush()
                time.sleep(100)
            wide = torch.ones(2 if mine and what == "mismatch" else 1)
            total = float(sum_over_ranks(wide)[0])
        dog.close()
        sys.stderr.write(f"rank {world.rank} of {world.size} by {world.launcher} summed {total:g}\n")
