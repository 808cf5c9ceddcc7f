"""The pocket backbone: the grammar that writes its text, its pretraining, its task, its gate.

python -m recipes.pocket --out FOLDER       everything from nothing: text, tokenizer, weights, verdict
"""
