"""What models that answer from the image alone share: saving, loading, combining."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from torch import nn

from ml.models.base import Floats, Outputs, ServedModel, calibrated, need_image
from ml.models.network import MultiTaskNetwork, ServingNetwork
from ml.registry.artifacts import DamagedFileError, read_tensors, write_tensors
from ml.registry.model_card import ModelCard

WEIGHTS_FILE: Final = "network.safetensors"


class ImageModel(ServedModel):
    """An ensemble of networks on the image; captions are ignored.

    Args:
        card: what is known about the model; ``settings["architecture"]`` describes a member.
        members: trained networks.
    """

    network: ServingNetwork
    combines_any_outputs = True

    def __init__(self, card: ModelCard, members: Sequence[MultiTaskNetwork]) -> None:
        super().__init__(card)
        preprocess = self.preprocess
        assert preprocess is not None
        stages = card.ood_distance == "stages"
        self.network = ServingNetwork(members, tuple(card.tasks), preprocess.mean, preprocess.std, stages=stages).eval()

    @staticmethod
    @abstractmethod
    def build(architecture: Mapping[str, Any]) -> MultiTaskNetwork:
        """An untrained member."""

    @property
    def cam_layer(self) -> nn.Module | None:
        """The backbone of the first member."""
        first = self.network.members[0]
        assert isinstance(first, MultiTaskNetwork)
        return first.backbone

    def combine(self, image_out: Outputs | None, caption_out: Floats | None) -> dict[str, Floats]:
        """Calibrated probabilities of every task from the image; captions are ignored."""
        del caption_out
        image_out = need_image(image_out, self.card.name)
        return {task: calibrated(self.card, task, image_out[task]) for task in self.card.tasks}

    def save(self, folder: Path) -> list[str]:
        """Write the weights of all members."""
        tensors = {
            f"{index}.{name}": value
            for index, member in enumerate(self.network.members)
            for name, value in member.state_dict().items()
        }
        write_tensors(folder / WEIGHTS_FILE, tensors)
        return [WEIGHTS_FILE]

    @classmethod
    def load(cls, folder: Path, card: ModelCard) -> Self:
        """The model that ``save`` wrote.

        Raises:
            DamagedFileError: the file is missing, cut or of another architecture.
        """
        tensors, _ = read_tensors(folder / WEIGHTS_FILE)
        architecture = card.settings["architecture"]
        members = []
        for index in range(architecture["members"]):
            prefix = f"{index}."
            state = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
            member = cls.build(architecture)
            try:
                member.load_state_dict(state)
            except RuntimeError as error:
                raise DamagedFileError(f"{WEIGHTS_FILE} does not fit the architecture in its card") from error
            members.append(member)
        return cls(card, members)
