"""Readers and writers of model and tokenizer files beyond those that the C core reads."""
