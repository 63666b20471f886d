"""Check a calibration before it starts, and plan its batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch.export import ExportedProgram

from pipeline import storage
from pipeline.artifacts.formats import format_named
from pipeline.config import to_dict
from pipeline.dataset.collection import ImageCollection, find_images, image_facts
from pipeline.dataset.source import Source
from pipeline.errors import DatasetError, ModelError
from pipeline.inputs import check_inputs, check_planned, find_labeled, other_teacher
from pipeline.log import announce, logger
from pipeline.models import LoadedModel, load_model
from pipeline.outputs import find_config, identifying_settings, make_document
from pipeline.outputs.names import REPORT
from pipeline.outputs.owners import check_apart, check_output, check_place, job_of
from pipeline.quantization.batches import Window, draw_window, plan_windows, spread_window
from pipeline.quantization.channels import report_other_norms
from pipeline.quantization.config import EXCLUDED_SETTINGS, RECORDED_SETTINGS, CalibrationConfig
from pipeline.quantization.equalization import check_equalization
from pipeline.quantization.float_layers import find_float_layers, report_float_layers
from pipeline.quantization.graphs import export_images, point_names
from pipeline.quantization.ranges import Ranges
from pipeline.quantization.reading import calibration_reads_kept, read_patch_counts
from pipeline.quantization.reference import check_points, read_reference
from pipeline.synthesis.input_synthesis import ImagesToMake, check_all_come, leaving_failed, plan_images, planned_images
from pipeline.vetting import check_teacher
from pipeline.vit.families import refusal

# At most one image in so many is held back. All others are calibrated and trained on.
_MOST_HELD_BACK = 4
# Number of images on which artifacts are compared. Each adds as many logits as there are classes.
_NUM_SAMPLES = 32
# With fewer images a line warns, because it may be a slip: their ranges say little about other images.
_FEW = 32


@dataclass(frozen=True)
class CalibrationPlan:
    """A calibration that was found possible.

    Attributes:
        config: settings as the caller gave them.
        document: content of `config.json`: what identifies the calibration, and its digest.
        loaded: the model as the driver loaded it.
        program: the model as a graph that reads whole images.
        images: the images to calibrate on.
        windows: which rows of the images are used, and which of them are read together.
        samples: a few of these images, from everywhere in the dataset, on which artifacts are compared.
        probe: images on which the sensitivity of layers is measured; None if it is not measured.
        held_back: images that are not trained on; None if there are none.
        labeled: images to score on; None without any.
        reference: ranges on real images to compare with; None without any.
    """

    config: CalibrationConfig
    document: dict[str, Any]
    loaded: LoadedModel
    program: ExportedProgram
    images: ImageCollection
    windows: list[Window]
    samples: Window
    probe: Window | None
    held_back: Window | None
    labeled: Source | None
    reference: Ranges | None

    @property
    def digest(self) -> str:
        return self.document["digest"]

    @property
    def num_images(self) -> int:
        return sum(len(window.rows) for window in self.windows)


@dataclass(frozen=True)
class CheckedSettings:
    """Inputs of a calibration besides its images, as `check_settings` returns them.

    Attributes:
        config: settings as the caller gave them.
        loaded: the teacher.
        labeled: images to score on; None without any.
        reference: ranges on real images to compare with; None without any.
    """

    config: CalibrationConfig
    loaded: LoadedModel
    labeled: Source | None
    reference: Ranges | None

    @cached_property
    def program(self) -> ExportedProgram:
        """The model as a graph that can be prepared as the config asks, exported when first asked for."""
        placement = self.config.placement
        program = export_images(self.loaded.model, placement)
        # A finished calibration is not compared again.
        if self.reference is not None and not storage.exists(storage.join(self.config.output, REPORT)):
            check_points(str(self.config.reference), self.reference, point_names(program, placement))
        if self.config.equalization:
            check_equalization(program)
        if self.config.smoothing != "none":
            report_other_norms(program.module().graph)
        return program


def plan_calibration(config: CalibrationConfig, checked: CheckedSettings | None = None) -> CalibrationPlan:
    """Check on the driver everything that can be checked without Ray; writes nothing, and reads only the first image.

    Args:
        config: settings of the calibration.
        checked: what `check_settings` returned for them, if the caller has called it already.

    Raises:
        ConfigError, ModelError, CheckpointError, DatasetError: see `calibrate`.
    """
    checked = check_settings(config) if checked is None else checked
    loaded = checked.loaded
    images = find_images(config.images, split=config.images_split)
    _check_images(config, images, loaded)
    # `plan_windows` sees all ids.
    check_inputs(images, loaded, reads_kept=calibration_reads_kept(config, loaded), ids=False)
    index = read_patch_counts(images, loaded, dense=config.mode == "dense")
    probe = _probe(config, index)
    not_calibrated_on = None if config.mixed is None else probe
    windows = plan_windows(index, config.batch_size, config.max_images, config.seed, not_calibrated_on)
    samples = spread_window(index, windows, _NUM_SAMPLES, config.seed)
    _warn_of_few(sum(len(window.rows) for window in windows))
    held_back = _hold_back(config, index)
    program = checked.program
    report_float_layers(loaded.name, find_float_layers(loaded.model, program))
    document = _document(config, images, loaded)
    find_config(config.output, "calibrate", document)
    storage.check_writable(config.output)
    own = checked.labeled, checked.reference
    return CalibrationPlan(config, document, loaded, program, images, windows, samples, probe, held_back, *own)


def _warn_of_few(num_images: int) -> None:
    if num_images < _FEW:
        logger.warning(
            f"calibrate: {num_images} {'image is' if num_images == 1 else 'images are'} few to calibrate on: "
            f"activations beyond the ranges seen there will be clipped; give {_FEW} or more"
        )


def _probe(config: CalibrationConfig, index: Sequence[tuple[str, int]]) -> Window | None:
    """Draw the images on which the sensitivity of layers is measured; None where it is not.

    Raises:
        DatasetError: there are too few images to leave some out of the calibration.
    """
    if config.mixed is None:
        return draw_window(index, config.sensitivity, config.seed) if config.sensitivity else None
    number = _num_held_back("mixed.held_back", config.mixed.held_back, len(index))
    if not number:
        raise DatasetError(
            f"mixed.held_back is {config.mixed.held_back}, at most a quarter of images, and there are {len(index)}: "
            f"give {_MOST_HELD_BACK} or more, or leave mixed out"
        )
    return draw_window(index, number, config.seed)


def _num_held_back(setting: str, wanted: int, num_images: int) -> int:
    """Return how many images are held back; a line says so if they are fewer than asked for, but not none."""
    number = min(wanted, num_images // _MOST_HELD_BACK)
    if 0 < number < wanted:
        logger.warning(f"{setting} is {wanted}: of {num_images} images a quarter is held back, {number}")
    return number


def _hold_back(config: CalibrationConfig, index: Sequence[tuple[str, int]]) -> Window | None:
    """Draw the images that are not trained on; None if nothing is trained, or nothing held back."""
    wanted = 0 if config.qat is None else config.qat.held_back
    number = _num_held_back("qat.held_back", wanted, len(index))
    if wanted and not number:
        logger.warning(
            f"qat: {len(index)} images are too few to hold any back: the trained model is kept whether or not it is "
            "better"
        )
    return draw_window(index, number, config.seed) if number else None


def check_before_making(checked: CheckedSettings, path: str) -> ImagesToMake:
    """Check what can be checked of a calibration before its images are made, which may take hours.

    Args:
        checked: what `check_settings` returned.
        path: path of the config of the images' synthesis.

    Returns:
        The images, to be made with `make_first`.

    Raises:
        PipelineError: see `calibrate` and `plan_images`.
    """
    config, loaded = checked.config, checked.loaded
    to_make = plan_images(path, (config.teacher, loaded))
    images = planned_images(to_make, split=config.images_split)
    _check_images(config, images, loaded)
    check_planned(images, loaded, reads_kept=calibration_reads_kept(config, loaded))
    _ = checked.program
    if not config.allow_incomplete:
        check_all_come(to_make)
        # With fewer images than planned, the calibration would be another one.
        find_config(config.output, "calibrate", _document(config, images, loaded))
    else:
        check_output(config.output, "calibrate")
        if job_of(config.output) == "calibrate":
            to_make = leaving_failed(to_make, config.output)
    storage.check_writable(config.output)
    return to_make


def check_settings(config: CalibrationConfig) -> CheckedSettings:
    """Load the teacher, print its notices, and check all but the images and the exported graph.

    Raises:
        PipelineError: see `calibrate`.
    """
    check_place(config.output, shared=config.workers.size > 0)
    for kind in config.formats:
        format_named(kind).check()
    loaded = load_model(config.teacher)
    announce(loaded.notices)
    # Ranges can be calibrated for any output; scoring, training, and measuring which layers suffer read it as classes.
    reads_classes = config.labeled is not None or config.sensitivity > 0
    check_teacher(loaded, classes=reads_classes or config.mixed is not None or config.qat is not None)
    _check_mode(config, loaded)
    if config.qat is not None and config.qat.augment is not None:
        config.qat.augment.check_channels("qat.augment", loaded.input_size[0])
    labeled = None if config.labeled is None else find_labeled(config.labeled, loaded, config.labeled_split)
    check_apart(config.output, () if labeled is None else (labeled,))
    reference = None
    if config.reference is not None:
        reference = read_reference(config.reference, loaded.digest, config.placement)
    return CheckedSettings(config, loaded, labeled, reference)


def _document(config: CalibrationConfig, images: ImageCollection, loaded: LoadedModel) -> dict[str, Any]:
    """Return the content of `config.json`: what decides the ranges, and with them every artifact, and its digest.

    Bit widths and workers do not decide ranges, so further bit widths can be added to an output; not those that are
    trained (`qat`), or the others would be trained again.
    """
    facts = {
        "teacher": loaded.digest,
        "mean": list(loaded.mean),
        "std": list(loaded.std),
        **image_facts(images),
        **identifying_settings(config, recorded=RECORDED_SETTINGS, excluded=EXCLUDED_SETTINGS),
    }
    if config.qat is not None:
        facts["qat"]["settings"] = config.trained
    preprocessing = config.teacher.preprocessing()
    if preprocessing and not all(source.synthetic for source in images.sources):
        facts["preprocessing"] = preprocessing
    return make_document("calibrate", facts, to_dict(config))


def _check_mode(config: CalibrationConfig, loaded: LoadedModel) -> None:
    """Check that mode `sparse` is used only with a family that can be run on a token subset.

    Raises:
        ModelError: mode `sparse` is set for a family that reads whole images.
    """
    reason = refusal(loaded.model)
    if config.mode == "sparse" and reason is not None:
        family = type(loaded.model).__name__
        raise ModelError(
            f"{family} cannot be calibrated on only the kept patches: {reason}; mode dense reads the filled images"
        )


def _check_images(config: CalibrationConfig, images: ImageCollection, loaded: LoadedModel) -> None:
    """Check that synthetic datasets are complete and of this teacher.

    Raises:
        ConfigError: the output lies in one of them.
        DatasetError: a dataset is incomplete or of another teacher, and the config does not allow that.
    """
    check_apart(config.output, images.sources)
    if not config.allow_incomplete:
        images.check_complete()
    if config.allow_other_teacher:
        return
    for source in images.sources:
        found = other_teacher(source, loaded)
        if found is not None:
            raise DatasetError(f"{found}; allow_other_teacher accepts them")
