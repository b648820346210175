"""Turn a raw dataset into shards."""

from functools import reduce
from typing import Any

import click

from cutslots import options
from cutslots.cli.common import overwrite_option, progress_bar, summary
from cutslots.files import home


class _Sources(click.Group):
    """One subcommand per dataset source, with the options of that source."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from cutslots.data import sources

        return [*sources.names(), "cora"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        return _cora() if cmd_name == "cora" else _source(cmd_name)


@click.group(cls=_Sources, subcommand_metavar="SOURCE ...")
def command() -> None:
    """Turn a raw dataset into shards that training reads."""


RAW = click.Argument(["raw"], metavar="RAW")
OUT = click.Argument(["out"], metavar="[OUT]", required=False)


def _source(name: str) -> click.Command:
    from cutslots.data import prepare, sources

    source = sources.load(name)
    out_help = f"OUT is the folder to write (default: CUTSLOTS_HOME/data/{name}"
    out_help += f"; of a variant {name}_VARIANT)." if source.NEEDS_RAW else ")."
    raw_help = "RAW is the folder, file or URI of the raw dataset. " if source.NEEDS_RAW else ""

    @click.command(name, help=f"{source.__doc__}\n\n{raw_help}{out_help}")
    @click.option("--splits", help="records of each split, e.g. train=0:320,val=320:360")
    @overwrite_option
    @click.option(
        "--workers",
        type=int,
        help="processes (default: the Ray cluster of RAY_ADDRESS, else every core)",
    )
    def run(
        splits: str | None,
        overwrite: bool,
        workers: int | None,
        raw: str | None = None,
        out: str | None = None,
        **values: Any,
    ) -> None:
        config = _configured(source.Options(), values)
        default_name = name
        if source.NEEDS_RAW:  # the name by which sweeps find a variant, such as clevrtex_outd
            pairs = zip(options.describe(config), options.describe(source.Options()), strict=True)
            variant = [str(new.value) for new, old in pairs if "|" in new.range and new != old]
            default_name = "_".join([name, *variant])
        target = out or home() / "data" / default_name
        ranges = sources.parse_splits(splits) if splits else None
        try:
            with progress_bar("scenes") as update:
                manifest = prepare(name, raw, target, config, ranges, overwrite, update, workers)
        except KeyboardInterrupt:
            click.echo("Run the same command again to continue.", err=True)
            raise
        click.echo(f"{target}: {summary(manifest)}")

    run.params[:0] = [RAW, OUT] if source.NEEDS_RAW else [OUT]
    run.params += _options(source.Options())
    return run


def _cora() -> click.Command:
    from cutslots import cora

    @click.command("cora")
    @overwrite_option
    def run(raw: str, out: str | None, overwrite: bool, **values: Any) -> None:
        """Cora: matching instances from the citation graph, for sweeps/cora.py.

        RAW is the folder of cora.npz, or of cora.content and cora.cites. OUT is the folder to
        write (default: CUTSLOTS_HOME/data/cora).
        """
        target, config = out or home() / "data" / "cora", _configured(cora.Options(), values)
        with progress_bar("parts") as update:
            manifest = cora.prepare(raw, target, config, overwrite=overwrite, progress=update)
        counts, used = manifest["counts"], manifest["options"]
        click.echo(
            f"{target}: {used['instances']} instances of {used['side']} x {used['side']}, "
            f"digest {manifest['digest']}\n"
            f"{counts['citations_crossing']:,} of {counts['citations']:,} citations cross between "
            f"the sides; the best matching contains {manifest['optimum_mean']:.2f} on average, "
            f"a random one {manifest['random_mean']:.2f}"
        )

    run.params[:0] = [RAW, OUT]
    run.params += _options(cora.Options())
    return run


def _options(config: Any) -> list[click.Parameter]:
    """A click option for every field of a dataclass of options; its name is the field's path."""
    return [
        click.Option(
            [f"--{option.path.replace('_', '-').replace('.', '-')}", option.path],
            metavar=option.range.replace(" ", "")
            if "|" in option.range
            else options.type_name(option.type).upper(),
            help=f"{option.help} (default: {option.value})",
        )
        for option in options.describe(config)
    ]


def _configured(config: Any, values: dict[str, str | None]) -> Any:
    """A copy of `config` with the given texts in place of its values; None leaves a value."""
    assignments = [f"{path}={text}" for path, text in values.items() if text is not None]
    return reduce(options.override, assignments, config)
