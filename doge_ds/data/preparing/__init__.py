"""Documents to the files of a token store: encoding, parts, held-out rule, merge, the tokenizer of the store."""
