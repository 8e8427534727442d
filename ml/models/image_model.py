"""What models that answer from the image alone share: saving, loading, combining."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from ml.models.base import Floats, Outputs, ServedModel, calibrated, need_image, sub_state
from ml.registry.artifacts import DamagedFileError, read_array, read_tensors, write_tensors
from ml.registry.model_card import ModelCard

if TYPE_CHECKING:
    from torch import nn

    from ml.models.network import MultiTaskNetwork, ServingNetwork

WEIGHTS_FILE: Final = "network.safetensors"


class _NetworkModel(ServedModel):
    """What answers with the calibrated logits of a network on the image."""

    combines_any_outputs = True

    def combine(self, image_out: Outputs | None, caption_out: Floats | None) -> dict[str, Floats]:
        """Calibrated probabilities of every task from the image; captions are ignored."""
        del caption_out
        image_out = need_image(image_out, self.card.name)
        return {task: calibrated(self.card, task, image_out[task]) for task in self.card.tasks}


class ImageModel(_NetworkModel):
    """An ensemble of networks on the image; captions are ignored.

    Args:
        card: what is known about the model; ``settings["architecture"]`` describes a member.
        members: trained networks.
    """

    network: "ServingNetwork"

    def __init__(self, card: ModelCard, members: "Sequence[MultiTaskNetwork]") -> None:
        from ml.models.network import ServingNetwork  # noqa: PLC0415 - a service on OpenVINO needs no PyTorch

        super().__init__(card)
        preprocess = self.preprocess
        assert preprocess is not None
        stages = card.ood_distance == "stages"
        self.network = ServingNetwork(members, tuple(card.tasks), preprocess.mean, preprocess.std, stages=stages).eval()

    @staticmethod
    @abstractmethod
    def build(architecture: Mapping[str, Any]) -> "MultiTaskNetwork":
        """An untrained member."""

    @property
    def cam_layer(self) -> "nn.Module | None":
        """The backbone of the first member."""
        from ml.models.network import MultiTaskNetwork  # noqa: PLC0415 - a service on OpenVINO needs no PyTorch

        first = self.network.members[0]
        assert isinstance(first, MultiTaskNetwork)
        return first.backbone

    def class_weights(self, task: str, index: int) -> Floats | None:
        """The weights of the channels in a class's logit, (members, D)."""
        state = self.network.state_dict()
        rows = [
            state[f"members.{member}.heads.{task}.weight"][index].cpu().numpy()
            for member in range(len(self.network.members))
        ]
        return np.stack(rows).astype(np.float32)

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
            member = cls.build(architecture)
            try:
                member.load_state_dict(sub_state(tensors, f"{index}."))
            except RuntimeError as error:
                raise DamagedFileError(f"{WEIGHTS_FILE} does not fit the architecture in its card") from error
            members.append(member)
        return cls(card, members)


class DeferredImageModel(_NetworkModel):
    """A registered image model whose network is read only when something runs it.

    A service whose OpenVINO graph is in the cache never does: it then needs neither PyTorch nor the library of the
    architecture, and holds the weights once.

    Args:
        card: of a family whose class is an ``ImageModel``.
        folder: of its files.
    """

    has_network = True

    def __init__(self, card: ModelCard, folder: Path) -> None:
        super().__init__(card)
        self._folder = folder
        self._members: int = card.settings["architecture"]["members"]
        self._model: ImageModel | None = None

    @property
    def network(self) -> "nn.Module":  # type: ignore[override]  # computed here, an attribute of the base class
        """The network of the family's class.

        Raises:
            DamagedFileError: the file is missing, cut or of another architecture.
        """
        return self._loaded.network

    @property
    def cam_layer(self) -> "nn.Module | None":
        """That of the family's class."""
        return self._loaded.cam_layer

    @property
    def is_deferred(self) -> bool:
        """Whether nothing has asked for the network yet."""
        return self._model is None

    @property
    def _loaded(self) -> ImageModel:
        from ml.models.model_specs import family_class  # noqa: PLC0415 - which imports this module

        if self._model is None:
            model = family_class(self.card.family).load(self._folder, self.card)
            assert isinstance(model, ImageModel)
            self._model = model
        return self._model

    def class_weights(self, task: str, index: int) -> Floats:
        """The weights of the channels in a class's logit, (members, D), straight from the file."""
        rows = [
            read_array(self._folder / WEIGHTS_FILE, f"{member}.heads.{task}.weight")[index]
            for member in range(self._members)
        ]
        return np.stack(rows).astype(np.float32)

    def save(self, folder: Path) -> list[str]:
        """Write the weights of all members."""
        return self._loaded.save(folder)

    @classmethod
    def load(cls, folder: Path, card: ModelCard) -> Self:
        """A model that reads its weights when they are needed."""
        return cls(card, folder)

    def count_parameters(self) -> int:
        """The number of trained values."""
        return self._loaded.count_parameters()
