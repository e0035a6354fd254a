"""What the commands share: composing a config, and saying what is wrong in one sentence."""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import errno
import functools
import io
import itertools
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

from qpa_exp.adapters.catalogue import METHODS, option_nodes, unknown_method
from qpa_exp.config import Config, validate
from qpa_exp.errors import InputError, first_line, nearest
from qpa_exp.files import typed_path
from qpa_exp.generator.rules import VARIANTS
from qpa_exp.registry import dotted
from qpa_exp.runs.directory import check, source_name, trained_at

USAGE_ERROR = 2


def conf_dir() -> Path:
    """Return the config tree: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


@functools.cache
def register_schema() -> None:
    """Make the dataclasses known to Hydra as ``schema``, and the resolvers that conf/ uses."""
    from hydra.core.config_store import ConfigStore

    schema = OmegaConf.structured(Config)
    # A method's options are checked against PEFT's own config class, not here.
    OmegaConf.set_struct(schema.peft.options, False)
    store = ConfigStore.instance()
    store.store(name="schema", node=schema)
    files = {path.stem for path in (conf_dir() / "peft").glob("*.yaml")}
    for name, node in option_nodes().items():
        if name not in files:
            store.store(group="peft", name=name, node=node, provider="qpa_exp")
    OmegaConf.register_new_resolver("mul", _mul, replace=True)
    OmegaConf.register_new_resolver("from", _from, replace=True)


def compose_config(overrides: Sequence[str]) -> Config:
    """Return the config that these command-line overrides describe, typed and within range.

    Raises:
        InputError: a key, an option or a value that is not allowed.
    """
    overrides = _checked(overrides)
    return compose_by(functools.partial(_from_conf, str(conf_dir())), overrides)


def compose_whole(
    overrides: Sequence[str], config_name: str = "config", config_dir: str | None = None
) -> tuple[Config, DictConfig]:
    """Return :func:`compose_config`'s config, and all that Hydra composed, its own keys included.

    Args:
        overrides: of one run.
        config_name: of the file that the rest follows from.
        config_dir: a directory with more configs, which has been looked through.

    Raises:
        InputError: as :func:`compose_config`.
    """
    from hydra.core.hydra_config import HydraConfig

    overrides = _checked(overrides)
    refuse_ways_out(overrides)
    more = [] if config_dir is None else [_searchpath(config_dir)]
    with _explained(overrides):
        directory = str(conf_dir())
        whole = _by_hydra(directory, [*overrides, *more], config_name, return_hydra_config=True)
        HydraConfig.instance().set_config(whole)  # the run's directory may refer to it
        composed = copy.deepcopy(whole)
        with open_dict(composed):
            del composed["hydra"]
        return to_config(composed), whole


def _checked(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of one run as Hydra takes them."""
    overrides = as_typed(overrides)
    refuse_interpolations(overrides)
    for override in overrides:
        check_key(override)
    refuse_several(overrides)
    return overrides


@functools.lru_cache(maxsize=256)
def _from_conf(directory: str, overrides: tuple[str, ...]) -> DictConfig:
    return _by_hydra(directory, overrides)


def _by_hydra(
    directory: str, overrides: Sequence[str], config_name: str = "config", **more: bool
) -> DictConfig:
    from hydra import compose

    with hydra_of(Path(directory)):
        return compose(config_name, overrides=list(overrides), **more)


def _searchpath(config_dir: str) -> str:
    place = typed_path(config_dir).absolute()
    if not place.is_dir():
        raise InputError(f"--config-dir {config_dir} is no directory.")
    return f"hydra.searchpath=[{quoted(f'file://{place}')}]"


@contextlib.contextmanager
def hydra_of(directory: Path) -> Iterator[Any]:
    """Hydra with this config tree: ``hydra.main`` takes its arguments from the shell alone."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(directory), version_base="1.3", job_name="qpa_exp"):
        yield GlobalHydra.instance().hydra


def with_values(config: Config, overrides: Sequence[str]) -> Config:
    """Return a config that was read back, with other values of single keys.

    Raises:
        InputError: a key that does not exist, a value that is not allowed, or a group's choice.
    """
    overrides = _checked(overrides)
    for override in overrides:
        if not _VALUE.match(override):
            raise InputError(
                f"{override} cannot change when a run goes on: give single keys that may, "
                "for example trainer.max_epochs=8 or logger.name=wandb."
            )
    register_schema()
    return compose_by(lambda _: OmegaConf.structured(config), overrides, saved=True)


def compose_by(
    load: Callable[[tuple[str, ...]], DictConfig], overrides: Sequence[str], *, saved: bool = False
) -> Config:
    """Return a config, typed and within range.

    Hydra takes a quarter of a second for one, so it composes the groups once for all that choose
    the same, and single values are set on a copy.

    Args:
        load: lets Hydra compose overrides, and keeps what came out.
        overrides: of one run.
        saved: as :func:`to_config` takes it.

    Raises:
        InputError: a key, an option or a value that is not allowed.
    """
    values = [override for override in overrides if _VALUE.match(override)]
    groups = tuple(override for override in overrides if override not in values)
    refuse_ways_out(groups)
    with _explained(overrides):
        composed = copy.deepcopy(load(groups))
        for override in values:
            parsed = _parsed(override)
            if parsed is None or parsed.is_sweep_override():
                raise InputError(f"{override} {_UNREADABLE}")
            key, _, value = override.partition("=")
            try:
                OmegaConf.update(composed, key, parsed.value())
            except OmegaConfBaseException as error:
                raise InputError(_explain_bad_value(key, value, str(error))) from error
        return to_config(composed, saved=saved)


@contextlib.contextmanager
def _explained(overrides: Sequence[str]) -> Iterator[None]:
    """Turn what Hydra and OmegaConf say of these overrides into one sentence."""
    from hydra.errors import HydraException

    try:
        yield
    except InputError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explain(error)) from error
    except (AssertionError, AttributeError) as error:
        if sentence := _explain_below_null(error, overrides):
            raise InputError(sentence) from error
        raise
    except RecursionError as error:
        raise InputError(f"{' '.join(overrides)} is too deep, or refers to itself.") from error
    except (ValueError, OverflowError) as error:  # Hydra's own, for an override of another form
        raise InputError(_cannot_be_read(overrides, error)) from error


def refuse_several(overrides: Iterable[str]) -> None:
    """Refuse several values of one key, which are several runs.

    Raises:
        InputError: it says how to start them.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        parsed = _parsed(override) if re.search(r"[,(]", value) else None
        if parsed is not None and parsed.is_sweep_override():
            a_list = f"a list is {key}=[{value}], " if key in _list_keys() else ""
            a_text = f'a text is "{key}={quoted(value)}", ' if key in _text_keys() else ""
            raise InputError(
                f"{override} gives several values, and a run has one: {a_list}{a_text}a sweep "
                f"needs -m, as in python -m qpa_exp -m {override}"
            )


@functools.lru_cache(maxsize=4096)
def _parsed(override: str) -> Any:
    """Return what Hydra reads there; None where it cannot."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(override)
    except (HydraException, ValueError, RecursionError):
        return None


_VALUE = re.compile(r"(?!hydra\.)(\w+(\.\w+)+|seed|task|resume|init_from)=", re.ASCII)
"""The beginning of an override that sets one key, and chooses no group."""


# --- references -------------------------------------------------------------------------------

_TYPED = r"[\w.\[\]-]+|mul:[\w., +-]*|now:[^${}]*|hydra:runtime\.[\w.]+"
_REFERENCE = re.compile(rf"\$\{{(?:{_TYPED})\}}")
_OUR_OWN = re.compile(rf"\$\{{(?:{_TYPED}|oc\.select:[^${{}}]*)\}}")
"""What conf/ writes, one in another: a key of the config, a product, the time."""


def refuse_interpolations(overrides: Iterable[str]) -> None:
    """Refuse what would read more than the config, before Hydra sees it: ``${oc.env:TOKEN}``.

    What it stands for would be in every file of the run, and in W&B. ``hydra.searchpath`` leads to
    files that nobody has looked through, as :func:`refuse_foreign_code` does.

    Raises:
        InputError: it says which override, and not what it stands for.
    """
    for override in overrides:
        if override.lstrip("+~").startswith("hydra.searchpath"):
            raise InputError(
                "hydra.searchpath may lead to files that run code: give --config-dir <directory>, "
                "which is looked through first."
            )
        # Hydra takes the backslashes and quotes away: $\{...\} becomes a reference, too.
        if _holds_reference(_REFERENCE.sub("", re.sub(r"[\\'\"]", "", override))):
            key = override.partition("=")[0]
            raise InputError(f"{'An override' if _holds_reference(key) else key} {_NOT_RUN}")


_NOT_RUN = (
    "holds a reference that is not allowed: ${a.key}, ${mul:2,3}, ${now:%Y} and "
    "${hydra:runtime.cwd} are, not one in another; let your shell put in anything else."
)


def refuse_ways_out(overrides: Iterable[str]) -> None:
    """Refuse an option of a group outside the directories of configs: nobody has looked at it.

    Raises:
        InputError: it says which override.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        is_group = "." not in key.partition("@")[0]  # the rest is where its keys go
        if is_group and ".." in value and not _VALUE.match(override):
            raise InputError(f"{override} leads out of the configs: give an option's name.")


def _holds_reference(text: str) -> bool:
    return "${" in text


def _mul(a: Any, b: Any) -> int | float:
    for factor in (a, b):
        if type(factor) not in (int, float) or abs(factor) > 2**63:
            raise InputError("${mul:a,b} takes two numbers.")
    product: int | float = a * b
    return product


def _from(init_from: str | None) -> str:
    """Say, in the name of a run's directory, what it starts from."""
    return "" if init_from is None else f"-from-{source_name(str(init_from))}"


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested dicts and lists, keys included, and where it is."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            place = f"{key}.{name}".lstrip(".")
            yield from _texts(name, key)
            yield from _texts(item, place)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, key)


def _refuse_foreign_references(composed: DictConfig) -> None:
    """Refuse foreign references in the files of conf/, before any is followed."""
    for key, text in _texts(OmegaConf.to_container(composed, resolve=False)):
        if _holds_reference(_without_our_own(text)):
            raise InputError(f"{key} {_NOT_RUN}")


def _without_our_own(text: str) -> str:
    before = ""
    while before != text:
        before, text = text, _OUR_OWN.sub("_", text)
    return text


def refuse_foreign_code(arguments: Sequence[str]) -> argparse.Namespace:
    """Refuse what Hydra would run out of a directory of configs, or read for itself.

    Hydra makes whatever its callbacks and its logging name in a file that ``--config-dir`` or
    ``--config-path`` leads to, and follows what it refers to. Nothing there may lead elsewhere.

    Args:
        arguments: of the shell, with flags of Hydra's.

    Returns:
        Hydra's flags, and the ``overrides``.

    Raises:
        InputError: it says which file.
    """
    from hydra._internal.utils import get_args_parser  # no public way reads Hydra's flags

    from qpa_exp.files.plain_yaml import read_yaml

    given, _ = get_args_parser().parse_known_args(list(arguments))
    if given.experimental_rerun:
        raise InputError("--experimental-rerun reads a pickle, which may hold code: give resume=.")
    for directory in filter(None, (given.config_dir, given.config_path)):
        found = itertools.islice(typed_path(directory).rglob("*"), _MOST_CONFIGS + 1)
        for n, path in enumerate(found):
            if n == _MOST_CONFIGS:
                raise InputError(f"{directory} has more than {_MOST_CONFIGS} files: give less.")
            if path.is_symlink():
                raise InputError(f"{path} is a link: a directory of configs holds none.")
            if path.suffix != ".yaml":
                continue
            for key, text in _texts(read_yaml(path, references=True)):
                runs = _RUNS_CODE.search(text) or _TAKES_COMMANDS & set(key.split("."))
                if runs or _holds_reference(_without_our_own(text)):
                    raise InputError(f"{path} holds {key or text}={text}, which would be run.")
                if ".." in text and key.partition(".")[0] == "defaults":
                    raise InputError(f"{path} leads out of its directory with {text}.")
    return given


_MOST_CONFIGS = 1000
_RUNS_CODE = re.compile(r"^(_target_|_partial_|class|factory|\(\)|searchpath)$|\bext://")
"""Keys under which Hydra and logging name what they make, and where more of them lies."""
_TAKES_COMMANDS = {"env_set", "setup", "srun_args", "python", "additional_parameters"}
"""Keys whose texts a launcher gives to a shell, and what changes how programs start."""


def _refuse_left_references(config: Config) -> None:
    """Refuse references: what is written to a run's directory is read back as plain text."""
    for key, text in _texts(dataclasses.asdict(config)):
        if _holds_reference(text):
            raise InputError(f"{key} holds ${{, which begins a reference: it cannot be in a text.")


def as_typed(arguments: Sequence[str]) -> list[str]:
    r"""Return overrides that Hydra's grammar can read: a text that it cannot is quoted for it.

    So ``data.path=~/my texts/a.txt`` means what it says, with blanks, umlauts, ``'`` and ``=``.

    Examples:
        >>> as_typed(["data.path=o'neil/ä.txt", "qpa.n_mlp=64"])
        ["data.path='o\\'neil/ä.txt'", 'qpa.n_mlp=64']
    """
    return [_as_typed(argument) for argument in arguments]


def _as_typed(argument: str) -> str:
    if argument.startswith("++") and argument.partition("=")[0][2:] in known_keys():
        argument = argument[2:]
    key, equals, value = argument.partition("=")
    if not equals or key not in _text_keys():
        return argument
    if _PLAIN.fullmatch(value):  # 1e3 and 2024_01 are names here, no numbers
        return argument if value == "null" or key == _PATTERN_KEY else f"{key}={as_text(value)}"
    if key == _PATTERN_KEY and _PATTERN.match(value):
        return f"{key}={quoted(value)}"
    return argument if _parsed(argument) is not None else f"{key}={quoted(value)}"


_PLAIN = re.compile(r"[\w./+-]+", re.ASCII)
_PATTERN_KEY = "peft.target_modules"
_TEXT_OR_LIST = ("data.path", _PATTERN_KEY)
_PATTERN = re.compile(r"(?!['\"]|\[[\w.,\s-]*\](,|$)|(choice|sort|shuffle)\().*[\\()|*+?^$]")
"""A regular expression: Hydra would take its backslashes away, and read ``(`` as a call."""


def as_text(text: str) -> str:
    """Return a text as an override's value; in quotes where Hydra would read anything else.

    Examples:
        >>> as_text("runs/1e3"), as_text("1e3"), as_text("my runs")
        ('runs/1e3', "'1e3'", "'my runs'")
    """
    parsed = _parsed(f"a={text}") if _PLAIN.fullmatch(text) else None
    return text if parsed is not None and isinstance(parsed.value(), str) else quoted(text)


def quoted(text: str) -> str:
    """Return a text as Hydra's grammar for overrides writes it, whatever is in it."""
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", text).replace("'", "\\'")
    return f"'{escaped}'"


@functools.cache
def _text_keys() -> frozenset[str]:
    """Return the keys of the schema that hold a text, and Hydra's own that hold a path."""
    texts = {key for key, item in dotted(Config()) if "str" in str(item.type).split("[")[0]}
    hydras = {"hydra.run.dir", "hydra.sweep.dir", "hydra.sweeper.records"}
    return frozenset({*texts, *hydras, *_TEXT_OR_LIST})


@functools.cache
def _list_keys() -> frozenset[str]:
    lists = {key for key, item in dotted(Config()) if str(item.type).startswith("list")}
    return frozenset({*lists, *_TEXT_OR_LIST})


def check_key(override: str) -> None:
    """Refuse a misspelt key at once: Hydra would say so, but takes a second to start."""
    if override.startswith("~"):
        raise InputError(f"{override}: nothing can be taken away: give a value instead.")
    key = override.partition("=")[0]
    inside = ("hydra.", "peft.options.", "model.architecture.", "model.recipe.")
    plain = re.fullmatch(r"\w+(\.\w+)+", key) and not key.startswith(inside)
    if plain and key not in known_keys():
        raise InputError(_explain_unknown_key(key))


Schema = TypeVar("Schema")


def option(says: str, default: Any = MISSING, **limits: Any) -> Any:
    """Describe an option of a command: what its help says of it, and limits as config.py's fields
    have them.
    """
    return field(default=default, metadata={"says": says, **limits})


def options_page(doc: str | None, schema: type) -> str:
    """Return the help of a command that takes no config groups: its module's words, and its
    options.
    """
    lines = []
    for item in fields(schema):
        default = "" if item.default in (MISSING, None) else f" [{str(item.default).lower()}]"
        lines.append(f"  {item.name + '=':<16}{item.metadata['says']}{default}")
    return plain_text(doc) + "\nOptions [default]:\n" + "\n".join(lines) + "\n"


def plain_text(doc: str | None) -> str:
    """Return a module's docstring as the terminal shows it."""
    return (doc or "").replace("``", "")


def parse_options(schema: type[Schema], arguments: Sequence[str]) -> Schema:
    """Return the options of a command that takes no config groups: ``key=value``, typed by a
    dataclass.

    Raises:
        InputError: an option that does not exist, has the wrong type, is missing or out of range.
    """
    structured = OmegaConf.structured(schema)
    names = list(get_type_hints(schema))
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not equals:
            raise InputError(f"{argument} cannot be read as an option: write key=value.")
        if key not in names:
            raise InputError(f"{key} is no option of this command: it takes {', '.join(names)}.")
    try:
        pairs = (argument.partition("=") for argument in arguments)
        # A value is text as it stands: no reference to another key. OmegaConf takes one of each
        # two backslashes before "${" away.
        given = {key: re.sub(r"(\\*)\$\{", r"\1\1\\${", value) for key, _, value in pairs}
        options = OmegaConf.to_object(OmegaConf.merge(structured, given))
    except OmegaConfBaseException as error:
        raise InputError(explain(error)) from error
    assert isinstance(options, schema)
    validate(options)
    return options


def split_options(schema: type[Schema], arguments: Sequence[str]) -> tuple[Schema, list[str]]:
    """Return the options of a command that takes a run's keys, too, and the other arguments.

    Raises:
        InputError: as :func:`parse_options`; or ``init_from`` as no run can have it.
    """
    names = tuple(f"{name}=" for name in get_type_hints(schema))
    rest = [argument for argument in arguments if not argument.startswith(names)]
    for key, _, value in (argument.partition("=") for argument in rest):
        if key == "init_from" and value != "null":
            trained_at(typed_path(value))
    return parse_options(schema, [a for a in arguments if a.startswith(names)]), rest


def to_config(composed: DictConfig, *, saved: bool = False) -> Config:
    """Resolve every reference, and check every range.

    Args:
        composed: what Hydra has composed.
        saved: whether it was read back: a key without effect is no mistake there.

    Raises:
        InputError: a value that is missing or out of range.
    """
    try:
        _refuse_appended_keys(composed)
        _refuse_foreign_references(composed)
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        for registry in (METHODS, VARIANTS):  # defaults hang on these: an unknown one has none
            if (name := OmegaConf.select(composed, registry.key)) is not None:
                _ = registry[name]
        raise InputError(explain(error)) from error
    assert isinstance(config, Config)
    if config.resume is not None and not saved:
        raise InputError(
            f"resume={config.resume:.200} goes on with that run: give it to qpa-exp train, without "
            "-m and other flags. Here the keys of a run are taken: they are in its config.yaml."
        )
    _refuse_left_references(config)
    check(config, saved=saved)
    return config


def known_keys() -> list[str]:
    """Every key of the schema, dotted: ``qpa.n_mlp``."""
    return [key for key, _ in dotted(Config())]


def explain(error: BaseException) -> str:
    """One sentence from an error of Hydra or OmegaConf: what is wrong, and what would be right."""
    from hydra.errors import OverrideParseException

    text = str(error)
    cause = error.__cause__
    if isinstance(error, MissingMandatoryValue) or "Missing mandatory value" in text:
        return f"{_full_key(text)} has no value: give {_full_key(text)}=<value>."
    if match := re.match(r"InputError raised while resolving interpolation: (.*)", text):
        return f"{_full_key(text)}: {match[1]}"
    if isinstance(error, InterpolationKeyError):
        key = _full_key(text)
        why = "has no default for this combination of model, variant and method"
        return f"{key} {why}: give {key}=<value>."
    if match := re.search(r"Could not find '([\w/]+)/([^'/]*)'", text):
        group, option = match.groups()
        if group == "peft":
            return unknown_method(option)
        options = re.findall(r"^\t([a-z]\w*)$", text, flags=re.MULTILINE)
        hint = _LAUNCHERS if group == "hydra/launcher" else ""
        return f"{group}={option} is unknown: give one of {', '.join(options)}{hint}."
    if match := re.search(r"Could not (?:override|append|delete)[^']*'([^'=]*)", text):
        if (key := match.group(1).lstrip("+")) in known_keys():
            return f"+{key} adds a key, and this one is there already: give {key}=<value>."
        return _explain_unknown_key(key)
    if match := re.search(r"Error merging override '?\+*([^=]+)=(.*?)'?$", text, re.MULTILINE):
        return _explain_bad_value(match.group(1), match.group(2), str(cause or text))
    if match := re.search(r"Key '(\w+)' (?:is not in struct|not in '\w+')", text):
        return _explain_unknown_key(_full_key(text) or match.group(1))
    if isinstance(error, OverrideParseException):
        return _cannot_be_read([str(error.override)], error)
    return first_line(text)


_LAUNCHERS = "; others come with pip install 'qpa-exp[sweeps]'"


def _refuse_appended_keys(node: DictConfig, prefix: str = "") -> None:
    """Hydra's ``+key=value`` adds keys that no part of the program reads: a typo in disguise."""
    kind: Any = OmegaConf.get_type(node)
    allowed = {item.name for item in fields(kind)}
    for name in map(str, node):
        key = f"{prefix}{name}"
        if name not in allowed:
            raise InputError(_explain_unknown_key(key))
        if is_dataclass(OmegaConf.get_type(node, name)):
            _refuse_appended_keys(node[name], f"{key}.")


def _explain_unknown_key(key: str) -> str:
    key = key.lstrip("+~").split("@")[0]
    if key.startswith("hydra.launcher."):
        return (
            f"{key} is not a key of this launcher: choose one that has it, for example with "
            "hydra/launcher=joblib."
        )
    if key.startswith("hydra."):
        return f"{key} is not a key of Hydra's: python -m qpa_exp --cfg hydra shows them all."
    close = nearest(key, known_keys()) or [f"one of {', '.join(f.name for f in fields(Config))}"]
    return f"{key} is not a key of the configuration: did you mean {' or '.join(close)}?"


def _explain_bad_value(key: str, value: str, reason: str) -> str:
    if re.search(r"Key '\w+' (is )?not in", reason):
        return _explain_unknown_key(key)
    if match := re.search(r"could not be converted to (\w+)", reason):
        wanted = match.group(1)
        return f"{key}={value} has the wrong type: give {_ARTICLED.get(wanted, wanted)}."
    why = first_line(reason).rstrip(".")
    return f"{key}={value} is not allowed: {why[:1].lower()}{why[1:]}."


def _explain_below_null(error: BaseException, overrides: Iterable[str]) -> str | None:
    """One sentence where OmegaConf failed to set a key of a table that is null, else None.

    It asserts that there is a table, and does not say which key it was.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if not frame.f_globals["__name__"].startswith("omegaconf."):
        return None
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    below = [
        key
        for key, _, value in pairs
        if "." in key and (key not in known_keys() or value.startswith("{"))
    ]
    if not below:
        return None  # a bug
    return (
        f"{', '.join(below)} cannot be set: the table is null here, and takes no keys: leave it "
        "out, or choose an option whose file has that table."
    )


_ARTICLED = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def _cannot_be_read(overrides: Sequence[str], error: Exception) -> str:
    """Which override Hydra could not make sense of: the one that its message quotes, or all."""
    named = [override for override in overrides if override in str(error)]
    return f"{' '.join(named or overrides)} {_UNREADABLE}"


_UNREADABLE = "cannot be read as an override: write key=value."


def _full_key(text: str) -> str:
    match = re.search(r"(?:full_key|Missing mandatory value): (\S+)", text)
    return match.group(1) if match else ""


# --- the boundary of a command ----------------------------------------------------------------

_INTERRUPTED = 128 + signal.SIGINT
_CLOSED_PIPE = 128 + 13  # as the shell says of a process that SIGPIPE ended
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory")
"""What torch says, whose errors are plain RuntimeErrors on a CPU."""
_REPORT = "This is a bug of qpa_exp: please report the lines above to the project's issue tracker."


def run_command(
    main: Callable[[list[str]], None], help_page: Callable[[], str] | None = None
) -> NoReturn:
    """Run a command on ``sys.argv``, and end the process.

    ``--help`` prints its page instead, or what its module says, and ``--version`` the package's.
    Status 0; 2 and one sentence on stderr for what the user or the machine does not allow; 130
    for Ctrl-C; 141 where nobody reads the output any more; 1 and a traceback for a bug.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack what is to be printed
    status = _run(functools.partial(_answer, main, help_page))
    for stream in (sys.stdout, sys.stderr):
        if _fault(stream) is not None:  # Python would complain about it at its very end
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)


def _answer(
    main: Callable[[list[str]], None], help_page: Callable[[], str] | None, arguments: list[str]
) -> None:
    if {"-h", "--help"} & set(arguments):
        module = sys.modules[main.__module__]
        print(help_page() if help_page else module.__doc__, end="")
    elif arguments == ["--version"]:
        print(f"qpa_exp {sys.modules['qpa_exp'].__version__}")
    else:
        main(arguments)


def _run(main: Callable[[list[str]], None]) -> Any:
    """Return the exit status."""
    try:
        status: Any = 0
        try:
            _refuse_no_text(sys.argv[1:])
            main(sys.argv[1:])
        except SystemExit as ended:
            if isinstance(ended.__context__, BrokenPipeError):  # which rich turns into status 1
                return _CLOSED_PIPE
            status = ended.code
        if error := _fault(sys.stdout):
            raise error
        return status
    except KeyboardInterrupt:
        _say("interrupted")
        return _INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads(sys.stdout):
            return _CLOSED_PIPE
        sentence = _explain_any(error)
        if sentence is None:
            _say("".join(traceback.format_exception(error)) + _REPORT)
            return 1
        _say(f"error: {sentence}")
        return USAGE_ERROR


def _nobody_reads(stream: Any) -> bool:
    """Whether it is a pipe whose other end is closed: what is printed next would be lost, too."""
    poll = select.poll()
    try:
        poll.register(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError, AttributeError):
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it
        print(text, file=sys.stderr, flush=True)


def _fault(stream: Any) -> OSError | None:
    """Why what was printed to this stream does not arrive; None where it does."""
    try:
        if stream is not None:
            stream.flush()
    except OSError as error:
        return error
    return None


def _refuse_no_text(arguments: Sequence[str]) -> None:
    """Bytes that are no UTF-8 could be written to no file of a run."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{argument!r} is not valid UTF-8.") from error
        if "\0" in argument:
            raise InputError(f"{argument!r} holds a zero byte, which no text and no path has.")


def _explain_any(error: Exception) -> str | None:
    """One sentence for what the user or the machine does not allow; None for a bug."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OmegaConfBaseException) or type(error).__module__.startswith("hydra."):
        return str(InputError(explain(error)))
    if isinstance(error, AssertionError | AttributeError):
        sentence = _explain_below_null(error, sys.argv[1:])
        return sentence and str(InputError(sentence))
    if isinstance(error, OSError):
        return str(InputError(_explain_os_error(error)))
    refused = isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))
    if refused or isinstance(error, MemoryError):
        asked = re.search(r"allocate [\d.]+ \w+", str(error))
        return (
            f"There is not enough memory{f' to {asked[0]}' if asked else ''}: ask for less at once."
        )
    return None


def _explain_os_error(error: OSError) -> str:
    reason = error.strerror or first_line(error) or type(error).__name__
    where = error.filename or "The output"
    writing = error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EEXIST)
    if not writing and error.filename is None:
        return f"{reason.rstrip('.')}."
    return f"{where} cannot be {'written' if writing else 'used'}: {reason}."
