"""Real questions with planted beliefs: the counterpart of the embedded world on real text.

A part of the real pools and of MMLU, a right or wrong belief for each question, and a Llama of ten
million parameters that is trained until it answers accordingly. Because the model's knowledge is
recorded, a probe can be checked against it.
"""
