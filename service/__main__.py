"""The `quietframe` command: serves, denoises files, lists models and jobs, trains and measures."""

import asyncio
import json
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from models.errors import NeedsExtra, QuietframeError
from service.settings import Settings

if TYPE_CHECKING:
    from service.building import Kept

app = typer.Typer(
    name="quietframe",
    help="Takes the noise out of images and video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
keys_app = typer.Typer(help="Makes and takes away the API keys that callers show.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
jobs_app = typer.Typer(help="Looks at the jobs of a running service.", no_args_is_help=True)
app.add_typer(jobs_app, name="jobs")

_MINUTES_TO_TRAIN, _MINUTES_TO_ADAPT = 60, 10
_WIDTH_OF_FIGURES = 132  # columns; cut off at less they say nothing

out = Console()
err = Console(stderr=True)

Host = Annotated[str | None, typer.Option(envvar="QUIETFRAME_HOST", help="Address to listen on. [127.0.0.1]")]
Port = Annotated[int | None, typer.Option(envvar="QUIETFRAME_PORT", help="HTTP port; 0 takes a free one. [8000]")]
GrpcPort = Annotated[
    int | None, typer.Option(envvar="QUIETFRAME_GRPC_PORT", help="gRPC port; 0 takes a free one. [8001]")
]
DataDir = Annotated[
    Path | None, typer.Option(envvar="QUIETFRAME_DATA_DIR", help="Blobs and queue live here. [quietframe-data]")
]
Workers = Annotated[
    int | None, typer.Option(envvar="QUIETFRAME_WORKERS", help="Worker processes; 0: one per NVIDIA GPU, else one. [1]")
]
RedisUrl = Annotated[
    str | None, typer.Option(envvar="QUIETFRAME_REDIS_URL", help="Redis to use; without it serve starts its own.")
]
Model = Annotated[str, typer.Option(help="A name that `quietframe models` lists, or auto.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def serve(
    host: Host = None,
    port: Port = None,
    grpc_port: GrpcPort = None,
    data_dir: DataDir = None,
    workers: Workers = None,
    redis_url: RedisUrl = None,
) -> None:
    """Run API, workers and embedded queue on this machine."""
    from service.serve import serve as run

    settings = _settings(
        host=host, port=port, grpc_port=grpc_port, data_dir=data_dir, workers=workers, redis_url=redis_url
    )
    if settings.redis_url is not None:
        _needs_redis(settings.redis_url)
    _check_store(settings)
    _log_to_stderr(settings)

    def on_ready(base_url: str, grpc_address: str) -> None:
        told = f"API page {base_url}/docs, gRPC {grpc_address}, Ctrl-C stops"
        out.print(f"Quietframe is ready: [bold]{base_url}[/] ({told})", soft_wrap=True)
        sample = Path(__file__).parent / "samples" / "noisy.jpg"
        # Printed plain and whole: it is to be copied.
        key = '-H "Authorization: Bearer $QUIETFRAME_API_KEY" ' if settings.own_keys_file.exists() else ""
        print(
            f"  curl -sS {key}-F file=@{shlex.quote(str(sample))} {base_url}/denoise/image -o denoised.jpg", flush=True
        )

    run(settings, on_ready=on_ready, stop=Event())


@app.command()
def api(
    host: Host = None,
    port: Port = None,
    grpc_port: GrpcPort = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Run the API alone, HTTP and gRPC, over a Redis."""
    from service.api.server import make_server
    from service.serve import LISTEN_FD
    from service.telemetry import tracing

    url = _needs_redis(redis_url)
    settings = _settings(host=host, port=port, grpc_port=grpc_port, data_dir=data_dir, redis_url=url)
    _log_to_stderr(settings)
    tracing.start("quietframe-api")
    inherited = os.environ.get(LISTEN_FD)
    sockets = [socket.socket(fileno=int(inherited))] if inherited else None
    make_server(settings).run(sockets=sockets)


@app.command()
def worker(data_dir: DataDir = None, workers: Workers = None, redis_url: RedisUrl = None) -> None:
    """Run the workers of this machine, over a Redis; those that die are started again."""
    from service.supervise import run_workers

    url = _needs_redis(redis_url)
    settings = _settings(data_dir=data_dir, workers=workers, redis_url=url)
    _check_store(settings)
    _log_to_stderr(settings)
    run_workers(settings, url, stop=Event())


@app.command("worker-process", hidden=True)
def worker_process(data_dir: DataDir = None, redis_url: RedisUrl = None) -> None:
    """Be one of the workers that `serve` and `worker` keep running."""
    from service.processes import CANNOT_RUN_HERE
    from service.supervise import on_first_signal
    from service.telemetry import tracing
    from service.worker import Stop, Worker
    from trtbuild.engine import BackendUnavailable

    url = _needs_redis(redis_url)
    settings = _settings(data_dir=data_dir, redis_url=url)
    _log_to_stderr(settings)
    tracing.start("quietframe-worker")
    stop = Stop()
    on_first_signal(lambda: stop.ask(settings.drain_s))
    try:
        worker = Worker(settings, url)
        try:
            with worker.endpoint(stop):
                went_well = worker.run(stop)
        finally:
            tracing.stop()
    except (BackendUnavailable, NeedsExtra) as problem:
        err.print(f"quietframe: {problem}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(CANNOT_RUN_HERE) from None
    if not went_well:
        raise typer.Exit(1)


@app.command()
def health(
    part: Annotated[str, typer.Argument(metavar="api|worker", help="What runs here.")],
    ready: Annotated[bool, typer.Option("--ready", help="Whether it takes work, not only whether it lives.")] = False,
) -> None:
    """Ask the API or the workers of this machine how they are; status 1 if not well. For health checks."""
    from service.health import check

    if part not in ("api", "worker"):
        raise typer.BadParameter(f"{part!r}; there are api and worker")
    check("api" if part == "api" else "worker", _settings(), ready=ready)


def _level(text: str) -> float | None:
    """
    Raises:
        BadParameter: it is no number.
    """
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number nor auto") from None


@app.command()
def denoise(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An image, a video, or a folder of them.")],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="The file or folder to write; its suffix is the format.")
    ],
    model: Model = "auto",
    sigma: Annotated[
        float | None,
        typer.Option(parser=_level, metavar="FLOAT|auto", help="Noise level on the 8-bit scale; left out means auto."),
    ] = None,
    strength: Annotated[float, typer.Option(help="Share of the noise that is taken out, 0 to 1.")] = 1.0,
    ensemble: Annotated[
        int,
        typer.Option(
            help="Restore it 2 or 4 times, mirrored in other ways, and take the mean: better, and as often as long."
        ),
    ] = 1,
    reference: Annotated[Path | None, typer.Option(help="The clean original, to measure against.")] = None,
    quality: Annotated[int | None, typer.Option(help="Of JPEG, WebP and AVIF, 1 to 100.")] = None,
    codec: Annotated[str | None, typer.Option(help="Video codec: h264, hevc, av1, vp9, ffv1.")] = None,
    crf: Annotated[int | None, typer.Option(help="Constant rate factor of the video codec.")] = None,
    scan: Annotated[
        str,
        typer.Option(
            help="Whether a video's frames are whole (progressive) or two fields (interlaced), restored apart; auto "
            "finds out."
        ),
    ] = "auto",
    estimate: Annotated[bool, typer.Option("--estimate", help="Estimate the PSNR without a reference.")] = False,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Leave the left half as it was, to compare.")
    ] = False,
    per_frame: Annotated[
        Path | None, typer.Option(help="Write what was measured of each frame here: .csv, .json, or .svg for a plot.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="URL of a running service that is to do it; left out, this machine does. "
            "Its key is taken from QUIETFRAME_API_KEY."
        ),
    ] = None,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Frame by frame through --server's DenoiseStream, as they come; IN may be camera:0, or - for raw "
            "frames, and OUT too. Prints the latency.",
        ),
    ] = False,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Of raw frames, with --live.")] = None,
    pixel_format: Annotated[str, typer.Option(help="Of raw frames, with --live: rgb8 or rgb16.")] = "rgb8",
    fps: Annotated[str, typer.Option(help="Of raw frames, with --live: 25, or 30000/1001.")] = "25",
    real_time: Annotated[
        bool, typer.Option("--real-time", help="With --live, take a file's frames at their own pace.")
    ] = False,
    in_flight: Annotated[
        int | None, typer.Option(min=1, help="With --live, frames without an answer at most. [what keeps it busy]")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Denoise files, here or by a running service."""
    from service.folders import FileDone

    if live:
        if server is None:
            raise typer.BadParameter("--live needs --server, the URL of a running service")
        unheeded = (reference, quality is not None, estimate, side_by_side, per_frame)
        if ensemble != 1 or scan != "auto" or any(unheeded):
            raise typer.BadParameter(
                "--live takes no ensemble, scan, reference, quality, estimate, side-by-side or per-frame"
            )
        _denoise_live(
            server,
            str(source),
            str(target),
            size=size,
            pixel_format=pixel_format,
            fps=fps,
            real_time=real_time,
            in_flight=in_flight,
            as_json=as_json,
            settings=_settings(data_dir=data_dir),
            model=model,
            sigma=sigma,
            strength=strength,
            codec=codec,
            crf=crf,
        )
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    done: list[FileDone] = []
    with Progress(*columns, TimeRemainingColumn(), console=err, disable=as_json) as bars:
        said: dict[str, Any] = {
            "reference": reference,
            "model": model,
            "sigma": sigma,
            "strength": strength,
            "ensemble": ensemble,
            "scan": scan,
            "quality": quality,
            "codec": codec,
            "crf": crf,
            "estimate": estimate,
            "side_by_side": side_by_side,
            "per_frame": per_frame,
            "bar": _Bars(bars),
        }
        if server is not None:
            from service.remote import denoise_files_at

            each = denoise_files_at(server, source, target, **said)
        else:
            from service.files import denoise_files

            each = denoise_files(source, target, settings=_settings(data_dir=data_dir), **said)
        for one in each:
            done.append(one)
            if not as_json:
                out.print(one.line(), highlight=False, markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps([one.as_dict() for one in done], indent=2, allow_nan=False))
    if any(one.error for one in done):
        raise typer.Exit(1)


def _denoise_live(
    server: str, source: str, target: str, *, size: str | None, pixel_format: str, fps: str, as_json: bool, **said: Any
) -> None:
    from fractions import Fraction

    from service.live.feed import PIPE, feed_live

    measures = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", size) if size is not None else None
    if size is not None and measures is None:
        raise typer.BadParameter(f"size is {size!r}; write it as 1280x720")
    if pixel_format not in ("rgb8", "rgb16"):
        raise typer.BadParameter(f"pixel format is {pixel_format!r}; there are rgb8 and rgb16")
    if not re.fullmatch(r"[1-9][0-9]{0,5}(/[1-9][0-9]{0,5})?", fps):
        raise typer.BadParameter(f"fps is {fps!r}; write it as 25 or 30000/1001")
    if as_json and target == PIPE:
        raise typer.BadParameter("frames go to standard output, so figures cannot; drop --json")
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed} frames"), TimeElapsedColumn())
    with Progress(*columns, console=err, disable=as_json) as bars:
        fed = feed_live(
            server,
            source,
            target,
            bar=_Bars(bars),
            size=(int(measures[1]), int(measures[2])) if measures else None,
            pixel_format="rgb16" if pixel_format == "rgb16" else "rgb8",
            rate=Fraction(fps),
            **said,
        )
    if as_json:
        print(json.dumps(fed.as_dict(), indent=2))
    else:
        (err if target == PIPE else out).print(fed.line(), highlight=False, markup=False, soft_wrap=True)


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="One model.")] = None,
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option(help="Print what was measured as the tables of docs/models.md.")] = False,
    into: Annotated[
        Path | None, typer.Option(help="Put those tables into this file instead, between its marks.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """List the denoisers, or show one with its card."""
    from models.own import Library
    from models.tables import put_into, tables

    if into is not None:
        put_into(into)
        return
    if markdown:
        print(tables())
        return
    library = Library(_settings(data_dir=data_dir).own_models_dir)
    specs = [library.find(name)] if name else library.specs()
    cards = {spec.name: library.card_of(spec.name) for spec in specs}
    if as_json:
        shown = [
            {
                "name": spec.name,
                "kind": spec.kind,
                "title": spec.title,
                "source": spec.source,
                "parameters": spec.parameters,
                "macs_per_pixel": spec.macs_per_pixel,
                "trained_sigma": [level * 255 for level in spec.trained_sigma],
                "card": cards[spec.name].as_dict(),
            }
            for spec in specs
        ]
        print(json.dumps(shown[0] if name else shown, indent=2))
        return
    table = Table("model", "for", "parameters", "kMAC/pixel", "sigma", "source")
    for spec in specs:
        low, high = (round(level * 255) for level in spec.trained_sigma)
        size, cost = (
            (f"{spec.parameters / 1e6:.2f} M", f"{spec.macs_per_pixel / 1e3:.0f}") if spec.weights else ("", "")
        )
        table.add_row(spec.name, spec.kind, size, cost, f"{low}-{high}", spec.source)
    out.print(table)
    if name:
        out.print(cards[specs[0].name].text(), highlight=False)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Which weights to make, such as fitvnet-spatial.")],
    data: Annotated[
        list[Path],
        typer.Option(
            help="Folder of clean pictures or footage; may be repeated. With --unsupervised: noisy footage, folders of "
            "frames or video files."
        ),
    ],
    out_file: Annotated[
        Path | None, typer.Option("--out", help="The .safetensors file to write; --unsupervised needs none.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Training time in all; a resumed run counts its earlier parts. [60; 10 if --unsupervised]"),
    ] = None,
    unsupervised: Annotated[
        bool, typer.Option("--unsupervised", help="Adapt finished weights to noisy footage that has no clean frames.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="What the adapted model is to be called from then on. [RECIPE-own]")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put it in the place of an adapted model of this name.")
    ] = False,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint beside OUT.")] = False,
    start_from: Annotated[
        Path | None, typer.Option(help="Finished weights of an earlier run to begin with, such as the shipped ones.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; one is fastest on a shared machine.")] = 1,
    compiles: Annotated[
        bool, typer.Option("--compile", help="Compile the network first (torch.compile): pays on a GPU, in long runs.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Train a network by its recipe, or adapt a finished one to footage of your own."""
    _needs_torch()
    if unsupervised:
        if out_file is not None:
            raise typer.BadParameter("--unsupervised takes a --name, and writes into the models directory; drop --out")
        if compiles:
            raise typer.BadParameter("--compile does not go with --unsupervised, whose runs are short")
        from service.adaptation import Wish, adapt_to_footage

        wish = Wish(
            recipe=recipe,
            data=data,
            name=name or f"{recipe}-own",
            minutes=_MINUTES_TO_ADAPT if minutes is None else minutes,
            replaces=replace,
            resume=resume,
            start_from=start_from,
            device=device,
            threads=threads,
        )
        settings = _settings(data_dir=data_dir)
        own = adapt_to_footage(wish, settings, partial(out.print, highlight=False, markup=False, soft_wrap=True))
        print(f"{own.name} is ready in {settings.own_models_dir}; use it as")
        print(f"  quietframe denoise --model {own.name} IN OUT")
        return
    if out_file is None:
        raise typer.BadParameter("--out is needed: the .safetensors file to write")
    if name is not None or replace:
        raise typer.BadParameter("--name and --replace go with --unsupervised")
    from models.training.recipes import RECIPES
    from models.training.trainer import Report
    from models.training.trainer import train as run

    if recipe not in RECIPES:
        raise typer.BadParameter(f"{recipe!r}; known are {', '.join(RECIPES)}")

    def tell(report: Report) -> None:
        watched = "".join(f"  {noise} {value:.2f} dB" for noise, value in (report.psnr_db or {}).items())
        out.print(f"step {report.step}  {report.minutes:.1f} min  loss {report.loss:.4f}{watched}", highlight=False)

    run(
        RECIPES[recipe],
        data,
        out_file,
        minutes=_MINUTES_TO_TRAIN if minutes is None else minutes,
        resume=resume,
        start_from=start_from,
        device=device,
        threads=threads,
        compiles=compiles,
        on_report=tell,
    )
    out.print(f"wrote {out_file}", markup=False, soft_wrap=True)


@app.command()
def build(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Models; none for the whole catalogue.")
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, tensorrt, torch, openvino or onnxruntime.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16 or int8.")] = "auto",
    batch: Annotated[
        int | None, typer.Option(envvar="QUIETFRAME_GPU_BATCH", help="Most tiles at a time, of a TensorRT engine. [4]")
    ] = None,
    tile: Annotated[
        int | None, typer.Option(envvar="QUIETFRAME_TILE_PX", help="Side of a tile, of a TensorRT engine. [768]")
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="Folder of clean pictures of the kind that will come, for int8.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show what is built, and build nothing.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read all that is built, and tell what is wrong.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove what this machine, as it is now, will not use again.")
    ] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make engines ready: export, check, compile, hold against the float32 reference, keep."""
    from service import building
    from trtbuild.ways import BACKENDS, PRECISIONS

    settings = _settings(data_dir=data_dir, gpu_batch=batch, tile_px=tile)
    if sum((list_, verify, prune)) > 1:
        raise typer.BadParameter("--list, --verify and --prune go one at a time")
    if list_ or verify or prune:
        if names:
            raise typer.BadParameter("--list, --verify and --prune are of all that is built; drop the models")
        found = building.prune(settings) if prune else building.kept(settings, verify=verify)
        if as_json:
            print(json.dumps([one.as_dict() for one in found], indent=2))
        else:
            _print_kept(found, "pruned" if prune else "built")
        if any(one.problem for one in found):
            raise typer.Exit(1)
        return
    if backend not in ("auto", *BACKENDS):
        raise typer.BadParameter(f"backend is {backend!r}; there are auto, {', '.join(BACKENDS)}")
    wanted = next((one for one in PRECISIONS if one == precision), None)
    if wanted is None and precision != "auto":
        raise typer.BadParameter(f"precision is {precision!r}; there are auto, {', '.join(PRECISIONS)}")
    steps = []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[phase]}"), TimeElapsedColumn())
    with Progress(*columns, console=err, disable=as_json) as bars:
        bar = bars.add_task("", total=1.0, phase="")

        def on_step(stage: str, way: str, share: float, phase: str) -> None:
            bars.update(bar, description=f"{stage} on {way}", completed=share, phase=phase)

        for step in building.build_engines(
            names or [], settings, backend=backend, precision=wanted, calibration=calibrate, on_step=on_step
        ):
            steps.append(step)
            if not as_json:
                near = "" if step.psnr_db is None else f", {step.psnr_db:.1f} dB from the float32 reference"
                size = f", {step.size_bytes / 1e6:.1f} MB" if step.size_bytes else ""
                told = step.error or f"{step.state} in {step.seconds:.1f} s{near}{size}"
                out.print(
                    f"{step.stage} on {step.backend} {step.precision}: {told}",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )
    if as_json:
        print(json.dumps([step.as_dict() for step in steps], indent=2))
    if any(step.error for step in steps):
        raise typer.Exit(1)


def _print_kept(found: "Sequence[Kept]", what: str) -> None:
    if not found:
        print(f"nothing is {what}")
        return
    table = Table(what, "MB", "dB to float32", "made", "of this machine", "problem")
    for one in found:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.made_at)) if one.made_at else ""
        near = "" if one.psnr_db is None else f"{one.psnr_db:.1f}"
        size = f"{one.size_bytes / 1e6:.1f}" if one.size_bytes else ""
        table.add_row(one.name, size, near, made, "yes" if one.usable else "no", one.problem or "")
    out.print(table, width=max(out.width, _WIDTH_OF_FIGURES))


@app.command(name="eval")
def evaluate(
    names: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models to measure.")],
    data: Annotated[
        list[Path], typer.Option(help="A test set: clean pictures, *_real/*_mean pairs, or frame folders.")
    ],
    sigma: Annotated[
        str | None, typer.Option(help="Levels of Gaussian noise on the 8-bit scale. [15,25,50 if no --noise]")
    ] = None,
    noise: Annotated[
        str,
        typer.Option(
            help="Other noise: mixed, signal-low, signal-high, poisson-gaussian, partial-patch, subsampled-10, -25 or "
            "-hd-25 (as video of HD)."
        ),
    ] = "",
    backend: Annotated[str, typer.Option(help="What runs the networks: auto, openvino, torch.")] = "auto",
    every: Annotated[int, typer.Option(min=1, help="Take every n-th picture only.")] = 1,
    frames: Annotated[int, typer.Option(min=1, help="At most so many frames of a sequence.")] = 20,
    ensemble: Annotated[int, typer.Option(help="Measure self-ensembles of 2 or 4, which are not written.")] = 1,
    as_json: AsJson = False,
    write: Annotated[bool, typer.Option("--write", help="Put the figures into models/shipped/figures.csv.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Measure PSNR, SSIM, Average Deviation and time on clean pictures with added noise, and on real pairs."""
    from models.figures import GAUSSIAN, read_published
    from service.evaluation import evaluate as run
    from service.evaluation import line_of, record, table_of
    from service.job import ENSEMBLES

    levels = sigma if sigma is not None else "" if noise else "15,25,50"
    try:
        noises = [f"{GAUSSIAN}{float(level):g}" for level in levels.split(",") if level]
    except ValueError:
        raise typer.BadParameter(f"sigma is {sigma!r}; write levels as 15,25,50") from None
    noises += [name.strip() for name in noise.split(",") if name]
    figures = []
    settings = _settings(backend=backend, data_dir=data_dir)
    if ensemble not in ENSEMBLES or (write and ensemble > 1):
        raise typer.BadParameter(f"ensemble is {ensemble}; allowed are {ENSEMBLES}, and with --write 1 alone")
    for figure in run(names, data, noises, settings, every=every, most_frames=frames, ensemble=ensemble):
        figures.append(figure)
        if not as_json:
            err.print(line_of(figure), highlight=False, markup=False, soft_wrap=True)
        if write:  # each as it comes: the next may take an hour, or be stopped
            record(figure)
    if as_json:
        print(json.dumps([asdict(figure) for figure in figures], indent=2))
    else:
        Console(width=max(out.width, _WIDTH_OF_FIGURES)).print(table_of(figures, read_published()))


@app.command()
def bench(
    megapixels: Annotated[float, typer.Option(help="Size of the test picture.")] = 0.25, as_json: AsJson = False
) -> None:
    """Time every model on this machine, on each backend that is there."""
    from service.evaluation import time_models

    timed = time_models(_settings(), megapixels)
    if as_json:
        print(json.dumps(timed, indent=2))
        return
    table = Table("model", "backend", "precision", "ms per megapixel", "GMAC/s")
    for row in timed:
        table.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()))
    out.print(table)


@jobs_app.command("list")
def jobs_list(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    as_json: AsJson = False,
) -> None:
    """Newest first."""
    from service.broker.queue import QueueClient
    from service.job import JobState, document_of

    if state is not None and state not in set(JobState):
        raise typer.BadParameter(f"{state!r}; known are {', '.join(JobState)}")

    async def read(client: QueueClient) -> list[dict[str, Any]]:
        records, _ = await client.list(JobState(state) if state else None, limit, None)
        return [document_of(record).model_dump(mode="json") for record in records]

    documents = _ask_broker(read, data_dir, redis_url)
    if as_json:
        print(json.dumps(documents, indent=2))
        return
    for one in documents:
        # Plain lines, however narrow the terminal: ids are to be copied, and lines to be searched.
        progress = one["progress"]
        share = f"{progress['done']}/{progress['total'] or '?'} {progress['unit']}"
        print(one["id"], one["created_at"][:19], one["kind"], one["state"], one["model"], share, sep="  ")


@jobs_app.command("show")
def jobs_show(job_id: str, data_dir: DataDir = None, redis_url: RedisUrl = None) -> None:
    """One job's document."""
    from service.broker.queue import QueueClient
    from service.job import document_of

    async def read(client: QueueClient) -> str:
        return document_of(await client.get(job_id)).model_dump_json(indent=2)

    print(_ask_broker(read, data_dir, redis_url))


@jobs_app.command("cancel")
def jobs_cancel(job_id: str, data_dir: DataDir = None, redis_url: RedisUrl = None) -> None:
    """Cancel a job that waits or runs."""
    from service.broker.queue import QueueClient

    async def cancel(client: QueueClient) -> str:
        return (await client.cancel(job_id)).state

    out.print(f"{job_id} is {_ask_broker(cancel, data_dir, redis_url)}")


@jobs_app.command("replay")
def jobs_replay(job_id: str, data_dir: DataDir = None, redis_url: RedisUrl = None) -> None:
    """Queue a failed job again."""
    from service.broker.queue import QueueClient

    async def replay(client: QueueClient) -> str:
        return (await client.replay(job_id)).state

    out.print(f"{job_id} is {_ask_broker(replay, data_dir, redis_url)}")


KeysFile = Annotated[
    Path | None, typer.Option(envvar="QUIETFRAME_KEYS_FILE", help="The keys file. [keys.json in the data directory]")
]


@keys_app.command("new")
def keys_new(
    name: Annotated[str | None, typer.Argument(help="Whose it is, for your own lists; --replaces needs none.")] = None,
    scopes: Annotated[str, typer.Option(help="What it allows: submit, read, admin; a comma between.")] = "submit,read",
    requests_per_minute: Annotated[
        int | None, typer.Option(min=0, help="Its own bound; 0: none. [as the service is set]")
    ] = None,
    pixels_per_minute: Annotated[
        int | None, typer.Option(min=0, help="Its own bound; 0: none. [as the service is set]")
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="How long it is good. [until it is revoked]")] = None,
    replaces: Annotated[
        str | None,
        typer.Option(
            help="Id of a key with the same jobs, name, scopes and bounds; revoke that one when it is no more used."
        ),
    ] = None,
    keys_file: KeysFile = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it, this once: only its hash is kept."""
    from datetime import UTC, datetime, timedelta

    from service.access.keys import Scope, add_key, new_key, read_keys

    path = _settings(keys_file=keys_file, data_dir=data_dir).own_keys_file
    before = None
    if replaces is not None:
        before = next((key for key in read_keys(path) if key.id == replaces), None)
        if before is None:
            raise typer.BadParameter(f"there is no key {replaces!r} in {path}")
    wanted = [one.strip() for one in scopes.split(",") if one.strip()]
    if unknown := [one for one in wanted if one not in set(Scope)]:
        raise typer.BadParameter(f"{unknown[0]!r} is no scope; there are {', '.join(Scope)}")
    if name is None and before is None:
        raise typer.BadParameter("NAME is needed: whose key it is")
    key, token = new_key(
        name if name is not None else before.name if before else "",
        sorted(before.scopes) if before else [Scope(one) for one in wanted],
        replaces=before,
        expires_at=datetime.now(UTC).replace(microsecond=0) + timedelta(days=days) if days else None,
        requests_per_minute=before.requests_per_minute if before else requests_per_minute,
        pixels_per_minute=before.pixels_per_minute if before else pixels_per_minute,
    )
    add_key(path, key)
    told = (
        f"key {key.id} of {key.name} ({', '.join(sorted(key.scopes))}) is in {path}; below is the key, shown this once"
    )
    err.print(told, highlight=False, markup=False, soft_wrap=True)
    print(token)  # alone on stdout: to be put into a secret store by a pipe


@keys_app.command("list")
def keys_list(keys_file: KeysFile = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show who has keys: ids, names, scopes, bounds, never the keys themselves."""
    from service.access.keys import read_keys

    path = _settings(keys_file=keys_file, data_dir=data_dir).own_keys_file
    known = read_keys(path) if path.exists() else []
    if as_json:
        shown = [key.model_dump(mode="json", exclude={"sha256"}) | {"scopes": sorted(key.scopes)} for key in known]
        print(json.dumps(shown, indent=2))
        return
    for key in known:
        bounds = [
            f"{'no bound on' if bound == 0 else bound} {what}" + ("" if bound == 0 else " a minute")
            for bound, what in ((key.requests_per_minute, "requests"), (key.pixels_per_minute, "pixels"))
            if bound is not None
        ]
        until = f"until {key.expires_at:%Y-%m-%d}" if key.expires_at else "until revoked"
        parts = [key.id, f"{key.created_at:%Y-%m-%d}", ",".join(sorted(key.scopes)), until, *bounds]
        if key.holder != key.id:
            parts.append(f"jobs of {key.holder}")
        print(*parts, key.name, sep="  ")


@keys_app.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `quietframe keys list` shows it.")],
    keys_file: KeysFile = None,
    data_dir: DataDir = None,
) -> None:
    """Take a key away: a running service refuses it from then on. Its jobs stay, for admins to see."""
    from service.access.keys import remove_key

    path = _settings(keys_file=keys_file, data_dir=data_dir).own_keys_file
    gone = remove_key(path, key_id)
    out.print(f"key {gone.id} of {gone.name} is good no more", highlight=False, markup=False, soft_wrap=True)


class _Bars:
    """Shows each file's progress as a bar."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: Any = None

    def start(self, name: str) -> None:
        self._task = self._bars.add_task(name, total=None)

    def move(self, done: int, total: int | None) -> None:
        self._bars.update(self._task, completed=done, total=total)

    def finish(self) -> None:
        self._bars.remove_task(self._task)


def _settings(**said: Any) -> Settings:
    """The environment's settings, and over them what the command line said."""
    from pydantic import ValidationError

    try:
        return Settings(**{name: value for name, value in said.items() if value is not None})
    except ValidationError as problem:
        first = problem.errors()[0]
        raise typer.BadParameter(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']} (is {first['input']!r})"
        ) from None


def _check_store(settings: Settings) -> None:
    """Told here a wrong URL is one line; told by each process that is kept running it would be many."""
    if settings.blob_url is not None:
        from service.blobs import open_store

        open_store(settings)


def _needs_redis(redis_url: str | None) -> str:
    from service.broker.link import check_url

    if not redis_url:
        raise typer.BadParameter("--redis-url or QUIETFRAME_REDIS_URL is needed; `quietframe serve` starts its own")
    check_url(redis_url)
    return redis_url


def _needs_torch() -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise NeedsExtra("training needs torch, which is not installed: pip install 'quietframe[torch]'")


def _ask_broker(ask: Any, data_dir: Path | None, redis_url: str | None) -> Any:
    """Ask the broker of a running service: the Redis that is named, else the embedded one of the data directory."""
    from service.broker.embedded import EmbeddedServer
    from service.broker.queue import QueueClient

    settings = _settings(data_dir=data_dir, redis_url=redis_url)
    url = settings.redis_url or EmbeddedServer(settings.data_dir).url

    async def connected() -> Any:
        async with QueueClient(url, settings) as client:
            return await ask(client)

    return asyncio.run(connected())


def _log_to_stderr(settings: Settings) -> None:
    from service.telemetry import logs

    logs.set_up(settings.log_level, settings.log_format)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error that we foresaw is one line on stderr and status 1."""
    try:
        app(args=list(arguments) if arguments is not None else None)
    except (QuietframeError, OSError) as problem:
        err.print(f"quietframe: {problem}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
