"""Training: corpus, tokenizer, pretraining, evaluation, export. Imports torch only where it is used."""
