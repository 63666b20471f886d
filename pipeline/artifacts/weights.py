"""Open weights, and folders as timm saves them, as artifacts."""

import tempfile
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline import storage
from pipeline.artifacts.facts import Facts
from pipeline.artifacts.formats import FORMATS, ending_of
from pipeline.artifacts.opened import Opened, Predictor
from pipeline.errors import CheckpointError
from pipeline.file_kinds import MODEL_CONFIG
from pipeline.log import announce
from pipeline.models import LOCAL_DIR, ModelConfig, load_model
from pipeline.models.class_names import class_names
from pipeline.models.folders import describe_problem, read_model_config
from pipeline.models.loading import assumed_preprocessing

_CHECKPOINTS = (".safetensors", ".pth", ".pt", ".pth.tar", ".bin", ".ckpt", ".npz", ".index.json")


def open_weights(uri: str, config: ModelConfig) -> Opened:
    """Open weights of a known architecture, or a folder that brings its own.

    Args:
        uri: location of a checkpoint, or of a folder as timm saves one.
        config: settings of the teacher, which name the architecture of a checkpoint.

    Raises:
        DatasetError: there is no such file.
        CheckpointError: the location holds neither, the file is corrupt, or the model does not output classes.
    """
    if uri.lower().endswith(_CHECKPOINTS):
        # Weights are read as the teacher's are. Their names are those that lie beside them, never the teacher's.
        facts = Facts.beside(uri)
        own = replace(config, checkpoint=uri, pretrained=False)
        loaded = load_model(own)
        _, about_names = class_names(own, loaded.model)
        # They are shown images as the teacher is, unless their layout or a file beside them says otherwise.
        others = (*about_names, *assumed_preprocessing(own, loaded.data_config))
        announce([notice for notice in loaded.notices if notice not in others])
        if loaded.preset:
            facts = replace(facts, mean=loaded.mean, std=loaded.std)
        return Opened(model_predictor(loaded.model), facts, loaded.input_size)
    return _open_folder(uri.removeprefix(LOCAL_DIR), uri)


def _open_folder(folder: str, uri: str) -> Opened:
    if not storage.exists(storage.join(folder, MODEL_CONFIG)):
        kinds = ", ".join((*map(ending_of, FORMATS), *_CHECKPOINTS))
        raise CheckpointError(f"{uri!r} is no artifact: neither one of {kinds} nor a folder that timm saved")
    if problem := describe_problem(read_model_config(folder)):
        raise CheckpointError(f"{uri!r} {problem}, as its config.json says, not one class")
    with tempfile.TemporaryDirectory(prefix="artifact-") as copy:
        storage.download_folder(folder, copy)
        loaded = load_model(ModelConfig(name=f"{LOCAL_DIR}{copy}"))
    announce([notice.replace(f"{LOCAL_DIR}{copy}", uri) for notice in loaded.notices])
    return Opened(model_predictor(loaded.model), Facts.of(loaded), loaded.input_size)


def model_predictor(model: nn.Module) -> Predictor:
    """Return the predictor of a module, which is put in evaluation mode."""
    model.eval()

    def predict(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(images)

    return predict
