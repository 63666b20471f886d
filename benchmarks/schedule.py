"""Time the published schedule of 4000 steps, from a few measured steps of each phase.

    python -m benchmarks.schedule --model deit_base_patch16_224 --batch 128 --dtype bfloat16 --steps 20 --rounds 7

Every phase (196, 137, 95, 66 and 46 patches alive) is a run of its own, ours and the plain one's, and all are stepped
in turn; so are the phases of Patch Rebirth (196, 147, 98 and 49 for `--rebirth 4`, nearly as sparse), which leaves that
many images a run. A dense schedule is 4000 steps of the first phase. Beside the seconds: the work counted, how near to
the machine's peak it is done, the memory of the first phase (`--micro-batch 32` brings it to a sixth of the plain
one's, and leaves the sparsest phase the whole batch), and what `--compile` takes at first.
Needs neither Ray nor torchao. Prints one JSON line.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch

from benchmarks.circumstances import circumstances
from benchmarks.inversion import WARM_UP, make_parser, make_run, matmul_peak, seconds, take_turns
from benchmarks.plain import PlainInversion
from pipeline.inversion import Inversion, InversionConfig, Teacher, frozen_copy
from pipeline.inversion.flops import TeacherShape, run_flops, step_flops
from pipeline.inversion.memory import LiveBytes, predict, weight_bytes
from pipeline.precision import announce_dtype

Phases = list[tuple[int, int]]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The JSON line, as plain data."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    announce_dtype(options.dtype, on_gpu=device.type == "cuda")
    teacher = Teacher(timm.create_model(options.model), mean=(0.5,) * 3, std=(0.5,) * 3).to(device)
    phases = InversionConfig().phases(teacher.num_patches)
    rebirth = InversionConfig(rebirth=options.rebirth).phases(teacher.num_patches)
    # First, while nothing else is on the device.
    ready = frozen_copy(teacher, options.dtype, compiled=options.compile)
    memory = _memory(options, teacher, ready)
    ours, reborn = (
        [_our_run(options, ready, None if n == teacher.num_patches else n) for _, n in schedule]
        for schedule in (phases, rebirth)
    )
    plain = [_plain_run(options, device, n) for _, n in phases] if options.plain else []
    runs: dict[str, Sequence[Inversion | PlainInversion]] = {"ours": ours, "plain": plain, "rebirth": reborn}
    step_s = _time(runs, options, device)
    rebirth_s = step_s.pop("rebirth")
    schedule_s = schedule_seconds(phases, step_s)
    compile_s = sum(run.result().compile_s for run in ours)
    return {
        "model": options.model,
        "batch": options.batch,
        "micro_batch": options.micro_batch,
        "dtype": options.dtype,
        "phases": phases,
        "step_s": {name: [float(f"{value:.4g}") for value in values] for name, values in step_s.items()},
        "schedule_s": {name: round(value, 1) for name, value in schedule_s.items()},
        "ratios": _ratios(schedule_s),
        "an_image": _an_image(options, teacher, (phases, rebirth), schedule_s, _run_seconds(rebirth, rebirth_s)),
        "work": _work(options, teacher, phases, step_s["ours"], device),
        "compile": _compiling(compile_s, schedule_s["ours_sparse"]) if options.compile else None,
        "memory": memory,
        **circumstances("benchmarks.schedule", device),
    }


def schedule_seconds(phases: Phases, step_s: dict[str, list[float]]) -> dict[str, float]:
    """Whole runs, sparse and dense, of each that was timed; phases are (steps, patches alive), the first is dense."""
    total = sum(num_steps for num_steps, _ in phases)
    sparse = {f"{name}_sparse": _run_seconds(phases, values) for name, values in step_s.items()}
    return sparse | {f"{name}_dense": total * values[0] for name, values in step_s.items()}


def _run_seconds(phases: Phases, step_s: Sequence[float]) -> float:
    return sum(num_steps * s for (num_steps, _), s in zip(phases, step_s, strict=True))


def _an_image(
    options: argparse.Namespace,
    teacher: Teacher,
    schedules: tuple[Phases, Phases],
    schedule_s: dict[str, float],
    rebirth_s: float,
) -> dict[str, dict[str, float]]:
    """Return seconds per image and counted work per image, with dense as 1, for dense, sparse and rebirth."""
    shape, (phases, rebirth) = TeacherShape.of(teacher), schedules
    dense = step_flops(shape, teacher.num_patches).total * sum(num_steps for num_steps, _ in phases)
    taken = {"dense": schedule_s["ours_dense"], "sparse": schedule_s["ours_sparse"]}
    seconds_each = {name: value / options.batch for name, value in taken.items()}
    seconds_each["rebirth"] = rebirth_s / options.batch / options.rebirth
    work = {"dense": 1.0, "sparse": run_flops(shape, phases).total / dense}
    work["rebirth"] = run_flops(shape, rebirth).total / options.rebirth / dense
    return {
        "seconds": {name: float(f"{value:.4g}") for name, value in seconds_each.items()},
        "work": {name: round(value, 3) for name, value in work.items()},
    }


def _our_run(options: argparse.Namespace, teacher: Teacher, alive: int | None) -> Inversion:
    return make_run(options, teacher, alive=alive, steps=WARM_UP + options.steps * options.rounds)


def _plain_run(options: argparse.Namespace, device: torch.device, alive: int) -> PlainInversion:
    model: Any = timm.create_model(options.model).to(device)
    return PlainInversion(model, torch.arange(options.batch) % model.num_classes, alive=alive)


def _time(
    runs: dict[str, Sequence[Inversion | PlainInversion]], options: argparse.Namespace, device: torch.device
) -> dict[str, list[float]]:
    """Median seconds of a step of each phase."""
    runs = {name: phased for name, phased in runs.items() if phased}
    steps: dict[str, Callable[[], object]] = {
        f"{name} {phase}": run.step for name, phased in runs.items() for phase, run in enumerate(phased)
    }
    for step in steps.values():
        seconds(step, WARM_UP, device)
    rounds = take_turns(steps, options, device)
    return {
        name: [statistics.median(took[f"{name} {phase}"] for took in rounds) for phase in range(len(phased))]
        for name, phased in runs.items()
    }


def _ratios(schedule_s: dict[str, float]) -> dict[str, float]:
    """Return how many times faster the second is than the first."""
    pairs = [("plain_sparse", "ours_sparse"), ("plain_dense", "ours_sparse"), ("plain_dense", "ours_dense")]
    pairs += [("ours_dense", "ours_sparse"), ("plain_dense", "plain_sparse")]
    return {f"{a}/{b}": round(schedule_s[a] / schedule_s[b], 3) for a, b in pairs if {a, b} <= schedule_s.keys()}


def _work(
    options: argparse.Namespace, teacher: Teacher, phases: Phases, step_s: Sequence[float], device: torch.device
) -> dict[str, Any]:
    """Counted operations, and the share of the machine's peak that the densest and the sparsest phase reach."""
    shape, peak = TeacherShape.of(teacher), matmul_peak(getattr(torch, options.dtype), device)
    dense = step_flops(shape, teacher.num_patches) * sum(num_steps for num_steps, _ in phases)
    rates = [step_flops(shape, n).total * options.batch / s for (_, n), s in zip(phases, step_s, strict=True)]
    return {
        "counted_ratio": round(dense.total / run_flops(shape, phases).total, 3),
        "peak_gflop_per_s": round(peak / 1e9, 1),
        "share_of_peak": {"dense": round(rates[0] / peak, 3), "sparsest": round(rates[-1] / peak, 3)},
    }


def _compiling(compile_s: float, schedule_s: float) -> dict[str, float]:
    """Return the seconds that compiling takes, once per process, and their share of the first run."""
    return {"seconds": round(compile_s, 1), "share_of_first_run": round(compile_s / (compile_s + schedule_s), 4)}


def _memory(options: argparse.Namespace, teacher: Teacher, ready: Teacher) -> dict[str, Any]:
    """Peak bytes of dense steps, weights included, each run alone on the device; on a CPU tensors, uncompiled.

    Args:
        options: of the command.
        teacher: as made.
        ready: its frozen copy.
    """
    device = teacher.mean.device
    on_gpu = device.type == "cuda"
    uncompiled = argparse.Namespace(**{**vars(options), "compile": options.compile and on_gpu})
    ours = make_run(uncompiled, ready, alive=None, steps=3)
    peaks = {"ours": _peak(ours, ours.images, list(ours.teacher.parameters()))}
    if not on_gpu:
        peaks["ours"] += weight_bytes(teacher, options.dtype) - _strided_bytes(ours.teacher)
    predicted = predict(teacher, ours.config, batch=options.batch).total
    del ours
    if options.plain:
        plain = _plain_run(options, device, teacher.num_patches)
        # On a GPU the teachers of ours lie beside it.
        beside = sum(_strided_bytes(module) for module in {teacher, ready}) if on_gpu else 0
        peaks["plain"] = _peak(plain, plain.images, list(plain.model.parameters())) - beside
    ratio = {"ours/plain": round(peaks["ours"] / peaks["plain"], 3)} if options.plain else {}
    return {"peak_bytes": peaks, "predicted_ours": predicted, **ratio}


def _peak(run: Inversion | PlainInversion, images: torch.Tensor, weights: list[torch.Tensor]) -> int:
    """Return the peak memory of three steps, in bytes."""
    if images.is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            run.step()
        return torch.cuda.max_memory_allocated()
    alive = [tensor for tensor in weights if tensor.layout == torch.strided]
    with LiveBytes([images, *alive]) as live:
        for _ in range(3):
            run.step()
    return live.peak


def _strided_bytes(module: torch.nn.Module) -> int:
    parameters = [p for p in module.parameters() if p.layout == torch.strided]
    return sum(p.numel() * p.element_size() for p in parameters)


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rebirth", type=int, default=4, help="images of one run of Patch Rebirth")
    print(json.dumps(measure(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
