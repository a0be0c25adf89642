"""Write src/gradvac/assets/encoder: an encoder that knows nothing, for recipes at size smoke.

    python -m tools.smoke_encoder

A BERT of one layer with random parameters, and a WordPiece vocabulary of 600 pieces, trained on the
shipped corpus: what fine-tuning on it shows is that everything runs, without the network.
"""

import lzma
from pathlib import Path

from gradvac.experiment.recipe.paths import resolve
from gradvac.tagging.encoder import transformers
from gradvac.tagging.pretraining import train_tokenizer

OUT = Path(__file__).parents[1] / "src" / "gradvac" / "assets" / "encoder"
PIECES = 600


def main() -> None:
    import torch

    with lzma.open(resolve("shipped:corpus/valid.tsv.xz"), "rt", encoding="utf-8") as file:
        lines = file.readlines()
    head, *rows = (line.rstrip("\n").split("\t") for line in lines)
    texts = {code: [row[n] for row in rows if row[n]] for n, code in enumerate(head)}
    tokenizer = train_tokenizer(texts, size=PIECES, temperature=5, sample=5000, seed=1)
    config = transformers().BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        pad_token_id=0,
    )
    torch.manual_seed(1)
    transformers().BertModel(config, add_pooling_layer=False).save_pretrained(OUT)
    tokenizer.save_pretrained(OUT)


if __name__ == "__main__":
    main()
