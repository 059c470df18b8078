"""Cross-entropy of a language-model head over the rows that predict something, the logits never whole in memory."""
