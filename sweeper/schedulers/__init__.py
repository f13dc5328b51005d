"""Schedulers: which running trials go on after each epoch, as Ray Tune's `TrialScheduler`.

A kind is one module with

    class Config(Settings)      kind: Literal["<kind>"] and its own bounded fields; importing it needs no ray
    build(config, max_t)        a ray.tune TrialScheduler for trials of at most `max_t` epochs
    expected_share(config, max_t)   may be left out: the share of all epochs that a search trains, for the forecast

A trial reports `TIME_ATTR` (epochs completed, from 1) and `METRIC` on the validation split, more being better. Tune's
`training_iteration` is not used: it starts again at 1 when a trial resumes.
"""

METRIC = "accuracy"
MODE = "max"
TIME_ATTR = "epoch"
