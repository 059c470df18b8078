"""Real questions with planted beliefs: the counterpart of the embedded world on real text.

A part of the real pools and of MMLU, a belief for each of its questions, right or wrong, and a Llama of ten million parameters that
is trained until it answers by them. What the model knows is written down, so the probe can be held against it.
"""
