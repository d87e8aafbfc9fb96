"""Show what a model is made of, how it is held, and what one batch does to it."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli._options import AsJson, TrustRemoteCode
from luthier.system.streams import show


def inspect(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL|CONFIG.yaml [KEY=VALUE]...",
            show_default=False,
            help="A model, a run, an adapter or a configuration, and keys that override it.",
        ),
    ],
    everything: Annotated[bool, typer.Option("--all", help="A line for every module; nothing is collapsed.")] = False,
    gradients: Annotated[
        bool, typer.Option("--gradients", help="Train one batch of the configuration's data in memory.")
    ] = False,
    json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show what a model is made of, how it is held, and what one batch does to it.

    A line for each module: class, shape, how its numbers are held and in how many bits (scales included), what is trained, memory;
    then the sums. With --gradients, for a configuration: whether a gradient is needed, its norm before and after the
    backward pass, how much one step of the optimizer changes the weights, and a verdict. Nothing is saved. Ends with exit
    code 4 where a number is not finite and 2 where a trained module gets no gradient.

    Example:
      luthier inspect org/name
      luthier inspect org/name quantization=nf4 tuning=lora
      luthier inspect mine.yaml --all
      luthier inspect mine.yaml --gradients
    """
    from luthier import config
    from luthier.cli._shared import is_config, print_json, split_config_and_overrides
    from luthier.inference.as_typed import check_names, config_of_model
    from luthier.runs import chain

    target, *overrides = arguments
    checked = None
    if gradients or "=" in target or (is_config(target) and not target.endswith(".gguf")):
        typed = config.Typed(command="luthier inspect")
        checked = chain.going_on(config.load(*split_config_and_overrides(arguments), typed))
    else:
        config_of_model(target, overrides)
        check_names("luthier inspect", [target], models=True)
    if gradients and checked is not None:
        from luthier.inspecting import gradients as of_one_batch

        found = of_one_batch.one_batch(checked, trust_remote_code)
        if json:
            print_json(found.as_dict())
        else:
            show(of_one_batch.as_text(found, everything))
        raise typer.Exit(found.exit_code)
    from luthier.inspecting import model, module_tree

    code = trust_remote_code
    node = model.look(target, overrides, code) if checked is None else model.look_at(checked, code)
    if json:
        print_json({"modules": list(module_tree.as_list(node)), "totals": module_tree.totals(node)})
    else:
        show(module_tree.as_text(node, everything))
