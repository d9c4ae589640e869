"""`doge-ds compare`: many runs and evaluations, from one file, and what they say together."""
