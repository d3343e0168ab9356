"""What training must survive, as figures: the goals, and the best that is known of others."""

GOALS = {  # goal: (what, best known elsewhere, ours)
    "T1": ("kill points survived, resume bitwise equal", "not published", "100 % of >= 200, sync + async, 1 + 2 ranks"),
    "T2": ("resume exactness", "0.0 at 6 points (Composer)", "bitwise at every step, every system, 1 + 2 ranks"),
    "T3": (
        "work lost on a request to stop / a crash",
        "an interval",
        "<= 1 step / <= 1 interval; exit 75 in step + 2 s",
    ),
    "T4": ("restart to the first optimiser step", "150 s at 4800 devices", "<= 5 s tiny, imports included"),
    "T5": ("corruption found", "13 % of bit flips (torch.load)", "100 % of flips, truncations, zeros, swaps"),
    "T6": ("N ranks = 1 rank", "1e-6 on 2 parameters (accelerate)", "fp64 1e-12, fp32 1e-5, ragged, N = 1 ... 4"),
    "T7": ("distributed evaluation", "exact count", "byte-identical, N = 1 ... 4, sizes 1 ... 17"),
    "T8": ("batch independence", "untested elsewhere", "100 % of 500 re-batchings; fp64 <= 1e-12"),
    "T9": ("fault matrix automated", "-", "every row of what exists, <= 6 min"),
    "T10": ("user errors", "-", "100 % without traceback; configuration <= 3 s"),
    "T11": ("hostile files", "3 kept (safetensors), ~60 (Pillow)", ">= 150: 0 run, 0 crash, <= 5 s, <= 1 GB each"),
    "T13": ("hang -> named rank", "30 min, no name", "<= time-out + 5 s, rank, host, stack: 100 %"),
    "T14": ("blocking time of a save", "6.3 s for 7B (DCP)", "<= 0.5 s; async a fraction of sync"),
    "T15": ("goodput under kills", "97 % (ByteRobust)", ">= 98 %; 30 kills, final hash equal"),
    "T16": ("bad data", "uncounted substitutes (detectron2)", "skips = injected, by reason; order exact"),
    "T17": ("soak", "-", "RSS growth <= 1 %, open files constant"),
    "T18": ("security debt", "67 unsafe loads (originals)", "0 pickles, 0 unguarded loads, 0 remote code"),
}
