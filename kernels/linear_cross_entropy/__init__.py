"""Cross-entropy of a language-model head over the supervised rows, in chunks of logits."""
