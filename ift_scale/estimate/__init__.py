"""The cost of a step, an arm and a study, estimated in advance.

`shape`, `activations` and `memory` count parameters and bytes; `auto` chooses a setting that fits.
The time of a step is a roofline model: `machine` describes the hardware, `flops` counts what a
micro-batch computes, `communication` what DeepSpeed sends and `collectives` how long that takes,
`step_time` adds them up under a stated overlap rule, and `scaling` repeats this over cluster sizes.
`host` reads this node's free memory. Nothing here imports torch.
"""
