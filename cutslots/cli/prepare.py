"""turn a raw dataset into shards that training reads"""

import argparse
from pathlib import Path
from typing import Any

from cutslots import options
from cutslots.cli._counting import Counting
from cutslots.cli._texts import summary
from cutslots.files import home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One subcommand a source; each sets `prepare`, the function of the chosen arguments that does it."""
    from cutslots.data import sources

    by_source = parser.add_subparsers(title="sources", required=True, metavar="SOURCE")
    for name in sources.names():
        help_line = (sources.load(name).__doc__ or name).splitlines()[0]
        _add_scenes(by_source.add_parser(name, help=help_line, description=help_line), name)
    help_line = "Cora: matching instances from the citation graph, for sweeps/cora.py"
    _add_cora(by_source.add_parser("cora", help=help_line, description=help_line))


def run(chosen: argparse.Namespace) -> None:
    """Prepare from the chosen source."""
    chosen.prepare(chosen)


def _add_scenes(parser: argparse.ArgumentParser, name: str) -> None:
    """The arguments of an image dataset: its folders, its splits and every field of its `Options`."""
    from cutslots.data import sources

    source = sources.load(name)
    if source.NEEDS_RAW:
        parser.add_argument(
            "raw", metavar="RAW", help="the raw dataset: its folder or file, or a URI"
        )
    where = f"the folder to write, or a URI; default CUTSLOTS_HOME/data/{name}, of a variant {name}_VARIANT"
    parser.add_argument(
        "out",
        metavar="OUT",
        nargs="?",
        help=where if source.NEEDS_RAW else where.partition(", of")[0],
    )
    parser.add_argument(
        "--splits", help="records of each split, e.g. train=0:320,val=320:360,test=360:400"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what OUT holds if it was prepared otherwise",
    )
    workers = "processes (default: the Ray cluster that RAY_ADDRESS names, else every core)"
    parser.add_argument("--workers", metavar="INT", type=int, help=workers)
    _add_options(parser, source.Options())
    parser.set_defaults(prepare=_prepare_scenes, source=name, raw=None)


def _add_options(parser: argparse.ArgumentParser, settings: Any) -> None:
    for option in options.describe(settings):
        help_text = f"{option.help} (default {option.value})"
        parser.add_argument(
            f"--{option.path.replace('_', '-').replace('.', '-')}",
            dest=f"option:{option.path}",
            metavar=option.range.replace(" ", "")
            if "|" in option.range
            else options.type_name(option.type).upper(),
            help=help_text.replace("%", "%%"),  # argparse formats help with %
        )


def _chosen_options(chosen: argparse.Namespace, settings: Any) -> Any:
    for key, text in vars(chosen).items():
        if key.startswith("option:") and text is not None:
            settings = options.override(settings, f"{key.removeprefix('option:')}={text}")
    return settings


def _prepare_scenes(chosen: argparse.Namespace) -> None:
    from cutslots.data import sources
    from cutslots.sweep.prepare import prepare

    settings = _chosen_options(chosen, sources.load(chosen.source).Options())
    out = chosen.out or home() / "data" / _name(chosen.source, settings)
    with Counting("scenes") as progress:
        manifest = prepare(
            chosen.source,
            chosen.raw,
            out,
            settings,
            splits=sources.parse_splits(chosen.splits) if chosen.splits else None,
            overwrite=chosen.overwrite,
            progress=progress,
            workers=chosen.workers,
        )
    print(f"{out}: {summary(manifest)}")


def _name(source: str, settings: Any) -> str:
    """The name by which sweeps look for a set of published files, such as clevrtex_outd; all built-in scenes are `scenes`."""
    from cutslots.data import sources

    loaded = sources.load(source)
    described = zip(options.describe(settings), options.describe(loaded.Options()), strict=True)
    words = [
        str(ours.value)
        for ours, default in described
        if "|" in ours.range and ours.value != default.value
    ]
    return "_".join([source, *words]) if loaded.NEEDS_RAW else source


def _add_cora(parser: argparse.ArgumentParser) -> None:
    from cutslots import cora

    parser.add_argument(
        "raw", metavar="RAW", help="the folder of cora.npz, or of cora.content and cora.cites"
    )
    parser.add_argument(
        "out", metavar="OUT", nargs="?", help="the folder to write; default CUTSLOTS_HOME/data/cora"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what OUT holds if it was prepared otherwise",
    )
    _add_options(parser, cora.Options())
    parser.set_defaults(prepare=_prepare_cora)


def _prepare_cora(chosen: argparse.Namespace) -> None:
    from cutslots import cora

    out = Path(chosen.out) if chosen.out else home() / "data" / "cora"
    with Counting("parts") as progress:
        manifest = cora.prepare(
            chosen.raw,
            out,
            _chosen_options(chosen, cora.Options()),
            overwrite=chosen.overwrite,
            progress=progress,
        )
    counts, settings = manifest["counts"], manifest["options"]
    print(
        f"{out}: {settings['instances']} instances of {settings['side']} x {settings['side']}, digest {manifest['digest']}"
    )
    print(
        f"{counts['citations_crossing']:,} of {counts['citations']:,} citations cross from side to side;",
        end=" ",
    )
    print(
        f"the best matching holds {manifest['optimum_mean']:.2f} in the mean, a random one {manifest['random_mean']:.2f}"
    )
