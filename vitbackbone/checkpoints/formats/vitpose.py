"""The layout of ViTPose: ViT's, where the position of CLS is added to every patch."""

from torch import Tensor

from vitbackbone.checkpoints.formats.huggingface import BERT, BLOCK, NORMS, layers
from vitbackbone.checkpoints.rules import Change, Rule, Rules


def _add_first(positions: Tensor) -> tuple[Tensor]:
    return (positions[0, 1:] + positions[0, :1],)


VITPOSE: Rules = (
    *BERT,
    *NORMS,
    *layers(BLOCK, {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}),
    Rule(("embeddings.position_embeddings",), ("pos_embed.table",), Change(_add_first)),
)
