"""`diptych model`: an application as a picture."""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003 — cyclopts reads the annotation
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.entrypoints.cli.failures import CommandFailed, UsageError
from diptych.entrypoints.cli.options import LOGS_UNSET, AppNames, LogOptions
from diptych.entrypoints.cli.settings import settled

if TYPE_CHECKING:
    from diptych.application.model import ApplicationModel

__all__ = ["model", "picture"]


def model(
    *app: AppNames,
    mermaid: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    output: Annotated[Path | None, Parameter(metavar="FILE", show_default=lambda _: "stdout")] = None,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """Draw bounded contexts as a picture, without running them.

    Lanes of commands, decision models, events, what follows those, read models and queries; a band for each context.
    It is one SVG file, for light and dark screens, and the same for the same code.

    Args:
        app: the code.
        mermaid: Write Mermaid text instead, for pages that draw it.
        output: Where to write it.
        log: how.
    """
    settings = settled(verbose=log.verbose, app=app, log_format=log.log_format)
    from diptych.application.model import application_model
    from diptych.entrypoints.cli.contexts import load_contexts

    found = application_model(load_contexts(settings.app))
    text = _mermaid(found) if mermaid else picture(found)
    if output is None:
        if not mermaid and sys.stdout.isatty():
            raise UsageError(
                "a picture is no text for a terminal: write it to a file, > model.svg or --output model.svg"
            )
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandFailed(f"{output} cannot be written: {error.strerror}") from error


def picture(found: ApplicationModel) -> str:
    """The SVG of an application."""
    from diptych.entrypoints.cli.picture_layout import lay_out
    from diptych.entrypoints.cli.picture_svg import svg

    names = _names(found)
    return svg(lay_out(names, found.parts, found.links), " · ".join(names), _about(found))


def _names(found: ApplicationModel) -> list[str]:
    """The contexts, each once; and those beside that only own events."""
    return list(dict.fromkeys([*(context.name for context in found.contexts), *(part.context for part in found.parts)]))


def _mermaid(found: ApplicationModel) -> str:
    from diptych.entrypoints.cli.picture_mermaid import mermaid

    return mermaid(_names(found), found.parts, found.links)


def _about(found: ApplicationModel) -> str:
    """What there is, counted."""
    from diptych.application.model import Kind

    plural = {Kind.QUERY: "queries", Kind.PROCESS: "processes"}
    counted = [(kind, len(found.of(kind))) for kind in Kind if found.of(kind)]
    told = [f"{count} {kind if count == 1 else plural.get(kind, f'{kind}s')}" for kind, count in counted]
    return ", ".join(told)
