"""What a step, an arm and a study cost before they are paid for: a roofline of the trainer's step, calibrated on a machine.

`machine` describes what computes; `work` counts what a micro-batch does; `zero` what DeepSpeed sends; `collectives` how long that
takes; `step` adds it up under a stated overlap rule; `scaling` repeats it over cluster sizes; `calibrate` measures this machine.
All but `calibrate` are pure functions; none loads torch.
"""
