"""`moesim models`: list the built-in models, show one, start a description of an unknown one."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from moesim.cli.codes import MET

app = App(name="models", help="List the built-in models, or show one.")


@app.default
def names(*, json: bool = False) -> int:
    """List the built-in models.

    Parameters
    ----------
    json
        Print the names as JSON.
    """
    from json import dumps

    from moesim.files.models import load, model_names
    from moesim.views.models import show_models

    if json:
        print(dumps(model_names()))
    else:
        show_models((name, load(name)) for name in model_names())
    return MET


@app.command
def show(model: str, /, *, context: int = 4096, json: bool = False) -> int:
    """Show a model: layers, parameters, cache per token, work per token, expert bytes.

    Parameters
    ----------
    model
        A built-in name, a config.json or a YAML file.
    context
        Tokens a decoded token sees, for its work.
    json
        Print JSON for a pipe instead of tables.
    """
    from moesim.files.models import load_entry, published_tree
    from moesim.views.models import model_json, show_model

    entry = load_entry(model)
    published = published_tree(entry.published)
    if json:
        print(model_json(entry.model, context=context, source=entry.source, published=published))
    else:
        show_model(entry.model, context=context, source=entry.source, published=published)
    return MET


@app.command
def skeleton(config: Path, /) -> int:
    """Write a start for describing a model whose architecture is not known, in YAML.

    Parameters
    ----------
    config
        Its config.json.
    """
    from moesim.files.huggingface import text_part
    from moesim.files.skeleton import skeleton as start
    from moesim.files.trees import read
    from moesim.ground.errors import ModelError

    text, _ = text_part(read(config, error=ModelError))
    print(start(text, config.parent.resolve().name), end="")
    return MET
